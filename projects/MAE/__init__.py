"""Masked autoencoders. ``load_encoder`` is for one's own programs; see docs/encoder.md."""

from __future__ import annotations


def load_encoder(weights, **options):
    """The encoder of a run, a checkpoint, or a file or folder of the official code, timm or
    Hugging Face.

    Brings OneFlow up when it is first called: in a process that has not computed anything with
    OneFlow before, and was not started by the launcher.

    Args:
        weights: a path; of a run its last checkpoint is taken.
        options: ``device``, ``img_size``, ``heads``, ``grid``, see
            :func:`projects.MAE.encoder.open_encoder`.

    Returns:
        A :class:`projects.MAE.encoder.Encoder`.

    Raises:
        ConfigError: the device cannot be used, or OneFlow is in use already.
        CheckpointError: the weights cannot be used; like the other one a ``UserError``.
    """
    # Not at the top: recipes and the launcher import this package without the engine.
    from libai_ext.errors import ConfigError
    from libai_ext.startup import start

    try:
        start()
    except RuntimeError as error:
        raise ConfigError(
            f"{error}. In a notebook: restart it, and load the encoder first"
        ) from error
    from projects.MAE.encoder import open_encoder

    return open_encoder(weights, **options)

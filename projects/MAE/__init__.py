"""Masked autoencoders. ``load_encoder`` is for use in other programs; see docs/encoder.md."""

from __future__ import annotations


def load_encoder(weights, **options):
    """The encoder of a run, a checkpoint, or a file or folder of the official code, timm or
    Hugging Face.

    Initialises OneFlow at its first call. The process must not have computed anything with OneFlow
    before, and the launcher must not have started it.

    Args:
        weights: a path; for a run, its last checkpoint is used.
        options: ``device``, ``img_size``, ``heads``, ``grid``, see
            :func:`projects.MAE.encoder.open_encoder`.

    Returns:
        A :class:`projects.MAE.encoder.Encoder`.

    Raises:
        ConfigError: the device cannot be used, or OneFlow is in use already.
        CheckpointError: the weights cannot be used. Both errors are a ``UserError``.
    """
    # Imported here: recipes and the launcher import this package without the engine.
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

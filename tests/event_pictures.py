"""Reads a run's pictures back from its event file and draws them anew from its weights."""

from __future__ import annotations

import io

import numpy as np
import oneflow as flow
from libai.config import instantiate
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libai_ext.config.lazy_config import fresh
from libai_ext.data.sampler import GlobalOrder
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.evaluation.probe import load_run
from projects.MAE.run import resolve

MARGIN = 2


def pictures_of(run):
    """Iteration -> uint8 [H, W, 3]; TensorBoard has grey as three equal channels."""
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0}).Reload()
    return {
        event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        for event in events.Images("reconstruction")
    }


def cells(picture, samples, height, width):
    """uint8 [samples, 4, height, width, 3]; what lies around them must be white."""
    step_y, step_x = height + MARGIN, width + MARGIN
    assert picture.shape[:2] == (MARGIN + samples * step_y, MARGIN + 4 * step_x)
    assert (picture[:MARGIN] == 255).all() and (picture[:, :MARGIN] == 255).all()
    return np.stack(
        [
            [
                picture[MARGIN + row * step_y :, MARGIN + column * step_x :][:height, :width]
                for column in range(4)
            ]
            for row in range(samples)
        ]
    )


def expected_cells(run, samples):
    """What :func:`cells` must give at the end of a run: its final weights on the first samples of
    its first batch, each patch by hand. float, 0 to 255."""
    one = str(run / "config.yaml"), ["train.dist.data_parallel_size=1"]
    cfg, model = load_run(*one)
    batch = resolve(*one).train.global_batch_size
    node = fresh(cfg.dataloader.train.dataset)
    node.seed = cfg.train.seed
    dataset = instantiate(node)
    order = GlobalOrder(len(dataset), batch, cfg.train.seed)
    first = [dataset[key] for key in order.batch(0)[:samples]]
    images, noise = (np.stack([sample[name] for sample in first]) for name in ("images", "noise"))
    with flow.no_grad():
        out = model(to_global(images, batch_sbp()), to_global(noise, batch_sbp()))
    prediction, mask = out["prediction"].numpy(), out["mask"].numpy()
    kept = np.argsort(noise, axis=1)[:, : model.keep]

    p, (_, columns) = cfg.model.patch_size, model.patch_embed.grid_size
    mean, std = np.array(cfg.data.mean), np.array(cfg.data.std)
    result = np.zeros((samples, 4, *images.shape[2:], images.shape[1]))
    for sample in range(samples):
        assert set(np.flatnonzero(mask[sample] == 0)) == set(kept[sample])
        for patch in range(mask.shape[1]):
            y, x = patch // columns * p, patch % columns * p
            original = images[sample, :, y : y + p, x : x + p].transpose(1, 2, 0)
            drawn = prediction[sample, patch].reshape(p, p, -1)
            if cfg.model.norm_pix_loss:
                drawn = drawn * np.sqrt(original.var(ddof=1) + 1e-6) + original.mean()
            original, drawn = (np.clip(v * std + mean, 0, 1) * 255 for v in (original, drawn))
            visible = patch in kept[sample]
            shown = (
                original,
                original if visible else 127.5,
                drawn,
                original if visible else drawn,
            )
            for column, value in enumerate(shown):
                result[sample, column, y : y + p, x : x + p] = value
    return result


def check(run, steps, samples):
    """The pictures of ``steps`` are there; the last one is what the final weights give.

    Returns:
        The last one, as :func:`cells` gives it.
    """
    pictures = pictures_of(run)
    assert list(pictures) == steps
    expected = expected_cells(run, samples)
    drawn = cells(pictures[steps[-1]], samples, *expected.shape[2:4])
    np.testing.assert_allclose(drawn, np.broadcast_to(expected, drawn.shape), atol=0.51)
    for before, after in zip(steps, steps[1:]):
        assert not np.array_equal(pictures[before], pictures[after])
    return drawn

"""Write what an independent implementation computes: Hugging Face's ViTMAE on PyTorch.

    python tests/golden/make_mae_numbers.py

Needs torch and transformers, so it runs in an environment of its own. The committed files were
written by torch 2.13.0 and transformers 5.23.0.
"""

import math
import pathlib

import numpy as np
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

FOLDER = pathlib.Path(__file__).parent / "mae_numbers"
PATCH, BATCH = 4, 4
CASES = {  # height, width, channels; the grid of each has a square number of patches
    "square": (16, 16, 3),
    "rectangular": (8, 32, 3),
    "grey": (16, 16, 1),
}
STEPS, WARMUP, ACCUMULATION = 10, 3, 2
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-3, 0.05, (0.9, 0.95)


def sincos(rows, columns, width):
    """Position table [1, 1 + rows * columns, width] in torch, zero row first."""
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64),
        torch.arange(columns, dtype=torch.float64),
        indexing="ij",
    )
    halves = []
    for axis in (x, y):
        angles = axis.flatten()[:, None] * omega[None]
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    table = torch.cat(halves, dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])[None].float()


def model_of(height, width, channels):
    config = ViTMAEConfig(
        image_size=(height, width),
        patch_size=PATCH,
        num_channels=channels,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
        mask_ratio=0.75,
    )
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(config)
    grid = (height // PATCH, width // PATCH)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and scales that do something
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
        model.vit.embeddings.position_embeddings.copy_(sincos(*grid, 24))
        model.decoder.decoder_pos_embed.copy_(sincos(*grid, 16))
    # Its patchify refuses rectangles unless told that embeddings are interpolated.
    patchify = model.patchify
    model.patchify = lambda pixels, **_: patchify(pixels, interpolate_pos_encoding=True)
    return model.train()


def batch(seed, height, width, channels, size=BATCH):
    """Images and noise; the tests draw the same."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(size, channels, height, width)).astype(np.float32)
    noise = rng.random((size, height * width // PATCH**2), dtype=np.float32)
    return torch.from_numpy(images), torch.from_numpy(noise)


def arrays(prefix, named):
    return {f"{prefix}/{name}": tensor.detach().numpy().copy() for name, tensor in named}


def forward_and_gradients(name, size):
    model = model_of(*size)
    images, noise = batch(1, *size)
    out = arrays("weight", model.state_dict().items())
    for mode in ("pixels", "norm_pix"):
        model.config.norm_pix_loss = mode == "norm_pix"
        model.zero_grad()
        result = model(images, noise=noise)
        result.loss.backward()
        out[f"{mode}/loss"] = result.loss.detach().numpy()
        out[f"{mode}/prediction"] = result.logits.detach().numpy()
        out[f"{mode}/mask"] = result.mask.detach().numpy()
        trained = ((n, p.grad) for n, p in model.named_parameters() if p.requires_grad)
        out.update(arrays(f"{mode}/gradient", trained))
    np.savez_compressed(FOLDER / f"{name}.npz", **out)


def learning_rate(step):
    """The official lr_sched.py, per step."""
    if step < WARMUP:
        return LEARNING_RATE * step / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))


def adamw_steps():
    size = CASES["square"]
    model = model_of(*size)
    out = arrays("before", model.state_dict().items())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
    )
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        images, noise = batch(100 + step, *size, size=BATCH * ACCUMULATION)
        total = 0.0
        for part in range(ACCUMULATION):
            rows = slice(part * BATCH, (part + 1) * BATCH)
            loss = model(images[rows], noise=noise[rows]).loss / ACCUMULATION
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    out.update(arrays("after", model.state_dict().items()))
    out["losses"] = np.array(losses)
    np.savez_compressed(FOLDER / "adamw.npz", **out)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for case in CASES.items():
        forward_and_gradients(*case)
    adamw_steps()

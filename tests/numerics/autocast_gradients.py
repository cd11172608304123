"""Gradients of Hugging Face's ViTMAE in float64 and under PyTorch's autocast with bfloat16.

    ORACLE_PYTHON tests/numerics/autocast_gradients.py OUTPUT.npz

Of the weights and the batch of tests/golden/mae_numbers/square.npz, by the names of Hugging Face,
under ``exact/`` and ``autocast/``.
"""

import pathlib
import sys

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from make_mae_numbers import CASES, batch, model_of  # noqa: E402


def gradients(prefix, dtype):
    file = np.load(GOLDEN / "mae_numbers/square.npz")
    weights = {k[len("weight/") :]: torch.from_numpy(file[k]) for k in file if k[:7] == "weight/"}
    model = model_of(*CASES["square"])
    model.load_state_dict(weights)
    model.to(dtype)
    images, noise = batch(1, *CASES["square"])
    with torch.autocast("cpu", torch.bfloat16, enabled=prefix == "autocast"):
        loss = model(images.to(dtype), noise=noise).loss
    loss.backward()
    named = ((n, p.grad) for n, p in model.named_parameters() if p.requires_grad)
    return {f"{prefix}/{name}": gradient.double().numpy() for name, gradient in named}


np.savez(sys.argv[1], **gradients("exact", torch.float64), **gradients("autocast", torch.float32))

"""Gradients of Hugging Face's ViTMAE in float64 and under PyTorch's autocast with bfloat16.

    ORACLE_PYTHON tests/numerics/autocast_gradients.py OUTPUT.npz SEED...

Of the weights of tests/golden/mae_numbers/square.npz and batches drawn with SEEDS, one after the
other, by the names of Hugging Face, under ``exact/SEED/`` and ``autocast/SEED/``.
"""

import pathlib
import sys

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from make_mae_numbers import CASES, batch, model_of  # noqa: E402


def gradients(prefix, dtype, seed):
    file = np.load(GOLDEN / "mae_numbers/square.npz")
    weights = {k[len("weight/") :]: torch.from_numpy(file[k]) for k in file if k[:7] == "weight/"}
    model = model_of(*CASES["square"])
    model.load_state_dict(weights)
    model.to(dtype)
    images, noise = batch(seed, *CASES["square"])
    with torch.autocast("cpu", torch.bfloat16, enabled=prefix == "autocast"):
        loss = model(images.to(dtype), noise=noise).loss
    loss.backward()
    named = ((n, p.grad) for n, p in model.named_parameters() if p.requires_grad)
    return {f"{prefix}/{seed}/{name}": gradient.double().numpy() for name, gradient in named}


found = {}
for seed in map(int, sys.argv[2:]):
    found.update(gradients("exact", torch.float64, seed))
    found.update(gradients("autocast", torch.float32, seed))
np.savez(sys.argv[1], **found)

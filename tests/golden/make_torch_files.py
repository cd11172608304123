"""Write the golden checkpoints and the outputs beside them, with real PyTorch and transformers.

    python tests/golden/make_torch_files.py [FOLDER]

The committed files were written by torch 2.13.0 and transformers 5.23.0.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch
from reference_mae import MaskedAutoencoder, VisionTransformer, randomise
from safetensors.torch import save_file
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

# Small enough to commit. No published model has these widths, so the heads must be given.
ENCODER = dict(patch=2, channels=3, width=12, depth=2, heads=3)
DECODER = dict(decoder_width=8, decoder_depth=1, decoder_heads=2)
SQUARE, TEXT_LINE = (4, 4), (2, 8)
CLASSES = 5


def masking(batch, patches, kept, seed):
    """keep [B, K] and restore [B, L] of a random masking."""
    noise = torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed))
    shuffle = noise.argsort(1)
    return shuffle[:, :kept], shuffle.argsort(1)


def images(grid):
    """Two images [2, C, H, W] of the grid."""
    shape = (2, ENCODER["channels"], grid[0] * ENCODER["patch"], grid[1] * ENCODER["patch"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def pretraining_files(folder):
    """The official layout: encoder and decoder, and the encoder only; zip and legacy format."""
    for name, grid, seed in (("fb_pretrain", SQUARE, 1), ("fb_text_line", TEXT_LINE, 2)):
        model = randomise(MaskedAutoencoder(grid=grid, **ENCODER, **DECODER), seed)
        x = images(grid)
        keep, restore = masking(2, grid[0] * grid[1], 4, seed)
        output = model(x, keep, restore)
        arrays = dict(images=x, keep=keep, restore=restore, output=output)
        np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})
        torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
        if grid == SQUARE:
            encoder = {
                key: value
                for key, value in model.state_dict().items()
                if not key.startswith(("decoder_", "mask_token"))
            }
            torch.save(
                {"model": encoder},
                folder / "fb_encoder_legacy.pth",
                _use_new_zipfile_serialization=False,
            )


def classifier_files(folder):
    """The official fine-tuned layout, with what its training script leaves, and timm's."""
    for name, pooling, seed in (("fb_finetune", "mean", 3), ("timm_cls", "cls", 4)):
        model = randomise(
            VisionTransformer(grid=SQUARE, **ENCODER, classes=CLASSES, pooling=pooling), seed
        )
        x = images(SQUARE)
        np.savez(folder / f"{name}.npz", images=x.numpy(), output=model(x).numpy())
        if pooling == "cls":
            save_file(model.state_dict(), folder / f"{name}.safetensors")
            continue
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        optimizer.step()
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 99,
            "args": argparse.Namespace(model="vit_base_patch16", blr=5e-4),
        }
        torch.save(checkpoint, folder / f"{name}.pth")


def huggingface_files(folder):
    """What `save_pretrained` writes, and a `.bin` of the encoder without the prefix."""
    common = dict(
        hidden_size=ENCODER["width"],
        num_hidden_layers=ENCODER["depth"],
        num_attention_heads=ENCODER["heads"],
        intermediate_size=4 * ENCODER["width"],
        image_size=SQUARE[0] * ENCODER["patch"],
        patch_size=ENCODER["patch"],
        layer_norm_eps=1e-6,
    )
    decoder = dict(
        decoder_hidden_size=DECODER["decoder_width"],
        decoder_num_hidden_layers=DECODER["decoder_depth"],
        decoder_num_attention_heads=DECODER["decoder_heads"],
        decoder_intermediate_size=4 * DECODER["decoder_width"],
    )
    x = images(SQUARE)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(5))
    config = ViTMAEConfig(**common, **decoder)
    model = randomise(ViTMAEForPreTraining(config), 5)
    result = model(x, noise=noise)
    model.save_pretrained(folder / "hf_pretrain")
    shuffle = noise.argsort(1)
    keep, restore = shuffle[:, : int(16 * (1 - config.mask_ratio))], shuffle.argsort(1)
    np.savez(
        folder / "hf_pretrain.npz",
        images=x.numpy(),
        keep=keep.numpy(),
        restore=restore.numpy(),
        output=result.logits.numpy(),
    )
    classifier = randomise(ViTForImageClassification(ViTConfig(**common, num_labels=CLASSES)), 6)
    classifier.save_pretrained(folder / "hf_classifier")
    np.savez(folder / "hf_classifier.npz", images=x.numpy(), output=classifier(x).logits.numpy())
    # transformers 4 wrote .bin files, with the names that version 5 keeps for files only.
    encoder = randomise(ViTMAEModel(config), 8)
    torch.save(encoder.state_dict(), folder / "hf5_encoder.bin")


def tensor_files(folder):
    """Every element type, shared storages and odd strides, in both formats."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "float64": torch.tensor([1.5, -2.25], dtype=torch.float64),
        "float32": base,
        "float16": torch.tensor([0.5, 65504.0, float("inf")], dtype=torch.float16),
        "bfloat16": torch.tensor([1.0, -3.390625, 1e38, float("nan")], dtype=torch.bfloat16),
        "int64": torch.tensor([-(2**62), 3]),
        "int32": torch.tensor([[-5], [7]], dtype=torch.int32),
        "int16": torch.tensor([-300, 300], dtype=torch.int16),
        "int8": torch.tensor([-128, 127], dtype=torch.int8),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "transposed": base.t(),
        "row": base[1],
        "column": base[:, 2],
        "every_other": base[::2, 1::2],
        "expanded": torch.tensor([7.0]).expand(2, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.tensor([4.0, 5.0])),
    }
    tree = {
        "tensors": tensors,
        "plain": [1, -(2**40), 2.5, "text", b"bytes", True, None, (1, (2, 3)), {}, []],
        "size": base.shape,
        "namespace": argparse.Namespace(lr=0.1, names=["a", "b"]),
        "function": torch.relu,
        "dtype": torch.float16,
        "set": {1},
    }
    torch.save(tree, folder / "tensors.pth")
    torch.save(tree, folder / "tensors_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(tree, folder / "tensors_protocol4.pth", pickle_protocol=4)
    plain = {name: value for name, value in tensors.items() if name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "bool", "scalar", "empty"
    )}  # fmt: skip
    save_file(plain, folder / "tensors.safetensors")
    expected = {
        name: value.detach().to(torch.float32 if value.dtype == torch.bfloat16 else value.dtype)
        for name, value in tensors.items()
    }
    np.savez(folder / "tensors.npz", **{name: value.numpy() for name, value in expected.items()})


def interpolation_file(folder):
    """Tables resized by the official formula: grids that grow, shrink, and are not square."""
    generator = torch.Generator().manual_seed(9)
    arrays = {}
    for case, (source, target) in enumerate(
        [((4, 4), (6, 6)), ((7, 7), (3, 3)), ((4, 4), (2, 8)), ((2, 8), (3, 5)), ((1, 3), (2, 2))]
    ):
        table = torch.randn(1, source[0] * source[1], 6, generator=generator)
        grid = table.reshape(1, *source, 6).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            grid, size=target, mode="bicubic", align_corners=False
        )
        arrays[f"source_{case}"] = table.numpy()
        arrays[f"grids_{case}"] = np.array([source, target])
        arrays[f"target_{case}"] = resized.permute(0, 2, 3, 1).flatten(1, 2).numpy()
    np.savez(folder / "interpolation.npz", **arrays)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    with torch.no_grad():
        pretraining_files(folder)
        classifier_files(folder)
        huggingface_files(folder)
        tensor_files(folder)
        interpolation_file(folder)


if __name__ == "__main__":
    main()

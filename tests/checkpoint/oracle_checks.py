"""What real PyTorch and transformers make of our files. Run by the `oracle` fixture."""

import json
import pathlib
import sys
import traceback

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))  # reference_mae, beside the script that uses it for golden files

ENCODER = dict(patch=2, channels=3, width=12, depth=2, heads=3)


def _difference(output, expected):
    return float(np.abs(output.detach().numpy() - expected).max())


def load_plain(path, arrays):
    """torch.load(weights_only=True) gives back what went in: bits, types, shapes, names, order."""
    loaded = torch.load(path, weights_only=True)
    expected = np.load(arrays)
    assert list(loaded["model"]) == expected.files
    for name, tensor in loaded["model"].items():
        array = expected[name]
        assert tensor.is_contiguous(), name
        assert tensor.numpy().dtype == array.dtype and tensor.numpy().shape == array.shape, name
        assert tensor.numpy().tobytes() == array.tobytes(), name
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(mapped["model"]["float32"], loaded["model"]["float32"])
    return {key: value for key, value in loaded.items() if key != "model"}


def fb_pretraining(path, outputs):
    """Strict load into the reference model; returns the largest difference of its output."""
    from reference_mae import MaskedAutoencoder

    data = np.load(outputs)
    grid = tuple(side // 2 for side in data["images"].shape[2:])
    decoder = dict(decoder_width=8, decoder_depth=1, decoder_heads=2)
    model = MaskedAutoencoder(grid=grid, **ENCODER, **decoder)
    model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True)
    tensors = [torch.from_numpy(data[name]) for name in ("images", "keep", "restore")]
    return _difference(model(*tensors), data["output"])


def fb_classifier(path, outputs, pooling):
    """The same for the classifier, from `.pth` with a wrapper or bare, or `.safetensors`."""
    from reference_mae import VisionTransformer
    from safetensors.torch import load_file

    data = np.load(outputs)
    model = VisionTransformer(grid=(4, 4), **ENCODER, classes=5, pooling=pooling)
    if path.endswith(".safetensors"):
        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)
    model.load_state_dict(state.get("model", state), strict=True)
    return _difference(model(torch.from_numpy(data["images"])), data["output"])


def hf(path, outputs, architecture):
    """`from_pretrained` without a missing or unexpected name, and the output."""
    import transformers

    data = np.load(outputs)
    model, report = getattr(transformers, architecture).from_pretrained(
        path, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        report
    )
    model.eval()
    images = torch.from_numpy(data["images"])
    if architecture == "ViTForImageClassification":
        return _difference(model(images).logits, data["output"])
    # Noise that orders the patches as the stored masking does: a patch's rank is its place.
    noise = torch.from_numpy(data["restore"]).float()
    return _difference(model(images, noise=noise).logits, data["output"])


def hf_loss(path, arrays):
    """Loss of ViTMAEForPreTraining, by its own configuration, on stored images and noise."""
    from transformers import ViTMAEForPreTraining

    data = np.load(arrays)
    model = ViTMAEForPreTraining.from_pretrained(path).eval()
    images, noise = (torch.from_numpy(data[name]) for name in ("images", "noise"))
    return float(model(images, noise=noise).loss)


def hf_latent(path, arrays):
    """The same encoder's output on what it keeps; the largest difference."""
    from transformers import ViTMAEForPreTraining

    data = np.load(arrays)
    model = ViTMAEForPreTraining.from_pretrained(path).eval()
    images, noise = (torch.from_numpy(data[name]) for name in ("images", "noise"))
    return _difference(model.vit(images, noise=noise).last_hidden_state, data["latent"])


def hf_layers(path, arrays):
    """The same encoder on whole images: hidden states and last output; the largest difference."""
    from transformers import ViTMAEModel

    data = np.load(arrays)
    model = ViTMAEModel.from_pretrained(path, mask_ratio=0.0).eval()
    images = torch.from_numpy(data["images"])
    count = (images.shape[2] // 2) * (images.shape[3] // 2)
    noise = torch.arange(count).float().expand(len(images), -1)  # keeps the patches in order
    found = model(images, noise=noise, output_hidden_states=True)
    pairs = [(found.hidden_states[k + 1], data[f"layer{k}"]) for k in (0, 1)]
    pairs.append((found.last_hidden_state, data["last"]))
    return max(_difference(theirs, ours) for theirs, ours in pairs)


def timm_features(path, arrays, heads):
    """The encoder of a bare file with so many heads: the largest difference of its tokens."""
    from reference_mae import VisionTransformer

    data = np.load(arrays)
    state = torch.load(path, weights_only=True)
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    grid = tuple(side // patch for side in data["images"].shape[2:])
    model = VisionTransformer(grid, patch, channels, width, 2, int(heads), 1, "cls")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["head.weight", "head.bias"], [])
    return _difference(model.norm(model.encode(torch.from_numpy(data["images"]))), data["features"])


def linear_probe(path, arrays, heads):
    """Strict load into the model of main_linprobe.py; the largest difference of its logits."""
    from reference_mae import VisionTransformer

    data = np.load(arrays)
    state = torch.load(path, weights_only=True)["model"]
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    grid = tuple(side // patch for side in data["images"].shape[2:])
    classes = len(state["head.1.bias"])
    model = VisionTransformer(grid, patch, channels, width, 2, int(heads), classes, "cls")
    norm = torch.nn.BatchNorm1d(width, affine=False, eps=1e-6)
    model.head = torch.nn.Sequential(norm, model.head)
    model.load_state_dict(state, strict=True)
    return _difference(model.eval()(torch.from_numpy(data["images"])), data["logits"])


def hf_modules(path, config):
    """Strict load of a bare state dict into ViTMAEForPreTraining; returns its number of tensors."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model = ViTMAEForPreTraining(ViTMAEConfig.from_pretrained(config))
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state, strict=True)
    return len(state)


def interpolate(source, target):
    """The official function on random tables: seed, then grids as HxW; returns a .npy path."""
    (height, width), size = (tuple(map(int, grid.split("x"))) for grid in (source, target))
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, height * width, 8, generator=generator)
    grid = table.reshape(1, height, width, 8).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    resized = resized.permute(0, 2, 3, 1).flatten(1, 2)
    return {"source": table.tolist(), "target": resized.tolist()}


def main():
    """Answer requests, a line [check, *arguments] each, with a line [result, error]."""
    torch.set_grad_enabled(False)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = [globals()[name](*arguments), None]
        except Exception:
            answer = [None, traceback.format_exc()]
        print(json.dumps(answer), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    sys.stdout = sys.stderr  # libraries print as they please, the answers have the pipe alone
    main()

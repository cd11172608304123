"""Training steps of one side of a comparison, timed on demand, in a process of its own.

It is started by steps.py. PyTorch's sides run in an environment without this project.
"""

from __future__ import annotations

import os
import resource
import sys
import time

SIZES = {  # image, patch, encoder dim / depth / heads, decoder dim / depth / heads, batch
    "base": ((224, 224), 16, (768, 12, 12), (512, 8, 16), 8),
    "tiny": ((32, 32), 4, (192, 4, 3), (128, 2, 4), 64),
    "cifar": ((32, 32), 4, (192, 6, 3), (128, 2, 4), 256),
}
OFFICIAL, PRODUCTS_ONLY = "official code", "PyTorch, products only"
AUTOCAST = "PyTorch, autocast"
COMPILED, COMPILED_AUTOCAST = "PyTorch, compiled", "PyTorch, compiled, autocast"
# With autocast or without: the faster one of transformers' attentions. In bfloat16, the backward
# pass of PyTorch's fused one takes half of a small model's step on a Xeon with AMX.
ATTENTION = {True: "eager", False: "sdpa"}
OURS = {  # name: environment of the process
    "eager": {},
    "graph": {},
    "eager-bf16": {},  # products of bfloat16
    "graph-bf16": {},
    "eager-plain": {"LIBAI_EXT_NATIVE": "0"},
    "graph-plain": {"LIBAI_EXT_NATIVE": "0"},
}
CLASSES = 1000
GEMM, PRODUCTS = 2048, 5  # rows = columns = inner size of the product for the best rate


def serve(side: str, task: str, size: str) -> None:
    """Answer "step" with seconds, "gemm" with FLOP/s, "memory" with peak GiB."""
    make = our_side if side in OURS else torch_side
    step, product = make(side, task, size)
    answers = {
        "step": lambda: seconds_when_warm(step),
        "gemm": lambda: 2 * PRODUCTS * GEMM**3 / seconds(product),
        "memory": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    for _ in range(3):
        step()
    product()
    print("ready", flush=True)
    for line in sys.stdin:
        print(answers[line.strip()](), flush=True)
    sys.stdout.flush()
    os._exit(0)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds_when_warm(step) -> float:
    """Mean seconds of steps over at least one second, after one that is not counted."""
    step()
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + 1:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def inputs(task: str, size: str) -> dict:
    """Arguments of the model as arrays."""
    import numpy as np

    (height, width), patch, _, _, batch = SIZES[size]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, 3, height, width)).astype(np.float32)
    if task == "pretrain":
        noise = rng.random((batch, height * width // patch**2), dtype=np.float32)
        return {"images": images, "noise": noise}
    depth = SIZES[size][2][1]
    path_noise = rng.random((batch, depth, 2), dtype=np.float32)
    return {"images": images, "labels": rng.integers(0, CLASSES, batch), "path_noise": path_noise}


def torch_side(side: str, task: str, size: str):
    import torch

    is_autocast = side in (AUTOCAST, COMPILED_AUTOCAST)
    if side == OFFICIAL:
        model, loss_of = official(task, size)
    else:
        model, loss_of = hugging_face(task, size, ATTENTION[is_autocast])
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    if side == PRODUCTS_ONLY:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=is_autocast)
    if side in (COMPILED, COMPILED_AUTOCAST):
        loss_of = torch.compile(loss_of)
    batch = {name: torch.from_numpy(array) for name, array in inputs(task, size).items()}
    batch.pop("path_noise", None)

    def step():
        with autocast:
            loss = loss_of(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    a = torch.ones(GEMM, GEMM, dtype=torch.bfloat16 if is_autocast else torch.float32)
    return step, lambda: [a @ a for _ in range(PRODUCTS)]


def hugging_face(task: str, size: str, attention: str):
    """The model, and the loss of a batch."""
    import transformers

    image, patch, encoder, decoder, _ = SIZES[size]
    common = dict(
        image_size=image,
        patch_size=patch,
        hidden_size=encoder[0],
        num_hidden_layers=encoder[1],
        num_attention_heads=encoder[2],
        intermediate_size=4 * encoder[0],
        layer_norm_eps=1e-6,
        attn_implementation=attention,
    )
    if task == "finetune":
        config = transformers.ViTConfig(num_labels=CLASSES, **common)
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ViTMAEConfig(
            decoder_hidden_size=decoder[0],
            decoder_num_hidden_layers=decoder[1],
            decoder_num_attention_heads=decoder[2],
            decoder_intermediate_size=4 * decoder[0],
            **common,
        )
        model = transformers.ViTMAEForPreTraining(config)
    return model, lambda images, **rest: model(pixel_values=images, **rest).loss


def official(task: str, size: str):
    """The model, and the loss of a batch; it draws its own masks."""
    from functools import partial

    from torch import nn

    image, patch, encoder, decoder, _ = SIZES[size]
    common = dict(
        img_size=image[0],
        patch_size=patch,
        embed_dim=encoder[0],
        depth=encoder[1],
        num_heads=encoder[2],
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    if task == "finetune":
        import models_vit

        more = dict(num_classes=CLASSES, drop_path_rate=0.1, global_pool=True, qkv_bias=True)
        model = models_vit.VisionTransformer(**common, **more)
        return model, lambda images, labels: nn.functional.cross_entropy(model(images), labels)
    import models_mae

    model = models_mae.MaskedAutoencoderViT(
        decoder_embed_dim=decoder[0],
        decoder_depth=decoder[1],
        decoder_num_heads=decoder[2],
        **common,
    )
    return model, lambda images, noise: model(images)[0]


def our_side(side: str, task: str, size: str):
    from libai_ext.startup import start

    start()
    import oneflow as flow
    from omegaconf import DictConfig

    from libai_ext import kernels
    from libai_ext.engine.graph import Graph
    from libai_ext.optim.param_groups import decay_matrices_only
    from libai_ext.optim.schedule import warmup_cosine
    from libai_ext.placement import batch_sbp, set_layout, to_global
    from projects.MAE.modeling.mae import MaskedAutoencoder
    from projects.MAE.modeling.vit import ViTClassifier

    kernels.use_bfloat16_products(side.endswith("bf16"))
    if not kernels.sleep_in_waits():  # as in the training program
        sys.exit("this build of OneFlow is another one: waiting threads would keep cores busy")
    image, patch, encoder, decoder, _ = SIZES[size]
    sizes = dict(data_parallel_size=1, tensor_parallel_size=1, pipeline_parallel_size=1)
    set_layout(DictConfig(sizes))
    if task == "pretrain":
        model = MaskedAutoencoder(image, patch, 3, *encoder, *decoder).train()
    else:
        model = ViTClassifier(image, patch, 3, CLASSES, *encoder, drop_path=0.1).train()
    groups = decay_matrices_only(model, weight_decay=0.05)
    optimizer = flow.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    batch = {name: to_global(array, batch_sbp()) for name, array in inputs(task, size).items()}

    def eager():
        loss = model(**batch)["losses"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.numpy(), last.numpy()

    # The loss is available before the backward pass, so a step ends when the parameter that is
    # updated last can be read.
    last = model.patch_embed.proj.bias
    a = flow.ones(GEMM, GEMM)

    def product():
        for _ in range(PRODUCTS):
            c = flow.matmul(a, a)
        c.numpy()

    if side.startswith("eager"):
        return eager, product
    schedule = warmup_cosine(optimizer, 1000, 0)
    graph = Graph(model=model, optimizer=optimizer, lr_scheduler=schedule)
    return lambda: (graph(**batch)["losses"].numpy(), last.numpy()), product


def flops(task: str, size: str) -> float:
    """FLOP of the matrix products of one step, forward and backward."""
    (height, width), patch, encoder, decoder, batch = SIZES[size]
    patches = height * width // patch**2
    kept = patches // 4 + 1
    pixels = 3 * patch**2

    def layers(tokens, dim, depth, _):
        return depth * (2 * 12 * tokens * dim**2 + 4 * tokens**2 * dim)

    forward = 2 * patches * pixels * encoder[0]
    if task == "finetune":
        return 3 * batch * (forward + layers(patches + 1, *encoder))
    forward += layers(kept, *encoder) + layers(patches + 1, *decoder)
    forward += 2 * decoder[0] * (kept * encoder[0] + patches * pixels)
    return 3 * batch * forward


if __name__ == "__main__":
    serve(*sys.argv[1:])

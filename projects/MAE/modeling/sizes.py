"""The published sizes. Imports no engine, so that checkpoints can be read without it."""

from __future__ import annotations

ENCODER_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_DECODER = dict(decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)


def _arch(size, patch_size: int, embed_dim: int, depth: int, num_heads: int, **decoder) -> dict:
    return dict(
        img_size=size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        **(decoder or _DECODER),
    )


# Sizes are (height, width).
ARCHS = {
    "mae_vit_base_patch16": _arch((224, 224), 16, 768, 12, 12),
    "mae_vit_large_patch16": _arch((224, 224), 16, 1024, 24, 16),
    "mae_vit_huge_patch14": _arch((224, 224), 14, 1280, 32, 16),
    # Union14M's, for lines of text.
    "mae_vit_small_patch4": _arch((32, 128), 4, 384, 12, 6),
    "mae_vit_base_patch4": _arch((32, 128), 4, 768, 12, 12),
    # For images of 32 x 32 (CIFAR) and 96 x 96 (STL-10).
    "mae_vit_tiny_patch4": _arch(
        (32, 32), 4, 192, 12, 3, decoder_embed_dim=192, decoder_depth=4, decoder_num_heads=3
    ),
    "mae_vit_small_patch8": _arch(
        (96, 96), 8, 384, 12, 6, decoder_embed_dim=256, decoder_depth=4, decoder_num_heads=8
    ),
    "mae_vit_digits": _arch(
        (32, 32), 4, 64, 4, 4, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4
    ),
}
# Archs with weights published by others.
PUBLISHED = (
    "mae_vit_base_patch16",
    "mae_vit_large_patch16",
    "mae_vit_huge_patch14",
    "mae_vit_small_patch4",
    "mae_vit_base_patch4",
)

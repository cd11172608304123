"""The official MAE's models in plain PyTorch, for golden files: its names, its layouts, its maths.

Written from the description of the architecture (He et al., 2021) and the parameter names that its
published checkpoints and timm's VisionTransformer have. Random masking is left to the caller.

B batch, L patches, K kept, D width, C channels, P patch size.
"""

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(mixed)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, channels, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """What pre-training and classification share."""

    def __init__(self, grid, patch, channels, width, depth, heads):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], width))
        self.patch_embed = PatchEmbed(channels, patch, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def encode(self, images, keep=None):
        """Images [B, C, H, W] to tokens [B, 1 + K, D] before the last norm; keep [B, K] or all."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], 1)
        for block in self.blocks:
            x = block(x)
        return x


class MaskedAutoencoder(Encoder):
    """Pre-training model: predicts the pixels of every patch, [B, L, P * P * C]."""

    def __init__(
        self,
        grid,
        patch,
        channels,
        width,
        depth,
        heads,
        decoder_width,
        decoder_depth,
        decoder_heads,
    ):
        super().__init__(grid, patch, channels, width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, 1 + grid[0] * grid[1], decoder_width), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch * patch * channels)

    def forward(self, images, keep, restore):
        """keep [B, K]: patches that are seen; restore [B, L]: each patch's place after masking."""
        x = self.decoder_embed(self.norm(self.encode(images, keep)))
        masked = self.mask_token.expand(len(x), restore.shape[1] - keep.shape[1], -1)
        patches = torch.cat([x[:, 1:], masked], 1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


class VisionTransformer(Encoder):
    """Classifier with the pooling of the official fine-tuning ("mean") or of timm ("cls")."""

    def __init__(self, grid, patch, channels, width, depth, heads, classes, pooling):
        super().__init__(grid, patch, channels, width, depth, heads)
        self.pooling = pooling
        norm = nn.LayerNorm(width, eps=1e-6)
        if pooling == "mean":
            self.fc_norm = norm
        else:
            self.norm = norm
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        x = self.encode(images)
        if self.pooling == "mean":
            return self.head(self.fc_norm(x[:, 1:].mean(1)))
        return self.head(self.norm(x)[:, 0])


def randomise(model, seed):
    """Fill every parameter, norms included, with values that make attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (0.3 if parameter.ndim < 2 else 0.5))
    return model.eval()

"""Efficient-LVSM in plain PyTorch, what a benchmark measures this package against.

Written from the same description as the package, with PyTorch's own building blocks: fused
projections, scaled_dot_product_attention, fused AdamW, bf16 autocast, torch.compile. Parameter
names are the published ones, so `python tests/peers/efficient_lvsm_torch.py` can check it against
the recorded outputs of the published program. Needs the extra [bench].

Axes: B scene, V input view, T target view, N patch token, D width, H head, K head dim.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 8
NORM_EPSILON = 1e-5


def rays(c2w: Tensor, fxfycxcy: Tensor, height: int, width: int) -> Tensor:
    """Plücker coordinates (o x d, d) of every pixel, [B, V, 6, Y, X], float32."""
    row = torch.arange(height, device=c2w.device) + 0.5
    column = torch.arange(width, device=c2w.device) + 0.5
    fx, fy, cx, cy = (x[..., None, None] for x in fxfycxcy.unbind(-1))
    x = ((column - cx) / fx).expand(*fxfycxcy.shape[:2], height, width)
    y = ((row[:, None] - cy) / fy).expand_as(x)
    direction = torch.stack([x, y, torch.ones_like(x)], dim=2)
    direction = torch.einsum("bvij,bvjyx->bviyx", c2w[..., :3, :3], direction)
    direction = functional.normalize(direction, dim=2)
    origin = c2w[..., :3, 3, None, None].expand_as(direction)
    return torch.cat([torch.linalg.cross(origin, direction, dim=2), direction], dim=2)


def patches(pixels: Tensor) -> Tensor:
    """[B, V, C, Y, X] to [B, V, N, p*p*C]: patches row by row, channel fastest within one."""
    batch, views, channels, height, width = pixels.shape
    pixels = pixels.reshape(batch, views, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return pixels.permute(0, 1, 3, 5, 4, 6, 2).reshape(batch, views, -1, PATCH * PATCH * channels)


class Attention(nn.Module):
    """Multi-head attention with normed queries and keys; self or cross."""

    def __init__(self, width: int, head_dim: int, *, cross: bool):
        super().__init__()
        self.head_dim = head_dim
        if cross:
            self.to_q = nn.Linear(width, width, bias=False)
            self.to_kv = nn.Linear(width, 2 * width, bias=False)
        else:
            self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.fc = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=NORM_EPSILON)
        self.k_norm = nn.RMSNorm(head_dim, eps=NORM_EPSILON)

    def heads(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, H, N, K]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention's keys, normed, and values of memory [B, S, D], each [B, H, S, K]."""
        k, v = (self.heads(part) for part in self.to_kv(memory).chunk(2, dim=-1))
        return self.k_norm(k).to(v.dtype), v

    def forward(self, x: Tensor, kept: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [B, Q, D] attends to itself, or to keys and values."""
        if kept is None:
            q, k, v = (self.heads(part) for part in self.to_qkv(x).chunk(3, dim=-1))
            k = self.k_norm(k).to(v.dtype)
        else:
            q, (k, v) = self.heads(self.to_q(x)), kept
        q = self.q_norm(q).to(v.dtype)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.fc(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps around the exact GELU."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, ratio * width, bias=False),
            nn.GELU(),
            nn.Linear(ratio * width, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same."""
        return self.mlp(x)


class EncoderBlock(nn.Module):
    """Self-attention within one input view, then an MLP."""

    def __init__(self, width: int, head_dim: int, ratio: int):
        super().__init__()
        self.attn = Attention(width, head_dim, cross=False)
        self.mlp = MLP(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """[B*V, N, D] to the same."""
        x = x + self.attn(norm(x))
        return x + self.mlp(norm(x))


class DecoderBlock(nn.Module):
    """Self-attention within a target view, cross-attention to all inputs, then an MLP."""

    def __init__(self, width: int, head_dim: int, ratio: int):
        super().__init__()
        self.self_attn = Attention(width, head_dim, cross=False)
        self.cross_attn = Attention(width, head_dim, cross=True)
        self.mlp = MLP(width, ratio)

    def keys_values(self, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Input tokens x [B*V, N, D] to keys and values [B, H, V*N, K]."""
        return self.cross_attn.keys_values(norm(x.reshape(batch, -1, x.shape[-1])))

    def forward(self, y: Tensor, kept: tuple[Tensor, Tensor], batch: int) -> Tensor:
        """Target tokens y [B*T, N, D] with keys and values of the inputs."""
        views, tokens, width = y.shape
        y = y + self.self_attn(norm(y))
        y = y.reshape(batch, -1, width)
        y = y + self.cross_attn(norm(y), kept)
        y = y.reshape(views, tokens, width)
        return y + self.mlp(norm(y))


def norm(x: Tensor) -> Tensor:
    """Non-affine LayerNorm over the last axis."""
    return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON)


class EfficientLVSM(nn.Module):
    """The whole model."""

    def __init__(self, width: int = 768, head_dim: int = 64, layers: int = 12, ratio: int = 4):
        super().__init__()
        area = PATCH * PATCH
        # The published names have an index: their first module only rearranges pixels.
        self.rgbp_tokenizer = nn.Sequential(nn.Identity(), nn.Linear(9 * area, width, bias=False))
        self.target_pose_tokenizer = nn.Sequential(
            nn.Identity(), nn.Linear(6 * area, width, bias=False)
        )
        self.input_self_attn_blocks = nn.ModuleList(
            EncoderBlock(width, head_dim, ratio) for _ in range(layers)
        )
        self.self_cross_blocks = nn.ModuleList(
            DecoderBlock(width, head_dim, ratio) for _ in range(layers)
        )
        self.image_token_decoder = nn.Sequential(
            nn.Identity(), nn.Linear(width, 3 * area, bias=False)
        )

    def forward(
        self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor, target_c2w: Tensor, target_k: Tensor
    ) -> Tensor:
        """Inputs [B, V, 3, Y, X] with cameras, target cameras [B, T]: images [B, T, 3, Y, X]."""
        return self.decode(self.encode(image, c2w, fxfycxcy), target_c2w, target_k, image.shape[3:])

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Inputs [B, V, 3, Y, X] with cameras to keys and values [B, H, V*N, K] of every layer."""
        batch, _, _, height, width = image.shape
        with torch.autocast(image.device.type, enabled=False):
            seen = torch.cat([2 * image - 1, rays(c2w, fxfycxcy, height, width)], dim=2)
        x = self.rgbp_tokenizer(patches(seen)).flatten(0, 1)
        cache = []
        for encoder, decoder in zip(
            self.input_self_attn_blocks, self.self_cross_blocks, strict=True
        ):
            x = encoder(x)
            cache.append(decoder.keys_values(x, batch))
        return cache

    def decode(
        self, cache: list[tuple[Tensor, Tensor]], c2w: Tensor, fxfycxcy: Tensor, size: tuple
    ) -> Tensor:
        """Cameras [B, T] through the cache: images [B, T, 3, Y, X]."""
        (batch, targets), (height, width) = c2w.shape[:2], size
        with torch.autocast(c2w.device.type, enabled=False):
            asked = rays(c2w, fxfycxcy, height, width)
        y = self.target_pose_tokenizer(patches(asked)).flatten(0, 1)
        for decoder, kept in zip(self.self_cross_blocks, cache, strict=True):
            y = decoder(y, kept, batch)
        pixels = torch.sigmoid(self.image_token_decoder(norm(y)))
        rows, columns = height // PATCH, width // PATCH
        pixels = pixels.reshape(batch, targets, rows, columns, PATCH, PATCH, 3)
        return pixels.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, targets, 3, height, width)


def append(cache: list, page: list) -> list:
    """A cache with the views of another behind its own."""
    return [
        tuple(torch.cat(pair, dim=2) for pair in zip(kept, new, strict=True))
        for kept, new in zip(cache, page, strict=True)
    ]


def remove(cache: list, index: int, tokens: int) -> list:
    """A cache without one view of so many tokens."""
    before, after = slice(0, index * tokens), slice((index + 1) * tokens, None)
    return [
        tuple(torch.cat([x[:, :, before], x[:, :, after]], dim=2) for x in kept) for kept in cache
    ]


def make_optimizer(model: EfficientLVSM) -> torch.optim.Optimizer:
    """Fused AdamW with the published settings."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    scales = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=4e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, tuple[Tensor, Tensor, Tensor]],
    dtype: torch.dtype,
) -> float:
    """Forward, mean squared error, backward, clip, update; returns the loss."""
    image, c2w, fxfycxcy = batch["inputs"]
    truth, target_c2w, target_k = batch["targets"]
    half = dtype != torch.float32
    context = torch.autocast(image.device.type, dtype) if half else contextlib.nullcontext()
    with context:
        predicted = model(image, c2w, fxfycxcy, target_c2w, target_k)
    loss = functional.mse_loss(predicted.float(), truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach())


def compare_with_golden(weights: Path, recorded: Path) -> float:
    """Largest difference between what this renders and a recorded output."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("model", state)
    state = {name.removeprefix("_orig_mod."): value for name, value in state.items()}
    width = state["rgbp_tokenizer.1.weight"].shape[0]
    blocks = {name.split(".")[1] for name in state if name.startswith("self_cross_blocks.")}
    head_dim = state["self_cross_blocks.0.cross_attn.q_norm.weight"].shape[0]
    model = EfficientLVSM(width, head_dim, len(blocks))
    model.load_state_dict(state, strict=True)
    with np.load(recorded, allow_pickle=False) as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files if file[name].ndim}
        count = int(file["num_input"])
    image, c2w, k = (data[name] for name in ("image", "c2w", "fxfycxcy"))
    with torch.no_grad():
        render = model(image[:, :count], c2w[:, :count], k[:, :count], c2w[:, count:], k[:, count:])
    return float((render - data["render"]).abs().max())


if __name__ == "__main__":
    goldens = Path(__file__).parent.parent / "goldens"
    worst = 0.0
    for name in ("square", "wide_compiled"):
        difference = compare_with_golden(goldens / f"{name}.pt", goldens / f"{name}.npz")
        print(f"{name}: largest difference {difference:.1e}")
        worst = max(worst, difference)
    sys.exit(worst > 1e-5)

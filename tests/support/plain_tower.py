"""The second oracle: CLIP's text transformer in its plainest form, padded to the whole context, float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def small_state(
    *, width: int = 64, layers: int = 2, vocabulary: int = 50, context: int = 77, dim: int = 24, seed: int = 0
) -> dict[str, Tensor]:
    """Return seeded weights of a small tower under AudioCLIP's names."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    state = {
        "token_embedding.weight": normal(vocabulary, width, std=0.5),
        "positional_embedding": normal(context, width, std=0.2),
        "text_projection": normal(width, dim, std=width**-0.5),
        "ln_final.weight": 1 + normal(width, std=0.1),
        "ln_final.bias": normal(width, std=0.1),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        state |= {
            f"{block}ln_1.weight": 1 + normal(width, std=0.1),
            f"{block}ln_1.bias": normal(width, std=0.1),
            f"{block}ln_2.weight": 1 + normal(width, std=0.1),
            f"{block}ln_2.bias": normal(width, std=0.1),
            f"{block}attn.in_proj_weight": normal(3 * width, width, std=2 * width**-0.5),
            f"{block}attn.in_proj_bias": normal(3 * width, std=0.1),
            f"{block}attn.out_proj.weight": normal(width, width, std=width**-0.5),
            f"{block}attn.out_proj.bias": normal(width, std=0.1),
            f"{block}mlp.c_fc.weight": normal(4 * width, width, std=width**-0.5),
            f"{block}mlp.c_fc.bias": normal(4 * width, std=0.1),
            f"{block}mlp.c_proj.weight": normal(width, 4 * width, std=(4 * width) ** -0.5),
            f"{block}mlp.c_proj.bias": normal(width, std=0.1),
        }
    return state


def plain_tower(state: Mapping[str, Tensor], rows: Sequence[Sequence[int]], end: int, head_width: int = 64) -> Tensor:
    """Return [n, dim] for n rows of token ids, each read at its first `end` and padded with 0 to the context."""
    context, width = state["positional_embedding"].shape
    heads = width // head_width
    tokens = torch.tensor([[*row, *[0] * (context - len(row))] for row in rows])  # [n, context]
    mask = torch.full((context, context), float("-inf")).triu(1)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def split(x: Tensor) -> Tensor:
        return x.view(len(rows), context, heads, head_width).transpose(1, 2)  # [n, heads, context, head_width]

    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]  # [n, context, width]
    for i in range(sum(name.endswith("in_proj_weight") for name in state)):
        block = f"transformer.resblocks.{i}."
        qkv = norm(x, f"{block}ln_1") @ state[f"{block}attn.in_proj_weight"].T + state[f"{block}attn.in_proj_bias"]
        q, k, v = map(split, qkv.chunk(3, dim=-1))
        attended = (q @ k.transpose(-1, -2) / head_width**0.5 + mask).softmax(-1) @ v
        attended = attended.transpose(1, 2).reshape(len(rows), context, width)
        x = x + attended @ state[f"{block}attn.out_proj.weight"].T + state[f"{block}attn.out_proj.bias"]
        hidden = norm(x, f"{block}ln_2") @ state[f"{block}mlp.c_fc.weight"].T + state[f"{block}mlp.c_fc.bias"]
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + hidden @ state[f"{block}mlp.c_proj.weight"].T + state[f"{block}mlp.c_proj.bias"]
    ends = (tokens == end).int().argmax(1)  # [n], the first one
    return norm(x, "ln_final")[torch.arange(len(rows)), ends] @ state["text_projection"]

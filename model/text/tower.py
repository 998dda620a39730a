"""CLIP's text transformer over prefix trees: every distinct prefix of a text is computed once, and nothing is padded.

From "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al., 2021), whose text tower
AudioCLIP (Guzhov et al., 2021) uses. Letters in shape comments: u nodes of the tree, s slots of all its rows, n rows,
e their ends, w width, h heads, d = w / h; u and e are rounded up, see PrefixTree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import Linear, linear
from . import flat_attention
from .flat_attention import FlatTree
from .prefix_tree import PrefixTree

HEAD_WIDTH = 64  # of every published CLIP text tower; a state dict does not contain it
# x * sigmoid(1.702 x) = silu(1.702 x) / 1.702: both factors are multiplied into the weights around it.
QUICK_GELU = 1.702


class TextTower:
    """A causal text transformer whose shapes are those of the state dict.

    Args:
        state: AudioCLIP's names (token_embedding.weight, transformer.resblocks.0.ln_1.weight, ..., text_projection) to
            float32 tensors.
        device: The device that it computes on.
        dtype: The type that it computes in; LayerNorm statistics are always float32.
    """

    def __init__(self, state: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> None:
        def get(name: str) -> Tensor:
            return state[name].detach().to(device=device, dtype=torch.float32)

        self.device, self.dtype = device, dtype
        self.token_embedding = get("token_embedding.weight").to(dtype)  # [vocabulary, w]
        self.positional_embedding = get("positional_embedding").to(dtype)  # [context, w]
        self.context_length, self.width = self.positional_embedding.shape
        layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
        heads = max(1, self.width // HEAD_WIDTH)
        block_types = [Block] * (layers - 1) + [LastBlock]
        self.blocks = [
            block_type(get, f"transformer.resblocks.{i}.", heads, dtype) for i, block_type in enumerate(block_types)
        ]
        self.ln_final = LayerNorm(get, "ln_final.", dtype)
        self.text_projection = get("text_projection").to(dtype)  # [w, dim]
        self.dim = self.text_projection.shape[1]

    @torch.inference_mode()
    def __call__(self, tree: PrefixTree | FlatTree) -> Tensor:
        """Return the float32 vectors [n, dim] of a tree's rows, in row order; a row's vector is that of its last token.

        The tree must be on the tower's device.
        """
        x = F.embedding(tree.tokens, self.token_embedding)  # [u, w]
        x += F.embedding(tree.positions, self.positional_embedding)
        for block in self.blocks:
            x = block(x, tree)  # [u, w], and [e, w] from the last one
        x = self.ln_final(x) @ self.text_projection  # [e, dim]
        return x.float() if isinstance(tree, FlatTree) else x.float().index_select(0, tree.inverse)


class LayerNorm:
    """LayerNorm over the last axis; torch keeps its statistics in float32 whatever the dtype."""

    def __init__(self, get: Callable[[str], Tensor], prefix: str, dtype: torch.dtype) -> None:
        self.weight, self.bias = get(f"{prefix}weight").to(dtype), get(f"{prefix}bias").to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize x [..., w]; the shape stays the same."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class Block:
    """One residual attention block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    PROJECTIONS: tuple[int, ...] = (3,)  # query, key and value in one product; widths in units of w

    def __init__(self, get: Callable[[str], Tensor], prefix: str, heads: int, dtype: torch.dtype) -> None:
        def layer(name: str, scale: float = 1.0, bias_scale: float = 1.0) -> Linear:
            weight, bias = get(f"{prefix}{name}.weight") * scale, get(f"{prefix}{name}.bias") * bias_scale
            return linear(weight.to(dtype), bias.to(dtype))

        self.heads = heads
        self.ln_1, self.ln_2 = LayerNorm(get, f"{prefix}ln_1.", dtype), LayerNorm(get, f"{prefix}ln_2.", dtype)
        weight, bias = get(f"{prefix}attn.in_proj_weight").to(dtype), get(f"{prefix}attn.in_proj_bias").to(dtype)
        widths = [part * weight.shape[1] for part in self.PROJECTIONS]
        self.in_proj = [
            linear(*part) for part in zip(torch.split(weight, widths), torch.split(bias, widths), strict=True)
        ]
        self.out_proj = layer("attn.out_proj")
        self.c_fc, self.c_proj = layer("mlp.c_fc", QUICK_GELU, QUICK_GELU), layer("mlp.c_proj", 1 / QUICK_GELU)

    def __call__(self, x: Tensor, tree: PrefixTree | FlatTree) -> Tensor:
        """Compute every node: [u, w] to [u, w]."""
        qkv = self.in_proj[0](self.ln_1(x))  # [u, 3w]
        return self.finish(attend(qkv, tree, self.heads), x)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        """Apply the output projection and the MLP to any rows [..., w]."""
        x = self.out_proj.add(attended, x)
        return self.c_proj.add(self.c_fc.silu(self.ln_2(x)), x)


class LastBlock(Block):
    """The last block: queries and MLP only for the nodes at which rows end, and for other nodes only key and value."""

    PROJECTIONS = (1, 2)

    def __call__(self, x: Tensor, tree: PrefixTree | FlatTree) -> Tensor:
        """Compute the last node of each row: [u, w] to [e, w], in the order of the tree."""
        query, key_value = self.in_proj
        normed = self.ln_1(x)  # [u, w]
        q, kv = query(normed.index_select(0, tree.ends)), key_value(normed)  # [e, w], [u, 2w]
        return self.finish(attend_at_ends(q, kv, tree, self.heads), x.index_select(0, tree.ends))


def attend(qkv: Tensor, tree: PrefixTree | FlatTree, heads: int) -> Tensor:
    """Compute causal attention of every node to its row, up to itself: [u, 3w] to [u, w]."""
    if isinstance(tree, FlatTree):
        return flat_attention.attend(qkv, tree, heads)
    # In bfloat16 on a CPU, torch's own attention sets up one oneDNN product per head, which for texts as short as these
    # costs more than the products.
    attention = (
        _attend_in_float32 if qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu" else _attend_in_input_dtype
    )
    width, start = qkv.shape[1] // 3, 0
    attended = qkv.new_empty(tree.slots, width)  # [s, w]
    for group in tree.groups:
        slots = F.embedding(group.paths, qkv).view(*group.paths.shape, 3, heads, -1)  # [rows, slots, 3, h, d]
        y = attention(slots.permute(2, 0, 3, 1, 4))  # [rows, h, slots, d]
        end = start + group.paths.numel()
        attended[start:end].view(*group.paths.shape, heads, -1).copy_(y.transpose(1, 2))
        start = end
    return attended.index_select(0, tree.node_slots)


def _attend_in_input_dtype(qkv: Tensor) -> Tensor:
    """Compute causal attention over [3, rows, h, slots, d] by torch's own function: [rows, h, slots, d]."""
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _attend_in_float32(qkv: Tensor) -> Tensor:
    """Compute the same by batched products in float32, the fastest way on a CPU for rows as short as texts."""
    q, k, v = qkv.to(torch.float32, memory_format=torch.contiguous_format).flatten(1, 2)  # each [rows * h, slots, d]
    scores = torch.baddbmm(_causal_mask(q.shape[1]), q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).view(*qkv.shape[1:])


@functools.cache  # one entry per row length, rounded up
def _causal_mask(slots: int) -> Tensor:
    """Return the mask [slots, slots] that is added to scores: -inf for every later slot."""
    return torch.full((slots, slots), -torch.inf).triu(1)


def attend_at_ends(q: Tensor, kv: Tensor, tree: PrefixTree | FlatTree, heads: int) -> Tensor:
    """Compute attention of each row's last node to its row: [e, w] and [u, 2w] to [e, w], in the order of the tree."""
    if isinstance(tree, FlatTree):
        return flat_attention.attend_at_ends(q, kv, tree, heads)
    attended = []
    rows = [len(group.paths) for group in tree.groups]
    *q_of_groups, rest = torch.split(q, [*rows, len(q) - sum(rows)])  # [rows, w] each, and the queries of no row
    for group, queries in zip(tree.groups, q_of_groups, strict=True):
        slots = F.embedding(group.paths, kv).view(*group.paths.shape, 2, heads, -1)  # [rows, slots, 2, h, d]
        keys, values = slots.permute(2, 0, 3, 1, 4)  # each [rows, h, slots, d]
        one = queries.view(len(queries), heads, 1, -1)  # [rows, h, 1, d]
        y = F.scaled_dot_product_attention(one, keys, values, attn_mask=group.used[:, None, None])  # [rows, h, 1, d]
        attended.append(y.flatten(1))  # [rows, w]
    return torch.cat([*attended, rest])

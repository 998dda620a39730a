"""Attention over rows of any length in one call: a prefix tree without padding, masks or groups, for CUDA.

The kernels are those that torch's own attention and torch.nn.attention.varlen call, by the names of their operators: torch
would choose among more of them, and cuDNN's builds a plan for each new shape, which our micro-batches all have. `flat_works`
checks both uses on the GPU before an encoder relies on them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..device import to_device
from ..head import InstallationError
from ..memory import device_error, is_out_of_memory

FLASH = (8, 0)  # compute capability from which on the flash kernels exist, for half precision alone
_CAUSAL_FROM_THE_END = 2  # the last query of a row sees its last key: a row's queries are its last nodes


@dataclass(frozen=True)
class FlatTree:
    """The rows of a micro-batch with one node for every distinct prefix; all tensors are int32 and on the device.

    nodes: how many there are, u. tokens [u], positions [u]: each node's token id and depth. path [s]: the nodes along each
    row, row after row. Nodes are numbered in the order of the rows, and the ones that a row does not share with the row
    above are its last ones: these are its queries, and its path is its keys. query_starts [n + 1] and path_starts [n + 1]:
    the first one of each row, and their number. rows [n + 1]: 0, 1, ..., n. ends [n]: the last node of each row.
    most_queries and longest: the largest number of queries and of keys of a row.
    """

    nodes: int
    tokens: Tensor
    positions: Tensor
    path: Tensor
    query_starts: Tensor
    path_starts: Tensor
    rows: Tensor
    ends: Tensor
    most_queries: int
    longest: int

    @property
    def slots(self) -> int:
        """Keys of all rows."""
        return len(self.path)

    @classmethod
    def of(
        cls,
        tokens: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        new: npt.NDArray[np.bool_],
        device: torch.device,
    ) -> FlatTree:
        """Return the tree of rows in lexicographic order.

        Args:
            tokens: Token ids [n, longest].
            lengths: Of the rows, [n].
            new: Which cells of `tokens` are not part of a prefix shared with the row above, [n, longest].
            device: Where its tensors are to be.
        """
        row, position = new.nonzero()
        node = np.zeros(tokens.shape, np.int64)
        node[row, position] = np.arange(len(row))
        # The highest number above a shared cell is the node that it shares.
        node = np.maximum.accumulate(node, axis=0)  # [n, longest]
        path = node[np.arange(tokens.shape[1]) < lengths[:, None]]  # [s]
        queries = new.sum(1)  # [n]
        starts = [np.concatenate([[0], np.cumsum(counts)]) for counts in (queries, lengths)]
        parts = [tokens[row, position], position, path, *starts, np.arange(len(lengths) + 1), starts[0][1:] - 1]
        whole = to_device(np.concatenate(parts).astype(np.int32), device)  # one copy for all of them
        tensors = iter(torch.split(whole, [len(part) for part in parts]))
        return cls(
            nodes=len(row),
            tokens=next(tensors),
            positions=next(tensors),
            path=next(tensors),
            query_starts=next(tensors),
            path_starts=next(tensors),
            rows=next(tensors),
            ends=next(tensors),
            most_queries=int(queries.max()),
            longest=int(lengths.max()),
        )


def attend(qkv: Tensor, tree: FlatTree, heads: int) -> Tensor:
    """Compute causal attention of every node to its row, up to itself: [u, 3w] to [u, w]."""
    q, kv = qkv.tensor_split((qkv.shape[1] // 3,), 1)  # [u, w], [u, 2w]
    return _attend(q.view(len(q), heads, -1), kv, tree, tree.query_starts, tree.most_queries)


def attend_at_ends(q: Tensor, kv: Tensor, tree: FlatTree, heads: int) -> Tensor:
    """Compute attention of each row's last node to its row: [n, w] and [u, 2w] to [n, w]."""
    return _attend(q.view(len(q), heads, -1), kv, tree, tree.rows, 1)


def _attend(q: Tensor, kv: Tensor, tree: FlatTree, starts: Tensor, most_queries: int) -> Tensor:
    """Compute attention of the queries of each row, its last nodes, of which the first ones see no later keys.

    Args:
        q: Queries [m, h, d], row after row.
        kv: Keys and values of the nodes, [u, 2w].
        tree: The tree.
        starts: The first query of each row, and their number, [n + 1].
        most_queries: Of a row.

    Returns:
        [m, w].
    """
    keys, values = kv.index_select(0, tree.path).view(tree.slots, 2, *q.shape[1:]).unbind(1)  # [s, h, d] each
    sizes = starts, tree.path_starts, most_queries, tree.longest
    if _has_flash(q.device, q.dtype):
        attended = torch.ops.aten._flash_attention_forward(q, keys, values, *sizes, 0.0, True, False)[0]
    else:
        batch = q[None], keys[None], values[None], None  # no bias
        attended = torch.ops.aten._efficient_attention_forward(*batch, *sizes, 0.0, _CAUSAL_FROM_THE_END)[0][0]
    return attended.flatten(1)  # type: ignore[no-any-return]


@functools.cache
def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype != torch.float32 and torch.cuda.get_device_capability(device) >= FLASH


@functools.cache
def flat_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this torch on this GPU has attention over rows of any length that agrees with its definition."""
    heads, width = 2, 64
    tokens = np.array([[1, 2, 3, -1, -1], [1, 2, 4, 5, -1], [1, 2, 4, 6, 7], [2, 9, -1, -1, -1]])
    new = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0]], np.bool_)
    lengths = (tokens >= 0).sum(1)
    generator = torch.Generator().manual_seed(0)
    try:
        tree = FlatTree.of(tokens, lengths, new, device)
        qkv = torch.randn(tree.nodes, 3 * heads * width, generator=generator).to(device, dtype)
        every = attend(qkv, tree, heads).float().cpu()  # [u, w]
        ends = tree.ends
        last = attend_at_ends(qkv.index_select(0, ends)[:, : heads * width], qkv[:, heads * width :], tree, heads)
        q, k, v = qkv.float().cpu().view(-1, 3, heads, width).permute(1, 2, 0, 3)  # [h, u, d] each
        expected, done = [], 0
        for path in torch.split(tree.path.cpu(), lengths.tolist()):
            for slot in (path >= done).nonzero().flatten().tolist():
                seen = path[: slot + 1]
                scores = (k[:, seen] @ q[:, path[slot], :, None]).squeeze(-1) * width**-0.5  # [h, slots]
                expected.append((scores.softmax(-1)[:, None] @ v[:, seen]).flatten())
            done = int(path[-1]) + 1
        right = torch.stack(expected)  # [u, w]
        found = torch.cat([every, last.float().cpu()])
    except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
        failed = device_error(device, error)
        if is_out_of_memory(error) or (failed and not isinstance(failed, InstallationError)):
            raise
        return False  # without kernels for this GPU, too: then all others are missing as well, or rows are padded
    share = 1e-4 if dtype == torch.float32 else 0.02
    return bool((found - torch.cat([right, right[ends.cpu()]])).abs().max() <= share * right.abs().max())

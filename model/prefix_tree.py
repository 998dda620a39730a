"""Token rows as prefix trees: in a causal tower, texts that begin alike need their common beginning computed only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]
BUCKET = 8  # attention runs over rows of like length, rounded up to a multiple of this: found by measurement


@dataclass(frozen=True)
class SortedRows:
    """Distinct token rows in lexicographic order, so that rows which begin alike are neighbours.

    tokens [d, longest] holds ids, -1 behind a row's end; lengths [d]; place [n] tells where each given row went:
    given row i is tokens[place[i]].
    """

    tokens: Ints
    lengths: Ints
    place: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> SortedRows:
        """Sort rows of token ids, each at least one token long."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        longest = int(lengths.max(initial=1))
        inside = np.arange(longest) < lengths[:, None]  # [n, longest]
        table = np.zeros((len(rows), longest), ">u4")  # big-endian: compared as bytes, rows sort as their numbers do
        table[inside] = np.fromiter((token + 1 for row in rows for token in row), np.int64, int(lengths.sum()))
        keys = table.view(f"S{4 * longest}")[:, 0]  # [n], one string of bytes a row
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        return cls(table[first].astype(np.int64) - 1, lengths[first], place.reshape(-1))

    def run_from(self, start: int, nodes: int) -> slice:
        """The longest run of rows from `start` whose prefix tree has at most `nodes` nodes; at least one row."""
        stop = min(start + max(1, nodes), len(self.lengths))
        tokens = self.tokens[start:stop, : int(self.lengths[start:stop].max())]
        size = np.cumsum(_starts_new(tokens).sum(1))  # nodes of the tree of the first, the first two, ... rows
        return slice(start, start + max(1, int(np.searchsorted(size, nodes, side="right"))))

    def tree(self, rows: slice, device: torch.device) -> PrefixTree:
        """The prefix tree of a run of rows, on `device`."""
        lengths = self.lengths[rows]
        return PrefixTree.of(self.tokens[rows, : int(lengths.max())], lengths, device)


@dataclass(frozen=True)
class Group:
    """Rows of like length, as attention takes them.

    paths [rows, slots]: the nodes along each row; slots behind a row's end name some node or other, which causal attention
    never looks at. used [rows, slots]: which slots are a row's own.
    """

    paths: Tensor
    used: Tensor


@dataclass(frozen=True)
class PrefixTree:
    """The rows of a micro-batch with one node for every distinct prefix; a node's vector is computed once.

    tokens [u]: each node's token id. positions [u]: its depth. groups: the rows, group by group, in s slots altogether.
    kept [u]: a slot, counted through all groups, where each node stands. ends [n]: the last node of each row, in the order
    of the groups. back [n]: where in that order each given row stands.
    """

    tokens: Tensor
    positions: Tensor
    groups: tuple[Group, ...]
    kept: Tensor
    ends: Tensor
    back: Tensor

    @classmethod
    def of(cls, tokens: Ints, lengths: Ints, device: torch.device) -> PrefixTree:
        """The tree of sorted rows: tokens [n, longest] with -1 behind a row's end, lengths [n]."""
        new = _starts_new(tokens)  # [n, longest]
        row, position = new.nonzero()
        node = np.zeros(tokens.shape, np.int64)
        node[row, position] = np.arange(len(row))
        # Nodes are numbered row by row, so the newest node above a shared cell is the one it shares.
        node = np.maximum.accumulate(node, axis=0)  # [n, longest]

        buckets = -(-lengths // BUCKET)  # [n]
        order = np.argsort(buckets, kind="stable")
        groups, kept, slots = [], np.empty(len(row), np.int64), 0
        for bucket in np.unique(buckets):
            members = buckets == bucket
            paths = node[members, : bucket * BUCKET]  # [rows, slots]
            used = np.arange(paths.shape[1]) < lengths[members, None]
            kept[paths[used]] = slots + used.reshape(-1).nonzero()[0]
            groups.append(Group(to_device(paths, device), to_device(used, device)))
            slots += paths.size
        return cls(
            tokens=to_device(tokens[row, position], device),
            positions=to_device(position, device),
            groups=tuple(groups),
            kept=to_device(kept, device),
            ends=to_device(node[order, lengths[order] - 1], device),
            back=to_device(np.argsort(order), device),
        )


def to_device(array: Ints | npt.NDArray[np.bool_], device: torch.device) -> Tensor:
    """The array as a tensor on `device`; through pinned memory to a CUDA device, so that nobody waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _starts_new(tokens: Ints) -> npt.NDArray[np.bool_]:
    """[n, longest]: cells that are not part of a beginning shared with the row above; tokens as in SortedRows."""
    new = tokens >= 0
    new[1:] &= ~np.logical_and.accumulate(tokens[1:] == tokens[:-1], axis=1)
    return new

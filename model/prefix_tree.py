"""Token rows as prefix trees: in a causal tower, texts that begin alike need their common beginning computed only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        inside = np.arange(lengths.max(initial=1)) < lengths[:, None]  # [n, longest]
        table = np.zeros(inside.shape, ">u4")  # big-endian: compared as bytes, rows sort as their numbers do
        table[inside] = np.fromiter((token + 1 for row in rows for token in row), np.int64, int(lengths.sum()))
        keys = table.view(f"S{table.itemsize * table.shape[1]}")[:, 0]  # [n], one string of bytes a row
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        return cls(table[first].astype(np.int64) - 1, lengths[first], place.reshape(-1))

    def run_from(self, start: int, nodes: int) -> slice:
        """The longest run of rows from `start` whose prefix tree has at most `nodes` nodes; at least one row."""
        stop = min(start + max(1, nodes), len(self.lengths))
        tokens = self.tokens[start:stop, : int(self.lengths[start:stop].max())]
        size = np.cumsum(_starts_new(tokens).sum(1))  # nodes of the tree of the first, the first two, ... rows
        return slice(start, start + max(1, int(np.searchsorted(size, nodes, side="right"))))

    def tree(self, rows: slice) -> PrefixTree:
        """The prefix tree of a run of rows."""
        lengths = self.lengths[rows]
        return PrefixTree.of(self.tokens[rows, : int(lengths.max())], lengths)


@dataclass(frozen=True)
class PrefixTree:
    """The rows of a micro-batch with one node for every distinct prefix; a node's vector is computed once.

    tokens [u]: each node's token id. positions [u]: its depth. paths [s]: the nodes along every row, row behind row, for
    attention. The rows stand there in groups of like length: groups lists (rows, slots a row), and the slots behind a row's
    end name some node or other, which causal attention never looks at. kept [u]: a slot of paths where each node stands.
    lengths [n] and ends [n]: slots in use and last node of each row, in the order of the groups. back [n]: where in that
    order each given row stands.
    """

    tokens: Tensor
    positions: Tensor
    paths: Tensor
    groups: tuple[tuple[int, int], ...]
    kept: Tensor
    lengths: Tensor
    ends: Tensor
    back: Tensor

    @classmethod
    def of(cls, tokens: Ints, lengths: Ints) -> PrefixTree:
        """The tree of sorted rows: tokens [n, longest] with -1 behind a row's end, lengths [n]."""
        new = _starts_new(tokens)  # [n, longest]
        row, position = new.nonzero()
        node = np.zeros(tokens.shape, np.int64)
        node[row, position] = np.arange(len(row))
        # Nodes are numbered row by row, so the newest node above a shared cell is the one it shares.
        node = np.maximum.accumulate(node, axis=0)  # [n, longest]

        order = np.argsort(-(-lengths // BUCKET), kind="stable")  # [n] rows by bucket
        node, lengths = node[order], lengths[order]
        groups, paths, used = [], [], []
        for bucket in np.unique(-(-lengths // BUCKET)):
            members = -(-lengths // BUCKET) == bucket
            width = min(int(bucket) * BUCKET, node.shape[1])
            groups.append((int(members.sum()), width))
            paths.append(node[members, :width].reshape(-1))
            used.append((np.arange(width) < lengths[members, None]).reshape(-1))
        path, slots = np.concatenate(paths), np.concatenate(used).nonzero()[0]
        kept = np.empty(len(row), np.int64)
        kept[path[slots]] = slots
        return cls(
            tokens=torch.from_numpy(tokens[row, position]),
            positions=torch.from_numpy(position),
            paths=torch.from_numpy(path),
            groups=tuple(groups),
            kept=torch.from_numpy(kept),
            lengths=torch.from_numpy(lengths),
            ends=torch.from_numpy(node[np.arange(len(lengths)), lengths - 1]),
            back=torch.from_numpy(np.argsort(order)),
        )

    def to(self, device: torch.device) -> PrefixTree:
        """The tree on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: to_device(value.numpy(), device) for name, value in tensors.items()})


def to_device(array: Ints, device: torch.device) -> Tensor:
    """The array as a tensor on `device`; through pinned memory to a CUDA device, so that nobody waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _starts_new(tokens: Ints) -> npt.NDArray[np.bool_]:
    """[n, longest]: cells that are not part of a beginning shared with the row above; tokens as in SortedRows."""
    new = tokens >= 0
    new[1:] &= ~np.logical_and.accumulate(tokens[1:] == tokens[:-1], axis=1)
    return new

"""Prefix trees of token rows: in a causal tower, a prefix that several texts share is computed only once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..device import to_device
from .flat_attention import FlatTree

Ints = npt.NDArray[np.int64]
LENGTH_STEP = 8  # attention runs over rows of similar length, rounded up to a multiple of this: found by measurement
# Nodes and ends are filled up to a multiple of this. oneDNN keeps compiled code for each number of rows that a product
# ever had, up to 1,024 of them: with any number of nodes a process grew by half a gigabyte.
NODE_STEP = 16


@dataclass(frozen=True)
class SortedRows:
    """Distinct token rows in lexicographic order, so that rows with a common prefix are neighbours.

    tokens [d, longest]: token ids, -1 after a row's end. lengths [d]. inverse [n]: given row i is tokens[inverse[i]].
    nodes [d + 1] and slots [d + 1]: how many nodes the prefix tree of the first 0, 1, ... rows has, and how many slots their
    attention takes.
    """

    tokens: Ints
    lengths: Ints
    inverse: Ints
    nodes: Ints
    slots: Ints

    @classmethod
    def of(cls, flat: npt.NDArray[np.integer], lengths: Ints) -> SortedRows:
        """Sort n rows of token ids that follow each other in one array; lengths [n], each at least 1."""
        longest = int(lengths.max(initial=1))
        inside = np.arange(longest) < lengths[:, None]  # [n, longest]
        table = np.zeros((len(lengths), longest), ">u4")  # big-endian: compared as bytes, rows sort as their numbers do
        table[inside] = flat.astype(np.int64) + 1
        keys = table.view(f"S{4 * longest}")[:, 0]  # [n], one byte string per row
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        tokens = table[first].astype(np.int64) - 1
        nodes = np.concatenate([[0], np.cumsum(_starts_new_node(tokens).sum(1))])
        lengths = lengths[first]
        slots = np.concatenate([[0], np.cumsum(-(-lengths // LENGTH_STEP) * LENGTH_STEP)])
        return cls(tokens, lengths, inverse.reshape(-1), nodes, slots)

    def batches(self, nodes: int, slots: int | None = None) -> Iterator[slice]:
        """Yield slices that together are all rows, each as long as `batch_from` makes it."""
        start = 0
        while start < len(self.lengths):
            yield (batch := self.batch_from(start, nodes, slots=slots))
            start = batch.stop

    def batch_from(self, start: int, nodes: int, stop: int | None = None, slots: int | None = None) -> slice:
        """Return the longest slice of rows from `start`, before `stop`, whose prefix tree has at most `nodes` nodes.

        It has at least one row.

        Args:
            start: The first row.
            nodes: The most nodes of the tree.
            stop: The row before which it ends; by default it may go to the last one.
            slots: The most slots that the attention of its rows takes, filled up; by default there may be any number.
        """
        # All tokens of the first row are nodes of its tree, and each row below adds as many as in the tree of all rows.
        most = nodes - self.lengths[start] + self.nodes[start + 1]
        end = int(np.searchsorted(self.nodes, most, side="right")) - 1
        if slots is not None:
            end = min(end, int(np.searchsorted(self.slots, self.slots[start] + slots, side="right")) - 1)
        return slice(start, max(start + 1, min(end, len(self.lengths) if stop is None else stop)))

    def tree(self, rows: slice, device: torch.device) -> PrefixTree:
        """Return the prefix tree of a slice of rows, on `device`."""
        lengths = self.lengths[rows]
        return PrefixTree.of(self.tokens[rows, : int(lengths.max())], lengths, device)

    def flat_tree(self, rows: slice, device: torch.device) -> FlatTree:
        """Return the same tree for attention over rows of any length."""
        lengths = self.lengths[rows]
        tokens = self.tokens[rows, : int(lengths.max())]
        return FlatTree.of(tokens, lengths, _starts_new_node(tokens), device)


@dataclass(frozen=True)
class Group:
    """Rows of similar length, the input of one call of attention.

    paths [rows, slots]: the nodes along each row; slots after a row's end name arbitrary nodes, which causal attention
    never reads. used [rows, slots]: which slots belong to the row.
    """

    paths: Tensor
    used: Tensor


@dataclass(frozen=True)
class PrefixTree:
    """The rows of a micro-batch with one node for every distinct prefix; a node's vector is computed once.

    nodes: how many there are; u is this number, rounded up to a multiple of NODE_STEP, and e that of the n rows. What
    belongs to no node or row is zero, and is computed in vain. tokens [u]: each node's token id. positions [u]: its depth.
    groups: all rows by group, s slots in total. node_slots [u]: a slot of each node, counted through all groups.
    ends [e]: the last node of each row, in the order of the groups. inverse [n]: the position of each given row in that
    order.
    """

    nodes: int
    tokens: Tensor
    positions: Tensor
    groups: tuple[Group, ...]
    node_slots: Tensor
    ends: Tensor
    inverse: Tensor

    @property
    def slots(self) -> int:
        """Slots of all groups."""
        return sum(group.paths.numel() for group in self.groups)

    @classmethod
    def of(cls, tokens: Ints, lengths: Ints, device: torch.device) -> PrefixTree:
        """Return the tree of sorted rows: tokens [n, longest] with -1 after a row's end, lengths [n]."""
        new = _starts_new_node(tokens)  # [n, longest]
        row, position = new.nonzero()
        u, e = (-(-count // NODE_STEP) * NODE_STEP for count in (len(row), len(lengths)))
        node = np.zeros(tokens.shape, np.int64)
        node[row, position] = np.arange(len(row))
        # Nodes are numbered row by row, so the highest number above a shared cell is the node that it shares.
        node = np.maximum.accumulate(node, axis=0)  # [n, longest]

        steps = -(-lengths // LENGTH_STEP)  # [n]
        order = np.argsort(steps, kind="stable")
        groups, node_slots, slots = [], np.zeros(u, np.int64), 0
        for step in np.unique(steps):
            members = steps == step
            paths = node[members, : step * LENGTH_STEP]  # [rows, slots]
            used = np.arange(paths.shape[1]) < lengths[members, None]
            node_slots[paths[used]] = slots + used.reshape(-1).nonzero()[0]
            groups.append(Group(to_device(paths, device), to_device(used, device)))
            slots += paths.size
        return cls(
            nodes=len(row),
            tokens=to_device(_fill_up(tokens[row, position], u), device),
            positions=to_device(_fill_up(position, u), device),
            groups=tuple(groups),
            node_slots=to_device(node_slots, device),
            ends=to_device(_fill_up(node[order, lengths[order] - 1], e), device),
            inverse=to_device(np.argsort(order), device),
        )


def _fill_up(array: Ints, length: int) -> Ints:
    """Return the array with zeros after its end, `length` numbers in all."""
    return np.pad(array, (0, length - len(array)))


def _starts_new_node(tokens: Ints) -> npt.NDArray[np.bool_]:
    """Return which cells of tokens [n, longest], as in SortedRows, are not part of a prefix shared with the row above."""
    new = tokens >= 0
    new[1:] &= ~np.logical_and.accumulate(tokens[1:] == tokens[:-1], axis=1)
    return new

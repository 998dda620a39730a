"""Bicubic resizing and centre crop in one pass over strips: what torchvision's resize of a float tensor computes.

Every output row and column is a sum of a few source rows and columns, so that two banded products suffice, and only the
source pixels that the crop needs are read. Letters in shape comments: m = 224, the side of the crop; r source rows and c
source columns that the crop needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Read = Callable[[int, int, int, int], Floats]  # the pixels [height, width, channels] of a box: left, top, right, bottom

SIDE = 224  # pixels of the crop's width and height
MIN_STRIP = 8  # source rows
STRIP_TAPS = 8  # source rows of a strip per row of the crop: fewer meet fewer zeros, more make larger products
STRIP_BYTES = 1 << 20  # of float32 values in three channels: a strip stays in the cache while it is multiplied
COLUMN_GROUP = 32  # output columns of one product: fewer meet fewer zeros, more make larger products


class Band(NamedTuple):
    """Where the numbers other than zero of each row of a matrix [n, k] begin and end: k and 0 in a row of zeros."""

    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]

    @classmethod
    def of(cls, matrix: Floats) -> Band:
        """Return the band of a matrix."""
        nonzero = matrix != 0
        some, size = nonzero.any(1), matrix.shape[1]
        return cls(np.where(some, nonzero.argmax(1), size), np.where(some, size - nonzero[:, ::-1].argmax(1), 0))

    def span(self, start: int, stop: int) -> slice:
        """Return the columns that any of some rows needs."""
        return slice(int(self.first[start:stop].min()), int(self.last[start:stop].max()))


class Part(NamedTuple):
    """Some source pixels of an axis and the output pixels that they are part of, with their weights, [outputs, sources]."""

    sources: slice
    outputs: slice
    weights: Tensor


class Axis:
    """How the crop's pixels along one axis are made of source pixels.

    Attributes:
        start: The first source pixel that the crop needs; `stop` is behind the last one.
        weights: float32 [m, stop - start].
        sources: Which source pixels each output pixel is made of.
        outputs: Which output pixels each source pixel is part of.
    """

    def __init__(self, start: int, weights: Floats) -> None:
        self.start, self.stop = start, start + weights.shape[1]
        self.weights = torch.from_numpy(weights)
        self.sources, self.outputs = Band.of(weights), Band.of(weights.T)
        self._strips: dict[int, list[Part]] = {}
        self._groups: list[Part] = []

    def strips(self, size: int) -> list[Part]:
        """Return the axis in parts of `size` source pixels."""
        if size not in self._strips:
            self._strips[size] = [
                self._part(
                    slice(start, min(start + size, self.stop - self.start)), self.outputs.span(start, start + size)
                )
                for start in range(0, self.stop - self.start, size)
            ]
        return self._strips[size]

    def groups(self) -> list[Part]:
        """Return the axis in parts of COLUMN_GROUP output pixels."""
        if not self._groups:
            self._groups = [
                self._part(self.sources.span(start, start + COLUMN_GROUP), slice(start, start + COLUMN_GROUP))
                for start in range(0, SIDE, COLUMN_GROUP)
            ]
        return self._groups

    def _part(self, sources: slice, outputs: slice) -> Part:
        return Part(sources, outputs, self.weights[outputs, sources].contiguous())

    def reverse(self, size: int) -> Axis:
        """Return the axis for `size` source pixels that are stored in reverse order."""
        return Axis(size - self.stop, self.weights.numpy()[:, ::-1].copy())


def resize_crop(read: Read, width: int, height: int, *, antialias: bool, orientation: int = 1) -> Tensor:
    """Return the centre crop [channels, m, m] of a picture whose shorter edge is resized to m pixels, upright.

    Args:
        read: Returns the pixels of a box, in any range.
        width: Of the picture as it is stored.
        height: Of the picture as it is stored.
        antialias: Whether the filter widens when the picture becomes smaller.
        orientation: How to turn it upright, as EXIF numbers it.
    """
    turned = orientation >= 5  # rows become columns
    columns, rows = crop_axes(*((height, width) if turned else (width, height)), antialias)
    if turned:
        columns, rows = rows, columns
    if orientation in (2, 3, 7, 8):
        columns = columns.reverse(width)
    if orientation in (3, 4, 6, 7):
        rows = rows.reverse(height)
    pixels = _multiply(read, rows, columns)  # [channels, m, m]
    return pixels.transpose(1, 2) if turned else pixels


def _multiply(read: Read, rows: Axis, columns: Axis) -> Tensor:
    """Return rows.weights @ pixels @ columns.weights.T of each channel: [channels, m, m]."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    size = max(MIN_STRIP, min(STRIP_TAPS * height // SIDE, STRIP_BYTES // (12 * width)))
    half_done = None  # [m, c * channels]
    for sources, outputs, weights in rows.strips(size):
        strip = read(columns.start, rows.start + sources.start, columns.stop, rows.start + sources.stop)
        block = torch.from_numpy(strip.reshape(len(strip), -1))  # [rows of the strip, c * channels]
        if half_done is None:
            half_done, channels = torch.zeros(SIDE, block.shape[1]), strip.shape[2]
        if outputs.start < outputs.stop:
            half_done[outputs].addmm_(weights, block)
    assert half_done is not None  # a picture has a row
    half_done = half_done.view(SIDE, width, channels).permute(2, 0, 1).reshape(channels * SIDE, width)
    done = torch.empty(channels * SIDE, SIDE)
    for sources, outputs, weights in columns.groups():
        done[:, outputs] = half_done[:, sources] @ weights.T
    return done.view(channels, SIDE, SIDE)


def crop_axes(width: int, height: int, antialias: bool) -> tuple[Axis, Axis]:
    """Return the columns and the rows of the crop, for a picture of this size.

    The shorter edge becomes m pixels and the longer one int(m * longer / shorter), as torchvision's resize has it; the crop
    begins at half of what is left over, rounded to even.
    """
    sizes = [SIDE if edge <= other else int(SIDE * edge / other) for edge, other in ((width, height), (height, width))]
    columns, rows = (
        _axis(edge, size, round((size - SIDE) / 2), antialias)
        for edge, size in zip((width, height), sizes, strict=True)
    )
    return columns, rows


@functools.lru_cache(16)
def _axis(source: int, target: int, offset: int, antialias: bool) -> Axis:
    """Return how the pixels from `offset` on, of `target` ones, are made of `source` ones."""
    taps, weights = _antialiased(source, target, offset) if antialias else _four_taps(source, target, offset)
    start, stop = int(taps.min()), int(taps.max()) + 1
    dense = np.zeros((SIDE, stop - start), np.float32)
    np.add.at(dense, (np.arange(SIDE)[:, None], taps - start), weights)  # taps beyond an edge count for its pixel
    return Axis(start, dense)


# Both functions below round as torch does (aten/src/ATen/native/cpu/UpSampleKernel.cpp): coordinates in float32, so that
# for pictures of thousands of pixels the weights are torch's, not more exact ones.


def _antialiased(source: int, target: int, offset: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the source pixels [m, taps] of each output pixel and their weights, with Keys' kernel of a = -0.5."""
    scale = np.float32(source) / np.float32(target)
    support = np.float32(2) * scale if scale >= 1 else np.float32(2)
    inverse = np.float32(1) / scale if scale >= 1 else np.float32(1)
    places = np.arange(offset, offset + SIDE)
    centres = (np.float64(scale) * (places + 0.5)).astype(np.float32)  # [m]
    first = np.maximum(((centres - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    last = np.minimum(((centres + support).astype(np.float64) + 0.5).astype(np.int64), source)
    taps = first[:, None] + np.arange(max(1, int((last - first).max())))  # [m, taps]
    distance = (taps.astype(np.float32) - centres[:, None]).astype(np.float64) + 0.5
    weights = _cubic(np.abs((distance * inverse).astype(np.float32)), np.float32(-0.5))
    weights[taps >= last[:, None]] = 0
    weights /= weights.sum(1, keepdims=True, dtype=np.float32)
    return np.minimum(taps, source - 1), weights


def _four_taps(source: int, target: int, offset: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the four source pixels [m, 4] of each output pixel and their weights, with Keys' kernel of a = -0.75."""
    scale = np.float64(np.float32(source) / np.float32(target))
    places = (scale * (np.arange(offset, offset + SIDE) + 0.5) - 0.5).astype(np.float32)  # [m]
    floor = np.minimum(np.floor(places).astype(np.int64), source - 1)
    fraction = np.clip(places - floor.astype(np.float32), 0, 1).astype(np.float32)[:, None]
    distances = np.concatenate([fraction + 1, fraction, 1 - fraction, 2 - fraction], 1, dtype=np.float32)
    taps = np.clip(floor[:, None] + np.arange(-1, 3), 0, source - 1)
    return taps, _cubic(distances, np.float32(-0.75))


def _cubic(x: Floats, a: np.float32) -> Floats:
    """Return Keys' cubic convolution kernel at distances x of at least 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)

"""Checkpoints in the exact layout of the released file: the zip archive and pickle that torch 1.7.1 wrote on a GPU.

A current torch writes other records and other storage keys, so its files do not show that the released one can be read.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch._utils import _rebuild_tensor_v2

RELEASED_BYTES = 537_302_068
ALIGNMENT = 64
FIRST_KEY = 94_012_345_678_912  # a key is the address of the storage: 14 digits
STORAGES = {"float32": torch.FloatStorage, "int64": torch.LongStorage}
MODULES_WITHOUT_TENSORS = (  # (pattern of a module, its children): of AndreyGuzhov/AudioCLIP, directory model
    (r"visual", ("avgpool", "relu")),
    (r"visual\.layer\d\.\d+", ("avgpool", "relu")),
    (r"visual\.layer\d\.\d+\.downsample", ("-1",)),
    (r"transformer\.resblocks\.\d+\.mlp", ("gelu",)),
    (r"audio", ("relu", "maxpool", "avgpool")),
    (r"audio\.layer\d\.\d+", ("relu",)),
    (r"audio\.att\d", ("activation",)),
)

Shapes = Mapping[str, tuple[Sequence[int], str]]  # shape and dtype by name, as in tests/data/keys.json


class _Storage:
    """A storage: the pickle contains only a reference to it."""

    def __init__(self, key: int, dtype: str, items: int) -> None:
        location = "".join(("cuda", ":0"))  # a new string for each storage, as in torch: pickle shares equal objects
        self.reference = ("storage", STORAGES[dtype], str(key), location, items)


class _Tensor:
    """An object that is pickled like a contiguous tensor."""

    def __init__(self, storage: _Storage, shape: Sequence[int]) -> None:
        self.storage, self.shape = storage, tuple(shape)

    def __reduce__(self) -> tuple[object, ...]:
        strides = np.cumprod([1, *self.shape[:0:-1]], dtype=np.int64)[::-1].tolist() if self.shape else []
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, tuple(strides), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.reference if isinstance(obj, _Storage) else None


class _Archive:
    """A zip archive as torch 1.7.1 writes it: nothing is compressed, records are aligned, a checksum follows each."""

    def __init__(self, handle: BinaryIO, checksums: bool) -> None:
        self.handle, self.checksums, self.directory, self.records = handle, checksums, bytearray(), 0

    def write(self, name: str, data: bytes | None, size: int = 0) -> None:
        """Add a record of `data`, or of `size` zeros, which take no space on a disk."""
        size = size if data is None else len(data)
        crc = (_crc_of_zeros(size) if data is None else zlib.crc32(data)) if self.checksums else 0
        path, start, flags = f"archive/{name}".encode(), self.handle.tell(), 0x808 if size else 0x800
        padding = -(start + 30 + len(path) + 4) % ALIGNMENT
        self.handle.write(struct.pack("<IHHHHHIIIHH", 0x04034B50, 0, flags, 0, 0, 0, 0, 0, 0, len(path), 4 + padding))
        self.handle.write(path + struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
        if data is None:
            self.handle.seek(size, io.SEEK_CUR)
        else:
            self.handle.write(data)
        if size:
            self.handle.write(struct.pack("<IIII", 0x08074B50, crc, size, size))
        entry = (0x02014B50, 0, 0, flags, 0, 0, 0, crc, size, size, len(path), 0, 0, 0, 0, 0, start)
        self.directory += struct.pack("<IHHHHHHIIIHHHHHII", *entry) + path
        self.records += 1

    def close(self) -> None:
        """Write the central directory."""
        start, size, n = self.handle.tell(), len(self.directory), self.records
        self.handle.write(self.directory)
        self.handle.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 0x31E, 45, 0, 0, n, n, size, start))
        self.handle.write(struct.pack("<IIQI", 0x07064B50, 0, start + size, 1))
        self.handle.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, n, n, size, start, 0))


def write_released(
    path: Path,
    shapes: Shapes,
    values: Mapping[str, np.ndarray[Any, Any]],
    *,
    protocol: int = 2,
    checksums: bool = True,
) -> None:
    """Write a checkpoint of tensors with these shapes; tensors that `values` does not contain are zeros."""
    state: OrderedDict[str, _Tensor] = OrderedDict()
    for number, (name, (shape, dtype)) in enumerate(shapes.items()):
        state[name] = _Tensor(_Storage(FIRST_KEY + 64 * number, dtype, int(np.prod(shape, dtype=np.int64))), shape)
    vars(state)["_metadata"] = OrderedDict((module, {"version": 1}) for module in _modules(shapes))
    out = io.BytesIO()
    _Pickler(out, protocol).dump(state)
    with path.open("wb") as handle:
        archive = _Archive(handle, checksums)
        archive.write("data.pkl", out.getvalue())
        for name, tensor in state.items():
            _, _, key, _, items = tensor.storage.reference
            dtype = np.dtype(shapes[name][1])
            data = np.ascontiguousarray(values[name], dtype).tobytes() if name in values else None
            archive.write(f"data/{key}", data, items * dtype.itemsize)
        archive.write("version", b"3\n")
        archive.close()


def _modules(shapes: Shapes) -> list[str]:
    """Return the names of the modules of a model with these tensors, including those without tensors."""
    modules = {""}
    for name in shapes:
        parts = name.split(".")[:-1]
        modules |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    for pattern, children in MODULES_WITHOUT_TENSORS:
        modules |= {f"{name}.{child}" for name in modules if re.fullmatch(pattern, name) for child in children}
    return sorted(modules)


def _crc_of_zeros(size: int, chunk: bytes = bytes(1 << 20)) -> int:
    crc = 0
    for start in range(0, size, len(chunk)):
        crc = zlib.crc32(chunk[: size - start], crc)
    return crc

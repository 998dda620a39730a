"""KnownEntries: what earlier rows of lists say of the files that these name, so that they are not opened again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...model.media import DIGEST_BYTES, MediaHead, Part
from ..content import digest_in
from ..schemas import CONTENT_HASH, SHARD
from .references import Reference

_Halves = NDArray[np.uint64]  # [n, 2]: a hash of 16 bytes as two numbers


class EarlierLists(Protocol):
    """The rows that the previous snapshot has of lists."""

    def load(self, names: Sequence[str]) -> KnownEntries:
        """Return what its rows of the lists with these names say of files."""


class KnownFile(NamedTuple):
    """A file, or a range of it, that an earlier row was made of.

    Attributes:
        size: Its bytes.
        digest: Their digest.
        examined: What the head knows of it.
    """

    size: int
    digest: bytes
    examined: Any


class KnownEntries:
    """The files that rows of lists were made of, and their content hashes, in about 80 bytes for each row.

    Args:
        head: The head of the rows.
        batches: The rows, with the columns that `columns_of` names.
    """

    def __init__(self, head: MediaHead, batches: Iterable[pa.RecordBatch]) -> None:
        self.head = head
        keys, hashes = [np.empty((0, 2), np.uint64)], [np.empty((0, 2), np.uint64)]
        files = list[pa.RecordBatch]()
        for batch in batches:
            keys.append(_keys_of(batch, head))
            hashes.append(_halves(batch.column(CONTENT_HASH.name).to_pylist()))
            files.append(_files_of(batch, head))
        words = np.concatenate(hashes)
        self._hashes = np.unique(words[:, 0] ^ words[:, 1])
        self._keys, self._files = np.empty((0, 2), np.uint64), pa.table({})
        if files:
            self._add_files(np.concatenate(keys), pa.Table.from_batches(files).combine_chunks())

    def _add_files(self, keys: _Halves, files: pa.Table) -> None:
        """Keep each file once, and none that had different bytes at different times."""
        _, first, place = np.unique(keys[:, 0], return_index=True, return_inverse=True)
        others = files["digest"].take(pa.array(first[place]))
        differs = pa.compute.not_equal(files["digest"], others).to_numpy() | (keys[:, 1] != keys[first[place], 1])
        first = first[np.bincount(place, differs, len(first)) == 0]
        self._keys, self._files = keys[first], files.take(pa.array(first))

    def find(self, shard: str, references: Sequence[Reference]) -> list[KnownFile | None]:
        """Return what rows of a list say of each of these references, or None if they say nothing."""
        found: list[KnownFile | None] = [None] * len(references)
        # The size of a range that goes to the end of its file is not known.
        exact = [n for n, (_, offset, size) in enumerate(references) if offset is None or size is not None]
        if not exact or not len(self._keys):
            return found
        sought = _halves([_key(shard, *references[n]) for n in exact])
        places = np.minimum(np.searchsorted(self._keys[:, 0], sought[:, 0]), len(self._keys) - 1)
        is_found = (self._keys[places] == sought).all(axis=1)
        rows = self._files.take(pa.array(places[is_found])).to_pylist()
        for n, row in zip(np.flatnonzero(is_found).tolist(), rows, strict=True):
            size, digest, reference = row.pop("size"), row.pop("digest"), references[exact[n]]
            if reference.size in (None, size):
                found[exact[n]] = KnownFile(size, digest, self.head.examined_of(row))
        return found

    def have(self, parts: Sequence[Part]) -> bool:
        """Return whether each of the parts of a file has a row."""
        if not len(self._hashes):
            return not parts
        words = _halves([part.hash for part in parts])
        sought = words[:, 0] ^ words[:, 1]
        places = np.minimum(np.searchsorted(self._hashes, sought), len(self._hashes) - 1)
        return bool((self._hashes[places] == sought).all())


def columns_of(head: MediaHead) -> list[str]:
    """Return the columns of part files that KnownEntries reads."""
    return [SHARD.name, head.content.name, CONTENT_HASH.name, *head.known_columns]


def _keys_of(batch: pa.RecordBatch, head: MediaHead) -> _Halves:
    file = batch.column(head.content.name)
    fields = (batch.column(SHARD.name), *(file.field(name) for name in ("uri", "offset", "size")))
    return _halves([_key(*values) for values in zip(*(field.to_pylist() for field in fields), strict=True)])


def _key(shard: str, uri: str, offset: int | None, size: int | None) -> bytes:
    """Return what is equal for the same range of a file in a list; that of a whole file does not depend on its size."""
    name = repr((shard, uri, offset, None if offset is None else size))
    return hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).digest()


def _files_of(batch: pa.RecordBatch, head: MediaHead) -> pa.RecordBatch:
    file = batch.column(head.content.name)
    digests = [digest_in(checksum) for checksum in file.field("checksum").to_pylist()]
    columns = [batch.column(name) for name in head.known_columns]
    names = ["digest", "size", *head.known_columns]
    return pa.RecordBatch.from_arrays([pa.array(digests, pa.binary()), file.field("size"), *columns], names=names)


def _halves(hashes: Sequence[bytes]) -> _Halves:
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)

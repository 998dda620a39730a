"""Contents: the bytes of the pictures and sounds that the rows of a snapshot name, if they are what was embedded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from ...model.head import BadRow
from ...model.media import MediaHead
from ...model.messages import OneLineError
from ..content import DIGEST, content_type_of, uri_of
from ..io.file_io import FileIO
from ..io.locate import locate
from ..io.paths import given_path
from ..io.versions import ListedFile, same_version
from ..snapshots.listing import read_shard_list
from ..snapshots.snapshot import Snapshot

CHECKED_BYTES = 16 << 20  # of a content that is hashed again if its file has another version
PIECE_BYTES = 1 << 20  # that are read at a time
VERDICTS = 4096  # that are remembered


class NotAvailable(OneLineError):
    """Why the content of a row cannot be played or shown, for users."""


class Content(NamedTuple):
    """The bytes of a content: `size` bytes of a file from `offset` on, and their media type, of audio or an image."""

    file: ListedFile
    offset: int
    size: int
    type: str


@dataclass
class Contents:
    """Finds and reads the contents of one snapshot.

    Attributes:
        snapshot: The snapshot.
        shards: Its shards, or None if its rows do not refer to files.
        file_io: How files are opened.
    """

    snapshot: Snapshot
    shards: pa.Table | None
    file_io: FileIO = FileIO()
    _verdicts: dict[tuple[ListedFile, int, int], bool] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, snapshot: Snapshot) -> Contents:
        """Return the contents of a snapshot, whose list of shards is read: it may be removed while a page shows it.

        Raises SnapshotError if the list is missing or damaged.
        """
        if not snapshot.head.by_reference:
            return cls(snapshot, None)
        names = ("path", "name", "format", "bytes", "version")
        return cls(snapshot, read_shard_list(snapshot.output, snapshot.manifest, names))

    def find(self, row: Mapping[str, Any]) -> Content:
        """Return where the bytes of a row are now. Raise NotAvailable if they are not those that were embedded.

        Contents of up to CHECKED_BYTES in a file of another version are compared by their digest. Of a larger content the
        size and time of change must be those of the shard; of one that a list names, only its size is known.
        """
        file, head = row.get("file"), cast(MediaHead, self.snapshot.head)
        if not isinstance(file, dict) or file["uri"] is None:
            raise NotAvailable("the snapshot names no file")
        shard = self._shard(row.get("shard"), file["uri"])
        if shard and file["offset"] is None and shard["format"] != "media":
            raise NotAvailable(
                "it is copied out of its file when it is embedded, and cannot be played or shown by itself"
            )
        listed = self._locate(file["uri"])
        offset = file["offset"] or 0
        size = listed.size - offset if file["size"] is None else file["size"]
        inside = offset >= 0 and size > 0 and offset + size <= listed.size
        if not inside or (file["offset"] is None and size != listed.size):
            raise NotAvailable(f"its file changed since it was embedded: it has {listed.size:,} bytes now")
        key = listed, offset, size
        verdict = self._verdicts.get(key)  # other threads may clear them
        if verdict is None:
            if len(self._verdicts) >= VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[key] = self._is_same(shard, listed, offset, size, file["checksum"])
        if not verdict:
            raise NotAvailable("its file changed since it was embedded")
        known = file["content_type"] if file["content_type"] in head.types.values() else None
        return Content(
            listed, offset, size, known or content_type_of(listed.path, head.types) or f"{head.name}/octet-stream"
        )

    def read(self, content: Content, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a content from `start` to before `end`. Raise OSError if its file changes or is gone."""
        for at in range(start, end, PIECE_BYTES):
            yield self.file_io.read_range(content.file, content.offset + at, min(PIECE_BYTES, end - at))

    def _shard(self, name: str | None, uri: str) -> dict[str, Any] | None:
        """Return the shard of that name if it is the file itself that has the content."""
        if self.shards is None or name is None:
            return None
        for shard in self.shards.filter(pc.equal(self.shards["name"], name)).to_pylist():
            if uri_of(os.fsdecode(shard["path"])) == uri:
                found: dict[str, Any] = shard
                return found
        return None

    def _locate(self, uri: str) -> ListedFile:
        try:
            return locate(given_path(uri), self.file_io.read_timeout)
        except BadRow as bad:
            raise NotAvailable(f"its file is missing: {bad.detail}") from bad
        except (ValueError, OSError) as error:
            raise NotAvailable(f"its file cannot be read: {error}") from error

    def _is_same(
        self, shard: Mapping[str, Any] | None, listed: ListedFile, offset: int, size: int, checksum: str | None
    ) -> bool:
        if shard and shard["bytes"] == listed.size and same_version(listed.version, shard["version"], "size_mtime"):
            return True
        algorithm, _, expected = (checksum or "").partition(":")
        if algorithm == DIGEST and size <= CHECKED_BYTES:
            try:
                data = self.file_io.read_range(listed, offset, size)
            except OSError as error:
                raise NotAvailable(f"its file cannot be read: {error}") from error
            return hashlib.blake2b(data, digest_size=16).hexdigest() == expected
        return shard is None

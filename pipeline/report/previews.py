"""Small pictures of rows, and players of their files; of a file that cannot be shown, why."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote

from ...model.head import BadRow, Head
from ...model.media import MediaHead, media_fragment
from ..content import checksum_of, content_type_of
from ..io.file_io import FileIO
from ..io.locate import locate
from ..io.paths import base_name, given_path, is_local, scheme_of
from ..io.timeout_reader import NoDataError, call_within
from ..io.versions import ListedFile
from ..readers.fields import Fields, lookup
from ..readers.media import digest_of
from ..readers.parquet import read_record
from ..readers.shard import Shard
from ..terminal import printable

PICTURE_BYTES = 3000  # of a small picture; Base64 makes a third more of it

FILE_BYTES, ALL_BYTES = 16 << 20, 128 << 20  # of the largest picture that is read, and of all of a page

ALL_SECONDS = 20  # for all previews of a page

THREADS = 4

URL_BYTES = 4000  # of a link

CHANGED = "the file has changed since it was embedded"

# Media types of sounds that browsers play.
PLAYED = frozenset(
    {"audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "audio/mp4", "audio/aac", "video/mp4", "video/webm"}
)


@dataclass(frozen=True)
class Preview:
    """What a page shows of a row's content besides its name.

    Attributes:
        picture: The URL of a small picture, which contains it.
        player: The URL of the row's file, for a player.
        note: Why there is neither.
    """

    picture: str = ""
    player: str = ""
    note: str = ""


_ROW = re.compile("#([0-9]{1,18})$")  # at the end of an id


class _NoPreview(Exception):
    """Why a content has no preview."""


def make_previews(head: Head, rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[Preview]:
    """Return the previews of rows, which have the columns of a sample; `fields` are those of their contents in Parquet.

    Of each picture of up to FILE_BYTES all bytes are read, of sounds none. A file that cannot be read costs its preview
    alone, and files that are not read in time cost theirs.
    """
    if not head.preview:
        return [Preview()] * len(rows)
    make = _Makers(cast(MediaHead, head), fields, time.monotonic() + ALL_SECONDS)
    with ThreadPoolExecutor(THREADS, "previews") as pool:
        return list(pool.map(make.preview, rows))


@dataclass
class _Makers:
    """What makes previews, in several threads.

    Attributes:
        head: The head of the rows.
        fields: The fields of their contents in Parquet.
        end: When all must be made, as time.monotonic counts.
        found: The files that were located, by URI.
        bytes: Those of the pictures that were chosen to be read.
    """

    head: MediaHead
    fields: Sequence[str]
    end: float
    found: dict[str, ListedFile] = field(default_factory=dict)
    bytes: int = 0

    def preview(self, row: Mapping[str, Any]) -> Preview:
        """Return the preview of a row, or why it has none; within the time that is left."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            return Preview(note="No preview: it took too long to read the files of other rows.")
        try:
            return call_within(row["file"]["uri"], seconds, lambda: self._attempt(row, seconds))
        except NoDataError:
            return Preview(note=f"The file could not be read in {seconds:.0f} s.")

    def _attempt(self, row: Mapping[str, Any], seconds: float) -> Preview:
        try:
            return self._picture(row, seconds) if self.head.preview == "picture" else self._player(row, seconds)
        except _NoPreview as error:
            return Preview(note=f"No preview: {error}.")
        except BadRow as bad:
            return Preview(note=f"The file cannot be shown: {bad.reason}: {bad.detail}")
        except Exception as error:  # whatever happens to a file, the page is written
            return Preview(note=f"The file cannot be read: {getattr(error, 'strerror', None) or error}")

    def _picture(self, row: Mapping[str, Any], seconds: float) -> Preview:
        offset, size = row["file"]["offset"] or 0, row["file"]["size"]
        if size > FILE_BYTES:
            raise _NoPreview(f"the {self.head.item} has {size:,} bytes")
        self.bytes += size
        if self.bytes > ALL_BYTES:
            raise _NoPreview(f"the {self.head.items} of other rows have many bytes")
        file = self._locate(row, seconds)
        if self._is_inside(row, file):
            content = _read_from_parquet(row, file, self.fields, seconds)
        else:
            content = FileIO(seconds).read_range(file, offset, size)
        if checksum_of(digest_of(content)) != row["file"]["checksum"]:
            raise _NoPreview(CHANGED)
        data = base64.b64encode(self.head.thumbnail(content, PICTURE_BYTES)).decode()
        return Preview(picture=f"data:image/webp;base64,{data}")

    def _player(self, row: Mapping[str, Any], seconds: float) -> Preview:
        value = row["file"]
        path = given_path(value["uri"])
        if not is_local(path):
            raise _NoPreview(f"a browser cannot open {scheme_of(path)}://")
        file = self._locate(row, seconds)
        if value["offset"] is not None or self._is_inside(row, file):
            raise _NoPreview(f"the {self.head.item} is inside of {_name(path)}")
        if value["content_type"] not in PLAYED:
            raise _NoPreview("browsers do not play files of this kind")
        start, end, duration = (row[name] for name in ("start", "end", "duration"))
        url = f"file://{quote(os.fsencode(path))}"
        if len(url) > URL_BYTES:
            raise _NoPreview("the path of the file is too long for a link")
        return Preview(player=url + ("" if start == 0 and end == duration else media_fragment(start, end)))

    def _locate(self, row: Mapping[str, Any], seconds: float) -> ListedFile:
        """Return the file that has the bytes of a row. Raise BadRow if it is gone, _NoPreview if it has others."""
        value = row["file"]
        file = self.found.get(value["uri"])
        if file is None:
            file = self.found[value["uri"]] = locate(given_path(value["uri"]), seconds)
        if value["offset"] is not None:
            changed = file.size < value["offset"] + value["size"]
        else:
            changed = file.size != value["size"] and not self._is_inside(row, file)
        if changed:
            raise _NoPreview(CHANGED)
        return file

    def _is_inside(self, row: Mapping[str, Any], file: ListedFile) -> bool:
        """Return whether the bytes of a row are inside of a file of another kind, at a place that is not known."""
        value = row["file"]
        other = content_type_of(file.path, self.head.types) is None
        return other and value["offset"] is None and bool(value["size"] != file.size)


def _read_from_parquet(row: Mapping[str, Any], file: ListedFile, fields: Sequence[str], seconds: float) -> bytes:
    """Return the bytes that one of the fields has in a row of Parquet, whose number is in the row's id."""
    number = _ROW.search(row["label"])
    shard = Shard(file.path, "", "parquet", None, file.size, file.version)
    with FileIO(seconds).open_version(file) as handle:
        handle.seek(-4, os.SEEK_END)
        if not number or handle.read(4) != b"PAR1":
            raise _NoPreview(f"it cannot be read by itself from {_name(file.path)}")
        for path in fields:
            record = read_record(handle, Fields(path, by_reference=True), shard, int(number[1]), FILE_BYTES)
            value = None if record is None else lookup(record, path)
            content = value.get("bytes") if isinstance(value, Mapping) else value
            if isinstance(content, bytes) and checksum_of(digest_of(content)) == row["file"]["checksum"]:
                return content
    raise _NoPreview(f"it was not found in {_name(file.path)}, or has too large a row group there")


def _name(path: str) -> str:
    return printable(base_name(path), 60)

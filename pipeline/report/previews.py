"""Small pictures of rows, and players of their files; of a file that cannot be shown, why."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from ..readers.media import digest_of
from ..terminal import printable

PICTURE_BYTES = 3000  # of a small picture; Base64 makes a third more of it

FILE_BYTES = 32 << 20  # of the largest picture that is read

ALL_SECONDS = 60  # for all previews of a page

THREADS = 4

URL_BYTES = 4000  # of a link

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


class _NoPreview(Exception):
    """Why a content has no preview."""


def make_previews(head: Head, rows: Sequence[Mapping[str, Any]]) -> list[Preview]:
    """Return the previews of rows, which have the columns of a sample.

    Of each picture of up to FILE_BYTES all bytes are read, of sounds none. A file that cannot be read costs its preview
    alone, and files that are not read in time cost theirs.
    """
    if not head.preview:
        return [Preview()] * len(rows)
    make, end = _MAKERS[head.preview], time.monotonic() + ALL_SECONDS

    def preview(row: Mapping[str, Any]) -> Preview:
        left = end - time.monotonic()
        try:
            if left <= 0:
                raise _NoPreview("the files of other rows took too long to read")
            return call_within(row["file"]["uri"], left, lambda: make(cast(MediaHead, head), row, left))
        except NoDataError:
            return Preview(note=f"The file could not be read in {left:.0f} s.")
        except _NoPreview as error:
            return Preview(note=f"No preview: {error}.")
        except BadRow as bad:
            return Preview(note=f"The file cannot be shown: {bad.reason}: {bad.detail}")
        except Exception as error:  # whatever happens to a file, the page is written
            return Preview(note=f"The file cannot be read: {getattr(error, 'strerror', None) or error}")

    with ThreadPoolExecutor(THREADS, "previews") as pool:
        return list(pool.map(preview, rows))


def _picture(head: MediaHead, row: Mapping[str, Any], seconds: float) -> Preview:
    file = _locate(head, row, seconds)
    offset, size = row["file"]["offset"] or 0, row["file"]["size"]
    if size > FILE_BYTES:
        raise _NoPreview(f"the picture has {size:,} bytes")
    content = FileIO(seconds).read_range(file, offset, size)
    if checksum_of(digest_of(content)) != row["file"]["checksum"]:
        raise _NoPreview("the file has changed since it was embedded")
    data = base64.b64encode(head.thumbnail(content, PICTURE_BYTES)).decode()
    return Preview(picture=f"data:image/webp;base64,{data}")


def _player(head: MediaHead, row: Mapping[str, Any], seconds: float) -> Preview:
    value = row["file"]
    path = given_path(value["uri"])
    if not is_local(path):
        raise _NoPreview(f"a browser cannot open {scheme_of(path)}://")
    _locate(head, row, seconds)
    if value["offset"] is not None:
        raise _NoPreview(f"the sound is inside of {_name(path)}")
    if value["content_type"] not in PLAYED:
        raise _NoPreview("browsers do not play files of this kind")
    start, end, duration = (row[name] for name in ("start", "end", "duration"))
    url = f"file://{quote(os.fsencode(path))}"
    if len(url) > URL_BYTES:
        raise _NoPreview("the path of the file is too long for a link")
    return Preview(player=url + ("" if start == 0 and end == duration else media_fragment(start, end)))


_MAKERS = {"picture": _picture, "player": _player}


def _locate(head: MediaHead, row: Mapping[str, Any], seconds: float) -> ListedFile:
    """Return the file that has the bytes of a row. Raise BadRow if it is gone, _NoPreview if they are not there."""
    value = row["file"]
    path = given_path(value["uri"])
    file = locate(path, seconds)
    whole = value["offset"] is None
    if whole and content_type_of(path, head.types) is None and file.size != value["size"]:
        raise _NoPreview(f"inside of {_name(path)} the {head.item} cannot be read by itself")
    if (file.size != value["size"]) if whole else (file.size < value["offset"] + value["size"]):
        raise _NoPreview("the file has changed since it was embedded")
    return file


def _name(path: str) -> str:
    return printable(base_name(path), 60)

"""Tars of small members, in every format that programs write."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from audioclip_beam.model.media import MediaHead
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.infer_schema import infer_kept_schema
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.notes import ShardNotes
from audioclip_beam.pipeline.readers.read_settings import ReadSettings
from audioclip_beam.pipeline.readers.read_shards import read_shard
from tests.support.picture_files import encoded, picture
from tests.support.stub_media import StubPictures

BLOCK = 512

PNG = [encoded(picture(seed, 8, 6)) for seed in range(12)]

Members = Iterable[tuple[str, bytes]]


def tar_of(members: Members | Mapping[str, bytes], form: int = tarfile.USTAR_FORMAT, **headers: Any) -> bytes:
    """Return a tar of (name, content), in a format of Python's tarfile."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **headers) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def header(name: bytes, size: int, flag: bytes = b"0", **fields: bytes) -> bytes:
    """Return the header of a member; `fields` are others, as at_386=b"..."."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124:136], block[156:157], block[257:265] = b"%011o\0" % size, flag, b"ustar\x0000"
    for place, data in fields.items():
        at = int(place.removeprefix("at_"))
        block[at : at + len(data)] = data
    return signed(block)


def signed(block: bytes | bytearray) -> bytes:
    """Return a header with its checksum."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Return the bytes of a member in whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def pax(**records: bytes) -> bytes:
    """Return a pax header with these records; "__" in a key is a dot."""
    return pax_of([(key.replace("__", "."), value) for key, value in records.items()])


def pax_of(records: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a pax header with these records."""
    data = b""
    for key, value in records:
        rest = b" " + key.encode() + b"=" + value + b"\n"
        size = len(rest) + next(n for n in range(1, 9) if len(str(len(rest) + n)) == n)
        data += b"%d" % size + rest
    return header(b"pax", len(data), b"x") + padded(data)


END = bytes(2 * BLOCK)


def read_tar(
    path: Path,
    head: MediaHead | None = None,
    *,
    id_field: str | None = None,
    keep: tuple[str, ...] = (),
    options: Mapping[str, object] | None = None,
    limit: int = 1 << 20,
    input_format: str | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Return the rows, the rejected rows and the notes of a tar."""
    head = head or StubPictures()
    (shard,) = find_shards([str(path)], input_format, head=head)
    fields, notes = Fields(head.content.name, id_field, keep), ShardNotes(shard.name)
    kept = infer_kept_schema([shard], head, fields)
    given = {"checkpoint": "untrained", "device": "cpu", "dtype": "float32", "normalize": False, "variant": "audioclip"}
    more = {"max_image_bytes": limit, "max_pixels": 1 << 20, "window": None, "hop": None, **(options or {})}
    encoder = head.settings({**given, **more})
    spill = path.parent / "spill"
    limit = head.content_limit(more)
    settings = ReadSettings(head, fields, kept, limit, encoder=encoder, spill=str(spill))
    rows, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
    for good, bad in read_shard(shard, settings, notes):
        good.validate(full=True)
        bad.validate(full=True)
        rows += good.to_pylist()
        rejected += bad.to_pylist()
    numbers = sorted([row["row"] for row in rows] + [int(row["row"]) for row in rejected])
    assert numbers == list(range(len(numbers)))
    return rows, rejected, notes.describe()


def content_of(row: Mapping[str, Any]) -> bytes:
    """Return the bytes that the model's step would read."""
    source = row["_source"]
    with open(source["path"], "rb") as file:
        file.seek(source["offset"])
        data = file.read(source["size"])
    assert isinstance(data, bytes)
    return data

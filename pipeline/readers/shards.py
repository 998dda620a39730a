"""Which shards a job reads and what their fields are: found, named and looked into before anything starts."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from apache_beam.io.filesystems import FileSystems

from ..io.filesystem import StoreError, match, with_retries
from .compression import SUFFIXES
from .registry import READERS


class InputError(ValueError):
    """The input cannot be read as it was named; the text says what is there and what to do."""


@dataclass(frozen=True)
class Shard:
    """One file of input; `name` is its path below the fixed part of the glob, as it stands in ids."""

    path: str
    name: str
    format: str
    compression: str | None
    bytes: int


def find_shards(patterns: Sequence[str], input_format: str | None = None) -> list[Shard]:
    """The shards that the globs match, by path; each once. Raises InputError where one matches nothing usable."""
    found: dict[str, tuple[str, int]] = {}
    for pattern in patterns:
        for path, size in _match(pattern):
            found.setdefault(path, (_below(pattern, path), size))
    names = Counter(name for name, _ in found.values())
    shards = []
    for path, (name, size) in sorted(found.items()):
        form, compression = format_of(path, input_format)
        shards.append(Shard(path, _text(name if names[name] == 1 else path), form, compression, size))
    return shards


def shard_state(shard: Shard) -> tuple[int, float]:
    """(bytes, time of last change) of a shard now; InputError where it is gone or not as large as the job found it.

    Shards are one version of the corpus: what is still being written, or replaced under the reader, is none.
    """
    try:
        now = with_retries(shard.path, "found", lambda: FileSystems.get_filesystem(shard.path).metadata(shard.path))
    except OSError as error:
        raise InputError(
            f"{shard.path} was there when the run began and cannot be read now ({error}): nothing was published; bring "
            f"it back or leave it out, and run again"
        ) from error
    if now.size_in_bytes != shard.bytes:
        raise shard_changed(shard, f"from {shard.bytes:,} bytes to {now.size_in_bytes:,}")
    return now.size_in_bytes, now.last_updated_in_seconds or 0.0


def shard_changed(shard: Shard, how: str = "while it was read") -> InputError:
    """The error for a shard that did not stay as it was."""
    return InputError(
        f"{shard.path} changed {how} during the run: nothing was published; run again once it is complete, and what is "
        f"finished is reused"
    )


def _text(name: str) -> str:
    """A file's name as ids can hold it: bytes of it that are not UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def format_of(path: str, input_format: str | None = None) -> tuple[str, str | None]:
    """(format, compression) of a file by its suffixes; InputError where they name none."""
    stem, suffix = os.path.splitext(path)
    compression = SUFFIXES.get(suffix.lower())
    if compression:
        suffix = os.path.splitext(stem)[1]
    form = input_format or suffix.lower().removeprefix(".")
    if form not in READERS:
        raise InputError(
            f"{path}: {suffix or 'no suffix'} names no format; known are {', '.join(READERS)}, compressed also "
            f"{', '.join(SUFFIXES)}: say which it is with --input_format"
        )
    if form == "parquet" and compression:
        raise InputError(f"{path}: Parquet is compressed within; unpack the file, or name it .parquet if it is plain")
    return form, compression


def _match(pattern: str) -> list[tuple[str, int]]:
    try:
        found = match(pattern)
    except ValueError as error:  # no filesystem for that scheme
        raise InputError(f"{pattern} cannot be read: {error}; gs:// and s3:// need the extras gcp and aws") from None
    except StoreError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{pattern} cannot be listed: {error}") from None
    files = [(file.path, file.size_in_bytes) for file in found if not os.path.isdir(file.path)]
    if not files and os.path.isfile(pattern):  # a name with brackets in it
        files = [(pattern, os.path.getsize(pattern))]
    if "://" not in pattern:  # Beam's star stops at a backslash, which other systems separate folders with
        missed = [path for path in glob.glob(pattern, recursive=True) if "\\" in path and os.path.isfile(path)]
        missed = sorted(set(missed) - {path for path, _ in files})
        if missed:
            raise InputError(f"{missed[0]!r} has a backslash in its name, and no glob matches that: rename the file")
    if not files:
        raise InputError(f"--input {pattern} matches no file; {_what_is_there(pattern)}")
    for path, _ in files:
        if "://" not in path and not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read: permission denied")
    return files


def _what_is_there(pattern: str) -> str:
    """Words on the nearest thing that does exist."""
    if "://" in pattern:
        return "check the bucket and the path"
    if os.path.isdir(pattern):
        return f"it is a directory: name the files in it, as in '{pattern.rstrip('/')}/*'"
    folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    names = sorted(os.listdir(folder))
    near = difflib.get_close_matches(os.path.basename(pattern), names, 3) or names[:5]
    return (
        f"{folder} holds {', '.join(near)}{', ...' if len(names) > len(near) else ''}"
        if names
        else f"{folder} is empty"
    )


def _below(pattern: str, path: str) -> str:
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    return path[len(fixed) :].lstrip("/") if fixed and path.startswith(fixed) else path.rpartition("/")[2] or path

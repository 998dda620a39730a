"""find_shards: the input files of a job, their names in ids and their formats."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence

from apache_beam.io.filesystems import FileSystems

from ..io.filesystem import StoreError, match, with_retries
from .base import InputError, Shard
from .compression import SUFFIXES
from .registry import READERS


def find_shards(patterns: Sequence[str], input_format: str | None = None) -> list[Shard]:
    """Return the shards that the globs match, by path, each once. Raises InputError if a glob matches no usable file."""
    files: dict[str, tuple[str, int]] = {}
    for pattern in patterns:
        for path, size in _match(pattern):
            files.setdefault(path, (_below(pattern, path), size))
    names = Counter(name for name, _ in files.values())
    shards = []
    for path, (name, size) in sorted(files.items()):
        form, compression = _format_of(path, input_format)
        shards.append(Shard(path, _text(name if names[name] == 1 else path), form, compression, size))
    return shards


def shard_state(shard: Shard) -> tuple[int, float]:
    """Return (bytes, time of last change) of a shard now. Raises InputError if it is gone or has another size than before.

    The shards are one version of the corpus; a file that is written or replaced during the run is not part of any.
    """
    try:
        now = with_retries(shard.path, "found", lambda: FileSystems.get_filesystem(shard.path).metadata(shard.path))
    except OSError as error:
        raise InputError(
            f"{shard.path} existed when the run began and cannot be read now ({error}): restore it or leave it out, and "
            f"run again"
        ) from error
    if now.size_in_bytes != shard.bytes:
        raise shard_changed(shard, f"from {shard.bytes:,} bytes to {now.size_in_bytes:,}")
    return now.size_in_bytes, now.last_updated_in_seconds or 0.0


def shard_changed(shard: Shard, how: str = "while it was read") -> InputError:
    """Return the error of a shard that changed during the run."""
    return InputError(
        f"{shard.path} changed {how} during the run: run again when it is complete; finished files are reused"
    )


def _text(name: str) -> str:
    """Return a file's name as valid text: bytes of it that are not UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _format_of(path: str, input_format: str | None = None) -> tuple[str, str | None]:
    """Return (format, compression) of a file by its suffixes. Raises InputError if they name no known format."""
    stem, suffix = os.path.splitext(path)
    compression = SUFFIXES.get(suffix.lower())
    if compression:
        suffix = os.path.splitext(stem)[1]
    form = input_format or suffix.lower().removeprefix(".")
    if form not in READERS:
        raise InputError(
            f"{path}: {suffix or 'no suffix'} is not a known format; known are {', '.join(READERS)}, compressed also "
            f"{', '.join(SUFFIXES)}: name it with --input_format"
        )
    if compression and not READERS[form].compressible:
        raise InputError(f"{path}: {form} is compressed inside only; decompress the file, or rename it if it is not")
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
    if not files and os.path.isfile(pattern):  # a name that contains brackets
        files = [(pattern, os.path.getsize(pattern))]
    if "://" not in pattern:  # Beam's star stops at a backslash, the separator of other systems
        missed = [path for path in glob.glob(pattern, recursive=True) if "\\" in path and os.path.isfile(path)]
        missed = sorted(set(missed) - {path for path, _ in files})
        if missed:
            raise InputError(f"{missed[0]!r} has a backslash in its name, and no glob matches that: rename the file")
    if not files:
        raise InputError(f"--input {pattern} matches no file; {_nearest_files(pattern)}")
    for path, _ in files:
        if "://" not in path and not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read: permission denied")
    return files


def _nearest_files(pattern: str) -> str:
    """Return words on the nearest files that do exist."""
    if "://" in pattern:
        return "check the bucket and the path"
    if os.path.isdir(pattern):
        return f"it is a directory: name its files, as in '{pattern.rstrip('/')}/*'"
    folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    names = sorted(os.listdir(folder))
    near = difflib.get_close_matches(os.path.basename(pattern), names, 3) or names[:5]
    return (
        f"{folder} contains {', '.join(near)}{', ...' if len(names) > len(near) else ''}"
        if names
        else f"{folder} is empty"
    )


def _below(pattern: str, path: str) -> str:
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    return path[len(fixed) :].lstrip("/") if fixed and path.startswith(fixed) else path.rpartition("/")[2] or path

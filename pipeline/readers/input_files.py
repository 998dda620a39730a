"""find_shards: the input files of a job, their names in ids and their formats."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import IO

from ..io.file_io import FileIO
from ..io.paths import absolute_path, given_path, is_local, join, real_path
from ..io.retries import StoreError
from ..io.versions import FileChanged
from ..layout import PART, POINTER, SNAPSHOTS, manifest_place, parquet_name
from ..remote.worker_reports import RunReports
from ..terminal import plural
from .compression import SUFFIXES
from .globs import Matches, fixed_part, glob_regex, match_local, match_remote
from .registry import FORMAT_SUFFIXES, READERS
from .shard import InputError, Shard


def find_shards(
    patterns: Sequence[str],
    input_format: str | None = None,
    delimiter: str | None = None,
    known: Mapping[str, str] | None = None,
    *,
    output: str | None = None,
    quoting: str | None = None,
    escape: str | None = None,
    notes: list[str] | None = None,
) -> list[Shard]:
    """Return the shards that the globs match, by path; each once, named by the first glob that matches it.

    Args:
        patterns: The globs.
        input_format: The format of all shards; by default that of their suffixes.
        delimiter: The separator of csv.
        known: The names of the current snapshot's shards by their absolute paths. A shard keeps its name, so that its ids
            stay the same when inputs are added, reordered or widened, unless another shard now has that name.
        output: The directory of the snapshots that a run would write.
        quoting: As --quoting has it.
        escape: As --escape has it.
        notes: Gets lines on links that are not followed, and on files that are left out.

    Raises:
        InputError: A glob matches no usable file, two files would have the same name in ids, or a flag of csv is given
            without a file that it is for. For a run into `output` also: a shard is a pipe or is in `output`, or a glob would
            match the files of later snapshots in it.
    """
    shards: dict[str, Shard] = {}
    globs: dict[str, tuple[str, str]] = {}
    earlier: dict[str, str] = {}
    left_out = list[str]()
    for pattern in map(_given_glob, patterns):
        found = _match(pattern)
        if notes is not None:
            notes += found.notes
        if output is not None:
            if found.refused:
                raise InputError(found.refused)
            _check_outside(pattern, found, output)
        for identity, (path, size, version) in found.files.items():
            if _is_apple_double(path, pattern):
                left_out.append(path)
                continue
            if identity in shards:
                continue
            form, compression = _format_of(path, input_format)
            name = _name(pattern, path)
            earlier[identity] = known.get(absolute_path(path), name) if known else name
            globs[identity] = (pattern, path)
            shards[identity] = Shard(path, name, form, compression, size, version, delimiter)
            if default := READERS[form].quoting:
                shards[identity] = replace(shards[identity], quoting=quoting or default, escape=escape)
    names = _choose_names({identity: shard.name for identity, shard in shards.items()}, earlier)
    first: dict[str, str] = {}
    for identity, name in names.items():
        if name in first:
            raise _same_name(name, globs[identity], globs[first[name]])
        first[name] = identity
    if left_out and not shards:
        raise InputError(f"all {len(left_out)} files are metadata of macOS (._*), as {left_out[0]}: name the shards")
    if left_out and notes is not None:
        files = plural(len(set(left_out)), "file was", "files were")
        notes.append(f"{files} left out as metadata of macOS (._*), the first is {min(left_out)}")
    _check_flags(shards.values(), delimiter, quoting, escape)
    named = (replace(shard, name=names[identity]) for identity, shard in shards.items())
    return sorted(named, key=lambda shard: shard.path)


def _is_apple_double(path: str, pattern: str) -> bool:
    """Return whether a file that a wildcard matches is named like the metadata that macOS keeps beside files."""
    name = pattern.rpartition("/")[2]
    return path.rpartition("/")[2].startswith("._") and not name.startswith("._") and path != pattern


def _check_flags(shards: Collection[Shard], delimiter: str | None, quoting: str | None, escape: str | None) -> None:
    """Raise InputError if a flag of csv has no effect on any shard, or if two of them have the same character."""
    if delimiter and not any(READERS[shard.format].has_delimiter for shard in shards):
        raise InputError(f"--delimiter {delimiter!r} is for csv, and no shard is csv: leave it out")
    for flag, value in (("--quoting", quoting), ("--escape", escape)):
        if value and not any(READERS[shard.format].quoting for shard in shards):
            raise InputError(f"{flag} {value} is for csv and tsv, and no shard is either: leave it out")
    if escape and any(escape == {"csv": delimiter or ",", "tsv": "\t"}.get(shard.format) for shard in shards):
        raise InputError(f"--escape {escape!r} is also what separates fields: give another one, or leave it out")


def _choose_names(by_glob: Mapping[str, str], earlier: Mapping[str, str]) -> dict[str, str]:
    """Return a name for each key of both: the earlier one, or that of the glob if other keys have the earlier one too."""
    names = dict(earlier)
    while True:  # a name of a glob may be the earlier name of yet another shard
        times = Counter(names.values())
        collisions = [key for key, name in names.items() if times[name] > 1 and name != by_glob[key]]
        if not collisions:
            return names
        names.update((key, by_glob[key]) for key in collisions)


def _check_outside(pattern: str, found: Matches, output: str) -> None:
    """Raise InputError if a file that a glob matches is in `output`, or if it would match the files of later snapshots."""
    directory, fixed = real_path(output).rstrip("/"), fixed_part(pattern)
    for identity, file in found.files.items():
        if identity == directory:
            raise InputError(f"--output {output} is also an input: give the directory of the snapshots another name")
        if identity.startswith(f"{directory}/"):
            raise InputError(
                f"{file.path} is in --output {output}: keep shards and snapshots apart, or narrow the glob of --input"
            )
    if pattern == fixed:
        return
    regex = glob_regex(pattern[len(fixed) :])
    folders = {fixed: real_path(fixed or ".") if is_local(pattern) else fixed, **found.folders}
    for path, real in folders.items():
        start = f"{real.rstrip('/')}/"
        for name in (POINTER, manifest_place("run"), f"{SNAPSHOTS}/run/{parquet_name(PART, '0')}"):
            place = f"{directory}/{name}"
            if place.startswith(start) and regex.match(join(path, place[len(start) :])[len(fixed) :]):
                raise InputError(
                    f"--input {pattern} also matches the snapshots in --output {output}: choose an output outside of it, "
                    f"or narrow the glob"
                )


@contextmanager
def open_shard(shard: Shard, file_io: FileIO, reports: RunReports = RunReports()) -> Iterator[IO[bytes]]:
    """Open a shard, without decompressing it, for a block.

    The shards are one version of the corpus; a file that is written or replaced during the run is not part of any. Raises
    InputError if the shard is missing or not the version that was listed; OSError with its path if it cannot be read at all:
    it is forbidden, or gives no byte for as long as `file_io` waits. The launcher of a remote job learns of a shard that is
    missing, changed or forbidden.
    """
    try:
        with file_io.open_version(shard.listed) as handle:
            yield handle
    except FileChanged as error:
        with reports.errors():
            raise _shard_changed(error) from error
    except StoreError:
        raise
    except OSError as error:
        with reports.errors():
            raise OSError(
                error.errno or errno.EIO, f"{shard.path} cannot be read: {error.strerror or error}"
            ) from error


def _shard_changed(error: FileChanged) -> InputError:
    if error.missing:
        return InputError(f"{error}: restore it or leave it out, and run again")
    return InputError(f"{error} during the run: run again when it is complete; finished files are reused")


def _name(pattern: str, path: str) -> str:
    """Return a file's name in ids: its path below the fixed part of the glob; bytes that are not UTF-8 are spelled out."""
    fixed = fixed_part(pattern)
    name = path.rpartition("/")[2] if path == pattern and not fixed else path[len(fixed) :].lstrip("/")
    return name.encode("utf-8", "backslashreplace").decode()


def _same_name(name: str, *inputs: tuple[str, str]) -> InputError:
    (pattern, path), (first_pattern, first_path) = inputs
    pairs = zip(first_path.split("/"), path.split("/"), strict=False)
    common = [component for component, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return InputError(
        f"{first_path} (--input {first_pattern}) and {path} (--input {pattern}) would both be named {name!r} in ids: "
        f"read them by one glob, as in '{'/'.join([*common, '**', name.rpartition('/')[2]])}'"
    )


def _format_of(path: str, input_format: str | None) -> tuple[str, str | None]:
    """Return (format, compression) of a file by its suffixes. Raises InputError if they name no known format."""
    stem, suffix = os.path.splitext(path)
    compression = SUFFIXES.get(suffix.lower())
    if compression:
        suffix = os.path.splitext(stem)[1]
    form = input_format or FORMAT_SUFFIXES.get(suffix.lower(), "")
    if form not in READERS:
        raise InputError(
            f"{path}: {suffix or 'no suffix'} is not a known format; known are {', '.join(FORMAT_SUFFIXES)}, most also "
            f"compressed as {', '.join(SUFFIXES)}: name it with --input_format"
        )
    if compression and not READERS[form].compressible:
        raise InputError(f"{path}: {form} is compressed inside only; decompress the file, or rename it if it is not")
    return form, compression


def _given_glob(given: str) -> str:
    """Return the glob that --input gives, as given_path does; raise InputError if it cannot be one."""
    try:
        pattern = given_path(given)
    except ValueError as error:
        raise InputError(str(error)) from None
    return f"{pattern}*" if pattern.endswith("/") else pattern


def _match(pattern: str) -> Matches:
    """Return the files that a glob matches. Raises InputError if it matches nothing."""
    try:
        if is_local(pattern):
            found = match_local(pattern)
        else:
            found = Matches({file.path: file for file in match_remote(pattern)}, {}, [])
    except StoreError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        raise InputError(f"--input {pattern} cannot be listed: {reason}") from None
    if not found.files:
        raise InputError("; ".join([f"--input {pattern} matches no file", _nearest_files(pattern), *found.notes]))
    for path, _, _ in found.files.values():
        if is_local(path) and not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read: give read permission, or leave it out")
    return found


def _nearest_files(pattern: str) -> str:
    """Return words on the nearest files that do exist."""
    if not is_local(pattern):
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

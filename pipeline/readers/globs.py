"""Globs: the files that --input matches, on a local disk and in an object store.

`*`, `?` and `[...]` stop at a slash; `**` does not, and as a whole component it also matches no directory. Names that
begin with a dot match like others.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator

from ..io import beam_files
from ..io.versions import ListedFile, list_remote, local_file
from .shard import InputError

_WILDCARD = re.compile(r"[*?\[]")
_DIRECTORIES = re.compile(r"(?:(?<=/)|^)\*\*/")  # "**/" as a whole component


def fixed_part(pattern: str) -> str:
    """Return the directories before the first component with a wildcard, with their last slash, or ""."""
    start = _WILDCARD.split(pattern)[0]
    return start[: start.rfind("/") + 1]


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of the paths that a glob matches."""
    parts = [
        beam_files.FileSystem.translate_pattern(part).removeprefix("(?ms)").removesuffix(r"\Z")
        for part in _DIRECTORIES.split(pattern)
    ]
    return re.compile("(?ms)" + "(?:.*/)?".join(parts) + r"\Z")


def match_local(pattern: str) -> list[ListedFile]:
    """Return the local files that a glob matches, by path.

    A file whose name is exactly the pattern is the only match: its name may contain brackets. Raises OSError if one is
    unreadable, InputError if one is a device or a socket, which may have no end.
    """
    if os.path.isfile(pattern) or not _WILDCARD.search(pattern):
        paths = {pattern} if os.path.lexists(pattern) else set()
    else:
        directory = fixed_part(pattern)
        alternatives = _alternatives(pattern[len(directory) :].split("/"))
        paths = {path for parts in alternatives for path in _expand(directory, parts)}
    files = list[ListedFile]()
    for path in sorted(paths):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode):
            files.append(local_file(path, status))
        elif not stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a device or a socket, and a shard is a file or a named pipe: leave it out")
    return files


def match_remote(pattern: str) -> list[ListedFile]:
    """Return the objects that a glob matches, by path. Raises StoreError, or ValueError for an unknown scheme."""
    # Beam's "**/" needs a directory: list what matches without the slash, in one listing, and filter.
    wider, regex = _DIRECTORIES.sub("**", pattern), glob_regex(pattern)
    return [file for file in list_remote(wider, _WILDCARD.split(wider)[0]) if regex.match(file.path)]


def _alternatives(parts: list[str]) -> Iterator[list[str]]:
    """Yield the component lists that equal `parts`, in which "**" is only a whole component: a**b is a*b or a*/**/*b."""
    for at, part in enumerate(parts):
        before, stars, after = part.partition("**")
        if stars and part != "**":
            for rest in _alternatives([f"*{after.lstrip('*')}", *parts[at + 1 :]]):
                yield [*parts[:at], f"{before}{rest[0]}", *rest[1:]]
                yield [*parts[:at], f"{before}*", "**", *rest]
            return
    yield parts


def _expand(directory: str, parts: list[str]) -> Iterator[str]:
    """Yield the paths below `directory` that match the components `parts`."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _expand(directory, rest or ["*"])
        for entry in _entries(directory):
            if entry.is_dir(follow_symlinks=False):  # links may form circles
                yield from _expand(os.path.join(directory, entry.name), parts)
    elif _WILDCARD.search(part):
        for entry in _entries(directory):
            if fnmatch.fnmatchcase(entry.name, part):
                path = os.path.join(directory, entry.name)
                if not rest:
                    yield path
                elif entry.is_dir():
                    yield from _expand(path, rest)
    else:
        path = os.path.join(directory, part)
        if rest and (part in ("", ".", "..") or os.path.isdir(path)):
            yield from _expand(path, rest)
        elif not rest and os.path.lexists(path):
            yield path


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory or ".") as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
        return []

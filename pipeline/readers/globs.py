"""Globs: the files that --input matches, on a local disk and in an object store.

`*`, `?` and `[...]` stop at a slash; `**` does not, and as a whole component it also matches no directory. Names that
begin with a dot match like others. Links are followed, except those to nothing and to a folder that they are in.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import heapq
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..io import beam_files
from ..io.versions import ListedFile, list_remote, local_file
from .shard import InputError

_WILDCARD = re.compile(r"[*?\[]")
_DIRECTORIES = re.compile(r"(?:(?<=/)|^)\*\*/")  # "**/" as a whole component

MAX_NAMED = 5  # links in a note


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


class Matches(NamedTuple):
    """What a glob matches.

    Attributes:
        files: The files by their paths without links, each under one path: the one with the fewest links below the fixed
            part, of several the first in order.
        folders: The links to folders that were followed, with the folders' paths without links.
        notes: Lines on the links that were not followed.
        refused: Why a run must not read one of the files, or "".
    """

    files: dict[str, ListedFile]
    folders: dict[str, str]
    notes: list[str]
    refused: str = ""


def match_local(pattern: str) -> Matches:
    """Return the local files that a glob matches, by path.

    A file whose name is exactly the pattern is the only match: its name may contain brackets. Raises OSError if one is
    unreadable, InputError if one is a device or a socket, which may have no end.
    """
    walk = _Walk()
    if os.path.isfile(pattern) or not _WILDCARD.search(pattern):
        if os.path.lexists(pattern):
            if not os.path.exists(pattern) and os.path.islink(pattern):
                raise InputError(f"{pattern} is a link to {os.readlink(pattern)}, which does not exist: leave it out")
            walk.add(pattern, os.path.realpath(pattern), os.stat(pattern), (), os.path.islink(pattern))
    else:
        directory = fixed_part(pattern)
        walk.expand(directory, map(tuple, _alternatives(pattern[len(directory) :].split("/"))))
    files, refused = dict[str, ListedFile](), ""
    for real, (links, path, status) in sorted(walk.files.items(), key=lambda item: item[1][1]):
        if stat.S_ISDIR(status.st_mode):
            continue
        if kind := _KINDS.get(stat.S_IFMT(status.st_mode)):
            refused = f"{path} is {kind}, which can be read only once: write it to a file first, and name that"
            if not stat.S_ISFIFO(status.st_mode):
                raise InputError(refused)
        elif links and _is_descriptor(path):
            refused = f"{path} is an open file of this process, which no other can read: name the file itself"
        files[real] = local_file(path, status)
    return Matches(files, walk.folders, walk.notes(), refused)


# What is neither a file nor a directory. A terminal is a character device.
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def _is_descriptor(path: str) -> bool:
    """Return whether a link leads to an open file of a process, as /dev/stdin and /dev/fd/3 do: to workers it is another."""
    while os.path.islink(path):
        folder = os.path.realpath(os.path.dirname(path) or ".")
        if re.fullmatch(r"/dev/fd|/proc/[^/]+(/task/\d+)?/fd", folder):
            return True
        path = os.path.join(folder, os.readlink(path))
    return False


def match_remote(pattern: str) -> list[ListedFile]:
    """Return the objects that a glob matches, by path. Raises StoreError, or ValueError for an unknown scheme."""
    # Beam's "**/" needs a directory: list what matches without the slash, in one listing, and filter.
    wider, regex = _DIRECTORIES.sub("**", pattern), glob_regex(pattern)
    files = list_remote(wider, _WILDCARD.split(wider)[0])
    return [file for file in files if regex.match(file.path) and not _is_folder_marker(file)]


def _is_folder_marker(file: ListedFile) -> bool:
    """Return whether an object only shows that a folder exists, as consoles and Hadoop make them."""
    return not file.size and file.path.endswith(("/", "_$folder$"))


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


_Parts = tuple[str, ...]  # the components of a glob that are left to match

_State = tuple[str, str, _Parts]  # a folder, its path without links, and what is left to match in it


class _Walk:
    """The folders that globs lead to: each is visited once for the same rest of a glob, and links last."""

    def __init__(self) -> None:
        # By the path without links: (links that lead there, path, status).
        self.files: dict[str, tuple[int, str, os.stat_result]] = {}
        self.folders: dict[str, str] = {}
        self._dangling, self._circular = set[str](), set[str]()
        self._visited: set[tuple[str, _Parts]] = set()
        # Links to folders: (path, rest of the glob, folders that contain this link or the links before it).
        self._links: list[tuple[str, _Parts, _Parts]] = []

    def expand(self, folder: str, globs: Iterable[_Parts]) -> None:
        """Add the files below a folder that globs match. Links are followed when all else was visited, in order."""
        for parts in globs:
            self._visit(folder, os.path.realpath(folder or "."), parts, ())
        while self._links:
            path, parts, within = heapq.heappop(self._links)
            self._visit(path, os.path.realpath(path), parts, within)

    def add(self, path: str, real: str, status: os.stat_result, within: _Parts, is_link: bool) -> None:
        """Add a file, unless it was added under a better path."""
        found = (len(within) + is_link, path, status)
        if real not in self.files or found[:2] < self.files[real][:2]:
            self.files[real] = found

    def notes(self) -> list[str]:
        """Return lines on the links that were not followed."""
        return [
            f"links {kind} are not followed: {', '.join(sorted(paths)[:MAX_NAMED])}"
            + (f" and {len(paths) - MAX_NAMED:,} more" if len(paths) > MAX_NAMED else "")
            for kind, paths in (("to nothing that exists", self._dangling), ("in a circle", self._circular))
            if paths
        ]

    def _visit(self, folder: str, real: str, parts: _Parts, within: _Parts) -> None:
        waiting = [(folder, real, parts)]
        while waiting:
            state = waiting.pop()
            if state[1:] in self._visited:
                continue
            self._visited.add(state[1:])
            part = state[2][0]
            step = self._any_folder if part == "**" else self._wildcard if _WILDCARD.search(part) else self._name
            waiting += step(*state, within)

    def _any_folder(self, folder: str, real: str, parts: _Parts, within: _Parts) -> Iterator[_State]:
        """Yield what follows "**": no folder, and each folder in this one."""
        yield folder, real, parts[1:] or ("*",)
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                yield os.path.join(folder, entry.name), os.path.join(real, entry.name), parts
            elif entry.is_symlink():
                self._follow(entry, os.path.join(folder, entry.name), parts, real, within)

    def _wildcard(self, folder: str, real: str, parts: _Parts, within: _Parts) -> Iterator[_State]:
        """Yield the folders that match a component with wildcards, or add the files if it is the last one."""
        matches, rest = _name_regex(parts[0]).match, parts[1:]
        for entry in _entries(folder):
            if not matches(entry.name):
                continue
            path = os.path.join(folder, entry.name)
            if entry.is_symlink():
                self._follow(entry, path, rest, real, within)
            elif entry.is_dir():
                if rest:
                    yield path, os.path.join(real, entry.name), rest
            elif not rest:
                status = entry.stat(follow_symlinks=False)
                self.add(path, os.path.join(real, entry.name), status, within, is_link=False)

    def _name(self, folder: str, real: str, parts: _Parts, within: _Parts) -> Iterator[_State]:
        """Yield the folder of a name without wildcards, or add the file if it is the last component."""
        path, rest = os.path.join(folder, parts[0]), parts[1:]
        is_link = os.path.islink(path)
        if is_link and not os.path.exists(path):
            self._dangling.add(path)
        elif is_link and rest and os.path.isdir(path):  # also in a circle: it was asked for by its name
            heapq.heappush(self._links, (path, rest, (*within, real)))
        elif rest and (parts[0] in ("", ".", "..") or os.path.isdir(path)):
            yield path, os.path.realpath(path), rest
        elif not rest and os.path.exists(path):
            self.add(path, os.path.realpath(path), os.stat(path), within, is_link)

    def _follow(self, entry: os.DirEntry[str], path: str, parts: _Parts, real: str, within: _Parts) -> None:
        """Add the file that a link leads to if `parts` is empty, or have its folder visited later."""
        try:
            status = entry.stat()
        except FileNotFoundError:
            self._dangling.add(path)
            return
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self._circular.add(path)
            return
        if stat.S_ISDIR(status.st_mode) and parts:
            target, within = os.path.realpath(path), (*within, real)
            if any(f"{folder}/".startswith(f"{target.rstrip('/')}/") for folder in within):
                self._circular.add(path)
            else:
                self.folders[path] = target
                heapq.heappush(self._links, (path, parts, within))
        elif not stat.S_ISDIR(status.st_mode) and not parts:
            self.add(path, os.path.realpath(path), status, within, is_link=True)


@functools.cache
def _name_regex(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory or ".") as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
        return []

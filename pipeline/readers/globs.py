"""Globs: the files that --input matches, on a local disk and in an object store.

`*`, `?` and `[...]` stop at a slash; `**` does not, and as a whole component it also matches no directory. Names that
begin with a dot match like others. Links are followed, except those to nothing and to a folder that they are in.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import heapq
import itertools
import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from ..io.versions import list_remote, version_of
from .shard import InputError

_WILDCARD = re.compile(r"[*?\[]")
_PIECES = re.compile(r"(?s)\*\*|\*|\?|\[!?\]?[^\]]*\]|.")
_DIRECTORIES = re.compile(r"(?:(?<=/)|^)\*\*/")  # "**/" as a whole component

MAX_NAMED = 5  # links in a note


def fixed_part(pattern: str) -> str:
    """Return the directories before the first component with a wildcard, with their last slash, or ""."""
    start = _WILDCARD.split(pattern)[0]
    return start[: start.rfind("/") + 1]


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of the paths that a glob matches."""
    parts = ("".join(map(_translate, _PIECES.findall(part))) for part in _DIRECTORIES.split(pattern))
    return re.compile("(?s)" + "(?:.*/)?".join(parts) + r"\Z")


def _translate(piece: str) -> str:
    if piece.startswith("[") and len(piece) > 1:
        return f"(?!/){fnmatch.translate(piece)[4:-3]}"  # without "(?s:" and the end
    return {"**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece) or re.escape(piece)


class Matches(NamedTuple):
    """What a glob matches, by column: a listing may have millions of files.

    Attributes:
        paths: The files, each under one path, in order: the one with the fewest links below the fixed part, of several the
            first.
        real_paths: Their paths without links.
        sizes: Their sizes in bytes.
        versions: Their versions.
        folders: The links to folders that were followed, with the folders' paths without links.
        notes: Lines on the links that were not followed.
        refused: Why a run must not read one of the files, or "".
        samples: For each disk, owner and mode of local files the first path: who may read it may read all of them.
    """

    paths: Sequence[str]
    real_paths: Sequence[str]
    sizes: Sequence[int]
    versions: Sequence[str]
    folders: Mapping[str, str] = MappingProxyType({})
    notes: Sequence[str] = ()
    refused: str = ""
    samples: Sequence[str] = ()

    def both_paths(self) -> Iterator[tuple[str, str]]:
        """Yield the path of each file, and that without links."""
        return zip(self.paths, self.real_paths, strict=True)

    def where(self, chosen: Iterable[bool]) -> Matches:
        """Return what is matched, with the chosen ones of the files only."""
        mask = list(chosen)
        return self._replace(
            paths=list(itertools.compress(self.paths, mask)),
            real_paths=list(itertools.compress(self.real_paths, mask)),
            sizes=list(itertools.compress(self.sizes, mask)),
            versions=list(itertools.compress(self.versions, mask)),
        )


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
            walk.add(pattern, os.path.realpath(pattern), os.stat(pattern), int(os.path.islink(pattern)))
    else:
        directory = fixed_part(pattern)
        walk.expand(directory, map(tuple, _alternatives(pattern[len(directory) :].split("/"))))
    return walk.matches()


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


def match_remote(pattern: str) -> Matches:
    """Return the objects that a glob matches, by path. Raises StoreError, or ValueError for an unknown scheme."""
    # Beam's "**/" needs a directory: list what matches without the slash, in one listing, and filter.
    wider, regex = _DIRECTORIES.sub("**", pattern), glob_regex(pattern)
    files = list_remote(wider, _WILDCARD.split(wider)[0])
    return Matches(files.paths, files.paths, files.sizes, files.versions).where(
        regex.match(path) is not None and not _is_folder_marker(path, size)
        for path, size in zip(files.paths, files.sizes, strict=True)
    )


def _is_folder_marker(path: str, size: int) -> bool:
    """Return whether an object only shows that a folder exists, as consoles and Hadoop make them."""
    return not size and path.endswith(("/", "_$folder$"))


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

_State = tuple[str, str, Sequence[_Parts]]  # a folder, its path without links, and what is left to match in it


class _Walk:
    """The folders that globs lead to: each is read once for all rests of a glob that lead there, and links last."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}  # of the files, by their paths without links
        self._paths, self._versions = list[str](), list[str]()
        self._sizes, self._links_before, self._kinds = array("q"), array("i"), array("i")
        self._numbers: dict[tuple[int, int, int, int], int] = {}  # of (mode, owner, group, disk), as _kinds has them
        self._folders: dict[str, str] = {}
        self._dangling, self._circular = set[str](), set[str]()
        self._visited: set[tuple[str, _Parts]] = set()
        # Links to folders: (path, rest of the glob, folders that contain this link or the links before it).
        self._links: list[tuple[str, _Parts, _Parts]] = []

    def expand(self, folder: str, globs: Iterable[_Parts]) -> None:
        """Add the files below a folder that globs match. Links are followed when all else was visited, in order."""
        self._visit(folder, list(globs), ())
        while self._links:
            path, parts, within = heapq.heappop(self._links)
            self._visit(path, [parts], within)

    def add(self, path: str, real: str, status: os.stat_result, links: int) -> None:
        """Add a file behind so many links, unless it is a folder or was added under a better path."""
        if stat.S_ISDIR(status.st_mode):
            return
        row = self._rows.setdefault(real, len(self._paths))
        if row < len(self._paths):
            self._links_before[row], self._paths[row] = min((self._links_before[row], self._paths[row]), (links, path))
            return
        self._paths.append(path)
        self._links_before.append(links)
        self._sizes.append(status.st_size)
        self._versions.append(version_of(status))
        kind = (status.st_mode, status.st_uid, status.st_gid, status.st_dev)
        self._kinds.append(self._numbers.setdefault(kind, len(self._numbers)))

    def matches(self) -> Matches:
        """Return the files that were added, by path. Raises InputError if one is a device or a socket."""
        paths, kinds, modes = self._paths, self._kinds, [kind[0] for kind in self._numbers]
        order = sorted(range(len(paths)), key=paths.__getitem__)
        is_file, refused = [_KINDS.get(stat.S_IFMT(mode)) is None for mode in modes], ""
        for row in order if any(self._links_before) or not all(is_file) else ():
            path, kind = paths[row], _KINDS.get(stat.S_IFMT(modes[kinds[row]]))
            if kind:
                refused = f"{path} is {kind}, which can be read only once: write it to a file first, and name that"
                if not stat.S_ISFIFO(modes[kinds[row]]):
                    raise InputError(refused)
            elif self._links_before[row] and _is_descriptor(path):
                refused = f"{path} is an open file of this process, which no other can read: name the file itself"
        samples: dict[int, str] = {}
        for row in order:
            samples.setdefault(kinds[row], paths[row])
        real_paths = list(self._rows)
        return Matches(
            [paths[row] for row in order],
            [real_paths[row] for row in order],
            [self._sizes[row] for row in order],
            [self._versions[row] for row in order],
            self._folders,
            self._notes(),
            refused,
            list(samples.values()),
        )

    def _notes(self) -> list[str]:
        """Return lines on the links that were not followed."""
        return [
            f"links {kind} are not followed: {', '.join(sorted(paths)[:MAX_NAMED])}"
            + (f" and {len(paths) - MAX_NAMED:,} more" if len(paths) > MAX_NAMED else "")
            for kind, paths in (("to nothing that exists", self._dangling), ("in a circle", self._circular))
            if paths
        ]

    def _visit(self, folder: str, globs: Sequence[_Parts], within: _Parts) -> None:
        waiting: list[_State] = [(folder, os.path.realpath(folder or "."), globs)]
        while waiting:
            folder, real, globs = waiting.pop()
            globs = self._not_visited(real, globs)
            for parts in globs:
                if not _WILDCARD.search(parts[0]):
                    waiting += self._name(folder, real, parts, within)
            wildcards = [parts for parts in globs if _WILDCARD.search(parts[0])]
            if wildcards:
                waiting += self._entries(folder, real, wildcards, within)

    def _not_visited(self, real: str, globs: Sequence[_Parts]) -> list[_Parts]:
        """Return the globs that were not matched in a folder yet, and what follows "**" in them: it is also no folder."""
        left, new = list(globs), list[_Parts]()
        while left:
            parts = left.pop()
            if (real, parts) not in self._visited:
                self._visited.add((real, parts))
                new.append(parts)
                if parts[0] == "**":
                    left.append(parts[1:] or ("*",))
        return new

    def _entries(self, folder: str, real: str, globs: Sequence[_Parts], within: _Parts) -> Iterator[_State]:
        """Yield the folders in a folder that globs with wildcards lead to, and add the files that they match."""
        start, real_start = (each if not each or each.endswith("/") else f"{each}/" for each in (folder, real))
        # What is left of each glob below an entry: all of it below any folder for "**", and nothing if it matches files.
        steps = [(_name_regex("*" if p[0] == "**" else p[0]).match, p if p[0] == "**" else p[1:]) for p in globs]
        for entry in _entries(folder):
            name = entry.name
            rests = [rest for matches, rest in steps if matches(name)]
            if not rests:
                continue
            path = start + name
            if entry.is_symlink():
                self._follow(entry, path, rests, real, within)
            elif entry.is_dir():
                if deeper := [rest for rest in rests if rest]:
                    yield path, real_start + name, deeper
            elif () in rests:
                file = path if start == real_start else real_start + name
                self.add(path, file, entry.stat(follow_symlinks=False), len(within))

    def _name(self, folder: str, real: str, parts: _Parts, within: _Parts) -> Iterator[_State]:
        """Yield the folder of a name without wildcards, or add the file if it is the last component."""
        path, rest = os.path.join(folder, parts[0]), parts[1:]
        is_link = os.path.islink(path)
        if is_link and not os.path.exists(path):
            self._dangling.add(path)
        elif is_link and rest and os.path.isdir(path):  # also in a circle: it was asked for by its name
            heapq.heappush(self._links, (path, rest, (*within, real)))
        elif rest and (parts[0] in ("", ".", "..") or os.path.isdir(path)):
            yield path, os.path.realpath(path), [rest]
        elif not rest and os.path.exists(path):
            self.add(path, os.path.realpath(path), os.stat(path), len(within) + is_link)

    def _follow(self, entry: os.DirEntry[str], path: str, rests: Sequence[_Parts], real: str, within: _Parts) -> None:
        """Add the file that a link leads to if one of `rests` is empty, or have its folder visited later."""
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
        if not stat.S_ISDIR(status.st_mode):
            if () in rests:
                self.add(path, os.path.realpath(path), status, len(within) + 1)
            return
        target, within = os.path.realpath(path), (*within, real)
        for parts in filter(None, rests):
            if any(f"{folder}/".startswith(f"{target.rstrip('/')}/") for folder in within):
                self._circular.add(path)
            else:
                self._folders[path] = target
                heapq.heappush(self._links, (path, parts, within))


@functools.cache
def _name_regex(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory or ".") as entries:  # removed meanwhile
        yield from entries

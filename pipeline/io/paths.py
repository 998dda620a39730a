"""Paths of files, local or on an object store: gs://, s3:// and what else Beam's file systems know."""

from __future__ import annotations

import os
from pathlib import Path

from ...model.paths import absolute, given_path

__all__ = [
    "absolute_path",
    "base_name",
    "check_directory",
    "given_path",
    "is_local",
    "join",
    "real_path",
    "scheme_of",
]


def is_local(path: str) -> bool:
    """Return whether `path` is on this machine's file system."""
    return "://" not in path


def absolute_path(path: str) -> str:
    """Return a path or glob that means the same from any current directory; links are not followed."""
    return absolute(path)


def join(directory: str, *names: str) -> str:
    """Return the path of a file below a directory, local or on an object store."""
    if is_local(directory):
        return os.path.join(directory, *names)
    return "/".join([directory.rstrip("/"), *names])


def base_name(path: str) -> str:
    """Return the last component of a path."""
    return path.rpartition("/")[2]


def real_path(path: str) -> str:
    """Return a local path without links, and an object's path as it is."""
    return os.path.realpath(path) if is_local(path) else path


def scheme_of(path: str) -> str:
    """Return the scheme of an object's path: "gs", "s3" and so on."""
    return path.partition("://")[0]


def check_directory(output: str) -> None:
    """Raise ValueError if the path that --output gives is local, and neither a directory nor can become one."""
    for path in (Path(output), *Path(output).parents) if is_local(output) else ():
        if os.path.lexists(path):
            if not os.path.isdir(path):
                raise ValueError(
                    f"--output {output} cannot be a directory, because {path} is not one: name another path"
                )
            return

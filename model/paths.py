"""Paths as people type them: a home directory's tilde, and URLs. Imports no torch."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from urllib.parse import unquote_to_bytes

from .messages import OneLineError

# Schemes of Beam's file systems: the client that each needs, and the extra that installs it.
_CLIENTS = {
    "gs": ("google.cloud.storage", "audioclip-beam[gcp]"),
    "s3": ("boto3", "audioclip-beam[aws]"),
    "hdfs": ("hdfs", "apache-beam[hadoop]"),
    "azfs": ("azure.storage.blob", "apache-beam[azure]"),
}
_OTHER_NAMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "azfs", "abfss": "azfs", "wasb": "azfs", "wasbs": "azfs"}
_SCHEMES = ("file", "http", "https", *_CLIENTS, *_OTHER_NAMES)

# A known scheme with any number of slashes, of which `//` is right; its colon may be missing if there are two.
_URL = re.compile(rf"(?s)({'|'.join(_SCHEMES)})(:[/\\]*|[/\\]{{2,}})(.*)", re.IGNORECASE)


class PathError(OneLineError, ValueError):
    """A path or glob that cannot be used as it is written; the message gives a remedy."""


def absolute(path: str) -> str:
    """Return a path or glob that means the same from any current directory; a URL and a slash at the end stay."""
    if "://" in path:
        return path
    return os.path.join(os.path.abspath(path), "") if path.endswith("/") else os.path.abspath(path)


def given_path(given: str | os.PathLike[str]) -> str:
    """Return a path or glob as the operating system or an object store names it.

    `~/x` and `~user/x` are paths in a home directory, and `file:///x` is the local path `/x`. Every other path and every
    result of this function stays as it is.

    Raises:
        PathError: A URL has another number of slashes, an unknown scheme, or one whose client is not installed; or the
            home directory is not known.
    """
    path = os.fspath(given)
    if path.startswith("~"):
        return _expand_home(path)
    if found := _URL.fullmatch(path):
        return _check_url(path, *found.groups())
    scheme, separator, _ = path.partition("://")
    if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) and not _is_registered(scheme):
        raise PathError(
            f"{path}: {scheme}:// is not known: paths are local, file:///path, gs://bucket/path or s3://bucket/path"
        )
    return path


def _expand_home(path: str) -> str:
    expanded, name = os.path.expanduser(path), path.split("/", maxsplit=1)[0]
    if expanded != path:
        return expanded
    if name == "~":
        raise PathError(f"{path}: the home directory is not known: set HOME, or write the whole path")
    if re.search(r"[*?\[]", name) or os.path.lexists(name):
        return path
    raise PathError(f"{path}: there is no user {name[1:]!r}: write ./{path} for a name that begins with a tilde")


def _check_url(path: str, scheme: str, separator: str, rest: str) -> str:
    """Return a URL of a known scheme, or the local path that it names. Raise PathError if it is not written rightly."""
    known = _OTHER_NAMES.get(scheme.lower(), scheme.lower())
    if not separator.startswith(":") and os.path.isdir(scheme):
        return path
    if known == "file":
        slashes, place = separator.lstrip(":"), rest.removeprefix("localhost")
        if separator.startswith(":") and (slashes in ("/", "///") or (slashes == "//" and place.startswith("/"))):
            place = f"/{rest}" if slashes != "//" else place
            return os.fsdecode(unquote_to_bytes(os.fsencode(place)))
        if slashes == "//" and separator.startswith(":"):
            raise PathError(f"{path}: a file URL names no host: write file:///path, or the path alone")
        raise PathError(f"{path}: a file URL has three slashes: write file:///path, or the path alone")
    right = f"{known}://{rest}"
    if right != path or not rest:
        example = right if rest else f"{known}://bucket/path"
        raise PathError(f"{path} is not a URL with a scheme in lower case, two slashes and a name: write {example}")
    if known in ("http", "https"):
        raise PathError(
            f"{path} cannot be used: files are on a disk or in an object store (gs://, s3://); download it first, as in "
            f"curl -O {path}"
        )
    client, extra = _CLIENTS[known]
    if not _is_installed(client):
        raise PathError(f"{path}: {known}:// needs a client that is not installed: run pip install '{extra}'")
    return path


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that contains it
        return False


def _is_registered(scheme: str) -> bool:
    """Return whether this program has given Beam a file system of its own for that scheme."""
    beam = sys.modules.get("apache_beam.io.filesystem")
    kinds = list(beam.FileSystem.__subclasses__()) if beam else []
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind.scheme() == scheme:
            return True
    return False

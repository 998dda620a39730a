"""The queries of a search: texts, sounds, pictures, or vectors from .npy files, as vectors of length 1."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ...model.head import BadRow, ContentError, describe
from ...model.heads import HEADS, find_head
from ...model.media import MediaHead
from ...model.messages import OneLineError
from ...model.text.texts import list_texts
from ..io.file_io import FileIO
from ..io.paths import given_path, is_local

if TYPE_CHECKING:
    from ...model.head import Encoder, Encoding
    from ..inference.find_model import SnapshotModel

VECTORS = ".npy"
TEXT = "text"

HELD_BYTES = 64 << 20  # of a file that is read whole before it is decoded


class QueryError(OneLineError, ValueError):
    """Error of a query that cannot be used; the message says why."""


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        name: As it was given.
        vector: float64 [dim], of length 1.
        length: That of the vector before.
        head: The head that embedded it, or "" for a vector from a file.
        note: Empty, or what users must know of the query.
    """

    name: str
    vector: NDArray[np.float64] = field(repr=False)
    length: float = 1.0
    head: str = ""
    note: str = ""


def list_queries(queries: Iterable[str]) -> list[str]:
    """Return queries as a list. Raise TypeError, which says what to write, if they are not strings."""
    listed = list_texts(queries, "queries")
    for query in listed:
        if not isinstance(query, str):
            raise TypeError(f"a query is {describe(query)}: give a text, or the name of a .npy file")
    return listed  # type: ignore[return-value]


@cache
def _heads_by_suffix() -> dict[str, str]:
    return {suffix: name for name in HEADS for suffix in find_head(name).types}


def _kind_of_path(path: str) -> str:
    """Return the head of a path by its suffix, ".npy", or TEXT for any other path."""
    suffix = f".{path.rpartition('.')[2].lower()}"
    return VECTORS if suffix == VECTORS else _heads_by_suffix().get(suffix, TEXT)


def _path_and_fragment(query: str) -> tuple[str, str]:
    """Return the path of a query, and its media fragment or "": what follows the last # behind a suffix, even if wrong."""
    path, mark, fragment = query.rpartition("#")
    is_named = fragment.startswith("t=") or _kind_of_path(query) == TEXT
    if mark and "/" not in fragment and is_named and _kind_of_path(path) != TEXT:
        return path, f"#{fragment}"
    return query, ""


def kind_of(query: str, *, text: bool = False) -> str:
    """Return the head that embeds a query, or ".npy" for a file of vectors; with `text` every query is a text."""
    return TEXT if text or not query else _kind_of_path(_path_and_fragment(query)[0])


def read_queries(
    queries: Sequence[str], dim: int, model: Callable[[str], SnapshotModel], *, text: bool = False
) -> list[Query]:
    """Return the queries in the order given, one for each vector of a file of vectors.

    Args:
        queries: The queries.
        dim: The numbers per vector.
        model: Returns the model of a head, and is called for the heads that the queries need.
        text: Whether all of them are texts.

    Raises:
        QueryError: One cannot be read or embedded, or its vector does not have `dim` numbers.
    """
    by_kind: dict[str, list[str]] = {}
    for query in dict.fromkeys(queries):
        by_kind.setdefault(kind_of(query, text=text), []).append(query)
    for query in by_kind.get(TEXT, []):
        _check_text(query, is_text=text)
    parsed = {query: _vectors_of_file(query, dim) for query in by_kind.pop(VECTORS, [])}
    for kind, named in by_kind.items():
        found = model(kind)
        # Contents are read before the model is built: a file that is missing is known at once.
        contents = None if kind == TEXT else [_read_content(query, found) for query in named]
        encoder = _encoder_of(found, dim)
        if contents is None:
            parsed |= {name: [query] for name, query in _vectors_of_texts(named, encoder).items()}
        else:
            parsed |= {name: [_embed(name, *each, encoder)] for name, each in zip(named, contents, strict=True)}
    return [one for query in queries for one in parsed[query]]


def _check_text(text: str, *, is_text: bool) -> None:
    if not text or text.isspace():
        raise QueryError("an empty text cannot be searched for: give a text or a file")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryError(
            f"the query {text!r:.80} is not UTF-8 (character {error.start}): check the terminal's encoding"
        ) from None
    remedy = "search for the text with --text"
    if not is_text and "/" in text and os.path.exists(text) and not os.path.isfile(text):
        raise QueryError(f"{text} is not a file: name files, or {remedy}")
    if not is_text and os.path.splitext(text)[1] and os.path.isfile(given_path(text)):
        raise QueryError(
            f"{text} is a file whose suffix is neither of sounds or pictures nor .npy: convert it, or {remedy}"
        )


def check_regular(path: str, name: str) -> None:
    """Raise QueryError if a path is local and no file: a pipe would be waited for, and a device may never end.

    Args:
        path: The path, as given_path returns it.
        name: What to call it.
    """
    if is_local(path) and os.path.exists(path) and not os.path.isfile(path):
        raise QueryError(f"{name} is not a regular file: name a file")


def _vectors_of_texts(texts: list[str], encoder: Encoder) -> dict[str, Query]:
    encoding, limit = encoder.encode_rows(texts), encoder.info.limit
    by_text = {}
    for place, text in enumerate(texts):
        count, is_long = (encoding.columns[name][place] for name in ("n_tokens", "truncated"))
        if place in encoding.errors and encoding.errors[place].reason == "empty text":
            raise QueryError(f"the query {text!r:.80} is blank for the model: give a text with a word")
        if place in encoding.errors:
            raise QueryError(
                f"the query {text!r:.80} has {count} tokens, and this snapshot was embedded with --on_long reject: "
                f"shorten it to {limit}"
            )
        note = f"truncated from {count} to the {limit} tokens that the model reads" if is_long else ""
        vector, length = direction(encoding.vectors[place], f"the query {text!r:.80}")
        by_text[text] = Query(text, vector, length, TEXT, note)
    return by_text


def _read_content(query: str, model: SnapshotModel) -> tuple[Any, str]:
    """Return what an encoder takes of a media file, decoded as rows are, and a note or ""."""
    path, fragment = _path_and_fragment(query)
    head = cast(MediaHead, model.head)
    check_regular(given_path(path), path)
    try:
        with FileIO().open(given_path(path)) as opened:
            size = opened.seek(0, io.SEEK_END)
            opened.seek(0)
            small = size <= min(head.max_held, HELD_BYTES)  # a larger picture is refused by its size
            file = cast(BinaryIO, io.BytesIO(opened.read()) if small else opened)
            content, first = _decode(query, file, size, fragment, model)
    except FileNotFoundError:
        raise QueryError(
            f"{path} does not exist: a query that ends in .{path.rpartition('.')[2]} is the name of a file; search for the "
            f"text with --text"
        ) from None
    except OSError as error:
        raise QueryError(f"{path} cannot be read: {error}") from None
    note = f"its first window, {first}, is searched for: {path}#t=START,END names another part" if first else ""
    return content, note


def _decode(query: str, file: BinaryIO, size: int, fragment: str, model: SnapshotModel) -> tuple[Any, str]:
    """Return what an encoder takes of an opened file of `size` bytes, and the fragment that was chosen in place of none."""
    head = cast(MediaHead, model.head)
    try:
        part = head.find_part(file, size, fragment, model.settings)
        (content,) = head.decode(file, [part.values])
    except BadRow as error:
        reason = "" if error.reason == "missing field" else f"{error.reason}: "  # of a fragment, not of a field
        raise QueryError(f"{query} cannot be embedded: {reason}{error.detail}") from None
    if isinstance(content, ContentError):
        raise QueryError(f"{query} cannot be embedded: {content.reason}: {content.detail}")
    return content, "" if fragment else part.fragment


def embed_media(name: str, data: bytes, dim: int, model: SnapshotModel) -> Query:
    """Return the query of a sound or picture in memory, as read_queries does for a file.

    Args:
        name: What to call it.
        data: The bytes of its file.
        dim: The numbers per vector.
        model: The model of its head.

    Raises:
        QueryError: It cannot be embedded, or its vector does not have `dim` numbers.
    """
    content, first = _decode(name, io.BytesIO(data), len(data), "", model)
    note = f"its first window, {first}, is searched for" if first else ""
    return _embed(name, content, note, _encoder_of(model, dim))


def _encoder_of(model: SnapshotModel, dim: int) -> Encoder:
    encoder = model.encoder()
    if encoder.info.dim != dim:
        raise QueryError(
            f"the model of the query gives vectors of {encoder.info.dim} numbers, and those of this snapshot have "
            f"{dim}: give the checkpoint of the snapshot's training with --checkpoint"
        )
    return encoder


def _embed(query: str, content: Any, note: str, encoder: Encoder) -> Query:
    encoding: Encoding = encoder.encode_rows([content])
    if encoding.errors:
        reason, detail = encoding.errors[0]
        raise QueryError(f"{query} cannot be embedded: {reason}: {detail}")
    vector, length = direction(encoding.vectors[0], query)
    return Query(query, vector, length, encoder.info.head, note)


def _vectors_of_file(path: str, dim: int) -> list[Query]:
    file: Any = given_path(path)
    check_regular(file, path)
    try:
        if not is_local(file):
            with FileIO().open(file) as opened:
                file = io.BytesIO(opened.read())
        # From a local file by mmap: a header with a false size costs no memory.
        array = np.load(file, mmap_mode=None if isinstance(file, io.BytesIO) else "r", allow_pickle=False)
    except FileNotFoundError:
        raise QueryError(f"{path} does not exist: a query that ends in .npy is the name of a file of vectors") from None
    except Exception as error:  # damaged bytes lead numpy anywhere: BadZipFile, TypeError, MemoryError, ...
        raise QueryError(f"{path} cannot be read as a .npy file: {error!r:.200}; write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise QueryError(f"{path} is an archive of arrays (.npz): save one array with numpy.save")
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or array.shape[-1] != dim or not array.size:
        raise QueryError(
            f"{path} contains {array.dtype} {list(array.shape)}, expected floats of shape [{dim}] or [n, {dim}]: the "
            f"vectors of this snapshot have {dim} numbers"
        )
    if array.ndim == 1:
        return [Query(path, *direction(array, path))]
    return [Query(f"{path}[{n}]", *direction(row, f"{path}[{n}]")) for n, row in enumerate(array)]


def direction(vector: NDArray[np.floating], name: str) -> tuple[NDArray[np.float64], float]:
    """Return the vector [dim] scaled to length 1, and the length that it had. Raise QueryError if it has no direction."""
    wide = np.array(vector, np.float64)
    largest = float(np.abs(wide).max())
    if not np.isfinite(largest) or largest == 0:
        raise QueryError(
            f"{name} has a vector that is {'zero' if largest == 0 else 'not finite'}: no row is near to it; leave it out"
        )
    wide /= largest  # squares of very large numbers would overflow
    length = float(np.sqrt((wide * wide).sum()))
    return wide / length, length * largest

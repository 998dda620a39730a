"""The queries of a search: texts, or vectors from .npy files, as vectors of length 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...model.head import describe
from ...model.text.texts import list_texts
from ..io.paths import given_path

if TYPE_CHECKING:
    from ...model.head import Encoder


class QueryError(ValueError):
    """Error of a query that cannot be used; the message says why."""


@dataclass(frozen=True)
class Query:
    """One query. `vector` is float64 [dim] of length 1; `note` is empty or says what users must know of the query."""

    name: str
    vector: NDArray[np.float64] = field(repr=False)
    note: str = ""


def list_queries(queries: Iterable[str]) -> list[str]:
    """Return queries as a list. Raise TypeError, which says what to write, if they are not strings."""
    listed = list_texts(queries, "queries")
    for query in listed:
        if not isinstance(query, str):
            raise TypeError(f"a query is {describe(query)}: give a text, or the name of a .npy file")
    return listed  # type: ignore[return-value]


def is_file(query: str) -> bool:
    """Return whether a query names a file of vectors; every other query is a text."""
    return query.endswith(".npy")


def read_queries(queries: Sequence[str], dim: int, encoder: Callable[[], Encoder]) -> list[Query]:
    """Return the queries in the order given, one for each vector of a file; `encoder` is called if one is a text.

    Raises:
        QueryError: One is not a text, or not a file of float vectors of `dim` numbers.
    """
    texts = [query for query in queries if not is_file(query)]
    for text in texts:
        _check_text(text)
    from_files = {query: _vectors_of_file(query, dim) for query in queries if is_file(query)}
    from_texts = _vectors_of_texts(list(dict.fromkeys(texts)), encoder()) if texts else {}
    parsed: list[Query] = []
    for query in queries:
        parsed.extend(from_files[query] if is_file(query) else [from_texts[query]])
    return parsed


def _check_text(text: str) -> None:
    if not text or text.isspace():
        raise QueryError("an empty text cannot be searched for: give a text or a .npy file of vectors")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryError(
            f"the query {text!r:.80} is not UTF-8 (character {error.start}): check the terminal's encoding"
        ) from None


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
        by_text[text] = Query(text, _direction(encoding.vectors[place], f"the query {text!r:.80}"), note)
    return by_text


def _vectors_of_file(path: str, dim: int) -> list[Query]:
    try:
        array = np.load(
            given_path(path), mmap_mode="r", allow_pickle=False
        )  # a header with a false size costs no memory
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
        return [Query(path, _direction(array, path))]
    return [Query(f"{path}[{n}]", _direction(row, f"{path}[{n}]")) for n, row in enumerate(array)]


def _direction(vector: NDArray[np.floating], name: str) -> NDArray[np.float64]:
    """Return the vector [dim] scaled to length 1."""
    wide = np.array(vector, np.float64)
    largest = float(np.abs(wide).max())
    if not np.isfinite(largest) or largest == 0:
        raise QueryError(
            f"{name} has a vector that is {'zero' if largest == 0 else 'not finite'}: no row is near to it; leave it out"
        )
    wide /= largest  # squares of very large numbers would overflow
    wide /= np.sqrt((wide * wide).sum())
    return wide

"""What is searched for: texts, or vectors out of .npy files, as directions in the space of the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...model.encoder import TextEncoder


class QueryError(ValueError):
    """A query cannot be searched for; the text says why."""


@dataclass(frozen=True)
class Query:
    """One thing searched for. `vector`: float64 [dim], of length 1; `note` is empty, or what to know of it."""

    name: str
    vector: NDArray[np.float64] = field(repr=False)
    note: str = ""


def is_file(query: str) -> bool:
    """Whether a query names a file of vectors; every other is a text."""
    return query.endswith(".npy")


def read_queries(queries: Sequence[str], dim: int, encoder: Callable[[], TextEncoder]) -> list[Query]:
    """The queries in the order given, each vector of a file by itself; `encoder` is called where one is a text.

    Raises QueryError where one is no text, or no file of float vectors of `dim` numbers.
    """
    texts = [query for query in queries if not is_file(query)]
    for text in texts:
        _check_text(text)
    from_files = {query: _vectors_of_file(query, dim) for query in queries if is_file(query)}
    from_texts = _vectors_of_texts(list(dict.fromkeys(texts)), encoder()) if texts else {}
    found: list[Query] = []
    for query in queries:
        found.extend(from_files[query] if is_file(query) else [from_texts[query]])
    return found


def _check_text(text: str) -> None:
    if not text or text.isspace():
        raise QueryError("an empty text cannot be searched for: give some words, or a .npy file of vectors")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryError(
            f"the query {text!r:.80} is not UTF-8 (character {error.start}): check the terminal's encoding"
        ) from None


def _vectors_of_texts(texts: list[str], encoder: TextEncoder) -> dict[str, Query]:
    encoding = encoder.encode_rows(texts)
    context = encoder.tower.context_length
    found = {}
    for text, vector, count, long in zip(texts, encoding.vectors, encoding.n_tokens, encoding.truncated, strict=True):
        if long and encoder.on_long == "reject":
            raise QueryError(
                f"the query {text!r:.80} has {count} tokens, and this snapshot takes no text of over {context}: shorten it"
            )
        note = f"cut to the {context} tokens that the model reads, of {count}" if long else ""
        found[text] = Query(text, _direction(vector, f"the query {text!r:.80}"), note)
    return found


def _vectors_of_file(path: str, dim: int) -> list[Query]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # a header that lies about its size costs no memory
    except FileNotFoundError:
        raise QueryError(f"there is no file {path}: a query that ends in .npy is taken for a file of vectors") from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise QueryError(f"{path} cannot be read as a .npy file: {error}; write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise QueryError(f"{path} is an archive of arrays (.npz): save the one array with numpy.save")
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or array.shape[-1] != dim or not array.size:
        raise QueryError(
            f"{path} holds {array.dtype} {list(array.shape)}: it must be floats of shape [{dim}] or [n, {dim}], as this "
            f"snapshot's vectors have {dim} numbers"
        )
    if array.ndim == 1:
        return [Query(path, _direction(array, path))]
    return [Query(f"{path}[{n}]", _direction(row, f"{path}[{n}]")) for n, row in enumerate(array)]


def _direction(vector: NDArray[np.floating], name: str) -> NDArray[np.float64]:
    """The vector [dim] scaled to length 1."""
    wide = np.array(vector, np.float64)
    largest = float(np.abs(wide).max())
    if not np.isfinite(largest) or largest == 0:
        raise QueryError(f"{name} has no direction: its vector {'is all zeros' if largest == 0 else 'is not finite'}")
    wide /= largest  # squares of very large numbers would overflow
    wide /= np.sqrt((wide * wide).sum())
    return wide

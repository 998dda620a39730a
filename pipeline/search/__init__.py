"""Exact search over the current snapshot, labels for its rows, and pairs of rows of two snapshots."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .classify_rows import Classes, classify
    from .exact_search import SearchResult, search
    from .pairs import Pairs, find_pairs
    from .queries import QueryError

__all__ = ["Classes", "Pairs", "QueryError", "SearchResult", "classify", "find_pairs", "search"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classify_rows": ["Classes", "classify"],
        "exact_search": ["SearchResult", "search"],
        "pairs": ["Pairs", "find_pairs"],
        "queries": ["QueryError"],
    },
)

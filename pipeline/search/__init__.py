"""Exact search over the current snapshot."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .exact_search import SearchResult, search
    from .queries import QueryError

__all__ = ["QueryError", "SearchResult", "search"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "exact_search": ["SearchResult", "search"],
        "queries": ["QueryError"],
    },
)

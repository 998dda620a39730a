"""Deduplication: rows meet by text hash, and known texts take their vectors from earlier part files."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .buckets import Buckets
    from .duplicate_ids import DuplicateIds
    from .reuse import JoinWithEarlierVectors, ReuseVectors

__all__ = ["Buckets", "DuplicateIds", "JoinWithEarlierVectors", "ReuseVectors"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "buckets": ["Buckets"],
        "duplicate_ids": ["DuplicateIds"],
        "reuse": ["JoinWithEarlierVectors", "ReuseVectors"],
    },
)

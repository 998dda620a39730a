"""Deduplication: rows meet by content hash, and known contents take their vectors from earlier part files."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .buckets import Buckets
    from .duplicate_ids import FindDuplicateIds
    from .reuse import JoinWithEarlierVectors, ReuseVectors

__all__ = ["Buckets", "FindDuplicateIds", "JoinWithEarlierVectors", "ReuseVectors"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "buckets": ["Buckets"],
        "duplicate_ids": ["FindDuplicateIds"],
        "reuse": ["JoinWithEarlierVectors", "ReuseVectors"],
    },
)

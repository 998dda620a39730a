"""What differs between two snapshots, for systems that follow the corpus."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .compare_snapshots import Changes, find_changes

__all__ = ["Changes", "find_changes"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"compare_snapshots": ["Changes", "find_changes"]})

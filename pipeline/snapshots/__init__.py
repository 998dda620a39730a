"""Snapshots: run directories, manifests, the current pointer and their history."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .history import current_path, gc, log, rollback
    from .manifest import Manifest
    from .snapshot import Snapshot, open_snapshot

__all__ = ["Manifest", "Snapshot", "current_path", "gc", "log", "open_snapshot", "rollback"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "history": ["current_path", "gc", "log", "rollback"],
        "manifest": ["Manifest"],
        "snapshot": ["Snapshot", "open_snapshot"],
    },
)

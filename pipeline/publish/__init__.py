"""The end of a run: reports are added up and checked, and the snapshot is published or refused."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .publish_snapshot import PublishSnapshot

__all__ = ["PublishSnapshot"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"publish_snapshot": ["PublishSnapshot"]})

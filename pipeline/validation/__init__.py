"""Validation: whether a snapshot is what its manifest says."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .result import Check, Verdict
    from .validate_snapshot import validate

__all__ = ["Check", "Verdict", "validate"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "result": ["Check", "Verdict"],
        "validate_snapshot": ["validate"],
    },
)

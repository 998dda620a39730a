"""Validation: whether a snapshot is what its manifest says."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .checks import Check, ValidationResult
    from .validate_snapshot import validate

__all__ = ["Check", "ValidationResult", "validate"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks": ["Check", "ValidationResult"],
        "validate_snapshot": ["validate"],
    },
)

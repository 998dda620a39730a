"""The report: one HTML page per snapshot."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .html import ensure_report, write_report

__all__ = ["ensure_report", "write_report"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "html": ["ensure_report", "write_report"],
    },
)

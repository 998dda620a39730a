"""The command line: `audioclip COMMAND`."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .app import main

__all__ = ["main"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "app": ["main"],
    },
)

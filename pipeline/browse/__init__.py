"""`audioclip browse`: a page on this machine, on which the rows of snapshots are searched, heard and seen."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .server import browse

__all__ = ["browse"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "server": ["browse"],
    },
)

"""Files on local disks and object stores, with retries and time limits."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .file_io import FileIO
    from .local_cache import local_copy
    from .retries import StoreError
    from .timeout_reader import open_to_read

__all__ = ["FileIO", "StoreError", "local_copy", "open_to_read"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "file_io": ["FileIO"],
        "local_cache": ["local_copy"],
        "retries": ["StoreError"],
        "timeout_reader": ["open_to_read"],
    },
)

"""Writers: embedded record batches to Parquet files."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .write_files import WriteFiles

__all__ = ["WriteFiles"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "write_files": ["WriteFiles"],
    },
)

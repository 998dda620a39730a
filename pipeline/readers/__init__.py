"""Readers: from shards to record batches, one module per format."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .fields import Fields
    from .infer_schema import infer_kept_schema
    from .input_files import find_shards
    from .read_shards import ReadShards
    from .shard import InputError, Shard

__all__ = ["Fields", "InputError", "ReadShards", "Shard", "find_shards", "infer_kept_schema"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "shard": ["InputError", "Shard"],
        "fields": ["Fields"],
        "infer_schema": ["infer_kept_schema"],
        "read_shards": ["ReadShards"],
        "input_files": ["find_shards"],
    },
)

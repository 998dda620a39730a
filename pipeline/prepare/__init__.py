"""Everything that is decided before a run starts: what it reads, what it carries over, which vectors it may reuse."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .job import Job, prepare_job
    from .unchanged import unchanged_since

__all__ = ["Job", "prepare_job", "unchanged_since"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"job": ["Job", "prepare_job"], "unchanged": ["unchanged_since"]}
)

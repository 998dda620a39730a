"""Run a pipeline to its end: choose and check the runner, watch the job, and end it on a signal."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .runner import run

__all__ = ["run"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"runner": ["run"]})

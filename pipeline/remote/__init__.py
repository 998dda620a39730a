"""Remote jobs, as launcher and workers know them: the services that run them, and what workers report."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .job_service import RemoteJob

__all__ = ["RemoteJob"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"job_service": ["RemoteJob"]})

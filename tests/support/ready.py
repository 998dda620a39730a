"""The last module that the server of `tests.support.processes` imports: caches for its forks, and no garbage to look for.

Forks do not wait for the disk either, as in `tests/conftest.py`.
With BEAM_CACHES=off the forks have Beam as users have it.
"""

from __future__ import annotations

import gc
import os

from tests.support.beam_caches import beam_caches

if os.environ.get("BEAM_CACHES") != "off":
    CACHES = beam_caches()
    CACHES.__enter__()
os.fsync = lambda descriptor: None  # type: ignore[assignment]
gc.collect()
gc.freeze()

"""The last module that the server of `tests.support.processes` imports: caches for its forks, and no garbage to look for.

With BEAM_CACHES=off the forks have Beam as users have it.
"""

from __future__ import annotations

import gc
import os

from tests.support.beam_caches import beam_caches

if os.environ.get("BEAM_CACHES") != "off":
    CACHES = beam_caches()
    CACHES.__enter__()
gc.collect()
gc.freeze()

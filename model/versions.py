"""Versions of what decides the token ids of some rare strings. Without torch, whose import takes a second."""

from __future__ import annotations

import unicodedata
from importlib.metadata import version

# Parts of the fingerprint. If only these differ, vectors can be compared, but not reused.
VERSION_PARTS = ("ftfy", "regex", "unicode")


def tokenizer_versions() -> dict[str, str]:
    """Return the versions that decide token ids: of ftfy, of regex, and of the Unicode data in Python's str.lower."""
    return {"ftfy": version("ftfy"), "regex": version("regex"), "unicode": unicodedata.unidata_version}

"""Strings that stand more than once are those that a plain count finds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audioclip_text.pipeline.validation.check_rows import Repeats


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.sampled_from([b"", b"a", b"a\0", b"a\0b", b"A", "ä".encode(), b"1", b"01"]))))
def test_repeats_are_those_of_a_count(batches: list[list[bytes]], tmp_path: Path) -> None:
    """Byte for byte, over all batches, in their order."""
    path = tmp_path / "seen"
    path.unlink(missing_ok=True)
    repeats = Repeats(str(path))
    for batch in batches:
        repeats.add(batch)
    counted = Counter(value for batch in batches for value in batch)
    expected = sorted(value for value, times in counted.items() if times > 1)
    assert repeats.found(3) == (len(expected), expected[:3])
    repeats.close()

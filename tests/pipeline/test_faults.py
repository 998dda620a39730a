"""If anything fails, once or permanently, a run ends with a whole snapshot or a message, and the former one stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from audioclip_beam.model.head import Encoding
from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from audioclip_beam.pipeline.snapshots import run_directory as run_dirs
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.listing import read_file_list
from tests.support.corpus import read, vectors, write_jsonl
from tests.support.faults import EFFECTS, Fault, Faults
from tests.support.stub import StubEncoder, StubHead

settings.register_profile("quick", max_examples=5, stateful_step_count=5, derandomize=True, database=None)
settings.register_profile("night", max_examples=400, stateful_step_count=12, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ESTALE)


class FragileHead(StubHead):
    """StubHead whose model is among the effects that can fail."""

    faults: Faults

    def encoder(self) -> StubEncoder:
        class Fragile(StubEncoder):
            def encode_rows(self, texts: Sequence[str]) -> Encoding:
                with FragileHead.faults.around("model", "the model"):
                    return super().encode_rows(texts)

        return Fragile(self.info())

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "faults"}


class Clock(datetime):
    """The clock of the runs: each reading is a second later, and tests set it."""

    present = datetime(2026, 11, 23, 12, 0, 0)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        cls.present += timedelta(seconds=1)
        return cls.present.replace(tzinfo=tz)  # type: ignore[arg-type]


STEADY = {f"steady {n}": f"steady text {n}" for n in range(7)}


class Nights:
    """A corpus in three shards, its output, and {id: text} of each snapshot ever published.

    One shard never changes, and is large enough to be carried over from the third night on.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.output = root, root / "out"
        self.faults = Faults(root)
        FragileHead.faults = self.faults
        self.corpus = {f"r{n}": f"text number {n}" for n in range(12)}
        self.bad = 1
        self.published: dict[str, dict[str, str]] = {}
        self.other_runs: list[str] = []  # snapshots that other runs published during this one
        self.name = ""
        self.texts = 0

    def write_corpus(self) -> None:
        """Write half of the rows into each shard, and broken lines after them."""
        rows = [json.dumps({"id": name, "text": text}) for name, text in self.corpus.items()]
        half = len(rows) // 2
        shards = {"a.jsonl": rows[:half], "b.jsonl": [*rows[half:], *['{"text": '] * self.bad]}
        (self.root / "in").mkdir(exist_ok=True)
        for name, lines in shards.items():
            (self.root / "in" / name).write_text("".join(f"{line}\n" for line in lines))
        steady = self.root / "in" / "c.jsonl"
        if not steady.exists():
            rows = [{"id": name, "text": text, "more": "x" * 5000} for name, text in STEADY.items()]
            write_jsonl(steady, rows)

    def run(self) -> str:
        """Run over the corpus; return the name of the snapshot that it published."""
        options = EmbedOptions(
            input=[str(self.root / "in/*")], output=str(self.output), id_field="id", max_file_rows=5, max_shrink=0.0
        )
        corpus = EmbedCorpus(options, FragileHead())
        try:
            run(corpus, options)
        finally:
            corpus.close()
            self.name = str(corpus.snapshot)
        return self.name

    def run_another(self) -> None:
        """Complete another run in the middle of this one."""
        self.other_runs.append(self.run())
        self.published[self.other_runs[-1]] = self.corpus | STEADY

    def night(self, fault: Fault | None) -> str | None:
        """Run with a fault and check the promises; return the error's message, or None if the run published."""
        self.write_corpus()
        before, good = current_name(str(self.output)), self.corpus | STEADY
        self.other_runs, error_text = [], None
        try:
            with self.faults.armed(fault):
                self.run()
        except (RuntimeError, OSError, ValueError) as error:
            error_text = str(error)
            assert len(error_text.splitlines()) == 1, error_text
            after = current_name(str(self.output))
            if "may have been published" not in error_text or after != self.name:
                assert after == (self.other_runs[-1] if self.other_runs else before)
                return error_text
        name = self.name
        self.published[name] = good
        manifest = read_manifest(str(self.output), name)
        assert manifest is not None
        for other in self.other_runs:  # one of the two began from what the other had published
            other_manifest = read_manifest(str(self.output), other)
            assert other_manifest is not None
            assert manifest["previous"] == other or other_manifest["previous"] == name
        rejected = manifest["totals"]["rejected_by_reason"].get("model error", 0)
        self.check_current(lost=rejected)
        self.published[name] = self.rows_of_current()
        return error_text

    def rows_of_current(self) -> dict[str, str]:
        """Return {id: text} of the current snapshot; read every file and compare every vector with its text's."""
        table = read(self.output)
        if not len(table):
            return {}
        expected = StubHead().make_encoder().encode_rows(table["text"].to_pylist()).vectors
        np.testing.assert_array_equal(vectors(table), expected)
        ids = table["id"].to_pylist()
        assert len(set(ids)) == len(ids)
        return dict(zip(ids, table["text"].to_pylist(), strict=True))

    def check_current(self, lost: int = 0) -> None:
        """Check that the current snapshot was published and contains the rows of its corpus."""
        name = current_name(str(self.output))
        if name is None:
            assert not self.published
            return
        rows, good = self.rows_of_current(), self.published[name]
        assert rows.items() <= good.items()
        assert len(rows) == len(good) - lost
        manifest = read_manifest(str(self.output), name)
        assert manifest is not None
        counts, totals = manifest["counts"], manifest["totals"]
        assert counts["read"] == counts["embedded"] + counts["reused"] + counts["rejected"]
        assert totals["vectors"] == totals["read"] - totals["rejected"] == len(rows)
        directory = self.output / "snapshots" / name
        for file in read_file_list(str(self.output), manifest):
            assert pq.read_metadata(directory / file.name).num_rows == file.rows
            assert (directory / file.name).stat().st_size == file.bytes

    def check_clean(self) -> None:
        """Check that only whole snapshots are left, and nothing temporary."""
        for path in self.output.rglob("*"):
            if not path.name.startswith("spill-"):  # one that could not be removed is removed with its snapshot
                assert not path.name.endswith(".tmp"), path
            assert path.parent.name != "snapshots" or (path / "manifest.json").exists(), path


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dirs, "datetime", Clock)


class FaultyNights(RuleBasedStateMachine):
    """Edits, faults of every kind, runs in the middle of others, and clocks that are set back, in any order."""

    @initialize()
    def begin(self) -> None:
        """Begin without a snapshot."""
        self.nights = Nights(Path(tempfile.mkdtemp()))

    @rule(count=st.integers(1, 4), what=st.sampled_from(["change", "add", "remove", "damage"]))
    def edit(self, count: int, what: str) -> None:
        """Change the corpus a little."""
        nights = self.nights
        for _ in range(count):
            nights.texts += 1
            name = min(nights.corpus) if nights.corpus else "r0"
            if what == "remove" and len(nights.corpus) > 2:
                del nights.corpus[name]
            elif what == "damage":
                nights.bad += 1
            else:
                nights.corpus[name if what == "change" else f"s{nights.texts}"] = f"fresh text {nights.texts}"

    @rule(
        effect=st.sampled_from(EFFECTS),
        nth=st.integers(1, 12),
        error=st.sampled_from(ERRORS),
        lasting=st.booleans(),
        late=st.booleans(),
    )
    def run_into_a_fault(self, effect: str, nth: int, error: int, lasting: bool, late: bool) -> None:
        """Let one effect fail, once or from then on."""
        self.nights.night(Fault(effect, nth, error, lasting, late))

    @rule(
        effect=st.sampled_from(sorted({*EFFECTS} - {"pointer"})), nth=st.integers(1, 8)
    )  # the pointer is under a lock
    def run_into_another_run(self, effect: str, nth: int) -> None:
        """Begin and end another run in the middle of this one: the other publishes, this one must not."""
        error = self.nights.night(Fault(effect, nth, meanwhile=self.nights.run_another))
        assert error is None or "this run began from" in error or "cannot be written" in error

    @rule(hours=st.integers(1, 10_000))
    def set_the_clock_back(self, hours: int) -> None:
        """Set the machine's clock back."""
        Clock.present -= timedelta(hours=hours)

    @rule()
    def run_undisturbed(self) -> None:
        """Check that the next run succeeds, and cleans up."""
        assert self.nights.night(None) is None
        self.nights.check_clean()

    @invariant()
    def the_current_snapshot_is_whole(self) -> None:
        """Check that a reader finds what was published last."""
        if hasattr(self, "nights"):
            self.nights.check_current()

    def teardown(self) -> None:
        """Check that the last run succeeds too."""
        if hasattr(self, "nights"):
            self.run_undisturbed()
            shutil.rmtree(self.nights.root)


@pytest.mark.slow
def test_nights_with_faults() -> None:
    """Hypothesis searches for an order of edits and faults that breaks a promise."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        FaultyNights,
        settings=settings(
            settings.get_profile(PROFILE),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if PROFILE == "night" else [])],
        ),
    )


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """An output with two snapshots and the files of a run over a larger corpus that died after its first file."""
    nights = Nights(tmp_path_factory.mktemp("two_nights") / "root")
    nights.root.mkdir()
    assert nights.night(None) is None
    assert nights.night(None) is None
    nights.corpus |= {f"n{n}": f"new text {n}" for n in range(6)}
    assert nights.night(Fault("rename", nth=2, lasting=True)) is not None
    return nights


def restore(two_nights: Nights) -> Nights:
    """Return the nights as they were at first. Shards keep their paths and inodes, so that they count as unchanged."""
    nights = Nights(two_nights.root)
    nights.corpus, nights.published = dict(two_nights.corpus), dict(two_nights.published)
    saved = two_nights.root.with_name("saved")
    if saved.exists():
        shutil.rmtree(nights.output)
        shutil.copytree(saved, nights.output)
    else:
        shutil.copytree(nights.output, saved)
    return nights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lasting", "late"), [(False, False), (True, False), (False, True)], ids=["once", "permanently", "answer lost"]
)
@pytest.mark.parametrize("effect", EFFECTS)
def test_each_effect_fails(two_nights: Nights, effect: str, lasting: bool, late: bool) -> None:
    """Each kind of effect is really hit, in an output that has a snapshot and the files of a dead run."""
    nights = restore(two_nights)
    error = nights.night(Fault(effect, error=errno.ENOSPC, lasting=lasting, late=late))
    assert nights.faults.fired > 0, nights.faults.seen
    harmless = {"reuse", "remove"} | ({"model"} if not lasting else set())  # they cost time, or the next run does them
    if effect in harmless:
        assert error is None
    else:
        assert error is not None
        assert "No space left on device" in error or (effect, "the model failed on") == ("model", error[:19])
    nights.check_current()
    assert nights.night(None) is None
    nights.check_clean()


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 5, 10])
def test_the_pointer_is_changed_and_cannot_be_read(two_nights: Nights, nth: int) -> None:
    """From any operation on, `current.json` is changed as requested, but every answer is lost."""
    nights = restore(two_nights)
    error = nights.night(Fault("pointer", nth, lasting=True, late=True))
    assert (error is None) == (nights.faults.fired == 0)
    if current_name(str(nights.output)) == nights.name:
        assert error is None or "may have been published" in error
    assert nights.night(None) is None
    nights.check_clean()


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "permanently"])
def test_the_pointer_can_be_read_and_not_written(two_nights: Nights, lasting: bool) -> None:
    """The last operation on `current.json` is the one that changes it."""
    nights = restore(two_nights)
    assert nights.night(None) is None
    nth = nights.faults.seen["pointer"]
    nights = restore(two_nights)
    before = current_name(str(nights.output))
    error = nights.night(Fault("pointer", nth, errno.ENOSPC, lasting=lasting))
    assert nights.faults.fired > 0
    assert error is not None
    assert "No space left on device" in error
    assert current_name(str(nights.output)) == before
    assert nights.night(None) is None

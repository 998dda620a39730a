"""Whatever fails, once or for good: a run ends with a whole snapshot, or says why not and leaves the former one."""

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

from audioclip_text.model.encoder import Encoding
from audioclip_text.pipeline.cli.runner import run
from audioclip_text.pipeline.embed import EmbedCorpus
from audioclip_text.pipeline.options import EmbedOptions
from audioclip_text.pipeline.snapshots import run_directory as run_dirs
from audioclip_text.pipeline.snapshots.commit import current_name, read_manifest
from tests.support.corpus import read, vectors
from tests.support.faults import EFFECTS, Fault, Faults
from tests.support.stub import StubEncoder, StubHandler

settings.register_profile("quick", max_examples=5, stateful_step_count=5, derandomize=True, database=None)
settings.register_profile("night", max_examples=400, stateful_step_count=12, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ESTALE)


class FragileHandler(StubHandler):
    """StubHandler whose model is one of the effects that can fail."""

    faults: Faults

    def load_model(self) -> StubEncoder:
        faults = self.faults

        class Fragile(StubEncoder):
            def encode_rows(self, texts: Sequence[str]) -> Encoding:
                with faults.around("model", "the model"):
                    return super().encode_rows(texts)

        return Fragile(self.dim, self.name)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "faults"}


class Clock(datetime):
    """What the runs take for the present time: a second later at every look, and set at will."""

    present = datetime(2026, 11, 23, 12, 0, 0)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        cls.present += timedelta(seconds=1)
        return cls.present.replace(tzinfo=tz)  # type: ignore[arg-type]


class Nights:
    """A corpus in two shards, its store, and what must be in there: {id: text} of each snapshot ever published."""

    def __init__(self, root: Path) -> None:
        self.root, self.output = root, root / "out"
        self.faults = Faults(root)
        FragileHandler.faults = self.faults
        self.corpus = {f"r{n}": f"text number {n}" for n in range(12)}
        self.bad = 1
        self.published: dict[str, dict[str, str]] = {}
        self.met: list[str] = []  # what other runs published during the present one
        self.name = ""
        self.texts = 0

    def write_corpus(self) -> None:
        """Half of the rows into each shard, and lines that are no rows behind them."""
        rows = [json.dumps({"id": name, "text": text}) for name, text in self.corpus.items()]
        half = len(rows) // 2
        shards = {"a.jsonl": rows[:half], "b.jsonl": [*rows[half:], *['{"text": '] * self.bad]}
        (self.root / "in").mkdir(exist_ok=True)
        for name, lines in shards.items():
            (self.root / "in" / name).write_text("".join(f"{line}\n" for line in lines))

    def run(self) -> str:
        """One run over the corpus as it is, undisturbed or not; gives the name of what it published."""
        options = EmbedOptions(
            input=[str(self.root / "in/*")], output=str(self.output), id_field="id", max_file_rows=5, max_shrink=0.0
        )
        corpus = EmbedCorpus(options, FragileHandler())
        try:
            run(corpus, options)
        finally:
            corpus.close()
            self.name = str(corpus.snapshot)
        return self.name

    def meet(self) -> None:
        """Another whole run, in the middle of this one."""
        self.met.append(self.run())
        self.published[self.met[-1]] = dict(self.corpus)

    def night(self, fault: Fault | None) -> str | None:
        """Run with a fault; gives the error's text, or None where the run published. Checks what either promises."""
        self.write_corpus()
        before, good = current_name(str(self.output)), dict(self.corpus)
        self.met, told = [], None
        try:
            with self.faults.armed(fault):
                self.run()
        except (RuntimeError, OSError, ValueError) as error:
            told = str(error)
            assert len(told.splitlines()) == 1, told
            after = current_name(str(self.output))
            if "may have been published" not in told or after != self.name:
                assert after == (self.met[-1] if self.met else before)
                return told
        name = self.name
        self.published[name] = good
        manifest = read_manifest(str(self.output), name)
        assert manifest is not None
        for other in self.met:  # one of the two began from what the other had published
            met = read_manifest(str(self.output), other)
            assert met is not None
            assert manifest["previous"] == other or met["previous"] == name
        rejected = {"model error": 0, **manifest["counts"]["rejected_by_reason"]}["model error"]  # type: ignore[dict-item]
        self.check_current(lost=rejected)
        self.published[name] = self.rows_of_current()
        return told

    def rows_of_current(self) -> dict[str, str]:
        """{id: text} of the current snapshot, every file read, every vector held against its text."""
        table = read(self.output)
        if not len(table):
            return {}
        expected = StubEncoder(8, "stub").encode_rows(table["text"].to_pylist()).vectors
        np.testing.assert_array_equal(vectors(table), expected)
        ids = table["id"].to_pylist()
        assert len(set(ids)) == len(ids)
        return dict(zip(ids, table["text"].to_pylist(), strict=True))

    def check_current(self, lost: int = 0) -> None:
        """The current snapshot is one that was published, and holds what its corpus held."""
        name = current_name(str(self.output))
        if name is None:
            assert not self.published
            return
        rows, good = self.rows_of_current(), self.published[name]
        assert rows.items() <= good.items()
        assert len(rows) == len(good) - lost
        manifest = read_manifest(str(self.output), name)
        assert manifest is not None
        counts = {what: int(str(manifest["counts"][what])) for what in ("read", "embedded", "reused", "rejected")}
        assert counts["read"] == counts["embedded"] + counts["reused"] + counts["rejected"]
        assert counts["embedded"] + counts["reused"] == len(rows)
        directory = self.output / "snapshots" / name
        for file in manifest["files"]:
            assert pq.read_metadata(directory / file["name"]).num_rows == file["rows"]
            assert (directory / file["name"]).stat().st_size == file["bytes"]

    def check_clean(self) -> None:
        """After an undisturbed run only whole snapshots are left, and nothing temporary."""
        for path in self.output.rglob("*"):
            if not path.name.startswith("spill-"):  # one that could not be removed goes when its snapshot does
                assert not path.name.endswith(".tmp"), path
            assert path.parent.name != "snapshots" or (path / "manifest.json").exists(), path


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dirs, "datetime", Clock)


class FaultyNights(RuleBasedStateMachine):
    """Edits, faults of every kind, runs that meet, and clocks that are set back, in any order."""

    @initialize()
    def begin(self) -> None:
        """An empty store."""
        self.nights = Nights(Path(tempfile.mkdtemp()))

    @rule(count=st.integers(1, 4), what=st.sampled_from(["change", "add", "remove", "damage"]))
    def edit(self, count: int, what: str) -> None:
        """The corpus changes a little."""
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
        """One effect fails, once or from then on."""
        self.nights.night(Fault(effect, nth, error, lasting, late))

    @rule(effect=st.sampled_from(sorted({*EFFECTS} - {"pointer"})), nth=st.integers(1, 8))  # that is under a lock
    def run_into_another_run(self, effect: str, nth: int) -> None:
        """A whole other run begins and ends in the middle of this one: it publishes, this one must not."""
        error = self.nights.night(Fault(effect, nth, meanwhile=self.nights.meet))
        assert error is None or "another run published" in error or "cannot be written" in error

    @rule(hours=st.integers(1, 10_000))
    def set_the_clock_back(self, hours: int) -> None:
        """The machine's clock is set back."""
        Clock.present -= timedelta(hours=hours)

    @rule()
    def run_undisturbed(self) -> None:
        """After whatever happened, the next run succeeds, and clears up."""
        assert self.nights.night(None) is None
        self.nights.check_clean()

    @invariant()
    def the_current_snapshot_is_whole(self) -> None:
        """At any time a reader finds what was published last."""
        if hasattr(self, "nights"):
            self.nights.check_current()

    def teardown(self) -> None:
        """The last run of all succeeds too."""
        if hasattr(self, "nights"):
            self.run_undisturbed()
            shutil.rmtree(self.nights.root)


def test_nights_with_faults() -> None:
    """Hypothesis looks for an order of edits and faults after which a promise is broken."""
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
    """A store with a snapshot, and a run over a larger corpus that died after its first file."""
    nights = Nights(tmp_path_factory.mktemp("two_nights"))
    assert nights.night(None) is None
    nights.corpus |= {f"n{n}": f"new text {n}" for n in range(6)}
    assert nights.night(Fault("rename", nth=2, lasting=True)) is not None
    return nights


@pytest.mark.parametrize(
    ("lasting", "late"), [(False, False), (True, False), (False, True)], ids=["once", "for good", "answer lost"]
)
@pytest.mark.parametrize("effect", EFFECTS)
def test_each_effect_fails(two_nights: Nights, tmp_path: Path, effect: str, lasting: bool, late: bool) -> None:
    """Each kind of effect is really hit, in a store that has a snapshot and the leavings of a dead run."""
    shutil.copytree(two_nights.root, tmp_path, dirs_exist_ok=True)
    nights = Nights(tmp_path)
    nights.corpus, nights.published = dict(two_nights.corpus), dict(two_nights.published)
    error = nights.night(Fault(effect, error=errno.ENOSPC, lasting=lasting, late=late))
    assert nights.faults.fired > 0, nights.faults.seen
    harmless = {"reuse", "remove"} | ({"model"} if not lasting else set())  # cost time, or are done by the next run
    if effect in harmless:
        assert error is None
    else:
        assert error is not None
        assert "No space left on device" in error or (effect, "the model failed on") == ("model", error[:19])
    nights.check_current()
    assert nights.night(None) is None
    nights.check_clean()


@pytest.mark.parametrize("nth", [1, 5, 10])
def test_the_pointer_is_changed_and_cannot_be_read(two_nights: Nights, tmp_path: Path, nth: int) -> None:
    """From any of its operations on, `current.json` does what it is asked, but all answers are lost."""
    shutil.copytree(two_nights.root, tmp_path, dirs_exist_ok=True)
    nights = Nights(tmp_path)
    nights.corpus, nights.published = dict(two_nights.corpus), dict(two_nights.published)
    error = nights.night(Fault("pointer", nth, lasting=True, late=True))
    assert (error is None) == (nights.faults.fired == 0)
    if current_name(str(nights.output)) == nights.name:
        assert error is None or "may have been published" in error
    assert nights.night(None) is None
    nights.check_clean()

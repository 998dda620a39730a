"""Any order of edits, moved shards, changed inputs and flags, rollbacks and collections gives what a dictionary gives."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from audioclip_beam.model.head import Encoding
from audioclip_beam.pipeline.changes import find_changes
from audioclip_beam.pipeline.layout import has_rows
from audioclip_beam.pipeline.snapshots import run_directory
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.history import gc, rollback
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support.clock import Clock
from tests.support.corpus import StubHead, embed, read, vectors, write_jsonl
from tests.support.snapshots import directory_of
from tests.support.stub import ENCODERS, StubEncoder

Row = dict[str, object]
PICK = st.integers(0, 999)
KINDS = ["null", "int64", "double", "string"]  # each holds the values of those before it
VALUES: dict[str, object] = {
    "keep_fields": ["tag"],
    "max_file_rows": 7,
    "max_text_bytes": 999,
    "vector_encoding": "byte_stream_split",
    "no_text": True,
    "unique_ids": True,
}


class SickEncoder(StubEncoder):
    """StubEncoder that fails on some texts while it is out of order."""

    out_of_order = False

    def encode_rows(self, texts: Sequence[str]) -> Encoding:
        if self.out_of_order and any(text.startswith("sick") for text in texts):
            raise RuntimeError("out of order")
        return super().encode_rows(texts)


class SickHead(StubHead):
    """StubHead over a SickEncoder."""

    def encoder(self) -> StubEncoder:
        return ENCODERS.setdefault("sick", SickEncoder(self.info()))


@dataclass
class Night:
    """A snapshot.

    Attributes:
        columns: Those of the id, the text and the kept field.
        kind: The type of the kept field, of KINDS; None without it.
        deciding: The options that decide which rows there are.
        states: The state of each shard.
        failed: The ids of the rows of each shard that the model failed on.
        rows: The rows with vectors by id, with the text in any case.
    """

    columns: list[str]
    kind: str | None
    deciding: dict[str, object]
    states: dict[str, object]
    failed: dict[str, set[object]]
    rows: dict[str, Row] = field(default_factory=dict)

    def shown(self) -> dict[str, Row]:
        """Return the rows as its files have them."""
        return {name: {column: row[column] for column in self.columns} for name, row in self.rows.items()}


def kind_of(value: object) -> int:
    """Return the number of the type of a value in KINDS."""
    return [type(None), int, float, str].index(type(value))


def settled(value: object, kind: str | None) -> object:
    """Return a value in a column of that type."""
    if kind != "string" or value is None or isinstance(value, str):
        return value
    return str(int(value)) if value == int(value) else str(value)  # type: ignore[call-overload]


class AnyNights(RuleBasedStateMachine):
    """A corpus in shards of two directories, and the Night of each snapshot that exists."""

    @initialize()
    def begin(self) -> None:
        """Begin with five shards, the first one of which is large, and a snapshot."""
        self.root = Path(tempfile.mkdtemp())
        self.output = self.root / "out"
        self.shards: dict[str, list[Row]] = {}
        self.directories = ["in"]
        self.options: dict[str, object] = {"keep_fields": ["tag"], "unique_ids": True}
        self.published: dict[str, Night] = {}
        SickHead().encoder().out_of_order = False  # type: ignore[attr-defined]
        self.damaged: str | None = None  # the current snapshot, if a file of it is gone
        self.number = 0
        for rows in (30, 3, 4, 5, 2):
            self.write(self.fresh_path("in"), [self.fresh_row() for _ in range(rows)])
        self.run_over_the_corpus()

    def fresh_row(self) -> Row:
        self.number += 1
        return {"id": f"r{self.number}", "text": f"text {self.number % 150}", "tag": self.number}

    def fresh_path(self, directory: str) -> str:
        self.number += 1
        return f"{directory}/{self.number}.jsonl"

    def write(self, path: str, rows: list[Row]) -> None:
        self.shards[path] = rows
        write_jsonl(self.root / path, rows)

    def remove(self, path: str) -> list[Row]:
        (self.root / path).unlink()
        return self.shards.pop(path)

    def pick(self, number: int) -> str:
        return sorted(self.shards)[number % len(self.shards)]

    @rule(
        shard=PICK,
        place=PICK,
        what=st.sampled_from(["add", "change", "remove", "rename", "retag", "reject", "repeat", "sicken"]),
        kind=st.sampled_from(KINDS),
    )
    def edit(self, shard: int, place: int, what: str, kind: str) -> None:
        """Edit a row."""
        path = self.pick(shard)
        rows, fresh = list(self.shards[path]), self.fresh_row()
        at = place % max(1, len(rows))
        if what in ("reject", "sicken"):
            fresh["text"] = "" if what == "reject" else f"sick {self.number}"
        if what in ("retag", "sicken"):
            number = self.number
            fresh["tag"] = {"null": None, "int64": number, "double": number / 2, "string": f"tag {number}"}[kind]
        if what in ("add", "reject", "sicken") or not rows:
            rows.insert(at, fresh)
        elif what == "repeat":
            rows.insert(at, {**rows[at], "id": fresh["id"]})
        elif what == "remove":
            rows.pop(at)
        else:
            name = {"change": "text", "rename": "id", "retag": "tag"}[what]
            rows[at] = {**rows[at], name: fresh[name]}
        self.write(path, rows)

    @rule(rows=st.integers(0, 40))
    def append_shard(self, rows: int) -> None:
        """Add a shard, which may be empty."""
        self.write(self.fresh_path(self.directories[-1]), [self.fresh_row() for _ in range(rows)])

    @rule(shard=PICK, what=st.sampled_from(["touch", "move", "move away", "swap", "split", "merge", "remove"]))
    def rearrange(self, shard: int, what: str) -> None:
        """Touch, move, split, merge or remove a shard, or give it the name of another one."""
        path = self.pick(shard)
        if what == "touch":
            os.utime(self.root / path, ns=(self.number, self.number))
        elif what == "move away":
            self.directories = sorted({*self.directories, "more"})
            (self.root / "more").mkdir(exist_ok=True)
            self.write(self.fresh_path("more"), self.remove(path))
        elif what == "move":
            moved = self.fresh_path(self.directories[0])
            (self.root / path).rename(self.root / moved)  # the same file, with all of its times
            self.shards[moved] = self.shards.pop(path)
        elif what == "swap":
            other = self.pick(shard + 1)
            (self.root / path).rename(self.root / "swapped")
            (self.root / (other if other != path else "swapped")).rename(self.root / path)
            if other != path:
                (self.root / "swapped").rename(self.root / other)
                self.shards[path], self.shards[other] = self.shards[other], self.shards[path]
        elif len(self.shards) > 1 and what == "merge":
            rows = self.remove(path)
            other = self.pick(shard)
            self.write(other, [*self.shards[other], *rows])
        elif what == "split":
            rows = self.shards[path]
            self.write(path, rows[: len(rows) // 2])
            self.write(self.fresh_path("in"), rows[len(rows) // 2 :])
        elif len(self.shards) > 1 and what == "remove":
            self.remove(path)

    @rule()
    def reorder_inputs(self) -> None:
        """Name the inputs in another order."""
        self.directories.reverse()

    @rule(name=st.sampled_from(sorted(VALUES)), given=st.booleans())
    def change_a_flag(self, name: str, given: bool) -> None:
        """Give a flag, or leave it out."""
        self.options.pop(name, None)
        if given:
            self.options[name] = VALUES[name]

    @rule()
    def break_or_mend_the_model(self) -> None:
        """From now on it fails on some texts, or does not."""
        encoder: SickEncoder = SickHead().encoder()  # type: ignore[assignment]
        encoder.out_of_order = not encoder.out_of_order

    @rule()
    def roll_back(self) -> None:
        """Go back to the snapshot before the current one, if there is one."""
        on_disk = {path.name for path in (self.output / "snapshots").iterdir()}
        if (
            min(self.published) != current_name(str(self.output))
            and on_disk == set(self.published)
            and not self.damaged
        ):
            rollback(str(self.output), sorted(self.published)[0])

    @rule()
    def collect_garbage(self) -> None:
        """Remove all other snapshots: the current one stays whole."""
        for name in gc(str(self.output), keep=1):
            self.published.pop(name, None)
        if not self.damaged:
            self.check_current()

    @rule(file=PICK, shorter=st.booleans())
    def damage_a_file(self, file: int, shorter: bool) -> None:
        """Remove a file of the current snapshot, or make it shorter."""
        files = sorted(path for path in directory_of(self.output).glob("*.parquet") if has_rows(path.name))
        if files:
            path = files[file % len(files)]
            data = path.read_bytes()
            path.unlink()  # other snapshots may have it, too
            if shorter:
                path.write_bytes(data[:-1])
            self.damaged = str(current_name(str(self.output)))

    @rule(force=st.booleans(), retry=st.booleans())
    def run_over_the_corpus(self, force: bool = False, retry: bool = False) -> None:
        """Embed: only texts without a vector in the current snapshot, or in one that was rolled back, cost model time."""
        name = current_name(str(self.output)) or ""
        before = self.published.get(name)
        known = {row["text"] for other, night in self.published.items() if other >= name for row in night.rows.values()}
        rows = {str(row["id"]): row for shard in self.shards.values() for row in shard}
        inputs = [
            f"{self.root}/{directory}/*.jsonl"
            for directory in self.directories
            if any((self.root / directory).iterdir())
        ]
        night = self.expected_night(before, known, force=force, retry=retry)
        read_shards = self.shards_to_read(before, night, force=force, retry=retry)
        options = {"id_field": "id", "max_shrink": 0.0, "allow_empty": True, "force": force, "retry_rejected": retry}
        manifest, texts = embed(inputs, self.output, SickHead(), **{**options, **self.options})
        rows_read = sum(len(self.shards[path]) for path in read_shards)
        if self.damaged:
            assert manifest["counts"]["read"] >= rows_read
            self.published.pop(self.damaged, None)
            before = None
            self.adopt(night, manifest.get("kept", {}).get("tag"))
        failed = set().union(*night.failed.values())
        good = {name: row for name, row in rows.items() if row["text"] and name not in failed}
        night.rows = {name: {**row, "tag": settled(row["tag"], night.kind)} for name, row in good.items()}
        if not self.damaged:
            assert sorted(texts) == sorted({str(row["text"]) for row in good.values()} - known)
            assert manifest["counts"]["read"] == rows_read, "an unchanged shard was opened"
        self.damaged = None
        self.published[manifest["snapshot"]] = night
        assert manifest.get("kept", {}).get("tag") == night.kind
        assert manifest["totals"]["rejected"] == len(rows) - len(good)
        assert manifest["totals"]["rejected_by_reason"].get("model error", 0) == len(failed)
        assert manifest["totals"]["vectors"] == len(good)
        self.check_current()
        report = validate(str(self.output))
        assert report.valid, report
        if before is not None:
            self.check_changes(before, night)

    def expected_night(self, before: Night | None, known: set[object], *, force: bool, retry: bool) -> Night:
        """Return what a run is to publish, without its rows."""
        keeps = "keep_fields" in self.options
        columns = ["id", *([] if "no_text" in self.options else ["text"]), *(["tag"] if keeps else [])]
        deciding = {name: value for name, value in self.options.items() if name not in ("max_file_rows", "unique_ids")}
        found = {path: (self.root / path).stat() for path in self.shards}
        states: dict[str, object] = {
            path: (each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for path, each in found.items()
        }
        night = Night(columns, None, deciding, states, {})
        read_shards = self.shards_to_read(before, night, force=force, retry=retry)
        fails = SickHead().encoder().out_of_order  # type: ignore[attr-defined]
        for path, rows in self.shards.items():
            sick = {row["id"] for row in rows if str(row["text"]).startswith("sick") and row["text"] not in known}
            night.failed[path] = (
                (sick if fails else set()) if path in read_shards or before is None else before.failed[path]
            )
        if keeps:
            kinds = [kind_of(row["tag"]) for path in read_shards for row in self.shards[path]]
            if before is not None and before.kind and len(read_shards) < len(self.shards):
                kinds.append(KINDS.index(before.kind))
            night.kind = KINDS[max(kinds, default=0)]
        return night

    def shards_to_read(self, before: Night | None, night: Night, *, force: bool, retry: bool) -> set[str]:
        """Return the shards that are new or changed since the current snapshot, or are to be tried again, or all of them."""
        if before is None or before.deciding != night.deciding or force:
            return set(self.shards)
        retried = {path for path, failed in before.failed.items() if failed and retry}
        return {path for path in self.shards if before.states.get(path) != night.states[path] or path in retried}

    def adopt(self, night: Night, kind: str | None) -> None:
        """Take from the snapshot what depends on which shards had rows in a damaged file."""
        ids = set(read(self.output, columns=["id"])["id"].to_pylist())
        night.kind = kind
        for path, rows in self.shards.items():
            sick = {row["id"] for row in rows if str(row["text"]).startswith("sick")}
            night.failed[path] = sick - ids

    def check_current(self) -> None:
        """Compare every row and vector of the current snapshot with the dictionary."""
        night = self.published[str(current_name(str(self.output)))]
        table = read(self.output)
        columns = [name for name in ("id", "text", "tag") if name in table.column_names]
        assert {row["id"]: row for row in table.select(columns).to_pylist()} == night.shown()
        assert len(table) == len(night.rows)
        if night.rows:
            texts = [str(night.rows[name]["text"]) for name in table["id"].to_pylist()]
            np.testing.assert_array_equal(vectors(table), StubHead().encoder().encode_rows(texts).vectors)

    def check_changes(self, before: Night, now: Night) -> None:
        """Compare what `changes` finds with the dictionaries."""
        changes = find_changes(str(self.output))
        both = before.rows.keys() & now.rows.keys()
        assert (changes.added, changes.removed) == (len(now.rows) - len(both), len(before.rows) - len(both))
        compared = ["text", *(["tag"] if now.kind else [])]
        differ = [name for name in both if any(before.rows[name][each] != now.rows[name][each] for each in compared)]
        types = [(each.columns, "string" if each.kind == "null" else each.kind) for each in (before, now)]
        same = types[0] == types[1]
        assert changes.changed == (len(differ) if same else len(both)), json.dumps([before.rows, now.rows])

    def teardown(self) -> None:
        """Run a last time."""
        if hasattr(self, "root"):
            self.run_over_the_corpus()
            shutil.rmtree(self.root)


@pytest.mark.slow
def test_any_nights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis searches for an order of events after which a snapshot differs from the corpus."""
    monkeypatch.setattr(run_directory, "datetime", Clock)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        AnyNights,
        settings=settings(
            max_examples=int(os.environ.get("NIGHTS", "6")),
            stateful_step_count=14,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if "NIGHTS" in os.environ else [])],
        ),
    )


@pytest.mark.slow
def test_each_kind_of_night(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nights after each other on which the model fails and works again, types widen, and flags change."""
    monkeypatch.setattr(run_directory, "datetime", Clock)
    nights = AnyNights()
    nights.begin()
    nights.edit(0, 0, "sicken", "int64")
    nights.edit(1, 1, "sicken", "double")
    nights.break_or_mend_the_model()
    nights.run_over_the_corpus()
    nights.edit(2, 0, "retag", "string")
    nights.break_or_mend_the_model()
    nights.run_over_the_corpus()
    nights.run_over_the_corpus(retry=True)
    nights.change_a_flag("no_text", True)
    nights.run_over_the_corpus()
    nights.change_a_flag("unique_ids", False)
    nights.edit(3, 0, "repeat", "null")
    nights.rearrange(2, "remove")
    nights.run_over_the_corpus()
    nights.change_a_flag("no_text", False)
    nights.teardown()

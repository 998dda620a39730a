"""Any order of edits, moved shards, changed inputs and flags, rollbacks and collections gives what a dictionary gives."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from audioclip_beam.pipeline.changes import find_changes
from audioclip_beam.pipeline.layout import has_rows
from audioclip_beam.pipeline.snapshots import run_directory
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.history import gc, rollback
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support.corpus import StubHead, embed, read, vectors, write_jsonl
from tests.support.snapshots import directory_of

Row = dict[str, object]
PICK = st.integers(0, 999)


class Clock(datetime):
    """A clock that gives every run a second of its own, so that names do not wait for the real one."""

    present = datetime(2026, 11, 23)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        cls.present += timedelta(seconds=1)
        return cls.present.replace(tzinfo=tz)  # type: ignore[arg-type]


class AnyNights(RuleBasedStateMachine):
    """A corpus in shards of two directories, and {id: (text, tag)} of each snapshot that exists."""

    @initialize()
    def begin(self) -> None:
        """Begin with five shards, the first one of which is large, and a snapshot."""
        self.root = Path(tempfile.mkdtemp())
        self.output = self.root / "out"
        self.shards: dict[str, list[Row]] = {}
        self.directories = ["in"]
        self.options: dict[str, object] = {"keep_fields": ["tag"]}
        self.published: dict[str, dict[str, Row]] = {}
        self.states: dict[str, tuple[object, dict[str, object]]] = {}  # of each snapshot: options, and states of shards
        self.damaged: str | None = None  # the current snapshot, if a file of it is gone
        self.number = 0
        for rows in (30, 3, 4, 5, 2):
            self.write(self.fresh_path("in"), [self.fresh_row() for _ in range(rows)])
        self.run_over_the_corpus()

    def fresh_row(self) -> Row:
        self.number += 1
        return {"id": f"r{self.number}", "text": f"text {self.number % 40}", "tag": self.number}

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
        shard=PICK, place=PICK, what=st.sampled_from(["add", "change", "remove", "rename", "retag", "reject", "repeat"])
    )
    def edit(self, shard: int, place: int, what: str) -> None:
        """Edit a row."""
        path = self.pick(shard)
        rows, fresh = list(self.shards[path]), self.fresh_row()
        at = place % max(1, len(rows))
        if what == "reject":
            fresh["text"] = ""
        if what in ("add", "reject") or not rows:
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

    @rule(
        name=st.sampled_from(["keep_fields", "max_file_rows", "max_text_bytes", "vector_encoding"]), given=st.booleans()
    )
    def change_a_flag(self, name: str, given: bool) -> None:
        """Give a flag, or leave it out."""
        values = {
            "keep_fields": ["tag"],
            "max_file_rows": 7,
            "max_text_bytes": 999,
            "vector_encoding": "byte_stream_split",
        }
        self.options.pop(name, None)
        if given:
            self.options[name] = values[name]

    @rule()
    def roll_back(self) -> None:
        """Go back to the snapshot before the current one, if there is one."""
        if min(self.published) != current_name(str(self.output)) and not self.damaged:
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

    @rule(force=st.booleans())
    def run_over_the_corpus(self, force: bool = False) -> None:
        """Embed: only texts without a vector in the current snapshot cost model time."""
        before = self.published.get(current_name(str(self.output)) or "")
        known = {row["text"] for row in before.values()} if before else set()
        rows = {str(row["id"]): row for shard in self.shards.values() for row in shard}
        good = {name: row for name, row in rows.items() if row["text"]}
        inputs = [
            f"{self.root}/{directory}/*.jsonl"
            for directory in self.directories
            if any((self.root / directory).iterdir())
        ]
        options = {"id_field": "id", "max_shrink": 0.0, "allow_empty": True, "unique_ids": True, "force": force}
        rows_read = self.rows_to_read(force)
        manifest, texts = embed(inputs, self.output, **{**options, **self.options})
        self.states[manifest["snapshot"]] = self.state()
        if self.damaged:
            assert manifest["counts"]["read"] >= rows_read
            self.published.pop(self.damaged, None)
            before = None
        else:
            assert sorted(texts) == sorted({str(row["text"]) for row in good.values()} - known)
            assert manifest["counts"]["read"] == rows_read, "an unchanged shard was opened"
        self.damaged = None
        if not self.options.get("keep_fields"):
            good = {name: {"id": row["id"], "text": row["text"]} for name, row in good.items()}
        self.published[manifest["snapshot"]] = good
        event(f"{'some' if manifest['totals']['read'] > manifest['counts']['read'] else 'no'} rows carried over")
        assert manifest["totals"]["rejected"] == len(rows) - len(good)
        assert manifest["totals"]["vectors"] == len(good)
        self.check_current()
        report = validate(str(self.output))
        assert report.valid, report
        if before is not None:
            self.check_changes(before, good)

    def state(self) -> tuple[object, dict[str, object]]:
        """Return the options that decide which rows there are, and the state of each shard."""
        deciding = {name: value for name, value in self.options.items() if name != "max_file_rows"}
        found = {path: (self.root / path).stat() for path in self.shards}
        states = {path: (each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for path, each in found.items()}
        return deciding, states

    def rows_to_read(self, force: bool) -> int:
        """Return how many rows are in shards that are new or changed since the current snapshot, or in all of them."""
        options, states = self.state()
        before = self.states.get(current_name(str(self.output)) or "")
        known = before[1] if before and before[0] == options and not force else {}
        return sum(len(rows) for path, rows in self.shards.items() if known.get(path) != states[path])

    def check_current(self) -> None:
        """Compare every row and vector of the current snapshot with the dictionary."""
        expected = self.published[str(current_name(str(self.output)))]
        table = read(self.output)
        columns = [name for name in ("id", "text", "tag") if name in table.column_names]
        assert {row["id"]: row for row in table.select(columns).to_pylist()} == expected
        assert len(table) == len(expected)
        if expected:
            encoded = StubHead().encoder().encode_rows(table["text"].to_pylist())
            np.testing.assert_array_equal(vectors(table), encoded.vectors)

    def check_changes(self, before: dict[str, Row], now: dict[str, Row]) -> None:
        """Compare what `changes` finds with the dictionaries."""
        changes = find_changes(str(self.output))
        both = before.keys() & now.keys()
        assert (changes.added, changes.removed) == (len(now) - len(both), len(before) - len(both))
        differ = [name for name in both if before[name] != now[name]]
        same_fields = not both or {tuple(before[name]) for name in both} == {tuple(now[name]) for name in both}
        assert changes.changed == (len(differ) if same_fields else len(both)), json.dumps([before, now])

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

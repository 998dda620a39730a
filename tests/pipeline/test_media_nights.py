"""Any order of nights over files, tars and lists of pictures and sounds gives what a dictionary gives, and opens no more."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from audioclip_beam.pipeline.changes import find_changes
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.versions import ListedFile
from audioclip_beam.pipeline.layout import CONTENT_SPILL, has_rows
from audioclip_beam.pipeline.snapshots import run_directory
from audioclip_beam.pipeline.snapshots.commit import current_name
from audioclip_beam.pipeline.snapshots.history import gc, rollback
from audioclip_beam.pipeline.validation.validate_snapshot import validate
from tests.support import stub_media
from tests.support.clock import Clock
from tests.support.corpus import read
from tests.support.media_corpus import Content, Entry, Key, PictureFiles, Piece, SoundFiles
from tests.support.shards import COMPRESS
from tests.support.snapshots import directory_of
from tests.support.stub_media import embed_media, show_no_previews, vector_of
from tests.support.tars import tar_of

stub_models = stub_media.stub_models

PICK = st.integers(0, 999)

OPENED = set[str]()  # the names of the files that lists name and that were opened


@dataclass(frozen=True)
class Record:
    """A file, a key of a tar, or an entry of a list.

    Attributes:
        name: The key, or the id of the entry; not of a file.
        content: What it contains or names.
        label: The text of the key, or the kept field of the entry.
        entry: What it is of a recording in a list.
        key_again: Whether the key of the tar occurs before other ones, too.
    """

    name: str
    content: Content
    label: str = ""
    entry: Entry = None
    key_again: bool = False


@dataclass
class Outcome:
    """What became of a shard: its rows by id, the reasons of the others, and how many rows were read."""

    rows: dict[str, tuple[Record, Piece]] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    read: int = 0
    keys: set[Key] = field(default_factory=set)  # of all contents that could be read


@dataclass
class Night:
    """A snapshot: the state of each shard, and what became of it."""

    states: dict[str, object]
    outcomes: dict[str, Outcome]

    def rows(self) -> dict[str, tuple[Record, Piece]]:
        return {name: row for outcome in self.outcomes.values() for name, row in outcome.rows.items()}

    def contents(self) -> set[Key]:
        return {piece.key for _, piece in self.rows().values()}


class MediaNights(RuleBasedStateMachine):
    """Shards in a directory, and the Night of each snapshot that exists."""

    media: PictureFiles | SoundFiles
    options: ClassVar[dict[str, Any]] = {}

    @initialize()
    def begin(self) -> None:
        """Begin with some shards, and a snapshot."""
        self.root = Path(tempfile.mkdtemp())
        self.output = self.root / "out"
        (self.root / "in").mkdir()
        self.shards: dict[str, list[Record]] = {}
        self.published: dict[str, Night] = {}
        self.damaged: str | None = None
        self.number = 0
        self.fill()
        self.run_over_the_corpus()

    def fill(self) -> None:
        raise NotImplementedError

    def fresh_content(self, kind: str = "good") -> Content:
        self.number += 1
        return Content(self.number % 60, kind if kind in self.media.kinds else "good")

    def fresh_name(self) -> str:
        self.number += 1
        return f"n{self.number}"

    def pick(self, number: int, suffixes: tuple[str, ...] = ("",)) -> str | None:
        """Return a shard with one of these suffixes, if there is one."""
        paths = sorted(path for path in self.shards if path.endswith(suffixes))
        return paths[number % len(paths)] if paths else None

    def write(self, path: str, records: list[Record]) -> None:
        self.shards[path] = records
        (self.root / "in" / path).write_bytes(self.bytes_of(path, records))

    def bytes_of(self, path: str, records: list[Record]) -> bytes:
        raise NotImplementedError

    def remove(self, path: str) -> list[Record]:
        (self.root / "in" / path).unlink()
        return self.shards.pop(path)

    @rule(shard=PICK, what=st.sampled_from(["touch", "rewrite", "rename", "copy", "swap", "remove"]))
    def rearrange(self, shard: int, what: str) -> None:
        """Touch, rename, copy or remove a shard, write it again with the same bytes, or swap it with another one."""
        path, folder = str(self.pick(shard)), self.root / "in"
        suffix = path[path.index(".") :]
        if what == "touch":
            os.utime(folder / path, ns=(self.number, self.number))
        elif what == "rewrite":
            self.write(path, self.remove(path))
        elif what == "rename":
            moved = f"{self.fresh_name()}{suffix}"
            (folder / path).rename(folder / moved)
            self.shards[moved] = self.shards.pop(path)
        elif what == "copy" and suffix != ".jsonl":  # the ids of a list would occur twice
            self.write(f"{self.fresh_name()}{suffix}", self.shards[path])
        elif what == "swap":
            other = str(self.pick(shard + 1, (suffix,)))
            self.shards[path], self.shards[other] = self.shards[other], self.shards[path]
            for each in {path, other}:
                self.write(each, self.shards[each])
        elif what == "remove" and len(self.shards) > 2:
            self.remove(path)

    @rule()
    def roll_back(self) -> None:
        """Go back to the first snapshot, if there are others."""
        on_disk = {path.name for path in (self.output / "snapshots").iterdir()}
        current = current_name(str(self.output))
        if min(self.published) != current and on_disk == set(self.published) and not self.damaged:
            rollback(str(self.output), sorted(self.published)[0])

    @rule()
    def collect_garbage(self) -> None:
        """Remove all other snapshots: the current one stays whole."""
        for name in gc(str(self.output), keep=1):
            self.published.pop(name, None)
        if not self.damaged:
            self.check_current()

    @rule(force=st.booleans(), retry=st.booleans())
    def run_over_the_corpus(self, force: bool = False, retry: bool = False) -> None:
        """Embed: only contents without a vector in the current snapshot, or in one that was rolled back, cost model time."""
        name = current_name(str(self.output)) or ""
        before = self.published.get(name)
        known = {key for other, night in self.published.items() if other >= name for key in night.contents()}
        found = {path: (self.root / "in" / path).stat() for path in self.shards}
        states: dict[str, object] = {
            path: (each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for path, each in found.items()
        }
        to_read = {
            path
            for path in self.shards
            if before is None
            or force
            or before.states.get(path) != states[path]
            or (retry and before.outcomes[path].rejected["missing file"])
        }
        usable = None if force else before
        outcomes = {
            path: self.outcome_of(path, usable, to_read) if path in to_read or before is None else before.outcomes[path]
            for path in self.shards
        }
        night = Night(states, outcomes)
        opened = self.files_to_open(usable, night, to_read)
        OPENED.clear()
        given = {"max_shrink": 0.0, "allow_empty": True, "max_file_rows": 7, "unique_ids": True}
        manifest, embedded = embed_media(
            f"{self.root}/in/**",
            self.output,
            self.media.head,
            **{**given, **self.media.options, **self.options},
            force=force,
            retry_rejected=retry,
        )
        if self.damaged:
            self.published.pop(self.damaged, None)
            before = None
        else:
            new = {key for path in to_read for key in outcomes[path].keys} - known
            assert Counter(vector_of(each).tobytes() for each in embedded) == self.vectors_of(new)
            assert manifest["counts"]["read"] == sum(outcomes[path].read for path in to_read), (
                "another shard was opened"
            )
            assert opened == OPENED
        self.damaged = None
        self.published[manifest["snapshot"]] = night
        rejected = sum((each.rejected for each in outcomes.values()), Counter[str]())
        assert manifest["totals"]["rejected_by_reason"] == dict(rejected)
        assert manifest["totals"]["vectors"] == len(night.rows())
        assert not list(self.root.rglob(f"{CONTENT_SPILL}*"))
        self.check_current()
        if before is not None:
            changes = find_changes(str(self.output))
            both = before.rows().keys() & night.rows().keys()
            counts = len(night.rows()) - len(both), len(before.rows()) - len(both)
            assert (changes.added, changes.removed) == counts

    def vectors_of(self, keys: set[Key]) -> Counter[bytes]:
        """Return the vectors that the stub computes for contents, those that it then rejects included."""
        pieces = {
            piece.key: piece for records in self.shards.values() for each in records for piece in self.pieces(each)
        }
        found = Counter[bytes]()
        for key in keys:
            vector = pieces[key].vector
            found[vector_of(self.media.data(key)).tobytes() if vector is None else vector] += 1  # type: ignore[arg-type]
        return found

    def pieces(self, record: Record) -> Sequence[Piece]:
        pieces = self.media.pieces(record.content, record.entry)
        return [] if isinstance(pieces, str) else pieces

    def outcome_of(self, path: str, before: Night | None, to_read: set[str]) -> Outcome:
        """Return what becomes of a shard that is read."""
        outcome = Outcome()
        for record in self.shards[path]:
            reason = self.reason_of(record, path, before, to_read)
            pieces = reason or self.media.pieces(record.content, record.entry)
            if isinstance(pieces, str):
                outcome.read += 1
                outcome.rejected[pieces] += 1
                continue
            for piece in pieces:
                outcome.read += 1
                outcome.keys.add(piece.key)
                if piece.vector is None:
                    outcome.rejected["not decodable"] += 1
                else:
                    outcome.rows[f"{self.id_of(path, record)}{piece.fragment}"] = record, piece
        return outcome

    def id_of(self, path: str, record: Record) -> str:
        raise NotImplementedError

    def reason_of(self, record: Record, path: str, before: Night | None, to_read: set[str]) -> str:
        """Return why a record is rejected whatever its content is, or ""."""
        return "duplicate key" if record.key_again else ""

    def files_to_open(self, before: Night | None, night: Night, to_read: set[str]) -> set[str]:
        """Return the names of the files that lists name and that the run must open."""
        return set()

    def check_current(self) -> None:
        """Compare every row and vector of the current snapshot with the dictionary."""
        night = self.published[str(current_name(str(self.output)))]
        rows = {row["id"]: row for row in read(self.output).to_pylist()}
        expected = night.rows()
        assert rows.keys() == expected.keys()
        for name, (record, piece) in expected.items():
            assert self.stored(rows[name]) == (piece.vector, record.label if self.options else "")
        report = validate(str(self.output))
        assert report.valid, report

    @staticmethod
    def stored(row: Mapping[str, Any]) -> tuple[bytes, str]:
        """Return the vector and the label of a row."""
        return np.float32(row["embedding"]).tobytes(), row.get("txt") or row.get("label") or ""

    def teardown(self) -> None:
        """Run a last time."""
        if hasattr(self, "root"):
            self.run_over_the_corpus()
            shutil.rmtree(self.root)


class FilesAndTars(MediaNights):
    """Files and tars beside each other."""

    def fill(self) -> None:
        self.number = 6
        for _ in range(4):
            self.add_shard("", 1, "good")
        self.add_shard(".tar", 12, "good")
        self.add_shard(".tar.gz", 3, "bad")

    def bytes_of(self, path: str, records: list[Record]) -> bytes:
        if path.endswith(self.media.suffix):
            return self.media.data(records[0].content)
        members = [
            member
            for each in records
            for member in (
                (f"{each.name}{self.media.suffix}", self.media.data(each.content)),
                (f"{each.name}.txt", each.label.encode()),
            )
        ]
        return COMPRESS[path[path.index(".") :].removeprefix(".tar")](tar_of(members))

    def id_of(self, path: str, record: Record) -> str:
        return path if path.endswith(self.media.suffix) else f"{path}#{record.name}"

    @rule(
        suffix=st.sampled_from(["", ".tar", ".tar.gz"]),
        keys=st.integers(1, 9),
        kind=st.sampled_from(["good", "bad", "broken"]),
    )
    def add_shard(self, suffix: str, keys: int, kind: str) -> None:
        """Add a file or a tar, with one content of a kind."""
        records = [
            Record(self.fresh_name(), self.fresh_content(kind if at == 0 else "good"))
            for at in range(keys if suffix else 1)
        ]
        self.write(f"{self.fresh_name()}{suffix or self.media.suffix}", records)

    @rule(shard=PICK, kind=st.sampled_from(["good", "bad", "broken"]))
    def change_a_file(self, shard: int, kind: str) -> None:
        """Write another content to a file."""
        path = self.pick(shard, (self.media.suffix,))
        if path:
            self.write(path, [Record("", self.fresh_content(kind))])

    @rule(
        shard=PICK,
        place=PICK,
        what=st.sampled_from(["add", "change", "rename", "remove", "repeat", "reverse", "compress"]),
    )
    def pack_a_tar_again(self, shard: int, place: int, what: str) -> None:
        """Add, change or remove a key, give one a second time, or pack the same ones otherwise."""
        path = self.pick(shard, (".tar", ".tar.gz"))
        if not path:
            return
        records = [each for each in self.shards[path] if not each.key_again]
        at = place % len(records)
        if what == "add":
            records.insert(at, Record(self.fresh_name(), self.fresh_content()))
        elif what == "change":
            records[at] = replace(records[at], content=self.fresh_content())
        elif what == "rename":
            records[at] = replace(records[at], name=self.fresh_name())
        elif what == "remove" and len(records) > 1:
            records.pop(at)
        elif what == "repeat" and at < len(records) - 1:
            records.append(replace(records[at], key_again=True))
        elif what == "reverse":
            records.reverse()
        elif what == "compress":
            self.remove(path)
            path = f"{path.partition('.')[0]}{'.tar' if path.endswith('.gz') else '.tar.gz'}"
        self.write(path, records)

    @rule(file=PICK)
    def damage_a_file(self, file: int) -> None:
        """Remove a file of the current snapshot."""
        files = sorted(path for path in directory_of(self.output).glob("*.parquet") if has_rows(path.name))
        if files:
            files[file % len(files)].unlink()
            self.damaged = str(current_name(str(self.output)))


class Lists(MediaNights):
    """Lists that name files outside of the input."""

    options: ClassVar[dict[str, Any]] = {"media_field": ["path"], "id_field": ["id"], "keep_fields": ["label"]}

    def fill(self) -> None:
        self.present = set[Content]()
        self.number = 6
        for entries in (15, 4, 3):
            self.add_list(entries)

    @property
    def is_sound(self) -> bool:
        return isinstance(self.media, SoundFiles)

    def name_of(self, content: Content) -> str:
        return f"{content.number}-{content.kind}{self.media.suffix}"

    def bytes_of(self, path: str, records: list[Record]) -> bytes:
        lines = []
        for each in records:
            line: dict[str, object] = {
                "path": f"../pool/{self.name_of(each.content)}",
                "id": each.name,
                "label": each.label,
            }
            if self.is_sound:
                line |= dict(zip(("offset", "duration"), each.entry or (None, None), strict=True))
            lines.append(json.dumps(line))
        return "\n".join(lines).encode()

    def id_of(self, path: str, record: Record) -> str:
        return record.name

    def create(self, content: Content) -> Content:
        (self.root / "pool").mkdir(exist_ok=True)
        (self.root / "pool" / self.name_of(content)).write_bytes(self.media.data(content))
        self.present.add(content)
        return content

    @rule(entries=st.integers(1, 9))
    def add_list(self, entries: int) -> None:
        """Add a list."""
        records = [Record(self.fresh_name(), self.create(self.fresh_content())) for _ in range(entries)]
        self.write(f"{self.fresh_name()}.jsonl", records)

    @rule(
        shard=PICK,
        place=PICK,
        what=st.sampled_from(["add", "change", "rename", "label", "remove", "reverse", "miss", "repeat", "part"]),
        kind=st.sampled_from(["good", "bad", "broken"]),
    )
    def change_a_list(self, shard: int, place: int, what: str, kind: str) -> None:
        """Add, change or remove an entry, or order all in another way."""
        path = str(self.pick(shard))
        records = list(self.shards[path])
        at = place % len(records)
        if what == "add":
            records.insert(at, Record(self.fresh_name(), self.create(self.fresh_content(kind))))
        elif what == "change":
            records[at] = replace(records[at], content=self.create(self.fresh_content(kind)), entry=None)
        elif what == "rename":
            records[at] = replace(records[at], name=self.fresh_name())
        elif what == "label":
            records[at] = replace(records[at], label=self.fresh_name())
        elif what == "remove" and len(records) > 1:
            records.pop(at)
        elif what == "reverse":
            records.reverse()
        elif what == "miss":
            records.append(Record(self.fresh_name(), self.fresh_content()))
        elif what == "repeat":
            records.append(replace(records[at], name=self.fresh_name(), label="again"))
        elif what == "part" and self.is_sound:
            begin, length = (place % 5) / 10, (1 + place % 7) / 10
            records.append(replace(records[at], name=self.fresh_name(), entry=(begin, length)))
        self.write(path, records)

    @precondition(lambda self: hasattr(self, "present"))
    @rule(file=PICK, appears=st.booleans())
    def change_the_pool(self, file: int, appears: bool) -> None:
        """Let a missing file appear, or remove one: what a list that does not change has of it stays."""
        named = {each.content for records in self.shards.values() for each in records}
        files = sorted(named - self.present if appears else named & self.present)
        if files:
            content = files[file % len(files)]
            if appears:
                self.create(content)
            else:
                (self.root / "pool" / self.name_of(content)).unlink()
                self.present.discard(content)

    def known_contents(self, path: str, before: Night | None, to_read: set[str]) -> set[Content]:
        """Return the files that earlier rows of a list tell everything of that its entries need."""
        if before is None or path not in before.outcomes:
            return set()
        known = {record.content for record, _ in before.outcomes[path].rows.values()}
        keys = {
            piece.key for each in to_read & before.outcomes.keys() for _, piece in before.outcomes[each].rows.values()
        }
        unknown = {
            record.content
            for record in self.shards[path]
            if any(piece.key not in keys for piece in self.pieces(record))
        }
        return known - unknown

    def reason_of(self, record: Record, path: str, before: Night | None, to_read: set[str]) -> str:
        if record.content in self.present or record.content in self.known_contents(path, before, to_read):
            return ""
        return "missing file"

    def files_to_open(self, before: Night | None, night: Night, to_read: set[str]) -> set[str]:
        return {
            self.name_of(record.content)
            for path in to_read
            for record in self.shards[path]
            if record.content in self.present - self.known_contents(path, before, to_read)
        }


class FilesAndTarsOfPictures(FilesAndTars):
    media = PictureFiles()


class FilesAndTarsOfSounds(FilesAndTars):
    media = SoundFiles()


class ListsOfPictures(Lists):
    media = PictureFiles()


class ListsOfSounds(Lists):
    media = SoundFiles()
    options: ClassVar[dict[str, Any]] = {**Lists.options, "offset_field": "offset", "duration_field": "duration"}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run have a second of its own, and note the files of the pool that it opens, but not those for the page."""
    monkeypatch.setattr(run_directory, "datetime", Clock)
    show_no_previews(monkeypatch)
    read_range, open_version = FileIO.read_range, FileIO.open_version

    def note(file: ListedFile) -> None:
        if "/pool/" in file.path:
            OPENED.add(file.path.rpartition("/")[2])

    def watched_range(self: FileIO, file: ListedFile, offset: int, size: int) -> bytes:
        note(file)
        return read_range(self, file, offset, size)

    def watched_open(self: FileIO, file: ListedFile) -> Any:
        note(file)
        return open_version(self, file)

    monkeypatch.setattr(FileIO, "read_range", watched_range)
    monkeypatch.setattr(FileIO, "open_version", watched_open)


@pytest.mark.slow
@pytest.mark.usefixtures("watched", "stub_models")
@pytest.mark.parametrize("nights", [FilesAndTarsOfPictures, FilesAndTarsOfSounds, ListsOfPictures, ListsOfSounds])
def test_any_nights_of_media(nights: type[MediaNights]) -> None:
    """Hypothesis searches for an order of events after which a snapshot differs from the corpus."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        nights,
        settings=settings(
            max_examples=int(os.environ.get("NIGHTS", "2")),
            stateful_step_count=14,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if "NIGHTS" in os.environ else [])],
        ),
    )

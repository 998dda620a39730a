"""Which segments of the previous snapshot a run carries over, and which segment the rows of each shard belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq

from ...model.head import Head
from ..flags import WITHOUT_EFFECT_ON_ROWS
from ..io.file_io import FileIO
from ..io.paths import join
from ..readers.fields import Fields
from ..readers.infer_schema import KeptTypes, infer_kept_types
from ..readers.shard import Shard
from ..schemas import CONTENT_HASH, kept_fields
from ..snapshots.commit import missing_files
from ..snapshots.listing import shard_state
from ..snapshots.manifest import FileInfo, Lookup, Manifest
from ..snapshots.segments import Segment, choose_segments
from ..snapshots.snapshot import UNREADABLE, Snapshot
from ..terminal import plural

HASH_BYTES = CONTENT_HASH.type.byte_width


@dataclass(frozen=True)
class CarryOver:
    """What a run carries over and what it reads.

    Attributes:
        shards: All shards, by segment; those of the segments carried over are not read.
        changed: The new and the changed ones.
        segments: The segments carried over, which have the first numbers.
        files: Their files.
        notes: What users should know.
    """

    shards: list[Shard]
    changed: list[Shard]
    segments: list[Segment] = field(default_factory=list)
    files: list[FileInfo] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def read(self) -> list[Shard]:
        """The shards that are read."""
        return [shard for shard in self.shards if shard.segment >= len(self.segments)]


def has_comparable_rows(previous: Manifest, options: Mapping[str, object], fingerprint: str) -> bool:
    """Return whether a run with these options and a model of that fingerprint would make the rows of a snapshot again."""
    return (
        previous["fingerprint"] == fingerprint
        and not options.get("force")
        and not options.get("no_dedupe")
        and previous["tool_version"] == version("audioclip-beam")
        and _deciding_rows(previous["options"]) == _deciding_rows(options)
    )


def decide_carry_over(
    previous: Snapshot | None, shards: list[Shard], head: Head, fields: Fields, file_io: FileIO
) -> tuple[CarryOver, KeptTypes]:
    """Return what is carried over from the snapshot `previous`, and the types of the kept fields.

    Nothing is carried over if kept values are known to need other types than it has.
    """
    carry_over = _compare_shards(previous, shards) if previous else _carry_nothing_over(shards)
    if not previous or not carry_over.segments:
        return carry_over, infer_kept_types(shards, head, fields, file_io)
    known = _kept_fields(previous, file_io) if fields.keep else pa.schema([])
    if known is None:
        note = f"every shard is read: {previous.name} has no part file that shows the types of the kept fields"
        return _carry_nothing_over(shards, note), infer_kept_types(shards, head, fields, file_io)
    without_values = {name for name, kind in previous.manifest.get("kept", {}).items() if kind == "null"}
    known_values = pa.schema([each.with_type(pa.null()) if each.name in without_values else each for each in known])
    types = infer_kept_types(carry_over.changed, head, fields, file_io, known_values)
    if types.final.equals(known):
        return carry_over, replace(types, stored=known)
    note = "every shard is read: new or changed ones give the kept fields other types than the current snapshot has"
    return _carry_nothing_over(shards, note), infer_kept_types(shards, head, fields, file_io)


def _deciding_rows(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if name not in WITHOUT_EFFECT_ON_ROWS}


def _carry_nothing_over(shards: Sequence[Shard], *notes: str) -> CarryOver:
    """Return that all shards are read, into one segment."""
    return CarryOver(list(shards), list(shards), notes=list(notes))


def _compare_shards(snapshot: Snapshot, shards: Sequence[Shard]) -> CarryOver:
    """Return what a run with these shards carries over from a snapshot that was made with equal options.

    Raises SnapshotError if a list of that snapshot is missing or damaged.
    """
    segments = snapshot.manifest["segments"]
    known = {shard_state(shard): shard.segment for shard in snapshot.shards}
    earlier = [known.get(shard_state(shard)) for shard in shards]  # the segment of each shard that did not change
    found = Counter(number for number in earlier if number is not None)
    sizes = [0] * len(segments)
    for shard, number in zip(shards, earlier, strict=True):
        if number is not None:
            sizes[number] += shard.bytes
    lost = set(missing_files(snapshot.path, snapshot.files))
    incomplete = {file.segment for file in snapshot.files if file.name in lost}
    whole = [found[n] == segment["shards"] and n not in incomplete for n, segment in enumerate(segments)]
    changed = [shard for shard, number in zip(shards, earlier, strict=True) if number is None]
    # An empty shard makes a segment, too: without its byte, each night that adds one would add a segment.
    carried = choose_segments(sizes, whole, sum(max(1, shard.bytes) for shard in changed))
    place = {number: new for new, number in enumerate(carried)}
    read_again = any(number is not None and number not in place for number in earlier)
    placed = []
    for shard, number in zip(shards, earlier, strict=True):
        new = len(carried) + read_again if number is None else place.get(number, len(carried))
        placed.append(replace(shard, segment=new))
    return CarryOver(
        shards=sorted(placed, key=lambda shard: (shard.segment, shard.path)),
        changed=changed,
        segments=[segments[number] for number in carried],
        files=[replace(file, segment=place[file.segment]) for file in snapshot.files if file.segment in place],
        notes=[f"{plural(len(lost), 'file')} of {snapshot.name} missing or of another size: the shards are read again"]
        if lost
        else [],
    )


def _kept_fields(snapshot: Snapshot, file_io: FileIO) -> pa.Schema | None:
    """Return the kept fields of a snapshot with the types that its part files have; None if no part file can be read."""
    try:
        with file_io.open(snapshot.part_paths()[0]) as handle:
            return kept_fields(pq.read_schema(handle))
    except (IndexError, *UNREADABLE):
        return None


def files_to_search(carry_over: CarryOver, snapshot: Snapshot, max_bytes: float) -> tuple[list[str], Lookup, list[str]]:
    """Return the part files of `snapshot` in which the contents that are read are looked up, what that reads, and notes.

    Those of segments that are read again always are. Looking up contents in a segment that is carried over reads the hash of
    each of its rows; the smallest come first, for as long as that is at most `max_bytes` in all.
    """
    carried = {file.name: file.segment for file in carry_over.files}
    rows = [segment["rows"]["vectors"] for segment in carry_over.segments]
    left_out, size = set[int](), 0
    for number in sorted(range(len(rows)), key=rows.__getitem__):
        size += HASH_BYTES * rows[number]
        if size > max_bytes or not carry_over.read:
            left_out.add(number)
    searched = [file for file in snapshot.files if file.is_part and carried.get(file.name) not in left_out]
    found, skipped = sum(file.rows for file in searched), sum(rows[number] for number in left_out)
    lookup: Lookup = {"rows": found, "bytes": HASH_BYTES * found, "left_out": skipped}
    notes = []
    if skipped and carry_over.read:
        notes.append(
            f"what is read is not looked up in {skipped:,} rows that are carried over: reading their hashes, "
            f"{HASH_BYTES * skipped:,} bytes, would take longer than embedding it again"
        )
    return [join(snapshot.path, file.name) for file in searched], lookup, notes

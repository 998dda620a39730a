"""The manifest of a snapshot: its types, and the checks of one that was read from disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_type_hints

from ...model.fingerprint import REQUIRED_PARTS, fingerprint
from ...model.heads import HEADS, find_head
from ..canary import Canary, canary_fault
from ..errors import SnapshotError
from ..io.json_file import Json
from ..layout import DRY_RUN, PART
from ..metrics import Pace
from .segments import TOTALS, RowCounts, Segment, add_rows
from .typed_json import key_faults

# Version of the format of manifest.json and of the files that it names. From the first release on, a version of
# audioclip-beam reads the formats of all releases before it.
FORMAT = 6

MAX_DIM = 1 << 16

# Names that this package gives to runs and files. A name with any other character (a separator, the star of a glob, the
# colon of a drive or scheme) was not written by it, and could point to a place outside of the snapshot.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

# A run's directory is named by its start and fingerprint; while it is made, it has a temporary name, after a dot.
_RUN = r"\d{8}T\d{6}Z-[0-9a-f]{8}"
_RUN_NAME = re.compile(rf"{_RUN}|\.{_RUN}\.[0-9a-f-]+\.tmp|{re.escape(DRY_RUN)}[0-9a-f]+", re.ASCII)

_SMALL_NUMBER = re.compile(r"-?[0-9]{1,6}")

_FILE_NAME = re.compile(r"(part|rejected)-[A-Za-z0-9._-]{0,199}\.parquet")

_ROW_COUNTS: tuple[Literal["read", "embedded", "reused", "rejected", "truncated"], ...]
_ROW_COUNTS = ("read", "embedded", "reused", "rejected", "truncated")

_MAX_FAULTS = 3  # in one error message

RESTORE_REMEDY = "restore it from a backup, or make another snapshot the current one with audioclip rollback"


@dataclass(frozen=True)
class Provenance:
    """The run that made a file: its snapshot, its checkpoint's name and digest, and the version of this program then."""

    run: str = ""
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    tool_version: str = ""


@dataclass(frozen=True)
class FileInfo:
    """A finished file of a snapshot, and what is known of its rows.

    Attributes:
        name: Its name.
        rows: Its rows.
        bytes: Its size.
        sha256: Its digest.
        segment: The number of its segment.
        lowest_hash: The lowest content hash in a part file, in hex.
        truncated: Rows of whose content the model read only the beginning.
        rejected_by_reason: Rejected rows by reason.
        sizes: A histogram of FileStats.
        norm_bins: Another one.
        contents: How much content the rows have, as the head's `extent` returns it.
        made_by: The run that embedded or rejected the rows, or gathered them from several files.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    segment: int = 0
    lowest_hash: str | None = None
    truncated: int = 0
    rejected_by_reason: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)
    norm_bins: Mapping[int, int] = field(default_factory=dict)
    contents: Mapping[str, int] = field(default_factory=dict)
    made_by: Provenance = Provenance()

    @property
    def is_part(self) -> bool:
        """Return whether the file has embedded rows, and not rejected ones."""
        return self.name.startswith(PART)


class ListingInfo(TypedDict):
    """A listing beside the manifest: its name, its number of entries, and the digest of its content."""

    name: str
    entries: int
    sha256: str


class _CheckpointFile(TypedDict):
    name: str
    sha256: str


class CheckpointInfo(_CheckpointFile, total=False):
    """The checkpoint that a snapshot was embedded with; `released_sha256` is missing if it is not known.

    That is the digest of the released file that the head is from, or "untrained": vectors of several heads are of one space
    if they have it in common.
    """

    released_sha256: str


class Lookup(TypedDict):
    """Earlier rows in which a run looked for known contents, the bytes of their hashes, and rows that were not worth it."""

    rows: int
    bytes: int
    left_out: int


class ModelFile(TypedDict):
    """A file that a model was read from, and its version then."""

    path: str
    version: str


class _RequiredCounts(TypedDict):
    read: int
    embedded: int
    reused: int
    rejected: int
    truncated: int
    rejected_by_reason: dict[str, int]
    model: dict[str, int]


class Counts(_RequiredCounts, total=False):
    """The counts of a run: rows that it read, by outcome, and in `model` the counts of the model's Work.

    Rows carried over are in none of them. `duplicate_ids` is present if ids were checked.
    """

    duplicate_ids: int
    without_texts: int


class _RequiredKeys(TypedDict):
    format: int
    snapshot: str
    created: str
    tool_version: str
    head: str
    fingerprint: str
    fingerprint_parts: dict[str, str]
    weights: str
    checkpoint: CheckpointInfo
    dim: int
    limit: int | None
    options: dict[str, object]
    deciding: dict[str, object]
    counts: Counts
    lookup: Lookup
    totals: RowCounts
    segments: list[Segment]
    sizes: dict[str, int]
    norm_bins: dict[str, int]
    seconds: dict[str, float]
    files: ListingInfo
    shards: ListingInfo
    model_files: list[ModelFile]
    canary: Canary
    previous: str | None
    notes: list[str]


class Manifest(_RequiredKeys, total=False):
    """The content of `manifest.json`. The optional keys are missing if there was nothing to write."""

    pace: Pace
    kept: dict[str, str]  # the types of the columns of the kept fields, null if no row has a value
    kept_schema: str  # these columns in the part files, as base64 of an IPC schema of Arrow
    report: str  # name of the report page, in the directory of the snapshot


MANIFEST_KEYS = frozenset(get_type_hints(Manifest))


def is_run_name(name: str) -> bool:
    """Return whether a directory may be that of a run, finished or not."""
    return bool(_RUN_NAME.fullmatch(name))


def require_plain_name(name: object, source: str) -> str:
    """Return `name` if a run may have given it to its directory or to a file.

    Raises:
        SnapshotError: It is another name; the message says that `source` contains it.
    """
    if isinstance(name, str) and _PLAIN_NAME.fullmatch(name):
        return name
    raise SnapshotError(
        f"{source} names {str(name)[:200]!r}, which is not a plain name of letters, digits, '.', '_' and '-': restore "
        f"{source} from a backup, or remove it and run again"
    )


def snapshot_of_pointer(pointer: Json, path: str) -> str:
    """Return the snapshot that `pointer`, the content of the current.json at `path`, names.

    Raises:
        SnapshotError: It names none, or a path that could be outside of OUT/snapshots.
    """
    if "snapshot" not in pointer:
        raise SnapshotError(f"{path} does not name a snapshot: restore it from a backup, or remove it and run again")
    return require_plain_name(pointer["snapshot"], path)


def manifest_from(value: Json, path: str, name: str, reads: Collection[str] = MANIFEST_KEYS) -> Manifest:
    """Return the content of a file as a manifest.

    Args:
        value: The content.
        path: The file.
        name: The snapshot whose manifest it must be.
        reads: The keys that are checked.

    Raises:
        SnapshotError: The format is another one, a key is missing or of another type, the manifest is that of
            another snapshot, or a listing that is read could be outside of the snapshot's directory.
    """
    if value.get("format") != FORMAT:
        found = f"format version {value['format']!r:.40}" if "format" in value else "no format version"
        raise SnapshotError(
            f"{path} has {found}, and this audioclip-beam reads format version {FORMAT} alone: use the audioclip-beam "
            f"that wrote it, or embed the corpus into a new directory"
        )
    faults = check_manifest(value, name, {"format", "snapshot", *reads})
    if not faults and {"canary", "dim"}.issubset(reads):
        fault = canary_fault(value["canary"], value["dim"])  # type: ignore[arg-type]
        faults = [f"the canary {fault}"] if fault else []
    if faults:
        more = f"; and {len(faults) - _MAX_FAULTS:,} more faults" if len(faults) > _MAX_FAULTS else ""
        raise SnapshotError(
            f"{path} is not a valid manifest: {'; '.join(faults[:_MAX_FAULTS])}{more}: {RESTORE_REMEDY}"
        )
    if value["snapshot"] != name:
        raise SnapshotError(
            f"{path} is the manifest of {str(value['snapshot'])[:200]!r}, not of {name!r}: give the directory its old "
            f"name, or restore the manifest from a backup"
        )
    manifest: Manifest = value  # type: ignore[assignment]
    for key in ("files", "shards"):
        if key in reads:
            require_plain_name(manifest[key]["name"], path)
    return manifest


def check_manifest(manifest: Mapping[str, object], name: str, reads: Collection[str] | None = None) -> list[str]:
    """Return the faults of the manifest of snapshot `name`, one sentence each.

    With `reads`, only these keys are checked, each for its presence and type: the level for a command that reads no
    other key. Without it, all keys are checked, and whether the manifest agrees with itself.
    """
    faults = list(key_faults(manifest, Manifest, MANIFEST_KEYS if reads is None else reads))
    if not faults:
        histograms = [name for name in ("sizes", "norm_bins") if reads is None or name in reads]
        faults = [fault for name in histograms for fault in _histogram_faults(name, manifest[name])]  # type: ignore[arg-type]
    if not faults and (reads is None or "head" in reads) and manifest["head"] not in HEADS:
        faults = [f"head is {manifest['head']!r:.80}, expected {' or '.join(HEADS)}"]
    if not faults and reads is None:
        faults = list(_value_faults(manifest, name))  # type: ignore[arg-type]
    return faults


def _histogram_faults(name: str, histogram: Mapping[str, int]) -> Iterator[str]:
    """Yield which keys of a histogram are not small numbers, which readers of it expect."""
    for key in histogram:
        if not _SMALL_NUMBER.fullmatch(key):
            yield f"{name} has the key {key!r:.40}, expected a number of at most 6 digits"


def _value_faults(manifest: Manifest, name: str) -> Iterator[str]:
    """Yield where the manifest of snapshot `name`, whose types are right, disagrees with itself."""
    parts, counts = manifest["fingerprint_parts"], manifest["counts"]
    head = find_head(manifest["head"])
    missing = [part for part in (*head.provenance, *REQUIRED_PARTS) if part not in parts]
    if missing:
        yield f"fingerprint_parts has no {', '.join(missing)}"
    else:
        yield from (f"fingerprint_parts.{fault}" for fault in head.fingerprint_faults(parts))
    for key, word, choices in (
        ("weights", manifest["weights"], ("trained", "untrained")),
        ("fingerprint_parts.stored", parts.get("stored"), ("float32", "float16")),
    ):
        if word not in choices:
            yield f"{key} is {word!r:.80}, expected {' or '.join(choices)}"
    if not 0 < manifest["dim"] <= MAX_DIM:
        yield f"dim is {manifest['dim']}, expected 1 to {MAX_DIM:,}"
    totals = manifest["totals"]
    negative = [f"counts.{outcome}" for outcome in _ROW_COUNTS if counts[outcome] < 0]
    negative += [f"totals.{name}" for name in TOTALS if totals[name] < 0]
    if negative:
        yield f"{', '.join(negative)} must be at least 0"
    embedded = counts["embedded"] + counts["reused"]
    equations: tuple[tuple[str, object, object], ...] = (
        ("snapshot", manifest["snapshot"], name),
        ("fingerprint", manifest["fingerprint"], fingerprint(parts)),
        ("fingerprint_parts.head", parts.get("head"), manifest["head"]),
        ("counts.read", counts["read"], embedded + counts["rejected"]),
        ("the sum of counts.rejected_by_reason", sum(counts["rejected_by_reason"].values()), counts["rejected"]),
        ("totals.read", totals["read"], totals["vectors"] + totals["rejected"]),
        ("totals", totals, add_rows(segment["rows"] for segment in manifest["segments"])),
    )
    for what, value, expected in equations:
        if value != expected:
            yield f"{what} is {value!r:.120}, expected {expected!r:.120}"


def check_file_list(manifest: Manifest, files: Sequence[FileInfo]) -> list[str]:
    """Return how a snapshot's list of files disagrees with itself or with the manifest, one sentence each."""
    faults = []
    for name, times in Counter(file.name for file in files).items():
        if times > 1:
            faults.append(f"{name} is listed {times} times")
        if not _FILE_NAME.fullmatch(name):
            faults.append(f"{name!r:.120} is not the name of a part file or of a file of rejected rows")
    if len(files) != manifest["files"]["entries"]:
        faults.append(f"files.entries is {manifest['files']['entries']}, expected {len(files)}")
    rows = Counter[tuple[int, bool]]()
    for file in files:
        rows[file.segment, file.is_part] += file.rows
        if not 0 <= file.segment < len(manifest["segments"]):
            faults.append(f"{file.name} is of segment {file.segment}, of {len(manifest['segments'])}")
        # Other files may be of another file with the same head.
        if (
            file.made_by.run == manifest["snapshot"]
            and file.made_by.checkpoint_sha256 != manifest["checkpoint"]["sha256"]
        ):
            faults.append(
                f"{file.name} is of the checkpoint {file.made_by.checkpoint_sha256[:16]!r}..., and the run of another"
            )
    for number, segment in enumerate(manifest["segments"]):
        for kind, is_part, expected in (
            ("part files", True, segment["rows"]["vectors"]),
            ("rejected files", False, segment["rows"]["rejected"]),
        ):
            if rows[number, is_part] != expected:
                faults.append(
                    f"the number of rows in {kind} of segment {number} is {rows[number, is_part]}, expected {expected}"
                )
    return faults

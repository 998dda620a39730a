"""The manifest of a snapshot: its types, and the checks that one read from disk is complete and consistent."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TypedDict

from ..canary import Canary
from ..errors import SnapshotError
from ..io.json_file import Json
from ..metrics import Pace
from .fingerprint import fingerprint_of


class RowGroup(TypedDict):
    """Rows of a row group, and the inclusive ranges of 16-bit text-hash prefixes that they fall into."""

    rows: int
    ranges: list[tuple[int, int]]


class FileInfo(TypedDict):
    """A finished file of a snapshot."""

    name: str
    rows: int
    bytes: int
    sha256: str
    row_groups: list[RowGroup]


class _Counts(TypedDict):
    read: int
    embedded: int
    reused: int
    rejected: int
    truncated: int
    model_texts: int
    tokens: int
    nodes: int
    slots: int
    micro_batches: int
    oom_retries: int
    rejected_by_reason: dict[str, int]


class Counts(_Counts, total=False):
    """What a run counted: rows by outcome, and the model's work; `duplicate_ids` only if ids were checked."""

    duplicate_ids: int


class _Always(TypedDict):
    """What every `manifest.json` contains."""

    format: int
    snapshot: str
    created: str
    tool_version: str
    fingerprint: str
    fingerprint_parts: dict[str, str]
    weights: str
    checkpoint: dict[str, str]
    dim: int
    options: dict[str, object]
    counts: Counts
    seconds: dict[str, float]
    files: list[FileInfo]
    canary: Canary
    previous: str | None
    notes: list[str]


class Manifest(_Always, total=False):
    """What `manifest.json` holds."""

    pace: Pace  # not in snapshots of the first versions
    report: str  # name of the page beside the files, where one could be made


# Runs and files are named by ourselves: letters, digits, "-", "." and "_". Whatever is more than that (a separator, "..",
# a glob's star, a drive or a scheme) was not written by us.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def is_run_name(name: str) -> bool:
    """Whether a directory may be a run's; one in the making has a dot before its name."""
    return bool(_NAME.fullmatch(name.removeprefix(".")))


def plain_name(name: object, where: str) -> str:
    """`name`, where it is one that a run gives to its directory or files; SnapshotError, naming `where`, otherwise."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise SnapshotError(
        f"{where} names {str(name)[:200]!r}: that is no plain name of letters, digits, '.', '_' and '-', and could lead "
        f"elsewhere; restore the file, or remove it and run again"
    )


def checked_pointer(pointer: Json, path: str) -> str:
    """The snapshot that a `current.json` names; SnapshotError where it names none, or one outside of `snapshots`."""
    if "snapshot" not in pointer:
        raise SnapshotError(f"{path} names no snapshot: restore it, or remove it and run again")
    return plain_name(pointer["snapshot"], path)


# Of manifest.json and what it names. A version of audioclip-text reads the formats of all releases before it.
FORMAT = 1
MAX_DIM = 1 << 16

# The keys of a manifest with the types of their values; a dict says what an object must contain, a list the same of each
# of its elements.
_COUNTS = ("read", "embedded", "reused", "rejected", "truncated", "model_texts", "tokens", "nodes", "slots")
MANIFEST_TYPES: dict[str, object] = {
    "snapshot": str,
    "created": str,
    "tool_version": str,
    "fingerprint": str,
    "fingerprint_parts": dict,
    "weights": str,
    "checkpoint": {"name": str, "sha256": str},
    "dim": int,
    "options": dict,
    "counts": dict.fromkeys((*_COUNTS, "micro_batches", "oom_retries"), int) | {"rejected_by_reason": dict},
    "seconds": dict,
    "files": [{"name": str, "rows": int, "bytes": int, "sha256": str, "row_groups": [{"rows": int, "ranges": list}]}],
    "canary": {"texts": list, "vectors": str},
    "notes": list,
}
_PARTS = ("prompt", "on_long", "normalize", "dtype", "stored")
_SHOWN_FAULTS = 3  # in an error


def check_manifest(manifest: Mapping[str, object], name: str, reads: Collection[str] | None = None) -> list[str]:
    """Return the faults of the manifest of snapshot `name`, each as a sentence; an empty list if there is none.

    `reads` are the keys that the caller is going to read: each must be present and of its type, and nothing else is
    checked. Without it everything is: all keys, and whether the manifest agrees with itself.
    """
    faults: list[str] = []
    _check_types(
        faults, "", manifest, {key: kind for key, kind in MANIFEST_TYPES.items() if reads is None or key in reads}
    )
    if not faults and reads is None:
        _check_values(faults, manifest, name)  # type: ignore[arg-type]
    return faults


def manifest_from(value: Json, path: str, name: str, reads: Collection[str] = tuple(MANIFEST_TYPES)) -> Manifest:
    """Return `value`, read from `path`, as the manifest of snapshot `name`.

    Raises SnapshotError if one of the keys in `reads` is missing or of another type, if it is the manifest of another
    snapshot, or if it names a file that could be outside of the snapshot's directory.
    """
    if value.get("format") != FORMAT:
        raise SnapshotError(
            f"{path} has format {value.get('format', 'none')!r:.40}, and this audioclip-text reads format {FORMAT}: "
            f"read it with the version that wrote it, or embed the corpus into a new directory"
        )
    faults = check_manifest(value, name, {"snapshot", *reads})
    if faults:
        more = f", and {len(faults) - _SHOWN_FAULTS} more faults" if len(faults) > _SHOWN_FAULTS else ""
        raise SnapshotError(
            f"{path} is not a complete manifest: {'; '.join(faults[:_SHOWN_FAULTS])}{more}. Restore it from a backup, or "
            f"make another snapshot the current one with audioclip-text rollback"
        )
    if value["snapshot"] != name:
        raise SnapshotError(
            f"{path} is the manifest of {str(value['snapshot'])[:200]!r}, not of {name!r}: do not rename snapshots"
        )
    files = value.get("files")
    for file in files if isinstance(files, list) else []:
        plain_name(file.get("name") if isinstance(file, dict) else None, path)
    return value  # type: ignore[return-value]


def _check_types(faults: list[str], where: str, values: Mapping[str, object], types: Mapping[str, object]) -> None:
    for key, kind in types.items():
        value, place = values.get(key), f"{where}{key}"
        expected = kind if isinstance(kind, type) else type(kind)
        if not isinstance(value, expected) or isinstance(value, bool):
            found = "missing" if key not in values else f"{value!r:.80}"
            faults.append(f"{place} is {found}, and must be {expected.__name__}")
        elif isinstance(kind, dict):
            _check_types(faults, f"{place}: ", value, kind)  # type: ignore[arg-type]
        elif isinstance(kind, list):
            elements: list[object] = value  # type: ignore[assignment]
            for number, element in enumerate(elements):
                inner = element if isinstance(element, dict) else {}
                _check_types(faults, f"{place}[{number}].", inner, kind[0])


def _check_values(faults: list[str], manifest: Manifest, name: str) -> None:
    def check_equal(what: str, value: object, expected: object) -> None:
        if value != expected:
            faults.append(f"{what} is {value!r:.120}, and must be {expected!r:.120}")

    parts, counts, files = manifest["fingerprint_parts"], manifest["counts"], manifest["files"]
    check_equal("snapshot", manifest["snapshot"], name)
    missing = [part for part in _PARTS if not isinstance(parts.get(part), str)]
    if missing:
        faults.append(f"fingerprint_parts has no {', '.join(missing)}")
    check_equal("fingerprint", manifest["fingerprint"], fingerprint_of(parts))
    for what, value, choices in (
        ("weights", manifest["weights"], ("trained", "untrained")),
        ("fingerprint_parts: stored", parts.get("stored"), ("float32", "float16")),
    ):
        if value not in choices:
            faults.append(f"{what} is {value!r:.80}, and must be {' or '.join(choices)}")
    if not 0 < manifest["dim"] <= MAX_DIM:
        faults.append(f"dim is {manifest['dim']}, and must be a number from 1 to {MAX_DIM:,}")
    for file, times in Counter(file["name"] for file in files).items():
        if times > 1:
            faults.append(f"{file} is named {times} times")
        if not file.startswith(("part-", "rejected-")) or not file.endswith(".parquet") or "/" in file or "\\" in file:
            faults.append(f"{file!r:.120} is not the name of a part file or of a file of rejected rows")
    negative = [key for key in ("read", "embedded", "reused", "rejected", "truncated") if counts[key] < 0]
    if negative:
        faults.append(f"counts: {', '.join(negative)} must be at least 0")
        return
    rows = {kind: sum(file["rows"] for file in files if file["name"].startswith(kind)) for kind in ("part", "rejected")}
    embedded = counts["embedded"] + counts["reused"]
    check_equal("counts: read", counts["read"], embedded + counts["rejected"])
    check_equal("the sum of rows in part files", rows["part"], embedded)
    check_equal("the sum of rows in rejected files", rows["rejected"], counts["rejected"])
    reasons = counts["rejected_by_reason"]
    if not all(isinstance(number, int) for number in reasons.values()):
        faults.append("counts: rejected_by_reason must map reasons to whole numbers")
    else:
        check_equal("the sum of counts: rejected_by_reason", sum(reasons.values()), counts["rejected"])

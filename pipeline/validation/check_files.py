"""Check the files of a snapshot against the list of them: their names, sizes and digests."""

from __future__ import annotations

import io
from collections import Counter

import pyarrow.compute as pc

from ...model.messages import plural
from ..errors import SnapshotError
from ..io.filesystem import list_directory, read, sha256_of
from ..io.paths import base_name, join
from ..io.timeout_reader import open_to_read
from ..layout import CARRIED, DROPPED, EARLIER, INPUTS, LOCK, MANIFEST, MARKER, REPORT, has_rows
from ..snapshots.manifest import FileInfo
from ..snapshots.snapshot import Snapshot
from .checks import MAX_EXAMPLES, Check

# Files of a snapshot's directory that are not in its list of files.
_OTHER_FILES = (MANIFEST, LOCK, MARKER, REPORT, CARRIED, DROPPED, EARLIER, INPUTS)


def check_files(snapshot: Snapshot) -> tuple[Check, list[FileInfo]]:
    """Return the check, and those files whose size and digest are right."""
    check, intact = Check("files"), []
    sizes = _file_sizes(snapshot.path)
    for file in snapshot.files:
        fault = _fault_of(file, snapshot.path, sizes)
        if fault is None:
            intact.append(file)
        else:
            check.add_fault(fault)
    check.add_faults(_shard_list_faults(snapshot))
    named = {file.name for file in snapshot.files}
    lists = {snapshot.manifest[key]["name"] for key in ("files", "shards")}
    others = sorted(sizes.keys() - named - {*_OTHER_FILES, *lists})
    harmless = []
    for name in others:
        if has_rows(name):
            check.add_fault(f"{name} is not in the list of files, and readers of part-*.parquet would read its rows")
        else:
            harmless.append(name)
    size = sum(file.bytes for file in snapshot.files)
    check.summary = f"{plural(len(named), 'file')}, {size:,} bytes, with the sha256 in the list of files"
    if harmless:
        check.summary += f"; the directory also contains {', '.join(harmless[:MAX_EXAMPLES])}"
    return check, intact


def _shard_list_faults(snapshot: Snapshot) -> list[str]:
    """Return what is wrong with the list of shards, by which the next run decides what it reads."""
    info, segments = snapshot.manifest["shards"], snapshot.manifest["segments"]
    data = read(join(snapshot.path, info["name"]))
    if data is None:
        return [f"{info['name']} is missing"]
    if sha256_of(io.BytesIO(data)) != info["sha256"]:
        return [f"{info['name']} is not as the manifest says"]
    try:
        shards = snapshot.shards
    except SnapshotError as error:
        return [str(error)]
    found = Counter(shards["segment"].to_pylist())
    expected = {number: segment["shards"] for number, segment in enumerate(segments) if segment["shards"]}
    faults = []
    totals = snapshot.manifest["totals"]
    for column, expected_sum in (("rows", totals["read"]), ("without_texts", totals["without_texts"])):
        total = pc.sum(shards[column]).as_py() or 0
        if total != expected_sum:
            faults.append(f"{info['name']} has {total} {column}, expected {expected_sum}")
    if len(shards) != info["entries"]:
        faults.append(f"{info['name']} has {plural(len(shards), 'shard')}, expected {info['entries']}")
    if found != expected:
        faults.append(f"{info['name']} has shards by segment {dict(found)!r:.120}, expected {expected!r:.120}")
    return faults


def _fault_of(file: FileInfo, directory: str, sizes: dict[str, int]) -> str | None:
    """Return what is wrong with a file, or None."""
    name, size = file.name, sizes.get(file.name)
    if size is None:
        return f"{name} is missing"
    if size != file.bytes:
        return f"{name} has {size:,} bytes, expected {file.bytes:,}"
    try:
        with open_to_read(join(directory, name)) as handle:
            digest = sha256_of(handle)
    except OSError as error:
        return f"{name} cannot be read: {error}"
    if digest != file.sha256:
        return f"{name} has sha256 {digest[:16]}..., expected {file.sha256[:16]}..."
    return None


def _file_sizes(directory: str) -> dict[str, int]:
    """Return the sizes of the files in a directory by name."""
    return {base_name(file.path): file.size for file in list_directory(directory)}

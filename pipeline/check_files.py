"""A snapshot's manifest and files, held against each other, before any row is looked at."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from apache_beam.io.filesystems import FileSystems

from .findings import Check
from .output_file import FileInfo
from .reading import open_to_read
from .run_dirs import run_path
from .same_model import fingerprint_of
from .snapshot import Manifest

MAX_DIM = 1 << 16
# What a run keeps beside its files, and the page made from them.
_BESIDE = ("manifest.json", "run.lock", "run.json", "report.html")
_TYPES: dict[str, type] = {
    "snapshot": str, "fingerprint": str, "fingerprint_parts": dict, "weights": str, "checkpoint": dict, "dim": int,
    "options": dict, "counts": dict, "files": list, "canary": dict, "tool_version": str,
}  # fmt: skip
_FILE_TYPES: dict[str, type] = {"name": str, "rows": int, "bytes": int, "sha256": str, "row_groups": list}
_GROUP_TYPES: dict[str, type] = {"rows": int, "ranges": list}
_PARTS = ("prompt", "on_long", "normalize", "dtype", "stored")


def check_manifest(manifest: Mapping[str, object], name: str) -> Check:
    """Whether a manifest is whole and agrees with itself; no other check may read one that is not."""
    check = Check("manifest")
    _types(check, "", manifest, _TYPES)
    if not check.faults:
        _types(check, "checkpoint: ", manifest["checkpoint"], {"name": str, "sha256": str})  # type: ignore[arg-type]
    files = manifest.get("files")
    for place, file in enumerate(files if isinstance(files, list) else []):
        _types(check, f"files[{place}].", file if isinstance(file, dict) else {}, _FILE_TYPES)
        groups = file.get("row_groups") if isinstance(file, dict) else None
        for number, group in enumerate(groups if isinstance(groups, list) else []):
            _types(
                check, f"files[{place}].row_groups[{number}].", group if isinstance(group, dict) else {}, _GROUP_TYPES
            )
    if not check.faults:
        _agrees(check, manifest, name)  # type: ignore[arg-type]
    check.said = "whole, and its counts add up"
    return check


def _types(check: Check, where: str, values: Mapping[str, object], types: Mapping[str, type]) -> None:
    for key, kind in types.items():
        value = values.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            check.fault(
                f"{where}{key} is {'missing' if key not in values else f'{value!r:.80}'}, and must be {kind.__name__}"
            )


def _agrees(check: Check, manifest: Manifest, name: str) -> None:
    parts, counts, files = manifest["fingerprint_parts"], manifest["counts"], manifest["files"]
    check.hold("its snapshot", manifest["snapshot"], name)
    missing = [part for part in _PARTS if not isinstance(parts.get(part), str)]
    if missing:
        check.fault(f"fingerprint_parts has no {', '.join(missing)}")
    check.hold("its fingerprint", manifest["fingerprint"], fingerprint_of(parts))
    for what, value, choices in (
        ("weights", manifest["weights"], ("trained", "untrained")),
        ("fingerprint_parts: stored", parts.get("stored"), ("float32", "float16")),
    ):
        if value not in choices:
            check.fault(f"{what} is {value!r:.80}, and must be {' or '.join(choices)}")
    if not 0 < manifest["dim"] <= MAX_DIM:
        check.fault(f"dim is {manifest['dim']}, and must be a number from 1 to {MAX_DIM:,}")
    names = [file["name"] for file in files]
    for file, times in Counter(names).items():
        if times > 1:
            check.fault(f"{file} is named more than once")
    for file in names:
        if not file.startswith(("part-", "rejected-")) or not file.endswith(".parquet") or "/" in file or "\\" in file:
            check.fault(f"{file!r:.120} is no name of a part or rejected file")
    rows = {kind: sum(file["rows"] for file in files if file["name"].startswith(kind)) for kind in ("part", "rejected")}
    whole = {key: counts.get(key) for key in ("read", "embedded", "reused", "rejected", "truncated")}
    numbers = {key: value for key, value in whole.items() if isinstance(value, int) and value >= 0}
    if len(numbers) < len(whole):
        check.fault(f"counts: {', '.join(sorted(whole.keys() - numbers.keys()))} must be a whole number")
        return
    embedded = numbers["embedded"] + numbers["reused"]
    check.hold("counts: read", numbers["read"], embedded + numbers["rejected"])
    check.hold("rows in part files, as the manifest adds them up,", rows["part"], embedded)
    check.hold("rows in rejected files, as the manifest adds them up,", rows["rejected"], numbers["rejected"])
    reasons = counts.get("rejected_by_reason")
    if not isinstance(reasons, dict) or not all(isinstance(number, int) for number in reasons.values()):
        check.fault("counts: rejected_by_reason must map reasons to whole numbers")
    else:
        check.hold("counts: rejected_by_reason together", sum(reasons.values()), numbers["rejected"])


def check_files(output: str, manifest: Manifest) -> tuple[Check, list[FileInfo]]:
    """(whether the files are those of the manifest, the files that are): there, of that size and digest, and no others."""
    check, sound = Check("files"), []
    directory = run_path(output, manifest["snapshot"])
    there = _listing(directory)
    for file in manifest["files"]:
        name, path = file["name"], FileSystems.join(directory, file["name"])
        if name not in there:
            check.fault(f"{name} is missing")
        elif there[name] != file["bytes"]:
            check.fault(f"{name} has {there[name]:,} bytes, and must have {file['bytes']:,}")
        else:
            try:
                digest = _sha256(path)
            except OSError as error:
                check.fault(f"{name} cannot be read: {error}")
                continue
            if digest == file["sha256"]:
                sound.append(file)
            else:
                check.fault(f"{name} has sha256 {digest[:16]}..., and must have {file['sha256'][:16]:.16}...")
    named = {file["name"] for file in manifest["files"]}
    others = sorted(there.keys() - named - set(_BESIDE))
    for name in others:
        if name.startswith(("part-", "rejected-")) and name.endswith(".parquet"):
            check.fault(
                f"{name} is not in the manifest: whoever reads part-*.parquet takes it for a part of the snapshot"
            )
    harmless = [name for name in others if not name.endswith(".parquet") or not name.startswith(("part-", "rejected-"))]
    size = sum(file["bytes"] for file in manifest["files"])
    check.said = f"{len(named):,} with {size:,} bytes, of the sha256 that the manifest tells"
    if harmless:
        check.said += f"; also there, and no part of the snapshot: {', '.join(harmless[:5])}"
    return check, sound


def _listing(directory: str) -> dict[str, int]:
    """Sizes of the files in a directory, by name."""
    found = FileSystems.match([FileSystems.join(directory, "*")])[0].metadata_list
    return {FileSystems.split(match.path)[1]: match.size_in_bytes for match in found}


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open_to_read(path) as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

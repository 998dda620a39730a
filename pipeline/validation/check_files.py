"""A snapshot's manifest and files, held against each other, before any row is looked at."""

from __future__ import annotations

import hashlib

from apache_beam.io.filesystems import FileSystems

from ..io.timeout_reader import open_to_read
from ..snapshots.manifest import FileInfo, Manifest
from ..snapshots.run_directory import run_path
from .result import Check

# What a run keeps beside its files, and the page made from them.
_BESIDE = ("manifest.json", "run.lock", "run.json", "report.html", "_shards.parquet", "_earlier.parquet")


def check_files(output: str, manifest: Manifest) -> tuple[Check, list[FileInfo]]:
    """(whether the files are those of the manifest, the files that are): there, of that size and digest, and no others."""
    check, sound = Check("files"), []
    directory = run_path(output, manifest["snapshot"])
    there = _listing(directory)
    for file in manifest["files"]:
        name, path = file["name"], FileSystems.join(directory, file["name"])
        if name not in there:
            check.add_fault(f"{name} is missing")
        elif there[name] != file["bytes"]:
            check.add_fault(f"{name} has {there[name]:,} bytes, and must have {file['bytes']:,}")
        else:
            try:
                digest = _sha256(path)
            except OSError as error:
                check.add_fault(f"{name} cannot be read: {error}")
                continue
            if digest == file["sha256"]:
                sound.append(file)
            else:
                check.add_fault(f"{name} has sha256 {digest[:16]}..., and must have {file['sha256'][:16]:.16}...")
    named = {file["name"] for file in manifest["files"]}
    others = sorted(there.keys() - named - set(_BESIDE))
    for name in others:
        if name.startswith(("part-", "rejected-")) and name.endswith(".parquet"):
            check.add_fault(
                f"{name} is not in the manifest: whoever reads part-*.parquet takes it for a part of the snapshot"
            )
    harmless = [name for name in others if not name.endswith(".parquet") or not name.startswith(("part-", "rejected-"))]
    size = sum(file["bytes"] for file in manifest["files"])
    check.summary = f"{len(named):,} with {size:,} bytes, of the sha256 that the manifest tells"
    if harmless:
        check.summary += f"; also there, and no part of the snapshot: {', '.join(harmless[:5])}"
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

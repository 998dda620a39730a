"""Check the files of a snapshot against its manifest: their names, sizes and digests."""

from __future__ import annotations

from apache_beam.io.filesystems import FileSystems

from ..io.filesystem import list_directory, sha256_of
from ..io.timeout_reader import open_to_read
from ..snapshots.listing import LISTINGS
from ..snapshots.manifest import FileInfo, Manifest
from ..snapshots.run_directory import run_path
from .result import MAX_EXAMPLES, Check

# Files of a snapshot's directory that are not in its manifest.
_OTHER_FILES = ("manifest.json", "run.lock", "run.json", "report.html", *LISTINGS)


def check_files(output: str, manifest: Manifest) -> tuple[Check, list[FileInfo]]:
    """Return the check, and those files whose size and digest are right."""
    check, intact = Check("files"), []
    directory = run_path(output, manifest["snapshot"])
    sizes = _file_sizes(directory)
    for file in manifest["files"]:
        fault = _fault_of(file, directory, sizes)
        if fault is None:
            intact.append(file)
        else:
            check.add_fault(fault)
    named = {file["name"] for file in manifest["files"]}
    others = sorted(sizes.keys() - named - set(_OTHER_FILES))
    harmless = []
    for name in others:
        if name.startswith(("part-", "rejected-")) and name.endswith(".parquet"):
            check.add_fault(f"{name} is not in the manifest, and readers of part-*.parquet would read its rows")
        else:
            harmless.append(name)
    size = sum(file["bytes"] for file in manifest["files"])
    check.summary = f"{len(named):,} files, {size:,} bytes, with the sha256 in the manifest"
    if harmless:
        check.summary += f"; the directory also contains {', '.join(harmless[:MAX_EXAMPLES])}"
    return check, intact


def _fault_of(file: FileInfo, directory: str, sizes: dict[str, int]) -> str | None:
    """Return what is wrong with a file of the manifest, or None."""
    name, size = file["name"], sizes.get(file["name"])
    if size is None:
        return f"{name} is missing"
    if size != file["bytes"]:
        return f"{name} has {size:,} bytes, expected {file['bytes']:,}"
    try:
        with open_to_read(FileSystems.join(directory, name)) as handle:
            digest = sha256_of(handle)
    except OSError as error:
        return f"{name} cannot be read: {error}"
    if digest != file["sha256"]:
        return f"{name} has sha256 {digest[:16]}..., expected {file['sha256'][:16]}..."
    return None


def _file_sizes(directory: str) -> dict[str, int]:
    """Return the sizes of the files in a directory by name."""
    return {FileSystems.split(file.path)[1]: file.size_in_bytes for file in list_directory(directory)}

"""Run directories, manifest and current pointer: what a snapshot is on disk, and how one becomes the current one.

    OUT/current.json                       {"snapshot": NAME, "manifest": PATH}
    OUT/snapshots/NAME/manifest.json       written when every file it names is in place
    OUT/snapshots/NAME/part-*.parquet, rejected-*.parquet
    OUT/snapshots/NAME/run.lock            held while the run lives, where OUT is a local directory
    OUT/snapshots/NAME/run.json            there while the run lives, where OUT is on a store

A directory without a manifest is a run in the making or one that died; a file that no manifest names is no part of a
snapshot.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from contextlib import suppress

from apache_beam.io.filesystems import FileSystems

from ..errors import SnapshotError
from ..io.filesystem import error_text, is_local, remove
from ..io.json_file import read_json, update_json, write_json
from .manifest import MANIFEST_TYPES, Manifest, checked_pointer, manifest_from
from .run_directory import run_path

_LOGGER = logging.getLogger(__name__)


def current_name(output: str) -> str | None:
    """Name of the current snapshot, or None before the first."""
    path = FileSystems.join(output, "current.json")
    pointer = read_json(path)
    return None if pointer is None else checked_pointer(pointer, path)


def read_manifest(output: str, snapshot: str, reads: Collection[str] = tuple(MANIFEST_TYPES)) -> Manifest | None:
    """Return the manifest of a snapshot, or None if that run never finished.

    `reads` are the keys that the caller needs. Raises SnapshotError if one of them is missing or of another type, or if
    the manifest is that of another snapshot.
    """
    path = FileSystems.join(run_path(output, snapshot), "manifest.json")
    manifest = read_json(path)
    return None if manifest is None else manifest_from(manifest, path, snapshot, reads)


def point_to(output: str, snapshot: str, *, expected: str | None) -> None:
    """Make `snapshot` the current one, if `expected` still is; doing it twice is doing it once."""
    path = FileSystems.join(output, "current.json")

    def decide(pointer: dict[str, object] | None) -> dict[str, object] | None:
        now = None if pointer is None else checked_pointer(pointer, path)
        if now == snapshot:
            return None
        if now != expected:
            raise SnapshotError(
                f"another run published {now} while this one ran (it began from {expected or 'an empty directory'}): "
                f"nothing of it was touched; run again, and this run's vectors are reused"
            )
        return {"snapshot": snapshot, "manifest": f"snapshots/{snapshot}/manifest.json"}

    update_json(path, decide)


def publish(output: str, manifest: Manifest) -> None:
    """Write the manifest, then point `current.json` at it, if the snapshot the run began from still is current."""
    snapshot = manifest["snapshot"]
    path = FileSystems.join(run_path(output, snapshot), "manifest.json")
    now = current_name(output)
    if now not in (snapshot, manifest["previous"]):  # fail before the directory counts as a snapshot
        point_to(output, snapshot, expected=manifest["previous"])
    write_json(path, manifest)
    try:
        point_to(output, snapshot, expected=manifest["previous"])
    except Exception as error:
        try:
            now = current_name(output)
        except Exception:  # whether it was done is not known: what may be current stays whole
            raise SnapshotError(
                f"{snapshot} may have been published or not: current.json could not be written, and could then not be "
                f"read ({error_text(error.__cause__ or error)}); run again, and what is finished is reused"
            ) from None
        if now == snapshot:
            return
        with suppress(Exception):
            remove([path])
        raise


def missing_files(output: str, manifest: Manifest) -> list[str]:
    """Names of files in `manifest` that do not lie in its directory with their number of bytes."""
    directory = run_path(output, manifest["snapshot"])
    if is_local(output):
        there = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
    else:
        found = FileSystems.match([FileSystems.join(directory, "*")])[0].metadata_list
        there = {FileSystems.split(file.path)[1]: file.size_in_bytes for file in found}
    return [file["name"] for file in manifest["files"] if there.get(file["name"]) != file["bytes"]]


def remove_strays(output: str, manifest: Manifest) -> None:
    """Delete finished files that bundles left which were run again: whoever reads part-*.parquet would read rows twice."""
    named = {file["name"] for file in manifest["files"]}
    directory = run_path(output, manifest["snapshot"])
    there = FileSystems.match([FileSystems.join(directory, "*.parquet")])[0].metadata_list
    strays = [match.path for match in there if FileSystems.split(match.path)[1] not in named]
    if strays:
        FileSystems.delete(strays)

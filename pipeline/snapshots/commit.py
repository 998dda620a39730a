"""How a run becomes the current snapshot.

A directory without a manifest belongs to a run that is still running or that died. A file that no manifest names is not
part of a snapshot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

from ..errors import SnapshotError
from ..io.filesystem import list_directory, remove, sha256_of, write_atomically
from ..io.json_file import Json, read_json, update_json
from ..io.paths import base_name, join
from ..io.retries import error_text
from ..io.timeout_reader import open_to_read
from ..layout import (
    CANARY,
    CONTENT_SPILL,
    DAMAGED,
    FILE_LIST,
    MANIFEST,
    PART,
    POINTER,
    REJECTED,
    SHARD_LIST,
    WORKER_COUNTS,
    WORKER_END,
    WORKER_ERROR,
    manifest_place,
)
from .manifest import (
    MANIFEST_KEYS,
    RESTORE_REMEDY,
    FileInfo,
    Manifest,
    is_run_name,
    manifest_from,
    snapshot_of_pointer,
)
from .run_directory import run_path

_OF_A_RUN: tuple[str, ...] = (
    PART,
    REJECTED,
    FILE_LIST,
    SHARD_LIST,
    CANARY,
    f".{PART}",
    f".{REJECTED}",
    WORKER_COUNTS,
    WORKER_ERROR,
    WORKER_END,
)

OF_AN_ENDED_RUN = (*_OF_A_RUN, CONTENT_SPILL)  # which also needs no copies of contents


def current_name(output: str) -> str | None:
    """Return the name of the current snapshot, or None before the first one is published."""
    path = _pointer_path(output)
    pointer = read_json(path)
    return None if pointer is None else snapshot_of_pointer(pointer, path)


def require_current(output: str) -> str:
    """Return the name of the current snapshot; raise SnapshotError if it does not exist."""
    name = current_name(output)
    if name is None:
        raise no_snapshot(output)
    return name


def read_manifest(output: str, snapshot: str, reads: Collection[str] = MANIFEST_KEYS) -> Manifest | None:
    """Return the manifest of a snapshot, or None if it does not exist, as after a run that did not finish.

    `reads` are the keys that the caller needs.

    Raises:
        SnapshotError: One of these keys is missing or of another type, or the manifest is that of another snapshot.
    """
    path = _manifest_path(output, snapshot)
    manifest = read_json(path, RESTORE_REMEDY)
    return None if manifest is None else manifest_from(manifest, path, snapshot, reads)


def require_manifest(output: str, snapshot: str, reads: Collection[str] = MANIFEST_KEYS) -> Manifest:
    """Return the manifest of a snapshot as `read_manifest` does; raise SnapshotError if it does not exist, too."""
    manifest = read_manifest(output, snapshot, reads) if is_run_name(snapshot) else None
    if manifest is None:
        raise no_snapshot(output, snapshot)
    return manifest


def no_snapshot(output: str, name: str | None = None) -> SnapshotError:
    """Return the error for a snapshot `name` that does not exist, or for a missing current snapshot."""
    if name is None:
        return SnapshotError(
            f"{output} has no current snapshot (no current.json): check the path, or publish one with audioclip embed"
        )
    return SnapshotError(
        f"{output} has no finished snapshot {name!r:.200}: audioclip log {output} lists the finished ones, and "
        f"audioclip rollback {output} NAME makes one of them the current one"
    )


def publish(output: str, manifest: Manifest) -> Manifest:
    """Write the manifest, then point `current.json` at it, if the current snapshot is still that of the run's start.

    If another execution of the same run has written a manifest, return that, and change nothing.
    """
    snapshot = manifest["snapshot"]
    path = _manifest_path(output, snapshot)
    current = current_name(output)
    if current not in (snapshot, manifest["previous"]):  # fail before the directory counts as a snapshot
        raise _other_current(current, manifest["previous"])
    earlier = _write_once(output, path, manifest)
    if earlier is not None:
        return earlier
    try:
        point_to(output, snapshot, expected=manifest["previous"])
    except Exception as error:
        try:
            published = not unpublish(output, snapshot)
        except Exception:  # nothing shows whether it was published, so nothing of it may be removed
            raise SnapshotError(
                f"{snapshot} may have been published or not: current.json could not be written, and then could not be "
                f"read ({error_text(error.__cause__ or error)}); run again, and finished files are reused"
            ) from None
        if not published:
            raise
    return manifest


def _write_once(output: str, path: str, manifest: Manifest) -> Manifest | None:
    """Write the manifest to `path`, unless the run has one: then return that."""
    found: list[Json] = []

    def decide(earlier: Json | None) -> Json | None:
        found[:] = [] if earlier is None else [earlier]
        return {**manifest} if earlier is None else None

    update_json(path, decide, lock=_pointer_path(output))
    return manifest_from(found[0], path, manifest["snapshot"], MANIFEST_KEYS) if found else None


def point_to(output: str, snapshot: str, *, expected: str | None) -> None:
    """Make `snapshot` the current one if `expected` still is. A second call changes nothing.

    Raises:
        SnapshotError: Another snapshot is the current one, or this one has no manifest, as after `gc`.
    """
    path = _pointer_path(output)

    def decide(pointer: Json | None) -> Json | None:
        current = None if pointer is None else snapshot_of_pointer(pointer, path)
        if current == snapshot:
            return None
        if current != expected:
            raise _other_current(current, expected)
        if read_json(_manifest_path(output, snapshot)) is None:
            raise no_snapshot(output, snapshot)
        return {"snapshot": snapshot, "manifest": manifest_place(snapshot)}

    update_json(path, decide)


def unpublish(output: str, snapshot: str) -> bool:
    """Remove the manifest of `snapshot` and return True, or return False if it is the current one.

    No other process makes it the current one in the meantime, except between two requests to an object store.
    """
    path, removed = _pointer_path(output), list[str]()

    def decide(pointer: Json | None) -> None:
        if pointer is None or snapshot_of_pointer(pointer, path) != snapshot:
            remove([_manifest_path(output, snapshot)])
            removed.append(snapshot)

    update_json(path, decide)
    return bool(removed)


def _pointer_path(output: str) -> str:
    return join(output, POINTER)


def _manifest_path(output: str, snapshot: str) -> str:
    return join(run_path(output, snapshot), MANIFEST)


def _other_current(current: str | None, expected: str | None) -> SnapshotError:
    return SnapshotError(
        f"the current snapshot is now {current or 'missing'}, and this run began from {expected or 'an empty directory'}: "
        f"run again, and the vectors of this run are reused"
    )


def missing_files(directory: str, files: Sequence[FileInfo]) -> list[str]:
    """Return the names of those `files` that are not in `directory` with their number of bytes."""
    sizes = {base_name(file.path): file.size for file in list_directory(directory)}
    return [file.name for file in files if sizes.get(file.name) != file.bytes]


def damaged_files(directory: str, files: Sequence[FileInfo]) -> list[str]:
    """Return the names of those `files` that missing_files names, and of those that a run could not read.

    One that was restored since, as its digest shows, is none of these.
    """
    sizes = {base_name(file.path): file.size for file in list_directory(directory)}
    return [
        file.name
        for file in files
        if sizes.get(file.name) != file.bytes
        or (f"{DAMAGED}{file.name}" in sizes and _sha256(join(directory, file.name)) != file.sha256)
    ]


def _sha256(path: str) -> str:
    with open_to_read(path) as handle:
        return sha256_of(handle)


def record_damage(path: str, reason: str) -> None:
    """Note beside a file of rows that it could not be read, so that the next run reads the shards of its rows again."""
    directory, name = path.removesuffix(base_name(path)), base_name(path)
    with suppress(Exception):  # the run ends with the error itself
        write_atomically(join(directory, f"{DAMAGED}{name}"), f"{reason}\n".encode(), "application/octet-stream")


def remove_strays(directory: str, named: Collection[str], kinds: tuple[str, ...] = _OF_A_RUN) -> None:
    """Delete files of rows, finished or not, and lists of files, that are not `named`: bundles that ran twice left them.

    They must go because readers of part-*.parquet would read their rows twice. The canary goes too: the manifest has it.
    So do workers' reports, for which there may be no launcher any more. `kinds` begin the names of all these files.
    """
    names = {base_name(file.path): file.path for file in list_directory(directory)}
    remove([path for name, path in names.items() if name.startswith(kinds) and name not in named])

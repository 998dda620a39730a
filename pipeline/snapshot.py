"""Run directories, manifest and current pointer: what a snapshot is on disk, and how one becomes the current one.

    OUT/current.json                       {"snapshot": NAME, "manifest": PATH}
    OUT/snapshots/NAME/manifest.json       written when every file it names is in place
    OUT/snapshots/NAME/part-*.parquet, rejected-*.parquet
    OUT/snapshots/NAME/run.lock            held while the run lives, where OUT is a local directory

A directory without a manifest is a run in the making or one that died; a file that no manifest names is no part of a
snapshot.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TypedDict

from apache_beam.io.filesystems import FileSystems
from filelock import FileLock, Timeout

from .sink import FileInfo

# A run directory on an object store, where no lock can be held, counts as alive until its newest file is this old.
STORE_RUN_AGE = 24 * 3600
STORE_LOCK_AGE = 600


class SnapshotError(RuntimeError):
    """A snapshot cannot be read, made or published; the text says why and what to do."""


class Canary(TypedDict):
    """The vectors of the fixed texts, as base64 of little-endian float32 [16, dim]."""

    texts: list[str]
    vectors: str


class Manifest(TypedDict):
    """What `manifest.json` holds."""

    snapshot: str
    created: str
    tool_version: str
    fingerprint: str
    fingerprint_parts: dict[str, str]
    weights: str
    checkpoint: dict[str, str]
    dim: int
    options: dict[str, object]
    counts: dict[str, object]
    seconds: dict[str, float]
    files: list[FileInfo]
    canary: Canary
    previous: str | None
    notes: list[str]


def is_local(path: str) -> bool:
    """Whether `path` is a path of this machine's file system."""
    return "://" not in path


def run_path(output: str, snapshot: str) -> str:
    """The directory of a snapshot."""
    return str(FileSystems.join(output, "snapshots", snapshot))


def _read_json(path: str) -> dict[str, object] | None:
    if not FileSystems.exists(path):
        return None
    try:
        with FileSystems.open(path, compression_type="uncompressed") as handle:
            value = json.loads(handle.read())
    except ValueError as error:
        raise SnapshotError(f"{path} is not JSON ({error}): restore it, or remove it and run again") from None
    if not isinstance(value, dict):
        raise SnapshotError(f"{path} holds no JSON object: restore it, or remove it and run again")
    return value


def _write_json(path: str, value: object) -> None:
    """Write `path` whole or not at all."""
    data = json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
    if not is_local(path):  # an object appears when its upload is complete
        with FileSystems.create(path, "application/json", "uncompressed") as handle:
            handle.write(data)
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def current(output: str) -> str | None:
    """Name of the current snapshot, or None before the first."""
    pointer = _read_json(FileSystems.join(output, "current.json"))
    return None if pointer is None else str(pointer["snapshot"])


def read_manifest(output: str, snapshot: str) -> Manifest | None:
    """The manifest of a snapshot, or None where that run never finished."""
    return _read_json(FileSystems.join(run_path(output, snapshot), "manifest.json"))  # type: ignore[return-value]


def runs(output: str) -> dict[str, list[tuple[str, float]]]:
    """Every run directory under `output`, by name, with its files as (path, time of last change)."""
    found: dict[str, list[tuple[str, float]]] = {}
    root = FileSystems.join(output, "snapshots")
    if is_local(output) and os.path.isdir(root):
        found = {entry.name: [] for entry in os.scandir(root) if entry.is_dir()}
    for match in FileSystems.match([FileSystems.join(root, "*", "*")])[0].metadata_list:
        directory, _ = FileSystems.split(match.path)
        name = FileSystems.split(directory.rstrip("/"))[1]
        found.setdefault(name, []).append((match.path, match.last_updated_in_seconds or 0.0))
    return dict(sorted(found.items()))


def is_complete(files: list[tuple[str, float]]) -> bool:
    """Whether the files of a run hold its manifest."""
    return any(FileSystems.split(path)[1] == "manifest.json" for path, _ in files)


def is_alive(output: str, snapshot: str, files: list[tuple[str, float]]) -> bool:
    """Whether the run that writes `snapshot` may still be going on."""
    if not is_local(output):
        return time.time() - max((changed for _, changed in files), default=time.time()) < STORE_RUN_AGE
    path = os.path.join(run_path(output, snapshot), "run.lock")
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def start_run(output: str, fingerprint: str) -> tuple[str, FileLock | None]:
    """Make a run directory; gives its name and the lock that keeps it, to be held until the run ends."""
    while True:
        name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{fingerprint[:8]}"
        path = run_path(output, name)
        if not is_local(output):
            return name, None
        making = run_path(output, f".{name}-{os.getpid()}")
        os.makedirs(making)
        lock = FileLock(os.path.join(making, "run.lock"), timeout=0)
        lock.acquire()
        try:
            os.rename(making, path)  # appears with its lock held: nobody takes it for a dead run's
            return name, lock
        except OSError:  # another run began within this second
            lock.release()
            shutil.rmtree(making)
            time.sleep(0.2)


@contextmanager
def _publishing(output: str) -> Iterator[None]:
    """Let one run at a time look at `current.json` and change it."""
    if is_local(output):
        with FileLock(os.path.join(output, "publish.lock"), timeout=60):
            yield
        return
    path = FileSystems.join(output, "publish.lock")
    owner = {"owner": f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}", "time": time.time()}
    held = _read_json(path)
    if held and time.time() - float(str(held["time"])) < STORE_LOCK_AGE:
        raise SnapshotError(f"{held['owner']} is publishing into {output}: run again once it is done")
    _write_json(path, owner)
    try:
        if _read_json(path) != owner:
            raise SnapshotError(f"another run is publishing into {output}: run again once it is done")
        yield
    finally:
        with suppress(Exception):
            FileSystems.delete([path])


def point_to(output: str, snapshot: str, *, expected: str | None) -> None:
    """Make `snapshot` the current one, if `expected` still is; doing it twice is doing it once."""
    with _publishing(output):
        now = current(output)
        if now == snapshot:
            return
        if now != expected:
            raise SnapshotError(
                f"another run published {now} while this one ran (it began from {expected or 'an empty directory'}): "
                f"nothing of it was touched; run again, and this run's vectors are reused"
            )
        manifest = f"snapshots/{snapshot}/manifest.json"
        _write_json(FileSystems.join(output, "current.json"), {"snapshot": snapshot, "manifest": manifest})


def publish(output: str, manifest: Manifest) -> None:
    """Write the manifest, then point `current.json` at it, if the snapshot the run began from still is current."""
    snapshot = manifest["snapshot"]
    path = FileSystems.join(run_path(output, snapshot), "manifest.json")
    now = current(output)
    if now not in (snapshot, manifest["previous"]):  # fail before the directory counts as a snapshot
        point_to(output, snapshot, expected=manifest["previous"])
    _write_json(path, manifest)
    try:
        point_to(output, snapshot, expected=manifest["previous"])
    except SnapshotError:
        FileSystems.delete([path])
        raise


def remove_spills(output: str, snapshot: str) -> None:
    """Delete what a run on one machine put aside on its way."""
    if is_local(output):
        for path in Path(run_path(output, snapshot)).glob("spill-*.tmp"):
            path.unlink()


def remove_run(output: str, snapshot: str) -> None:
    """Delete a run directory."""
    FileSystems.delete([run_path(output, snapshot)])

"""Snapshots over time: list them, go back to one, remove old ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import SnapshotError
from ..io.filesystem import remove
from .commit import current_name, point_to, read_manifest
from .manifest import Manifest
from .run_directory import is_alive, is_complete, list_runs, remove_run, run_path


def _complete(output: str, reads: Collection[str] = ()) -> dict[str, Manifest]:
    """Return the manifests of the finished snapshots, oldest first; `reads` are the keys that the caller needs."""
    found = {
        name: read_manifest(output, name, reads) for name, files in list_runs(output).items() if is_complete(files)
    }
    return {name: manifest for name, manifest in found.items() if manifest}


def _must_be_current(output: str) -> str:
    name = current_name(output)
    if name is None:
        raise SnapshotError(f"{output} has no current snapshot: nothing was ever published there (no current.json)")
    return name


def current_path(output: str) -> str:
    """Path of the current snapshot's directory; SnapshotError where there is none."""
    return run_path(output, _must_be_current(output))


def log(output: str) -> list[str]:
    """One line a snapshot, oldest first: mark of the current one, name, counts, checkpoint."""
    now = _must_be_current(output)
    lines = [f"  {'snapshot':<26} {'read':>10} {'embedded':>10} {'reused':>10} {'rejected':>10}  checkpoint"]
    for name, manifest in _complete(output, reads=("counts", "weights", "checkpoint")).items():
        counts: Mapping[str, object] = manifest["counts"]
        numbers = " ".join(f"{counts[what]:>10}" for what in ("read", "embedded", "reused", "rejected"))
        weights = " (untrained)" if manifest["weights"] == "untrained" != manifest["checkpoint"]["name"] else ""
        mark = "*" if name == now else " "
        lines.append(f"{mark} {name:<26} {numbers}  {manifest['checkpoint']['name']}{weights}")
    return lines


def rollback(output: str, snapshot: str | None = None) -> str:
    """Make `snapshot`, or the one before the current, the current one; gives its path."""
    now = _must_be_current(output)
    complete = _complete(output)
    if snapshot is None:
        # The one that it followed: what stands between by name was gone back from, or never published.
        followed = complete[now].get("previous") if now in complete else None
        earlier = [name for name in complete if name < now and name <= (followed or now)]
        if not earlier:
            raise SnapshotError(f"{now} is the oldest snapshot in {output}: there is none to go back to")
        snapshot = earlier[-1]
    if snapshot not in complete:
        raise SnapshotError(f"{output} has no finished snapshot {snapshot!r}; it has {', '.join(complete)}")
    point_to(output, snapshot, expected=now)
    return run_path(output, snapshot)


def gc(output: str, keep: int, *, dry_run: bool = False) -> list[str]:
    """Remove all but the newest `keep` snapshots and what dead runs left; never the current one or a live run's."""
    if keep < 1:
        raise ValueError(f"--keep {keep} would remove the current snapshot: give at least 1")
    now = _must_be_current(output)
    found = list_runs(output)
    complete = [name for name, files in found.items() if is_complete(files)]
    kept = {now, *complete[-keep:]}
    removed = []
    for name, files in found.items():
        if name in kept or (name not in complete and is_alive(output, name, files)):
            continue
        removed.append(name)
        if not dry_run:
            # Without its manifest a half-removed directory is a dead run, never half a snapshot.
            remove([path for path, _ in files if path.endswith("manifest.json")])
            remove_run(output, name)
    return removed

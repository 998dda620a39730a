"""Names that files of OUT hold: what is no plain name could lead out of OUT, and is refused before it becomes a path."""

from __future__ import annotations

import re

from .pointer import Json, SnapshotError

# Runs and files are named by ourselves: letters, digits, "-", "." and "_". Whatever is more than that (a separator, "..",
# a glob's star, a drive or a scheme) was not written by us.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_HOLDS = {"snapshot": str, "fingerprint": str, "fingerprint_parts": dict, "weights": str, "checkpoint": dict} | {
    "counts": dict,
    "files": list,
    "canary": dict,
}


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


def checked_manifest(manifest: Json, path: str, snapshot: str) -> Json:
    """`manifest`, where it is that of `snapshot` and its files lie beside it; SnapshotError otherwise."""
    wrong = [name for name, kind in _HOLDS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise SnapshotError(f"{path} is no manifest: {', '.join(wrong)} missing or of another type; restore it")
    if manifest["snapshot"] != snapshot:
        raise SnapshotError(f"{path} is the manifest of {str(manifest['snapshot'])[:200]!r}: a snapshot keeps its name")
    files = manifest["files"]
    for file in files if isinstance(files, list) else []:
        plain_name(file.get("name") if isinstance(file, dict) else None, path)
    return manifest

"""`audioclip-text validate`: whether a snapshot is what its manifest says, down to every row."""

from __future__ import annotations

import base64
import os
import tempfile

import numpy as np

from ..canary import Canary, canaries_agree
from ..errors import SnapshotError
from ..snapshots.commit import current_name, read_manifest
from ..snapshots.manifest import Manifest, check_manifest
from ..snapshots.model import ModelNotFound, find_model
from ..snapshots.run_directory import run_path
from .check_files import check_files
from .check_rows import RowChecks
from .result import Check, ValidationResult


def validate(
    output: str, snapshot: str | None = None, *, checkpoint: str | None = None, tokenizer_path: str | None = None
) -> ValidationResult:
    """Check the current snapshot of `output`, or the one named `snapshot`; every file is read through.

    The checkpoint, where it is at hand, embeds the manifest's canary texts again. Raises ModelNotFound where a
    `checkpoint` or `tokenizer_path` is given and is not the snapshot's.
    """
    pointer, name, manifest = _pointed(output, snapshot)
    if name is None or manifest is None:
        return ValidationResult(output, [pointer])
    path = run_path(output, name)
    complete = Check("manifest", "complete, and its counts add up")
    complete.add(check_manifest(manifest, name))
    if complete.faults:
        return ValidationResult(path, [pointer, complete])
    files, sound = check_files(output, manifest)
    with tempfile.TemporaryDirectory(prefix="audioclip-text-") as scratch:
        rows = RowChecks(output, manifest, os.path.join(scratch, "ids"))
        for file in sound:
            rows.look(file)
        found = rows.finish()
    if len(sound) < len(manifest["files"]):
        _tell_of_the_rest(found, len(manifest["files"]) - len(sound))
    canary = check_canary(manifest, checkpoint, tokenizer_path)
    return ValidationResult(path, [pointer, complete, files, *found, canary])


def _pointed(output: str, snapshot: str | None) -> tuple[Check, str | None, Manifest | None]:
    """(whether there is something to check, its name, its manifest)."""
    check = Check("pointer")
    try:
        name = snapshot or current_name(output)
        if name is None:
            check.add_fault(f"{output} has no current.json: nothing was ever published there, or it was removed")
            return check, None, None
        manifest = read_manifest(output, name, reads=())
    except (SnapshotError, OSError) as error:
        check.add_fault(str(error))
        return check, None, None
    if manifest is None:
        check.add_fault(
            f"{'--snapshot' if snapshot else 'current.json'} names {name}, and there is no manifest of that name"
        )
    check.summary = f"{name} is {'the one asked for' if snapshot else 'the current one'}"
    return check, name, manifest


def _tell_of_the_rest(found: list[Check], files: int) -> None:
    """Rows of files that are not those of the manifest were not looked at: totals over all rows say nothing then."""
    why = f"{files:,} file{'s' * (files > 1)} not looked at"
    for check in found:
        if check.name == "counts":
            check.faults, check.examples, check.skipped = 0, [], why
        elif check.summary:
            check.summary += f"; {why}"


def check_canary(manifest: Manifest, checkpoint: str | None, tokenizer_path: str | None) -> Check:
    """Whether the checkpoint still gives the vectors of the fixed texts that the manifest holds."""
    check = Check("canary")
    canary = manifest["canary"]
    try:
        stored = np.frombuffer(base64.b64decode(canary["vectors"], validate=True), "<f4")
        texts = list(canary["texts"])
        if stored.size != len(texts) * manifest["dim"] or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{stored.size} numbers for {len(texts)} texts")
    except (KeyError, ValueError, TypeError) as error:
        check.add_fault(f"the manifest's canary cannot be read: {error}")
        return check
    if not np.isfinite(stored).all():
        check.add_fault("the manifest's canary holds NaN or infinity")
        return check
    try:
        encoder = find_model(manifest, checkpoint, tokenizer_path).encoder()
    except ModelNotFound as error:
        if checkpoint or tokenizer_path:
            raise
        check.skipped = str(error)
        return check
    parts = manifest["fingerprint_parts"]
    vectors = encoder.encode_rows(texts).vectors.astype(parts.get("stored", "float32")).astype("<f4")
    again: Canary = {"texts": texts, "vectors": base64.b64encode(vectors.tobytes()).decode()}
    if not canaries_agree(again, canary, parts["dtype"]):
        check.add_fault("the checkpoint gives other vectors for the fixed texts than the manifest holds")
    check.summary = f"{len(texts)} fixed texts embedded again, with the vectors in the manifest"
    return check

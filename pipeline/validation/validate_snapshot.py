"""`audioclip validate`: check that a snapshot is what its manifest says, down to every row."""

from __future__ import annotations

import base64

from ..canary import Canary, canaries_agree, canary_fault
from ..errors import SnapshotError
from ..inference.find_model import ModelNotFound, find_model
from ..io.json_file import read_json
from ..io.paths import join
from ..layout import POINTER, manifest_place
from ..snapshots.commit import require_current, require_manifest
from ..snapshots.manifest import Manifest, check_file_list, check_manifest
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import Snapshot
from ..terminal import plural
from .check_files import check_files
from .check_rows import RowChecks
from .checks import Check, ValidationResult


def validate(
    output: str, snapshot: str | None = None, *, checkpoint: str | None = None, tokenizer_path: str | None = None
) -> ValidationResult:
    """Check the current snapshot of `output`, or the one named `snapshot`; every file is read completely.

    If the checkpoint is available, it embeds the canary texts of the manifest again.

    Raises:
        ModelNotFound: A `checkpoint` or `tokenizer_path` is given and is not that of the snapshot.
    """
    pointer, manifest = _check_pointer(output, snapshot)
    if manifest is None:
        return ValidationResult(output, [pointer])
    path = run_path(output, manifest["snapshot"])
    consistent = Check("manifest", "complete and consistent")
    consistent.add_faults(check_manifest(manifest, manifest["snapshot"]))
    opened = Snapshot(output, manifest["snapshot"], manifest)
    if not consistent.faults:
        consistent.add_faults(_file_list_faults(opened))
    if consistent.faults:
        return ValidationResult(path, [pointer, consistent])
    files, intact = check_files(opened)
    rows = RowChecks(output, manifest)
    for file in intact:
        rows.check_file(file)
    row_checks = rows.finish()
    damaged = len(opened.files) - len(intact)
    if damaged:
        _note_unchecked_files(row_checks, damaged)
    canary = _check_canary(manifest, checkpoint, tokenizer_path)
    return ValidationResult(path, [pointer, consistent, files, *row_checks, canary])


def _file_list_faults(snapshot: Snapshot) -> list[str]:
    try:
        return check_file_list(snapshot.manifest, snapshot.files)
    except (SnapshotError, OSError) as error:
        return [str(error)]


def _check_pointer(output: str, snapshot: str | None) -> tuple[Check, Manifest | None]:
    """Return the check that the snapshot exists, and its manifest, of which only format and name are checked."""
    check = Check("pointer")
    try:
        name = snapshot or require_current(output)
        manifest = require_manifest(output, name, reads=())
    except (SnapshotError, OSError) as error:
        check.add_fault(str(error))
        return check, None
    if not snapshot:
        # Other programs may read the path instead of the name.
        place = (read_json(join(output, POINTER)) or {}).get("manifest")
        check.expect_equal(f"the manifest in {POINTER}", place, manifest_place(name))
    check.summary = f"{name} is {'given by --snapshot' if snapshot else 'the current snapshot'}"
    return check, manifest


def _note_unchecked_files(checks: list[Check], files: int) -> None:
    """Say that the rows of damaged files were not checked: totals over all rows can then not be compared."""
    text = f"{plural(files, 'damaged file')} not read"
    for check in checks:
        if check.name == "counts":
            check.faults, check.examples, check.skipped = 0, [], text
        elif check.summary:
            check.summary += f"; {text}"


def _check_canary(manifest: Manifest, checkpoint: str | None, tokenizer_path: str | None) -> Check:
    """Check that the checkpoint still gives the vectors of the canary texts that the manifest contains."""
    check = Check("canary")
    canary = manifest["canary"]
    fault = canary_fault(canary, manifest["dim"])
    if fault:
        check.add_fault(f"the canary in the manifest {fault}")
        return check
    try:
        model = find_model(manifest, checkpoint, tokenizer_path)
    except ModelNotFound as error:
        if checkpoint or tokenizer_path:
            raise
        check.skipped = str(error)
        return check
    parts = manifest["fingerprint_parts"]
    vectors = model.encoder().encode_rows(canary["texts"]).vectors.astype(parts["stored"]).astype("<f4")
    again: Canary = {"texts": canary["texts"], "vectors": base64.b64encode(vectors.tobytes()).decode()}
    if not canaries_agree(again, canary, parts["dtype"]):
        check.add_fault("the checkpoint gives other vectors for the canary texts than the manifest contains")
    check.summary = f"the checkpoint gives the {len(canary['texts'])} vectors in the manifest again"
    if model.warning:
        check.summary += f"; {model.warning}"
    return check

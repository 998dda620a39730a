"""`audioclip validate`: check that a snapshot is what its manifest says, down to every row."""

from __future__ import annotations

from collections.abc import Mapping

from ...model.messages import plural
from ..canary import canaries_agree, canary_fault, make_canary
from ..errors import SnapshotError
from ..inference.find_model import ModelNotFound, find_model
from ..io.json_file import read_json
from ..io.paths import given_path, join
from ..layout import POINTER, manifest_place
from ..snapshots.commit import require_current, require_manifest
from ..snapshots.manifest import Manifest, check_file_list, check_manifest
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import Snapshot
from .check_files import check_files
from .check_rows import RowChecks
from .checks import Check, ValidationResult


def validate(output: str, snapshot: str | None = None, **files: str | None) -> ValidationResult:
    """Check the current snapshot of `output`, or the one named `snapshot`; every file is read completely.

    If the model is available, it embeds the canary again.

    Args:
        output: The directory of the snapshots.
        snapshot: The name of the snapshot; by default the current one.
        files: Paths of the model's files, `checkpoint` and others of its head; by default those that the run read.

    Raises:
        ModelNotFound: A file of the model is given and is not that of the snapshot.
    """
    output = given_path(output)
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
    file_check, intact = check_files(opened)
    rows = RowChecks(opened)
    for file in intact:
        rows.check_file(file)
    row_checks = rows.finish()
    damaged = len(opened.files) - len(intact)
    if damaged:
        _note_unchecked_files(row_checks, damaged)
    canary = _check_canary(manifest, files)
    return ValidationResult(path, [pointer, consistent, file_check, *row_checks, canary])


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
    note = f"{plural(files, 'damaged file')} not read"
    for check in checks:
        if check.name == "counts":
            check.faults, check.examples, check.skipped = 0, [], note
        elif check.summary:
            check.summary += f"; {note}"


def _check_canary(manifest: Manifest, files: Mapping[str, str | None]) -> Check:
    """Check that the model still gives the vectors of the canary that the manifest contains."""
    check = Check("canary")
    canary = manifest["canary"]
    fault = canary_fault(canary, manifest["dim"])
    if fault:
        check.add_fault(f"the canary in the manifest {fault}")
        return check
    try:
        model = find_model(manifest, files)
    except ModelNotFound as error:
        if any(files.values()):
            raise
        check.skipped = str(error)
        return check
    parts, contents = manifest["fingerprint_parts"], model.head.canary()
    if list(contents) != canary["contents"]:
        check.skipped = "the manifest has the canary of another version of the program"
        return check
    vectors = model.encoder().encode_rows(list(contents.values())).vectors.astype(parts["stored"])
    if not canaries_agree(make_canary(list(contents), vectors), canary, parts["dtype"]):
        check.add_fault(
            f"the checkpoint gives other vectors for the canary {model.head.items} than the manifest contains"
        )
    check.summary = f"the checkpoint gives the {len(contents)} vectors in the manifest again"
    if model.warning:
        check.summary += f"; {model.warning}"
    return check

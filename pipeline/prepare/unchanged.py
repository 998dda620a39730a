"""Whether a run would publish the current snapshot again: everything that decides it is compared, without Beam or torch.

On a night on which nothing changed, `embed` then costs one listing of the shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ...model.fingerprint import SCHEME
from ...model.head import EncoderSettings
from ...model.heads import find_head
from ...model.release import UNTRAINED
from ..flags import WITHOUT_EFFECT, WITHOUT_EFFECT_ON_ROWS, defaults
from ..io.paths import absolute_path, is_local
from ..io.versions import list_remote, local_version, same_version
from ..readers.input_files import find_shards
from ..readers.shard import READERS_VERSION
from ..readers.shard_table import SHARD_SCHEMA, ShardTable, unchanged_places
from ..schemas import PASSING_REASONS
from ..snapshots.commit import current_name, damaged_files, read_manifest
from ..snapshots.listing import read_file_list, read_shard_list
from ..snapshots.manifest import Manifest, ModelFile
from ..snapshots.run_directory import run_path


def model_files(settings: EncoderSettings) -> list[ModelFile]:
    """Return the files that decide a model's vectors, each as it is now; the version of a missing file is empty."""
    return [{"path": absolute_path(path), "version": _version_of(path)} for path in settings.file_paths()]


@dataclass(frozen=True)
class Listing:
    """The shards of a night that is not unchanged, as they were listed: `embed` does not list them again.

    Attributes:
        snapshot: The snapshot that they were compared with, whose names they have.
        shards: The shards.
        notes: What users should know of them.
    """

    snapshot: str
    shards: ShardTable
    notes: list[str]


def list_shards(
    options: Mapping[str, object], inputs: Sequence[str], output: str, known: pa.Table | None, notes: list[str]
) -> ShardTable:
    """Return the shards of a run with these options of `embed`, as find_shards does."""
    head = find_head(str(options["head"]))
    return find_shards(
        inputs,
        options["input_format"],  # type: ignore[arg-type]
        options["delimiter"],  # type: ignore[arg-type]
        known,
        output=output,
        quoting=options["quoting"],  # type: ignore[arg-type]
        escape=options["escape"],  # type: ignore[arg-type]
        head=head,
        lists=bool(options[head.field_flag.removeprefix("--")]),
        notes=notes,
    )


def unchanged_since(options: Mapping[str, object]) -> str | None:
    """Return the name of the current snapshot if a run would publish the same again, as compare_with_current does."""
    found = compare_with_current(options)
    return found if isinstance(found, str) else None


def compare_with_current(options: Mapping[str, object]) -> str | Listing | None:
    """Return the name of the current snapshot if a run with these options of `embed` would publish the same again.

    Equal must be: every shard's path, name in ids, format, size and version; every option that decides what a snapshot
    contains; the versions of the readers and of what tokenizes; and the files of the model, by size and version. The
    snapshot's own files must be in place. If it would not, return the shards, or None if they were not listed for that.

    Raises ValueError or OSError if the inputs cannot be listed, SnapshotError if the current snapshot cannot be read.
    """
    output = str(options["output"] or "")
    name = current_name(output) if output and options["input"] and not options["force"] else None
    manifest = read_manifest(output, name) if name else None
    if name is None or manifest is None or not (_same_options(options, manifest) and _same_model(options, manifest)):
        return None
    earlier, notes = read_shard_list(output, manifest, SHARD_SCHEMA.names), list[str]()
    shards = list_shards(options, options["input"], output, earlier, notes)  # type: ignore[arg-type]
    places = unchanged_places(shards.table, earlier, str(options["compare"]))
    if places.null_count or len(places) != len(earlier) or (options["retry_rejected"] and rows_to_retry(manifest)):
        return Listing(name, shards, notes)
    lost = damaged_files(run_path(output, manifest["snapshot"]), read_file_list(output, manifest))
    return Listing(name, shards, notes) if lost else name


def rows_to_retry(manifest: Manifest) -> int:
    """Return how many rows of a snapshot were rejected for reasons that may pass."""
    rejected = manifest["totals"]["rejected_by_reason"]
    return sum(rejected.get(reason, 0) for reason in PASSING_REASONS)


def deciding_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return what decides which rows a corpus has: effective options of `embed`, and the version of the readers."""
    deciding = {name: options[name] for name in defaults() if name not in WITHOUT_EFFECT_ON_ROWS}
    return {**deciding, "readers": READERS_VERSION}


def _same_options(options: Mapping[str, object], manifest: Manifest) -> bool:
    """Return whether the options with an effect are those of a snapshot, which names the ones that are not defaults."""
    given = manifest["options"]
    return manifest["deciding"] == deciding_options(options) and all(
        options[name] == given.get(name, default) for name, default in defaults().items() if name not in WITHOUT_EFFECT
    )


def _same_model(options: Mapping[str, object], manifest: Manifest) -> bool:
    head, parts = find_head(str(options["head"])), manifest["fingerprint_parts"]
    files = model_files(head.settings(options))
    return (
        (options["checkpoint"] == UNTRAINED) == (manifest["checkpoint"]["name"] == UNTRAINED)
        and all(parts.get(name) == now for name, now in {"scheme": SCHEME, **head.versions()}.items())
        and [file["path"] for file in files] == [file["path"] for file in manifest["model_files"]]
        and all(
            now["version"] and same_version(now["version"], before["version"], str(options["compare"]))
            for now, before in zip(files, manifest["model_files"], strict=True)
        )
    )


def _version_of(path: str) -> str:
    """Return the version of a file as a listing has it, or "" if the file does not exist."""
    if is_local(path):
        return local_version(path)
    paths, _, versions = list_remote(path, path)
    return versions[paths.index(path)] if path in paths else ""

"""Whether a run would publish the current snapshot again: everything that decides it is compared, without Beam or torch.

On a night on which nothing changed, `embed` then costs one listing of the shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from ...model.fingerprint import SCHEME
from ...model.head import EncoderSettings
from ...model.heads import find_head
from ...model.release import UNTRAINED
from ..flags import WITHOUT_EFFECT, defaults
from ..io.paths import absolute_path, is_local
from ..io.versions import list_remote, local_version
from ..readers.input_files import find_shards
from ..snapshots.commit import current_name, missing_files, read_manifest
from ..snapshots.listing import read_file_list, read_shard_list, shard_state
from ..snapshots.manifest import Manifest, ModelFile
from ..snapshots.run_directory import run_path


def model_files(settings: EncoderSettings) -> list[ModelFile]:
    """Return the files that decide a model's vectors, each as it is now; the version of a missing file is empty."""
    return [{"path": absolute_path(path), "version": _version_of(path)} for path in settings.file_paths()]


def unchanged_since(options: Mapping[str, object]) -> str | None:
    """Return the name of the current snapshot if a run with these options of `embed` would publish the same again.

    Equal must be: every shard's path, name in ids, format, size and version; every option that decides what a snapshot
    contains; the version of this program and of what tokenizes; and the files of the model, by size and version. The
    snapshot's own files must be in place.

    Raises ValueError or OSError if the inputs cannot be listed, SnapshotError if the current snapshot cannot be read.
    """
    output = str(options["output"] or "")
    name = current_name(output) if output and options["input"] and not options["force"] else None
    manifest = read_manifest(output, name) if name else None
    if manifest is None or not (_same_options(options, manifest) and _same_model(options, manifest)):
        return None
    if not _same_shards(options, output, manifest):
        return None
    return name if not missing_files(run_path(output, manifest["snapshot"]), read_file_list(output, manifest)) else None


def _same_options(options: Mapping[str, object], manifest: Manifest) -> bool:
    """Return whether the options with an effect are those of a snapshot, which names the ones that are not defaults."""
    given = manifest["options"]
    return manifest["tool_version"] == version("audioclip-beam") and all(
        options[name] == given.get(name, default) for name, default in defaults().items() if name not in WITHOUT_EFFECT
    )


def _same_model(options: Mapping[str, object], manifest: Manifest) -> bool:
    head, parts = find_head(str(options["head"])), manifest["fingerprint_parts"]
    files = model_files(head.settings(options))
    return (
        (options["checkpoint"] == UNTRAINED) == (manifest["checkpoint"]["name"] == UNTRAINED)
        and all(parts.get(name) == now for name, now in {"scheme": SCHEME, **head.versions()}.items())
        and files == manifest["model_files"]
        and all(file["version"] for file in files)
    )


def _same_shards(options: Mapping[str, object], output: str, manifest: Manifest) -> bool:
    inputs: Sequence[str] = options["input"]  # type: ignore[assignment]
    earlier = read_shard_list(output, manifest)
    names = {shard.path: shard.name for shard in earlier}
    shards = find_shards(
        inputs,
        options["input_format"],  # type: ignore[arg-type]
        options["delimiter"],  # type: ignore[arg-type]
        names,
        quoting=options["quoting"],  # type: ignore[arg-type]
        escape=options["escape"],  # type: ignore[arg-type]
    )
    return set(map(shard_state, shards)) == set(map(shard_state, earlier))


def _version_of(path: str) -> str:
    """Return the version of a file as a listing has it, or "" if the file does not exist."""
    if is_local(path):
        return local_version(path)
    return next((file.version for file in list_remote(path, path) if file.path == path), "")

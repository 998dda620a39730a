"""Whether a run would publish the current snapshot again: everything that decides it is compared, without Beam or torch.

On a night on which nothing changed, `embed` then costs one listing of the shards.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from ...model.fingerprint import VERSION_PARTS, tokenizer_versions
from ...model.release import VOCABULARY, resolve_checkpoint
from ..flags import WITHOUT_EFFECT, add_flags
from ..io.paths import is_local
from ..io.versions import list_remote, local_version
from ..readers.input_files import find_shards
from ..snapshots.commit import current_name, missing_files, read_manifest
from ..snapshots.listing import read_file_list, read_shard_list, shard_state
from ..snapshots.manifest import Manifest, ModelFile
from ..snapshots.run_directory import run_path


def model_files(checkpoint: str, tokenizer_path: str | None) -> list[ModelFile]:
    """Return the files that decide a model's vectors, each as it is now; the version of a missing file is empty."""
    paths = [] if checkpoint == "untrained" else [resolve_checkpoint(checkpoint)]
    paths.append(os.fspath(tokenizer_path or VOCABULARY))
    return [{"path": os.path.abspath(path) if is_local(path) else path, "version": _version_of(path)} for path in paths]


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
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    names = {action.dest for action in parser._actions} - WITHOUT_EFFECT
    given = manifest["options"]
    return manifest["tool_version"] == version("audioclip-beam") and all(
        options[name] == given.get(name, parser.get_default(name)) for name in names
    )


def _same_model(options: Mapping[str, object], manifest: Manifest) -> bool:
    parts, versions = manifest["fingerprint_parts"], tokenizer_versions()
    untrained = options["checkpoint"] == "untrained"
    files = model_files(str(options["checkpoint"]), options["tokenizer_path"])  # type: ignore[arg-type]
    return (
        untrained == (manifest["checkpoint"]["name"] == "untrained")
        and all(parts.get(name) == versions[name] for name in VERSION_PARTS)
        and files == manifest["model_files"]
        and all(file["version"] for file in files)
    )


def _same_shards(options: Mapping[str, object], output: str, manifest: Manifest) -> bool:
    inputs: Sequence[str] = options["input"]  # type: ignore[assignment]
    earlier = read_shard_list(output, manifest)
    names = {shard.path: shard.name for shard in earlier}
    shards = find_shards(inputs, options["input_format"], options["delimiter"], names)  # type: ignore[arg-type]
    return set(map(shard_state, shards)) == set(map(shard_state, earlier))


def _version_of(path: str) -> str:
    """Return the version of a file as a listing has it, or "" if the file does not exist."""
    if is_local(path):
        return local_version(path)
    return next((file.version for file in list_remote(path, path) if file.path == path), "")

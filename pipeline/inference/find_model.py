"""The encoder that embedded a snapshot, found by its manifest and checked by its fingerprint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...model.fingerprint import changed_parts, describe_changes
from ...model.head import Encoder, EncoderSettings, Head
from ...model.heads import find_head
from ...model.messages import OneLineError
from ...model.release import UNTRAINED
from ..io.paths import is_local
from ..snapshots.manifest import Manifest
from .shared_encoder import describe_model, load_encoder, logit_scale


class ModelNotFound(OneLineError, ValueError):
    """Error of a snapshot of whose model a file is missing or is another one; the message gives a remedy."""


@dataclass(frozen=True)
class SnapshotModel:
    """The settings of the encoder of a snapshot. `warning` is empty, or says how its fingerprint differs."""

    head: Head
    settings: EncoderSettings
    warning: str = ""

    def encoder(self) -> Encoder:
        """Return the encoder. One in float16 needs a CUDA device; without one it is loaded in float32."""
        import torch

        settings = self.settings
        if settings.dtype == "float16" and not torch.cuda.is_available():
            settings = replace(settings, dtype="float32")
        return load_encoder(self.head, settings)

    def logit_scale(self, other: str) -> float:
        """Return the factor that AudioCLIP multiplies cosines with vectors of the head `other` by."""
        return logit_scale(self.head, self.settings, other)


def recorded_files(manifest: Manifest, head: Head) -> dict[str, str]:
    """Return the absolute paths of the files of a snapshot's model, by the name of the flag.

    Those of files that were moved, and that the options of the run still name from the current directory, are left out.
    """
    names = [flag.name for flag in head.flags if flag.is_file]
    if manifest["checkpoint"]["name"] != UNTRAINED:
        names.insert(0, "checkpoint")
    recorded = [file["path"] for file in manifest["model_files"]]
    named = head.settings_of(manifest["fingerprint_parts"], manifest["options"]).file_paths()
    return {
        name: path
        for name, path, other in zip(names, recorded, named, strict=False)
        if not is_local(path) or os.path.exists(path) or not os.path.exists(other)
    }


def file_flags(head: Head) -> str:
    """Return the flags that name the files of a head's model, as messages have them."""
    return " or ".join(["--checkpoint", *(f"--{flag.name}" for flag in head.flags if flag.is_file)])


def find_model(manifest: Manifest, files: Mapping[str, str | None]) -> SnapshotModel:
    """Return the model of a snapshot; by default its files are those that its run read.

    The model has a warning if only the versions differ that decide a vector in rare cases.

    Args:
        manifest: The manifest of the snapshot.
        files: Paths by the name of a flag, "checkpoint" or one of the head: they replace those that the run read.

    Raises:
        ModelNotFound: The files do not exist, or they would give other vectors.
    """
    head, parts = find_head(manifest["head"]), manifest["fingerprint_parts"]
    names = {"checkpoint", *(flag.name for flag in head.flags if flag.is_file)}
    given = {name: path for name, path in files.items() if path}
    if not names.issuperset(given):
        raise TypeError(f"the files of this model are {', '.join(sorted(names))}, got {', '.join(sorted(given))}")
    options = {**manifest["options"], **recorded_files(manifest, head)}
    settings = head.settings_of(parts, {**options, **given})
    remedy = f"with {file_flags(head)}"
    name = f"{manifest['snapshot']} was embedded with the checkpoint {manifest['checkpoint']['name']}"
    try:
        model = describe_model(head, settings, parts["stored"]).info
    except (ValueError, OSError) as error:
        raise ModelNotFound(f"{name}, and its model cannot be read: {error}; or name its files {remedy}") from None
    changes = describe_changes(model.fingerprint_parts, parts)
    changed = changed_parts(model.fingerprint_parts, parts)
    if not set(changed).issubset(head.version_parts):
        raise ModelNotFound(
            f"{name} (sha256 {manifest['checkpoint']['sha256'][:12]}), and {settings.path} gives other vectors: its "
            f"fingerprint is {model.fingerprint[:8]} instead of {manifest['fingerprint'][:8]} (different: {changes}); give "
            f"the path of the right checkpoint {remedy}"
        )
    warning = f"WARNING: other versions than those of the snapshot ({changes}) may give other vectors in rare cases"
    return SnapshotModel(head, settings, warning if changed else "")

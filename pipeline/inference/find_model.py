"""The encoder that embedded a snapshot, found by its manifest and checked by its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...model.fingerprint import VERSION_PARTS, changed_parts, describe_changes
from ..snapshots.manifest import Manifest
from .encoder_settings import EncoderSettings
from .model_handler import RecordBatchHandler
from .shared_encoder import load_encoder, logit_scale

if TYPE_CHECKING:
    from ...model.text.encoder import TextEncoder


class ModelNotFound(ValueError):
    """Error of a snapshot whose checkpoint or vocabulary is missing or is another one; the message gives a remedy."""


@dataclass(frozen=True)
class SnapshotModel:
    """The settings of the encoder of a snapshot. `warning` is empty, or says how its fingerprint differs."""

    settings: EncoderSettings
    warning: str = ""

    def encoder(self) -> TextEncoder:
        """Return the encoder. One in float16 needs a CUDA device; without one it is loaded in float32."""
        import torch

        settings = self.settings
        if settings.dtype == "float16" and not torch.cuda.is_available():
            settings = replace(settings, dtype="float32")
        return load_encoder(settings)

    def logit_scale(self, other: str) -> float:
        """Return the factor that AudioCLIP multiplies cosines of texts with `other`, "audio" or "image", by."""
        return logit_scale(self.settings, other)


def find_model(manifest: Manifest, checkpoint: str | None = None, tokenizer_path: str | None = None) -> SnapshotModel:
    """Return the model of a snapshot; by default its files are those that its run read.

    The model has a warning if only the versions that decide the token ids of rare strings differ.

    Raises:
        ModelNotFound: The files do not exist, or they would give other vectors.
    """
    options, parts = manifest["options"], manifest["fingerprint_parts"]
    path = checkpoint or str(options.get("checkpoint", "full"))
    vocabulary = tokenizer_path or options.get("tokenizer_path")
    settings = EncoderSettings(
        path,
        dtype=parts["dtype"],
        tokenizer_path=None if vocabulary is None else str(vocabulary),
        prompt=parts["prompt"],
        on_long=parts["on_long"],
        normalize=parts["normalize"] == "true",
    )
    name = f"{manifest['snapshot']} was embedded with the checkpoint {manifest['checkpoint']['name']}"
    try:
        model = RecordBatchHandler(settings, parts.get("stored", "float32")).describe()
    except (ValueError, OSError) as error:
        raise ModelNotFound(
            f"{name}, which cannot be read: {error}; or give its path with --checkpoint, and that of the vocabulary with "
            f"--tokenizer_path"
        ) from None
    changes = describe_changes(model.fingerprint_parts, parts)
    changed = changed_parts(model.fingerprint_parts, parts)
    if not set(changed).issubset(VERSION_PARTS):
        raise ModelNotFound(
            f"{name} (sha256 {manifest['checkpoint']['sha256'][:12]}), and {path} gives other vectors: its fingerprint is "
            f"{model.fingerprint[:8]} instead of {manifest['fingerprint'][:8]} (different: {changes}); give the path of "
            f"the right checkpoint with --checkpoint, and that of the vocabulary with --tokenizer_path"
        )
    warning = f"WARNING: other versions than those of the snapshot ({changes}) may tokenize rare texts differently"
    return SnapshotModel(settings, warning if changed else "")

"""The encoder that made a snapshot, found again by its manifest and held to its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..inference.model_handler import RecordBatchHandler
from ..inference.shared_encoder import EncoderSettings, load_encoder, logit_scale
from .manifest import Manifest

if TYPE_CHECKING:
    from ...model.encoder import TextEncoder


class ModelNotFound(ValueError):
    """The checkpoint or vocabulary of a snapshot is not where it was, or is another; the text says what to do."""


@dataclass(frozen=True)
class SnapshotModel:
    """How to load the encoder that gives a snapshot's vectors; its fingerprint was found to be the snapshot's."""

    settings: EncoderSettings

    def encoder(self) -> TextEncoder:
        """The encoder; in float32 where the snapshot's was computed in float16 and there is no CUDA device for that."""
        import torch

        settings = self.settings
        if settings.dtype == "float16" and not torch.cuda.is_available():
            settings = replace(settings, dtype="float32")
        return load_encoder(settings)

    def logit_scale(self, other: str) -> float:
        """What AudioCLIP multiplies cosines of texts with `other`, "audio" or "image", by."""
        return logit_scale(self.settings, other)


def find_model(manifest: Manifest, checkpoint: str | None = None, tokenizer_path: str | None = None) -> SnapshotModel:
    """The model of a snapshot, from where its run found it unless other paths are given.

    Raises ModelNotFound where it is not there, or would give other vectors.
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
        info = RecordBatchHandler(settings, parts.get("stored", "float32")).describe()
    except (ValueError, OSError) as error:
        raise ModelNotFound(
            f"{name}, which is needed here: {error}; or say where it is with --checkpoint, and --tokenizer_path for the "
            f"vocabulary"
        ) from None
    if info.fingerprint != manifest["fingerprint"]:
        other = [part for part, value in info.fingerprint_parts.items() if parts.get(part) != value]
        raise ModelNotFound(
            f"{name} (sha256 {manifest['checkpoint']['sha256'][:12]}), and {path} gives other vectors: its fingerprint "
            f"is {info.fingerprint[:8]} instead of {manifest['fingerprint'][:8]} ({', '.join(other)} differ); say where "
            f"the right one is with --checkpoint, or --tokenizer_path for the vocabulary"
        )
    return SnapshotModel(settings)

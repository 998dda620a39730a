"""EncoderSettings, from which a TextEncoder is loaded, and ModelInfo, what a launcher knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from os import fspath
from typing import TYPE_CHECKING

from ...model.release import VOCABULARY, resolve_checkpoint
from ..io.paths import absolute_path

if TYPE_CHECKING:
    from ..options import EmbedOptions


@dataclass(frozen=True)
class EncoderSettings:
    """The arguments of TextEncoder.load, picklable and hashable: a process keeps its encoder under them."""

    path: str
    device: str = "auto"
    dtype: str = "float32"
    tokenizer_path: str | None = None
    prompt: str = "{}"
    on_long: str = "truncate"
    normalize: bool = False

    @classmethod
    def from_options(cls, options: EmbedOptions) -> EncoderSettings:
        """Return the settings that a job's options ask for.

        A worker that was given a GPU must use it: with an accelerator, "auto" is "cuda", which fails without a usable GPU.
        Workers of a remote run may have another current directory: paths of local files are absolute there.
        """
        from ..options import is_local_run

        path, tokenizer_path = options.checkpoint, options.tokenizer_path
        if not is_local_run(options):
            path = path if path == "untrained" else absolute_path(resolve_checkpoint(path))
            tokenizer_path = absolute_path(fspath(tokenizer_path or VOCABULARY))
        return cls(
            path,
            device="cuda" if options.accelerator and options.device == "auto" else options.device,
            dtype=options.dtype,
            tokenizer_path=tokenizer_path,
            prompt=options.prompt,
            on_long=options.on_long,
            normalize=options.normalize,
        )

    @property
    def vocabulary_path(self) -> str:
        """Path of the vocabulary."""
        return fspath(self.tokenizer_path or VOCABULARY)


# MLTransform's artifacts name this class by its module: by the public one, which does not change.
EncoderSettings.__module__ = __name__.removesuffix(".inference.encoder_settings")


@dataclass(frozen=True)
class ModelInfo:
    """What a launcher must know of a job's model; known without building the tower."""

    name: str
    sha256: str
    untrained: bool
    dim: int
    fingerprint: str
    fingerprint_parts: dict[str, str]
    notice: str = ""  # what users must know of a text head that is not AudioCLIP's

    @property
    def weights(self) -> str:
        """What a reader of the output must know of the weights: "trained" or "untrained"."""
        return "untrained" if self.untrained else "trained"

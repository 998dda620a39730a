"""The Beam pipeline: EmbedCorpus, its options, and the RunInference handler over the text head.

Names are imported when they are first asked for: Beam and torch take seconds, and `--help` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .embed import EmbedCorpus
    from .handler import TextEmbeddingHandler
    from .ml_transform import AudioCLIPTextEmbeddings
    from .options import EmbedOptions

__all__ = ["AudioCLIPTextEmbeddings", "EmbedCorpus", "EmbedOptions", "TextEmbeddingHandler"]

_ROOMS = {
    "AudioCLIPTextEmbeddings": ".ml_transform",
    "EmbedCorpus": ".embed",
    "EmbedOptions": ".options",
    "TextEmbeddingHandler": ".handler",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name], __name__), name)

"""The Beam pipeline: EmbedCorpus, its options, and the handlers and transforms of its heads for other pipelines.

Each name is imported at its first use: the imports of Beam and torch take seconds, and `--help` needs neither.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .embed import EmbedCorpus
    from .inference.embed_media import EmbedAudio, EmbedImage
    from .inference.media_handlers import AudioEmbeddingHandler, ImageEmbeddingHandler
    from .inference.model_handler import TextEmbeddingHandler
    from .ml_transform import AudioCLIPImageEmbeddings, AudioCLIPTextEmbeddings
    from .options import EmbedOptions

__all__ = [
    "AudioCLIPImageEmbeddings",
    "AudioCLIPTextEmbeddings",
    "AudioEmbeddingHandler",
    "EmbedAudio",
    "EmbedCorpus",
    "EmbedImage",
    "EmbedOptions",
    "ImageEmbeddingHandler",
    "TextEmbeddingHandler",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "embed": ["EmbedCorpus"],
        "inference.embed_media": ["EmbedAudio", "EmbedImage"],
        "inference.media_handlers": ["AudioEmbeddingHandler", "ImageEmbeddingHandler"],
        "inference.model_handler": ["TextEmbeddingHandler"],
        "ml_transform": ["AudioCLIPImageEmbeddings", "AudioCLIPTextEmbeddings"],
        "options": ["EmbedOptions"],
    },
)

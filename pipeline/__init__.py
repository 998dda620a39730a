"""The Beam pipeline: EmbedCorpus, its options, and the RunInference handler over its heads.

Each name is imported at its first use: the imports of Beam and torch take seconds, and `--help` needs neither.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .embed import EmbedCorpus
    from .inference.model_handler import TextEmbeddingHandler
    from .ml_transform import AudioCLIPTextEmbeddings
    from .options import EmbedOptions

__all__ = ["AudioCLIPTextEmbeddings", "EmbedCorpus", "EmbedOptions", "TextEmbeddingHandler"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "embed": ["EmbedCorpus"],
        "inference.model_handler": ["TextEmbeddingHandler"],
        "ml_transform": ["AudioCLIPTextEmbeddings"],
        "options": ["EmbedOptions"],
    },
)

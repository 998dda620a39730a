"""The Beam pipeline: EmbedCorpus, its options, and the RunInference handler over the text head.

Names are imported when they are first used: Beam and torch take seconds to import, and `--help` needs neither.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .embed import EmbedCorpus
    from .inference.ml_transform import AudioCLIPTextEmbeddings
    from .inference.model_handler import TextEmbeddingHandler
    from .inference.shared_encoder import EncoderSettings
    from .options import EmbedOptions

__all__ = ["AudioCLIPTextEmbeddings", "EmbedCorpus", "EmbedOptions", "EncoderSettings", "TextEmbeddingHandler"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "embed": ["EmbedCorpus"],
        "inference.ml_transform": ["AudioCLIPTextEmbeddings"],
        "inference.model_handler": ["TextEmbeddingHandler"],
        "inference.shared_encoder": ["EncoderSettings"],
        "options": ["EmbedOptions"],
    },
)

"""Inference: the model handlers of RunInference, MLTransform and Beam YAML, over one encoder per process."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .ml_transform import AudioCLIPTextEmbeddings, content_id_adapter
    from .model_handler import RecordBatchHandler, TextEmbeddingHandler
    from .shared_encoder import EncoderSettings
    from .yaml_transform import EmbedText

__all__ = [
    "AudioCLIPTextEmbeddings",
    "EmbedText",
    "EncoderSettings",
    "RecordBatchHandler",
    "TextEmbeddingHandler",
    "content_id_adapter",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ml_transform": ["AudioCLIPTextEmbeddings", "content_id_adapter"],
        "model_handler": ["RecordBatchHandler", "TextEmbeddingHandler"],
        "shared_encoder": ["EncoderSettings"],
        "yaml_transform": ["EmbedText"],
    },
)

"""Inference: the model handlers of RunInference, over one encoder per process."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .encoder_settings import EncoderSettings
    from .model_handler import RecordBatchHandler, TextEmbeddingHandler

__all__ = ["EncoderSettings", "RecordBatchHandler", "TextEmbeddingHandler"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "model_handler": ["RecordBatchHandler", "TextEmbeddingHandler"],
        "encoder_settings": ["EncoderSettings"],
    },
)

"""Inference: the model handlers of RunInference, over one encoder per process."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .model_handler import RecordBatchHandler, TextEmbeddingHandler
    from .shared_encoder import ModelDescription

__all__ = ["ModelDescription", "RecordBatchHandler", "TextEmbeddingHandler"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "model_handler": ["RecordBatchHandler", "TextEmbeddingHandler"],
        "shared_encoder": ["ModelDescription"],
    },
)

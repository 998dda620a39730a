"""The public import path of what works with Beam's MLTransform and RAG."""

from .inference.ml_transform import AudioCLIPTextEmbeddings, EmbedItems, content_id, content_id_adapter

__all__ = ["AudioCLIPTextEmbeddings", "EmbedItems", "content_id", "content_id_adapter"]

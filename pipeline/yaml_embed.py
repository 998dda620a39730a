"""The public import path of the Beam YAML transform: `audioclip_text.pipeline.yaml_embed.EmbedText`."""

from .inference.yaml_transform import EmbedText

__all__ = ["EmbedText"]

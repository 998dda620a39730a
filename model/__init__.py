"""AudioCLIP's text head: tokenizer, text tower, checkpoints and the encoder over them."""

from .checkpoint import load_checkpoint
from .encoder import TextEncoder
from .tokenizer import ClipTokenizer

__all__ = ["ClipTokenizer", "TextEncoder", "load_checkpoint"]

"""AudioCLIP's text head: tokenizer, tower, and the encoder over them."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .encoder import TextEncoder
    from .tokenizer import ClipTokenizer

__all__ = ["ClipTokenizer", "TextEncoder"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"encoder": ["TextEncoder"], "tokenizer": ["ClipTokenizer"]}
)

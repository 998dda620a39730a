"""AudioCLIP's heads: checkpoints, and the encoders over them.

Each name is imported at its first use: the import of torch takes seconds, and the names of released files need none.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .checkpoint import load_checkpoint
    from .image.encoder import ImageEncoder
    from .image.settings import ImageSettings
    from .text.encoder import TextEncoder
    from .text.settings import TextSettings
    from .text.tokenizer import ClipTokenizer

__all__ = ["ClipTokenizer", "ImageEncoder", "ImageSettings", "TextEncoder", "TextSettings", "load_checkpoint"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": ["load_checkpoint"],
        "image.encoder": ["ImageEncoder"],
        "image.settings": ["ImageSettings"],
        "text.encoder": ["TextEncoder"],
        "text.settings": ["TextSettings"],
        "text.tokenizer": ["ClipTokenizer"],
    },
)

"""AudioCLIP's image head: preprocessing, tower, and the encoder over them."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .encoder import ImageEncoder

__all__ = ["ImageEncoder"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"encoder": ["ImageEncoder"]})

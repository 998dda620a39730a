"""AudioCLIP's audio head: decoding, spectrogram, network, and the encoder over them."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .encoder import AudioEncoder
    from .recordings import Track
    from .sndfile import AudioError

__all__ = ["AudioEncoder", "AudioError", "Track"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"encoder": ["AudioEncoder"], "recordings": ["Track"], "sndfile": ["AudioError"]}
)

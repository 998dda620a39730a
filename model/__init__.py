"""AudioCLIP's heads: checkpoints, and the encoders over them.

Each name is imported at its first use: the import of torch takes seconds, and the names of released files need none.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .audio.encoder import AudioEncoder
    from .audio.recordings import Track
    from .audio.settings import AudioSettings
    from .audio.sndfile import AudioError
    from .checkpoint import load_checkpoint
    from .head import DeviceError, InstallationError
    from .image.encoder import ImageEncoder
    from .image.settings import ImageSettings
    from .text.encoder import TextEncoder
    from .text.settings import TextSettings
    from .text.tokenizer import ClipTokenizer

__all__ = [
    "AudioEncoder",
    "AudioError",
    "AudioSettings",
    "ClipTokenizer",
    "DeviceError",
    "ImageEncoder",
    "ImageSettings",
    "InstallationError",
    "TextEncoder",
    "TextSettings",
    "Track",
    "load_checkpoint",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "audio.encoder": ["AudioEncoder"],
        "audio.recordings": ["Track"],
        "audio.settings": ["AudioSettings"],
        "audio.sndfile": ["AudioError"],
        "checkpoint": ["load_checkpoint"],
        "head": ["DeviceError", "InstallationError"],
        "image.encoder": ["ImageEncoder"],
        "image.settings": ["ImageSettings"],
        "text.encoder": ["TextEncoder"],
        "text.settings": ["TextSettings"],
        "text.tokenizer": ["ClipTokenizer"],
    },
)

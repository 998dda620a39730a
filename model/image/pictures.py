"""Pictures from files, bytes, PIL images and arrays, and the network's input made of them."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..head import BadRow
from .formats import FORMATS, check_pixels, check_size, not_decodable, open_header
from .jpeg import decode_jpeg
from .resize import Floats, Read, resize_crop
from .settings import ImageSettings

Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.uint8]

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]

ORIENTATION = 0x0112  # EXIF's tag
LARGE = 1 << 24  # pixels: pictures of more are decoded one at a time, whatever the number of threads

_LARGE_LOCK = threading.Lock()
_CALLERS_LOCK = threading.Lock()  # Pillow reads a file lazily, and not from two threads


class Prepared(NamedTuple):
    """A picture as the network's input.

    Attributes:
        pixels: float32 [3, 224, 224], normalised.
        width: Of the picture, upright.
        height: Of the picture, upright.
        animated: Whether it has more frames than the one that is embedded, the first.
    """

    pixels: Tensor
    width: int
    height: int
    animated: bool


def list_pictures(images: Iterable[Picture]) -> list[Picture]:
    """Return the pictures of any iterable as a list. Raise TypeError for one picture instead of several."""
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    if single or (isinstance(images, np.ndarray) and images.ndim == 3):
        raise TypeError(f"images must be a list of pictures, not one ({_name(images)}): write [image]")
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be a list of pictures, not {_name(images)}")
    to_pylist = getattr(images, "to_pylist", None)  # the elements of an Arrow array are not bytes
    return list(images) if to_pylist is None else to_pylist()


def prepare(image: object, settings: ImageSettings) -> Prepared:
    """Return the network's input for a picture. Raise BadRow if it cannot be one, MemoryError if memory does not suffice."""
    if isinstance(image, np.ndarray):
        return _prepare_array(image, settings)
    if isinstance(image, Image.Image):
        return _prepare_image(image, settings, None, _CALLERS_LOCK)
    with _stream(image, settings) as stream:
        try:
            opened = open_header(stream)
        except (BadRow, MemoryError):
            raise
        except Exception as error:  # damaged bytes lead Pillow anywhere: OSError, ValueError, KeyError, ...
            raise not_decodable(error) from error
        with opened:
            large = opened.width * opened.height > LARGE
            return _prepare_image(opened, settings, stream, _LARGE_LOCK if large else None)


def _name(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return type(value).__name__


def _stream(image: object, settings: ImageSettings) -> IO[bytes]:
    """Return a picture's encoded bytes as a file. Raise BadRow if the file is empty, too large, or not a regular one."""
    stream: IO[bytes]
    if isinstance(image, bytes | bytearray | memoryview):
        stream, size = BytesIO(image), memoryview(image).nbytes
    elif isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise BadRow("missing file", f"{path} is not a regular file")
            stream = path.open("rb")
        except (OSError, ValueError) as error:  # ValueError: a null character
            hint = "; give a path of this machine" if "://" in str(image) else ""
            words = getattr(error, "strerror", None) or error
            raise BadRow("missing file", f"{path} cannot be opened: {words}{hint}") from error
        size = os.fstat(stream.fileno()).st_size
    else:
        raise BadRow(
            "wrong type", f"{_name(image)} is not a picture: give a path, bytes, a PIL image or a uint8 array [H, W, 3]"
        )
    try:
        check_size(size, settings)
    except BadRow:
        stream.close()
        raise
    return stream


def _prepare_image(
    picture: Image.Image, settings: ImageSettings, stream: IO[bytes] | None, lock: threading.Lock | None
) -> Prepared:
    """Return the input for a PIL image, which is decoded here. If it was opened from `stream`, its EXIF data may turn it."""
    width, height = picture.size
    check_pixels(width, height, settings)
    try:
        with lock or nullcontext():
            array = None
            if stream and picture.format in ("JPEG", "MPO"):
                stream.seek(0)
                array = decode_jpeg(stream.read(), picture.mode)
            if array is None:
                picture.load()
            orientation = _orientation(picture) if stream and settings.variant != "jina" else 1
            if array is not None:
                return _finish(_reader(array), array.shape[1], array.shape[0], settings, orientation=orientation)
            read, largest = _converter(picture)
            prepared = _finish(read, *picture.size, settings, orientation=orientation, largest=largest)
            return prepared._replace(animated=_is_animated(picture))
    except MemoryError as error:
        raise MemoryError(
            f"too little free memory to decode a picture of {width:,} x {height:,} pixels: free some, or set a lower "
            f"max_pixels ({error})"
        ) from error
    except Exception as error:
        raise not_decodable(error) from error


def _orientation(picture: Image.Image) -> int:
    """Return how a picture must be turned, as EXIF numbers it; 1, not at all, if its EXIF data cannot be read."""
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_animated(picture: Image.Image) -> bool:
    """Return whether a picture has more frames than the one that was read; Pillow then looks for the next one."""
    try:
        return picture.format in FORMATS and bool(getattr(picture, "is_animated", False))
    except Exception:  # damage behind the first frame
        return False


def _converter(picture: Image.Image) -> tuple[Read, int]:
    """Return a function that reads boxes of a picture, and the value of white."""
    grey16 = picture.mode.startswith("I;16")

    def read(left: int, top: int, right: int, bottom: int) -> Floats:
        strip = picture.crop((left, top, right, bottom))
        if grey16:
            return np.asarray(strip).astype(np.float32)[:, :, None]
        strip.info.pop("transparency", None)  # alpha is dropped, and Pillow would warn about some kinds of it
        return np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB")).astype(np.float32)

    return read, 65535 if grey16 else 255


def _reader(array: npt.NDArray[Any]) -> Read:
    """Return a function that reads boxes of an array [height, width, channels]."""
    return lambda left, top, right, bottom: array[top:bottom, left:right].astype(np.float32, order="C")


def _prepare_array(array: npt.NDArray[Any], settings: ImageSettings) -> Prepared:
    """Return the input for an array of pixels, which are taken as they are."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise BadRow("wrong type", f"{_name(array)} is not a picture: give uint8 [H, W, 3], filled, in the order RGB")
    return _finish(_reader(array), array.shape[1], array.shape[0], settings)


def _finish(
    read: Read,
    width: int,
    height: int,
    settings: ImageSettings,
    *,
    orientation: int = 1,
    largest: int = 255,
) -> Prepared:
    """Return the input for pixels of 0 to `largest`, [1 or 3] channels, normalised as the network knows them."""
    antialias = settings.variant != "jina"
    pixels = resize_crop(read, width, height, antialias=antialias, orientation=orientation)  # [1 or 3, 224, 224]
    if orientation >= 5:
        width, height = height, width
    return Prepared((pixels / largest - MEAN) / DEVIATION, width, height, False)  # grey: one channel becomes three

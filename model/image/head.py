"""The image head: what the pipeline must know of it. Imports no torch until an encoder is needed."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..head import BadRow, Column, EncoderSettings, Flag, Measure, ModelInfo, Work
from ..media import FETCH_THREADS, MEDIA_FIELD, MEDIA_ROOT, VARIANT, Entry, MediaHead, Part, RowIdentity, parse_media
from ..messages import plural
from .settings import MAX_IMAGE_BYTES, MAX_PIXELS, ImageSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..checkpoint import Checkpoint
    from .encoder import ImageEncoder

FLAGS = (
    MEDIA_FIELD,
    MEDIA_ROOT,
    VARIANT,
    FETCH_THREADS,
    Flag("max_image_bytes", f"reject larger files (default: {MAX_IMAGE_BYTES})", default=MAX_IMAGE_BYTES, kind="count"),
    Flag("max_pixels", f"reject pictures of more pixels (default: {MAX_PIXELS})", default=MAX_PIXELS, kind="count"),
)
_OPTIONS = ("device", "dtype", "normalize", "variant", "max_image_bytes", "max_pixels")


class ImageHead(MediaHead):
    """AudioCLIP's image head, as the protocol Head describes it."""

    name = "image"
    max_held = sys.maxsize
    known_columns = ("width", "height")
    item = "image"
    items = "images"
    unit = "pixels"
    types: Mapping[str, str] = {
        **dict.fromkeys((".jpg", ".jpeg"), "image/jpeg"),
        ".png": "image/png",
        ".webp": "image/webp",
        ".gif": "image/gif",
        ".bmp": "image/bmp",
        **dict.fromkeys((".tif", ".tiff"), "image/tiff"),
        ".avif": "image/avif",
    }
    batch_items = 512
    gpu_memory = 2 << 30
    model_columns = (Column("width", "int32"), Column("height", "int32"))
    size_column = "width"
    size_unit = "pixels of width"
    preview = "picture"
    max_size = 8192
    reasons = ("empty file", "missing file", "duplicate key", "not decodable", "too large")
    provenance = ("variant",)
    flags = FLAGS

    def settings(self, options: Mapping[str, Any]) -> ImageSettings:
        """Return the settings of the encoder that options of `embed` ask for."""
        return ImageSettings(options["checkpoint"], **{name: options[name] for name in _OPTIONS})

    def settings_of(self, parts: Mapping[str, str], options: Mapping[str, Any]) -> ImageSettings:
        """Return the settings of the encoder with these parts of a fingerprint, and files as options name them."""
        return ImageSettings(
            str(options.get("checkpoint", "full")),
            dtype=parts["dtype"],
            normalize=parts["normalize"] == "true",
            variant=parts["variant"],
        )

    def content_limit(self, options: Mapping[str, Any]) -> int:
        """Return the most bytes of one file."""
        return int(options["max_image_bytes"])

    def parse(self, value: object, field: str, limit: int) -> bytes:
        """Return a value as an encoded picture. Raise BadRow if it is not one of at most `limit` bytes."""
        content = parse_media(value, field)
        if len(content) > limit:
            raise BadRow("too large", f"the picture has {len(content):,} bytes, over {limit:,} (--max_image_bytes)")
        return content

    def examine(self, opened: BinaryIO, size: int, settings: EncoderSettings) -> int:
        """Return the pixels of the picture. Raise BadRow if it is too large, or has no header."""
        from .formats import count_pixels

        return count_pixels(opened, size, cast(ImageSettings, settings))

    def glance(self, opened: BinaryIO, size: int, settings: EncoderSettings) -> int:
        """Return the pixels of the picture, of which no more than its header is read. Raise BadRow as `examine` does."""
        from .formats import count_pixels_in_header

        return count_pixels_in_header(opened, size, cast(ImageSettings, settings))

    def examined_of(self, row: Mapping[str, Any]) -> int:
        """Return the pixels of the picture of a row."""
        return int(row["width"] * row["height"])

    def parts_of(
        self, examined: int, digest: bytes, settings: EncoderSettings, entry: Entry | None = None
    ) -> list[Part]:
        """Return the picture as the one part of its file."""
        return [Part(digest, "", (), examined)]

    def decode(self, opened: BinaryIO, parts: Sequence[tuple[Any, ...]]) -> Iterator[bytes]:
        """Yield the bytes of the picture: the encoder decodes them."""
        opened.seek(0)
        content = opened.read()
        yield from (content for _ in parts)

    def thumbnail(self, content: bytes, max_bytes: int) -> bytes:
        """Return a picture as a small WebP file. Raise BadRow if it cannot be decoded in little memory."""
        from .thumbnail import thumbnail

        return thumbnail(content, max_bytes)

    def row_faults(
        self, rows: RowIdentity, columns: Mapping[str, NDArray[Any]], options: Mapping[str, Any]
    ) -> Iterator[tuple[NDArray[np.bool_], str]]:
        """Yield the rows whose content hash is not the digest of their file."""
        import numpy as np

        differ = [content != digest for content, digest in zip(rows.hashes, rows.digests, strict=True)]
        yield np.array(differ, np.bool_), "has another content hash than the checksum of its picture"

    def extent(self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer]) -> dict[str, int]:
        """Return how many pictures rows have, and their pixels."""
        return {"files": len(parts), "pixels": int((columns["width"].astype("int64") * columns["height"]).sum())}

    def planned_extent(
        self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer], units: NDArray[np.integer]
    ) -> dict[str, int]:
        """Return how many pictures rows have, and their pixels."""
        return {"files": len(parts), "pixels": int(units.sum())}

    def describe_extent(self, extent: Mapping[str, int]) -> str:
        """Return the pictures and their pixels."""
        pixels = extent.get("pixels", 0)
        size = f"{pixels / 1e6:,.1f} megapixels" if pixels >= 1e6 else plural(pixels, "pixel")
        return f"{plural(extent.get('files', 0), 'image')}, {size}"

    def decoded_bytes(self, values: tuple[Any, ...], size: int) -> int:
        """Return the bytes of the file."""
        return size

    def canary(self) -> dict[str, bytes]:
        """Return 16 BMP files of 64 x 48 pixels, by arithmetic of whole numbers."""
        import numpy as np

        y, x, color = np.ogrid[:48, :64, :3]
        size = 48 * 64 * 3
        header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + size, 0, 54, 40, 64, 48, 1, 24, 0, size, 2835, 2835, 0, 0)
        pictures = ((x * (n + 1) + y * (color + 2) * 3 ^ x * y // (n + 2)) & 255 for n in range(16))
        return {f"picture {n}": header + picture.astype(np.uint8).tobytes() for n, picture in enumerate(pictures, 1)}

    def describe(self, settings: ImageSettings, files: Checkpoint) -> ModelInfo:
        """Return what the encoder of these settings and files is. Raise ValueError if it cannot be built."""
        from .encoder import model_info

        return model_info(files, settings)

    def load(self, settings: ImageSettings, files: Checkpoint, device: str) -> ImageEncoder:
        """Return the encoder on a device."""
        from .encoder import ImageEncoder

        return ImageEncoder(files, replace(settings, device=device))

    def measurer(
        self, settings: ImageSettings, info: ModelInfo, copy_of: Callable[[int], str]
    ) -> Callable[[Sequence[bytes]], Measure]:
        """Return a function that reads headers: damage behind them is found by decoding alone."""
        import numpy as np

        from .formats import count_pixels

        def measure(pictures: Sequence[bytes]) -> Measure:
            pixels = dict[bytes, int]()  # 0: rejected
            for content in set(pictures):
                try:
                    pixels[content] = count_pixels(BytesIO(content), len(content), settings)
                except BadRow:
                    pixels[content] = 0
            rejected = np.array([not pixels[content] for content in pictures], np.bool_)
            return Measure(sum(pixels.values()), rejected, np.zeros(len(pictures), np.bool_))

        return measure

    def describe_work(self, work: Work) -> str:
        """Return the work of a run as a phrase."""
        animated = work.extra.get("animated", 0)
        return (
            f"{plural(work.items, 'image')}, {plural(work.units, 'pixel')}"
            + (f", {animated:,} of them with more frames than the first, which is embedded" if animated else "")
            + (f", {plural(work.micro_batches, 'micro-batch', 'micro-batches')}" if work.micro_batches else "")
            + (f", {work.items / work.seconds:,.0f} images/s" if work.seconds else "")
        )

    def column_check(self, parts: Mapping[str, str]) -> SizeCheck:
        """Return a new check of widths and heights."""
        return SizeCheck()


class SizeCheck:
    """The check of the columns `width` and `height`."""

    def __init__(self) -> None:
        self.pixels = 0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> Iterable[tuple[NDArray[np.bool_], str]]:
        """Check a batch; return the faulty rows, with what they have."""
        width, height = (columns[name].astype("int64") for name in ("width", "height"))
        self.pixels += int((width * height).sum())
        return [((width < 1) | (height < 1), "has a width or height of less than one pixel")]

    def finish(self) -> tuple[list[str], str]:
        """Return faults of all rows together, and what was checked."""
        return [], f"{self.pixels:,} pixels in all"


IMAGE = ImageHead()

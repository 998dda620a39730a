"""What the heads of pictures and sounds share: their flags, and values of fields as their contents. Imports no torch."""

from __future__ import annotations

from .head import BadRow, Flag, type_name

VARIANTS = ("audioclip", "jina")

VARIANT = Flag(
    "variant",
    "audioclip, or jina for the vectors of Jina's executors (default: audioclip)",
    default="audioclip",
    choices=VARIANTS,
)
MEDIA_FIELD = Flag("media_field", "field of the picture or sound; can be repeated", kind="list", metavar="PATH")

UNREAD = "media files cannot be read yet: embed them with {} from Python"


def check_variant(variant: str) -> None:
    """Raise ValueError for a variant that is not known."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}")


def parse_media(value: object, field: str) -> bytes:
    """Return the value of a field as an encoded picture or sound. Raise BadRow if it cannot be one."""
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value):
            return bytes(value)
        raise BadRow("empty file", f"field {field!r} has 0 bytes")
    if value is None:
        raise BadRow("missing field", f"field {field!r} is null")
    raise BadRow("wrong type", f"field {field!r} is {type_name(value)}, not the bytes of a file")

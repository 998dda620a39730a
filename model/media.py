"""What the heads of pictures and sounds share: their flags, and values of fields as their contents. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from .head import BadRow, Column, Flag, type_name

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

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


class MediaHead:
    """What the heads of pictures and sounds have in common of the protocol Head."""

    name: str
    content: Column
    field_flag = f"--{MEDIA_FIELD.name}"
    cut_column: str | None = None
    sort_by: str | None = None
    keeps_strings = False

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    @property
    def version_parts(self) -> tuple[str, ...]:
        """The formats whose decoders decide vectors."""
        return tuple(self.versions())

    def versions(self) -> dict[str, str]:
        """Return how each format is decoded on this machine."""
        return cast(dict[str, str], import_module(f"{__package__}.{self.name}.probes").decoder_parts())

    def omitted(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the content: part files contain no pictures and no sounds."""
        return frozenset({self.content.name})

    def fingerprint_faults(self, parts: Mapping[str, str]) -> list[str]:
        """Return what is wrong with the values of a fingerprint's parts."""
        variant = parts["variant"]
        return [] if variant in VARIANTS else [f"variant is {variant!r:.80}, expected {' or '.join(VARIANTS)}"]

    def read(self, copies: Sequence[str]) -> Checkpoint:
        """Read the checkpoint. Raise CheckpointError if it cannot be used."""
        from .checkpoint import load_checkpoint

        return load_checkpoint(copies[0], self.name)

    def logit_scale(self, files: Checkpoint, other: str) -> float:
        """Return the factor that AudioCLIP multiplies cosines with vectors of the head `other` by. Raise ValueError."""
        from .tensors import pair_scale

        return pair_scale(files.state, import_module(f"{__package__}.{self.name}.shapes").SCALE_NAMES, other)

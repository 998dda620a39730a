"""What the heads of pictures and sounds share: their flags, and the parts of files that are rows. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from .head import BadRow, Column, EncoderSettings, Flag, Preview, type_name
from .messages import WrongSettingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .checkpoint import Checkpoint

VARIANTS = ("audioclip", "jina")

VARIANT = Flag(
    "variant",
    "audioclip, or jina for the vectors of Jina's executors (default: audioclip)",
    default="audioclip",
    choices=VARIANTS,
)
MEDIA_FIELD = Flag(
    "media_field",
    "field of lists and Parquet with the path, URI or bytes of a picture or sound; can be repeated",
    kind="list",
    metavar="PATH",
)
MEDIA_ROOT = Flag(
    "media_root", "directory that paths in lists are relative to (default: the one of each list)", metavar="DIR"
)

FETCH_THREADS = Flag(
    "fetch_threads",
    "files that are read at the same time (default: 16)",
    default=16,  # most of the time is spent on waiting for a disk or an object store
    kind="count",
)

DIGEST_BYTES = 16  # of a file's digest, and of a content hash


class Part(NamedTuple):
    """What one row embeds of a file.

    Attributes:
        hash: The content hash.
        fragment: What follows the file's name in the row's id: a media fragment, or "" for the whole file.
        values: Those of the head's content columns.
        units: What the model reads of it, in the head's unit.
    """

    hash: bytes
    fragment: str
    values: tuple[Any, ...]
    units: int


class RowIdentity(NamedTuple):
    """What rows are known by, in lists of the same length.

    Attributes:
        ids: Their ids.
        hashes: Their content hashes.
        digests: The digests of the bytes of their contents.
    """

    ids: Sequence[str]
    hashes: Sequence[bytes]
    digests: Sequence[bytes]


class Entry(NamedTuple):
    """What an entry of a list is of a recording, in seconds; without a duration it ends with the recording."""

    offset: float
    duration: float | None


def short_seconds(seconds: float) -> str:
    """Return seconds with at most three decimals."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def media_fragment(start: float, end: float) -> str:
    """Return the media fragment of a part of a recording, from and to which second it is."""
    return f"#t={short_seconds(start)},{short_seconds(end)}"


def check_variant(variant: str) -> None:
    """Raise ValueError for a variant that is not known."""
    if variant not in VARIANTS:
        raise WrongSettingError("variant", variant, f"choose one of {', '.join(VARIANTS)}")


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
    """What the heads of pictures and sounds have in common of the protocol Head.

    Attributes:
        max_held: Files of at most so many bytes are read whole before they are decoded.
        known_columns: The columns of part files that `examined_of` reads.
    """

    name: str
    item: str
    items: str
    content = Column("file", "file")
    content_columns: tuple[Column, ...] = ()
    by_reference = True
    types: Mapping[str, str]
    max_held: int
    known_columns: tuple[str, ...]
    field_flag = f"--{MEDIA_FIELD.name}"
    entry_fields: tuple[str, ...] = ()
    preview: Preview = ""
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
        """Return no column."""
        return frozenset()

    def parts(self, opened: BinaryIO, size: int, digest: bytes, settings: EncoderSettings) -> list[Part]:
        """Return the parts of a file that are rows.

        Args:
            opened: The file, at any position. It is not closed.
            size: Its bytes.
            digest: Their digest, of DIGEST_BYTES.
            settings: Those of the encoder.

        Raises:
            BadRow: The file cannot be embedded.
        """
        return self.parts_of(self.examine(opened, size, settings), digest, settings)

    def examine(self, opened: BinaryIO, size: int, settings: EncoderSettings) -> Any:
        """Return what `parts_of` must know of a file of `size` bytes, which is small. Raise BadRow as `parts` does."""
        raise NotImplementedError

    def glance(self, opened: BinaryIO, size: int, settings: EncoderSettings) -> Any:
        """Return about what `examine` does, by headers alone: what these claim is not checked."""
        return self.examine(opened, size, settings)

    def examined_of(self, row: Mapping[str, Any]) -> Any:
        """Return what `examine` returned of the file that a row was made of, by the `known_columns` of the row."""
        raise NotImplementedError

    def parts_of(
        self, examined: Any, digest: bytes, settings: EncoderSettings, entry: Entry | None = None
    ) -> list[Part]:
        """Return the parts of a file, or of an entry of a list in it, that are rows.

        Args:
            examined: What `examine` returned.
            digest: The digest of the file's bytes.
            settings: Those of the encoder.
            entry: What of the file the entry is; None for the whole file.

        Raises:
            BadRow: It cannot be embedded.
        """
        raise NotImplementedError

    def planned_extent(
        self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer], units: NDArray[np.integer]
    ) -> dict[str, int]:
        """Return what `extent` does, of rows that are not embedded: by the content columns, and the units of each row."""
        raise NotImplementedError

    def find_part(self, opened: BinaryIO, size: int, fragment: str, settings: EncoderSettings) -> Part:
        """Return the part of a file that a media fragment names, as for `parts`; without one ("") the first part.

        Raises BadRow: The file cannot be embedded, or has no such part.
        """
        for part in self.parts(opened, size, bytes(DIGEST_BYTES), settings):
            if fragment in ("", part.fragment):
                return part
        raise BadRow("missing field", f"it has no part {fragment}")

    def decode(self, opened: BinaryIO, parts: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the encoder's contents for parts of a file, in order, or a ContentError; `parts` have the content columns.

        The file may be at any position, and is not closed.
        """
        raise NotImplementedError

    def decoded_bytes(self, values: tuple[Any, ...], size: int) -> int:
        """Return about how much memory the encoder's content takes for a part of a file of `size` bytes."""
        raise NotImplementedError

    def thumbnail(self, content: bytes, max_bytes: int) -> bytes:
        """Return the bytes of a content as a small WebP file of at most `max_bytes`, if `preview` is "picture".

        Raises BadRow: The content cannot be decoded, or would take too much memory for that.
        """
        raise NotImplementedError

    def row_faults(
        self, rows: RowIdentity, columns: Mapping[str, NDArray[Any]], options: Mapping[str, Any]
    ) -> Iterator[tuple[NDArray[np.bool_], str]]:
        """Yield (the faulty rows, bool [n], what each of them has) for each fault of ids and content hashes.

        Args:
            rows: The ids and hashes.
            columns: The head's content columns, each [n].
            options: Those of the run that wrote the rows.
        """
        raise NotImplementedError

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

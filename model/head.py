"""What the rest of the project knows of a head of AudioCLIP: its protocols, settings and results. Imports no torch.

A head turns one kind of content (texts, images, sounds) into vectors of the common space. `heads.py` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from .fingerprint import fingerprint
from .messages import SettingError, WrongSettingError, printable
from .paths import absolute, given_path
from .release import UNTRAINED, resolve_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = ("float32", "bfloat16", "float16")  # types that a model may compute in


Preview = Literal["", "picture", "player"]


def type_name(value: object) -> str:
    """Return the type of a value in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    if isinstance(value, int | float | Decimal):
        return "a number"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else type(value).__name__


def describe(value: object) -> str:
    """Return the beginning of a value, in one line, and its type."""
    return f"{' '.join(repr(value).splitlines()):.80} ({type(value).__name__})"


def is_row(value: object) -> bool:
    """Return whether a value has names for its parts: a mapping, a named tuple, a beam.Row, a row of a database."""
    kind = type(value)
    named = any(hasattr(kind, name) for name in ("_asdict", "_fields"))
    return isinstance(value, Mapping) or named or (hasattr(kind, "keys") and not hasattr(kind, "dtype"))  # not a Series


class Column(NamedTuple):
    """A column that a head adds to rows: its name, and its type as Arrow and NumPy spell it, as in "string" or "int16"."""

    name: str
    type: str


class DeviceError(RuntimeError):
    """A device that fails at every later call of this process: never the fault of a content. Only a new process helps."""


class InstallationError(DeviceError):
    """A GPU, its driver, torch and their settings that do not fit together: a new process fails, too."""


class UnavailableSettingError(SettingError, InstallationError):
    """A setting with a value that this machine cannot use."""


class BadRow(Exception):
    """A row that cannot be embedded.

    Args:
        reason: Why, as rejected rows have it.
        detail: The same for people, with what was found.
        excerpt: The beginning of the content, as far as it is known.
        id: The id of the row, as far as it is known.
    """

    def __init__(self, reason: str, detail: str, *, excerpt: str | None = None, id: str | None = None) -> None:
        self.reason, self.detail, self.excerpt, self.id = reason, printable(detail), excerpt, id
        super().__init__(self.detail)


@dataclass(frozen=True)
class Flag:
    """A flag of `embed` that not every head has.

    Attributes:
        name: Without hyphens.
        help: What it does, with the default.
        default: Its value if it is not given.
        kind: "word", "count" (a whole number of at least 1), "switch", or "list" (can be repeated).
        choices: The only values, if there are few.
        fault: Returns what is wrong with a value, or "".
        metavar: The value's name in the help.
        is_file: Whether it names a file of the model.
    """

    name: str
    help: str
    default: object = None
    kind: Literal["word", "count", "switch", "list"] = "word"
    choices: tuple[str, ...] = ()
    fault: Callable[[str], str] | None = None
    metavar: str | None = None
    is_file: bool = False


class ContentError(NamedTuple):
    """Why the model gave no vector for one content: the reason, as rejected rows have it, and a detail for people."""

    reason: str
    detail: str


@dataclass
class Work:
    """What the model did for a call, a file or a run; works add up.

    Attributes:
        items: Different contents that the encoder was given.
        units: What they consist of, in the head's unit, as far as the model reads it.
        micro_batches: Forward passes.
        oom_retries: Micro-batches that ran out of memory and were split in two.
        prepare_seconds: Time from content to the model's input.
        model_seconds: The rest of the encoder's time.
        extra: Counts that only this head has, by name.
    """

    items: int = 0
    units: int = 0
    micro_batches: int = 0
    oom_retries: int = 0
    prepare_seconds: float = 0.0
    model_seconds: float = 0.0
    extra: dict[str, int] = field(default_factory=dict)

    def __iadd__(self, other: Work) -> Work:
        """Add the work of `other`."""
        for each in fields(self):
            if each.name != "extra":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        for name, amount in other.extra.items():
            self.extra[name] = self.extra.get(name, 0) + amount
        return self

    @property
    def seconds(self) -> float:
        """The encoder's time."""
        return self.prepare_seconds + self.model_seconds

    def counts(self) -> dict[str, int]:
        """Return all counts by name, without the times."""
        counts = {each.name: getattr(self, each.name) for each in fields(self) if each.type in ("int", int)}
        return {**counts, **self.extra}

    @classmethod
    def of(cls, counts: Mapping[str, int], seconds: Mapping[str, float]) -> Work:
        """Return the work with these `counts`, as `counts()` returns them, and times by the name of the attribute."""
        known = {each.name for each in fields(cls)}
        times = {name: value for name, value in seconds.items() if name in known}
        extra = {name: amount for name, amount in counts.items() if name not in known}
        numbers = {name: amount for name, amount in counts.items() if name in known}
        return cls(**numbers, **times, extra=extra)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Encoding:
    """The result of a call for n contents, in their order.

    Attributes:
        vectors: float32 [n, dim], NaN for a content with an error.
        columns: The head's model columns by name, each [n].
        errors: Why contents have no vector, by their place in the call.
        work: The cost of the call.
    """

    vectors: NDArray[np.float32]
    columns: dict[str, NDArray[Any]]
    errors: dict[int, ContentError]
    work: Work


class Measure(NamedTuple):
    """What a call of an encoder would do for n contents, found without the model.

    Attributes:
        units: What the model would read, in the head's unit.
        rejected: bool [n], the contents that would get no vector.
        forbidden: bool [n], the contents that would end the run.
    """

    units: int
    rejected: NDArray[np.bool_]
    forbidden: NDArray[np.bool_]


@dataclass(frozen=True)
class EncoderSettings:
    """What an encoder is loaded from; hashable and picklable. Each head adds its own settings.

    Attributes:
        path: A checkpoint file, or "full", "partial" or "untrained".
        device: "auto" (CUDA if available, else CPU), "cpu", "cuda" or "cuda:N".
        dtype: The type in which the model computes: "float32", "bfloat16" or, on CUDA, "float16".
        normalize: Whether to scale vectors to length 1.
    """

    path: str
    device: str = "auto"
    dtype: str = "float32"
    normalize: bool = False

    def __post_init__(self) -> None:
        """Resolve the path as a person typed it. Raise ValueError if it is a wrong URL."""
        object.__setattr__(self, "path", given_path(self.path))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the encoder is loaded from, as they were named; the checkpoint is the first."""
        return (self.path,)

    def file_paths(self) -> list[str]:
        """Return the paths of these files; random weights have none."""
        return [resolve_checkpoint(name) for name in self.files if name != UNTRAINED]

    def with_absolute_paths(self: _Settings) -> _Settings:
        """Return the settings with paths that mean the same from any current directory."""
        path = self.path if self.path == UNTRAINED else absolute(resolve_checkpoint(self.path))
        return replace(self, path=path)

    def check(self) -> None:
        """Raise ValueError for a value that the encoder does not know; the message names the known ones."""
        if self.dtype not in DTYPES:
            raise WrongSettingError("dtype", self.dtype, f"choose one of {', '.join(DTYPES)}")

    def fingerprint_parts(self) -> dict[str, str]:
        """Return what these settings decide of a vector, by name."""
        return {"normalize": str(self.normalize).lower(), "dtype": self.dtype}

    @property
    def forbidden(self) -> str | None:
        """The model column that must not be true in any row of a run, reused rows included; None if every row is allowed."""
        return None

    def describe_forbidden(self, row: Mapping[str, object]) -> str:
        """Return why a run must not have this row, in which the forbidden column is true."""
        raise NotImplementedError

    def describe_forbidden_rows(self, rows: int) -> str:
        """Return why a run must not have so many rows in which the forbidden column is true."""
        raise NotImplementedError


_Settings = TypeVar("_Settings", bound=EncoderSettings)


@dataclass(frozen=True)
class ModelInfo:
    """What is known of an encoder without building it.

    Attributes:
        head: The name of its head.
        name: The name of the checkpoint's file, or "untrained".
        sha256: The digest of that file, or of random weights.
        untrained: Whether the weights are random, for testing only.
        dim: Numbers per vector.
        fingerprint_parts: What decides a vector, by name.
        limit: How many units of a content the model reads; None if it reads all.
        notice: What users must know of a model that is not AudioCLIP's, else "".
        released: The sha256 of the released file that the head is from, "untrained" for random weights, or "" if that is
            not known. Vectors of different heads can be compared if it is the same.
    """

    head: str
    name: str
    sha256: str
    untrained: bool
    dim: int
    fingerprint_parts: dict[str, str]
    limit: int | None = None
    notice: str = ""
    released: str = ""

    @property
    def fingerprint(self) -> str:
        """The hash of the parts."""
        return fingerprint(self.fingerprint_parts)

    @property
    def weights(self) -> str:
        """What a reader of the output must know of the weights: "trained" or "untrained"."""
        return UNTRAINED if self.untrained else "trained"

    def storing(self, stored: str) -> ModelInfo:
        """Return the info of a model whose vectors are stored as `stored`, which is a part of their fingerprint."""
        return replace(self, fingerprint_parts={**self.fingerprint_parts, "stored": stored})


class Encoder(Protocol):
    """A loaded model with what turns contents into its input.

    Attributes:
        info: What it is.
        device_type: The kind of device that it computes on: "cpu" or "cuda"; "" for an encoder that does not use torch.
        on_progress: Called with the number of contents that went through the model since the last call.
        run_call: If set, it runs calls that compute, in one thread of the process.
        decoding: Called with each content that is decoded; returns a context manager for that.
    """

    info: ModelInfo
    device_type: str
    on_progress: Callable[[int], object]
    run_call: Callable[[Callable[[], Any]], Any] | None
    decoding: Callable[[object], AbstractContextManager[object]]

    def encode_rows(self, contents: Sequence[Any]) -> Encoding:
        """Return the vectors of n contents. Raise only for what is not the fault of a content.

        Raises DeviceError if this process can use its device no more.
        """


class ColumnCheck(Protocol):
    """The check of a head's model columns, batch by batch, for `validate`."""

    def add(self, columns: Mapping[str, NDArray[Any]]) -> Iterable[tuple[NDArray[np.bool_], str]]:
        """Check a batch; return (the faulty rows, bool [n], what each of them has) for each fault."""

    def finish(self) -> tuple[list[str], str]:
        """Return faults of all rows together, and what was checked."""


class Head(Protocol):
    """One head of AudioCLIP: what it embeds, how its columns and flags are called, and how its encoder is made.

    Attributes:
        name: As --head names it.
        item: What it embeds, as messages name it; `items` is the plural.
        field_flag: The flag that names the field of the content.
        unit: What contents consist of, as messages name it, in the plural.
        content: The column with a row's content, or with the reference to it.
        content_columns: What readers say of a row's content besides.
        types: The media type of each suffix that names a file of this head.
        entry_fields: The flags that name fields of lists with the offset and the duration of an entry in a recording.
        by_reference: Whether rows have a reference to their content instead of it: the step of the model reads it.
        batch_items: The most contents per call of the encoder.
        gpu_memory: Bytes of a GPU that a process takes, about: CUDA itself, the weights and a micro-batch in float32.
        model_columns: What the model gives besides the vector.
        size_column: The one of these whose histogram reports show; `max_size` and more are one bar.
        size_unit: What it counts, in the plural: usually the unit.
        preview: How a page shows a content besides by its name: as a small picture, in a player of its file, which the
            columns start, end and duration then give the part of, or not at all.
        cut_column: The one of these that is true if the model read only the beginning, or None if it always reads all.
        reasons: Reasons of rejected rows that only this head has.
        sort_by: The column by which new rows are sorted, so that contents that are cheap together share a batch, or None.
        keeps_strings: Whether `parse` returns every string that is not blank and not over the limit as it is: readers then
            take many such strings at once.
        provenance: Parts of the fingerprint that part files name besides those of every head.
        version_parts: Parts of the fingerprint; if only these differ, vectors can be compared, but not reused.
        flags: The flags that not every head has. Heads that share one have it by the same name and in the same words.
    """

    name: str
    item: str
    items: str
    field_flag: str
    unit: str
    content: Column
    content_columns: tuple[Column, ...]
    types: Mapping[str, str]
    by_reference: bool
    entry_fields: tuple[str, ...]
    batch_items: int
    gpu_memory: int
    model_columns: tuple[Column, ...]
    size_column: str
    size_unit: str
    preview: Preview
    cut_column: str | None
    max_size: int
    reasons: tuple[str, ...]
    sort_by: str | None
    keeps_strings: bool
    provenance: tuple[str, ...]
    version_parts: tuple[str, ...]
    flags: tuple[Flag, ...]

    def settings(self, options: Mapping[str, Any]) -> EncoderSettings:
        """Return the settings of the encoder that options of `embed` ask for."""

    def settings_of(self, parts: Mapping[str, str], options: Mapping[str, Any]) -> EncoderSettings:
        """Return the settings of the encoder with these parts of a fingerprint, and files as options name them."""

    def content_limit(self, options: Mapping[str, Any]) -> int:
        """Return the most bytes of one content that options of `embed` allow."""

    def omitted(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the columns that options of `embed` leave out of part files."""

    def fingerprint_faults(self, parts: Mapping[str, str]) -> list[str]:
        """Return what is wrong with the values of a fingerprint's parts."""

    def versions(self) -> dict[str, str]:
        """Return the version_parts as they are on this machine."""

    def parse(self, value: object, field: str, limit: int) -> Any:
        """Return the value of a field as content of at most `limit` bytes. Raise BadRow if it cannot be one."""

    def extent(self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer]) -> dict[str, int]:
        """Return how much content rows have, by unit, for the counts of a snapshot; nothing if their number says all.

        Args:
            columns: The head's content and model columns, each [n].
            parts: The last 32 bits of each content hash, [n].
        """

    def describe_extent(self, extent: Mapping[str, int]) -> str:
        """Return what `extent` gives as a phrase; "" if it is nothing."""

    def canary(self) -> dict[str, Any]:
        """Return 16 fixed contents by name: their vectors show whether an encoder still computes the same."""

    def read(self, copies: Sequence[str]) -> Any:
        """Read the files of settings, given their local copies. Raise ValueError, worded for users, if they are unusable."""

    def describe(self, settings: EncoderSettings, files: Any) -> ModelInfo:
        """Return what the encoder of these settings and files is. Raise ValueError if it cannot be built."""

    def load(self, settings: EncoderSettings, files: Any, device: str) -> Encoder:
        """Return the encoder on a device."""

    def measurer(
        self, settings: EncoderSettings, info: ModelInfo, copy_of: Callable[[int], str]
    ) -> Callable[[Sequence[Any]], Measure]:
        """Return a function that measures contents; `copy_of` returns the local copy of the n-th file of the settings."""

    def logit_scale(self, files: Any, other: str) -> float:
        """Return the factor that AudioCLIP multiplies cosines with vectors of the head `other` by. Raise ValueError."""

    def describe_work(self, work: Work) -> str:
        """Return the work of a run as a phrase."""

    def column_check(self, parts: Mapping[str, str]) -> ColumnCheck:
        """Return a new check of the model columns of a snapshot with these parts of its fingerprint."""

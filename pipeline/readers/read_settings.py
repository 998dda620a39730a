"""ReadSettings: how a job reads its shards, as one picklable object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from ...model.head import BadRow, EncoderSettings, Head
from ...model.messages import plural
from ..io.file_io import FileIO
from ..remote.worker_reports import RunReports
from ..schemas import UNSETTLED
from .fields import MISSING, Fields, TextField, excerpt_of
from .known_entries import EarlierLists
from .shard import InputError


@dataclass(frozen=True)
class ReadSettings:
    """How a job reads its shards.

    Attributes:
        head: The head whose content is read.
        fields: The paths of contents, ids and kept fields.
        kept: The schema of the kept fields, while rows are read and shuffled.
        open: The names of the kept fields whose type may still widen.
        encoder: What the encoder is loaded from: its settings decide what is a row of a file. None if there are no files.
        headers_only: Whether no more than the header of a file is read: what is hashed is then its version.
        threads: How many files are opened and read at the same time.
        spill: The directory for copies of contents that cannot be read by themselves; None if nothing is copied.
        media_root: The directory that paths in lists are relative to; None for that of each list.
        earlier: The rows that the previous snapshot has of lists; None if every file is read.
        limit: The most bytes of a content, and of an id.
        file_io: How files are opened.
        reports: Where errors are reported that no retry repairs.
    """

    head: Head
    fields: Fields
    kept: pa.Schema = field(repr=False)
    limit: int
    file_io: FileIO = FileIO()
    reports: RunReports = RunReports()
    open: frozenset[str] = frozenset()
    encoder: EncoderSettings | None = None
    threads: int = 1
    headers_only: bool = False
    spill: str | None = None
    media_root: str | None = None
    earlier: EarlierLists | None = None

    def __getstate__(self) -> dict[str, object]:
        # A pickled schema forgets which list elements are not null.
        return {**self.__dict__, "kept": self.kept.serialize().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, kept=pa.ipc.read_schema(pa.py_buffer(state["kept"])))

    @cached_property
    def columns(self) -> list[pa.Field]:
        """The last columns of row batches: the kept fields, and UNSETTLED if the types of some may widen."""
        return [*self.kept, *([UNSETTLED] if self.open else [])]

    def content(self, value: object, path: str) -> Any:
        """Return the value at a path as content of the head. Raise BadRow if it is not."""
        if isinstance(value, BadRow):
            raise value
        if value is MISSING:
            raise BadRow("missing field", f"field {path!r} is missing")
        try:
            return self.head.parse(value, path, self.limit)
        except BadRow as bad:
            if bad.excerpt is None and value is not None:
                bad.excerpt = excerpt_of(value)
            raise


def fields_of(options: Mapping[str, Any], head: Head) -> Fields:
    """Return the fields that options of `embed` name; raise InputError if content fields and id fields do not pair up."""
    contents, ids = _paths(options.get(head.field_flag.removeprefix("--"))), _paths(options.get("id_field"))
    entry = tuple(options.get(name) for name in head.entry_fields)
    for_lists = next((name for name in ("media_root", *head.entry_fields) if options.get(name)), None)
    if for_lists and not contents:
        raise InputError(f"--{for_lists} is for lists: name their field of the {head.item} with {head.field_flag}")
    contents = contents or [head.content.name]
    if ids and len(ids) != len(contents):
        raise InputError(
            f"--id_field is given {plural(len(ids), 'time')} ({', '.join(ids)}) for "
            f"{plural(len(contents), f'{head.item} field')} ({', '.join(contents)}): "
            f"give one id field for each {head.item} field, in the same order, or none"
        )
    pairs = [TextField(*pair) for pair in zip_longest(contents, ids)]
    return Fields(
        pairs[0].text,
        pairs[0].id,
        tuple(options["keep_fields"]),
        tuple(pairs[1:]),
        entry if any(entry) else (),
        by_reference=head.by_reference,
    )


def _paths(given: list[str] | str | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or [])

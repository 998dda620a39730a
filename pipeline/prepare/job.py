"""prepare_job: everything that is decided before a run starts, and Job, what its workers know of it."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems

from ...model.fingerprint import PROVENANCE_PARTS
from ...model.head import EncoderSettings, Head
from ...model.heads import find_head
from ...model.media import MediaHead
from ..dedup.buckets import bucket_bits
from ..inference.content_reader import ContentReader
from ..inference.shared_encoder import ModelDescription, describe_model
from ..io.file_io import FileIO
from ..io.json_file import describe_lock
from ..io.paths import absolute_path, given_path, is_local, join
from ..layout import POINTER
from ..options import EmbedOptions, is_local_run
from ..readers.infer_schema import KeptTypes
from ..readers.parts import any_is_large
from ..readers.read_settings import ReadSettings, fields_of
from ..readers.settle_types import SettledTypes, settle_types
from ..readers.shard import InputError
from ..remote.worker_reports import RunReports
from ..schemas import hashed_schema, part_schema
from ..snapshots.commit import current_name, require_manifest
from ..snapshots.earlier_lists import SnapshotLists
from ..snapshots.listing import DROPPED_SCHEMA, LISTED_SCHEMA
from ..snapshots.manifest import Manifest, ModelFile
from ..snapshots.snapshot import Snapshot, check_not_nested
from .carry_over import CarryOver, decide_carry_over, reasons_to_read_all
from .earlier_vectors import EarlierVectors, find_earlier_vectors
from .unchanged import Listing, deciding_options, list_shards, model_files


@dataclass(frozen=True)
class Limits:
    """What may be published, as the flags of the same names say."""

    max_rejected: str | None
    max_shrink: float
    unique_ids: bool
    allow_damaged: int
    allow_empty: bool

    @classmethod
    def of(cls, options: EmbedOptions) -> Limits:
        """Return the limits that the options give."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Listed:
    """What the listings of a run name.

    Attributes:
        shards: All shards.
        read: How many of them are read.
        read_bytes: Their bytes.
        kept_rows: The rows of the others, rejected ones included.
        groups: How many files are made of files of the previous snapshot.
        group_rows: The rows of the latter.
        merged_rows: The rows of the part files whose rows are written to the run's own.
        dropped_rows: The rows in all of these files that are dropped.
    """

    shards: int
    read: int
    read_bytes: int
    kept_rows: int
    groups: int
    group_rows: int
    merged_rows: int
    dropped_rows: int

    @classmethod
    def of(cls, carry_over: CarryOver) -> Listed:
        """Return what the listings will name."""
        read = carry_over.read.table
        grouped = [each for each in carry_over.files if each.group is not None]
        return cls(
            shards=len(carry_over.inputs),
            read=len(read),
            read_bytes=pc.sum(read["bytes"]).as_py() or 0,
            kept_rows=carry_over.rows,
            groups=len({each.group for each in grouped}),
            group_rows=sum(each.file.rows for each in grouped),
            merged_rows=sum(each.file.rows for each in carry_over.files if each.group is None),
            dropped_rows=carry_over.dropped_rows,
        )


@dataclass(frozen=True)
class Job:
    """One run, as its workers know it.

    Attributes:
        output: The directory of the snapshots.
        given: The options of `embed` that differ from their defaults.
        deciding: What decides which rows there are.
        model: The encoder.
        model_files: The files that it is loaded from, as they were when the run was prepared.
        reading: How shards are read.
        types: The types of the kept fields, as far as they are known.
        settled: These if they are known, and other ones than in the files that are carried over.
        carry_over: What is read, and what is carried over.
        earlier: Which vectors may be reused.
        previous: The manifest of the current snapshot, if there is one.
        limits: What may be published.
        force: Whether everything is embedded again if the canary differs.
        omitted: Columns that part files do not have.
        listed: What the listings of the run name.
        has_large_shards: Whether one of the shards may be read in several parts.
        rows: About how many rows are read.
        bits: How many bits of a content hash name a bucket; 0 if rows are not shuffled.
        id_bits: The same for ids, which are also those of rows carried over.
        notes: What users should know.
    """

    output: str
    given: dict[str, object]
    deciding: dict[str, object]
    model: ModelDescription
    model_files: list[ModelFile]
    reading: ReadSettings
    types: KeptTypes = field(repr=False)
    settled: SettledTypes | None = field(repr=False)
    carry_over: CarryOver = field(repr=False)
    earlier: EarlierVectors = field(repr=False)
    previous: Manifest | None = field(repr=False)
    limits: Limits
    force: bool
    omitted: Collection[str]
    listed: Listed
    has_large_shards: bool
    rows: int
    bits: int
    id_bits: int
    notes: list[str]

    def without_files(self) -> Job:
        """Return the job without its lists of files, which would make a job graph grow with the corpus."""
        carry_over = replace(
            self.carry_over, inputs=LISTED_SCHEMA.empty_table(), files=[], dropped=DROPPED_SCHEMA.empty_table()
        )
        return replace(self, carry_over=carry_over, earlier=replace(self.earlier, files=()))

    @property
    def head(self) -> Head:
        """The head that embeds."""
        return self.model.head

    @property
    def dtype(self) -> str:
        """The type that the model computes in."""
        return self.model.settings.dtype

    @property
    def row_schema(self) -> pa.Schema:
        """Schema of hashed row batches."""
        return hashed_schema(self.head, self.reading.columns)

    def content_reader(self, reports: RunReports) -> ContentReader | None:
        """Return what reads the contents that rows have references to; None if they have the contents."""
        if not self.head.by_reference:
            return None
        return ContentReader(cast(MediaHead, self.head), self.reading.threads, self.reading.file_io, reports)

    def part_schema(self, snapshot: str) -> pa.Schema:
        """Return the schema of the part files as far as it is known, with the provenance of their vectors."""
        info = self.model.info
        metadata = {
            "fingerprint": info.fingerprint,
            "head": info.head,
            "checkpoint": info.name,
            "checkpoint_sha256": info.sha256,
            "weights": info.weights,
            "tool_version": version("audioclip-beam"),
            "dim": str(info.dim),
            "snapshot": snapshot,
            "bucket_bits": str(self.bits),
            **{name: info.fingerprint_parts[name] for name in (*PROVENANCE_PARTS, *self.head.provenance)},
        }
        schema = part_schema(self.head, info.dim, self.types.final, stored=self.model.stored, omitted=self.omitted)
        return schema.with_metadata(metadata)


def prepare_job(options: EmbedOptions, head: Head | None = None, listing: Listing | None = None) -> Job:
    """Check everything that can be checked before a run, and decide what it reads and which vectors it may reuse.

    Args:
        options: The options of `embed`.
        head: The head that embeds; by default the one that the options name.
        listing: The shards, if they were listed before with these options; it counts if its snapshot is the current one.

    Raises:
        ValueError: OptionsError, InputError, CheckpointError and others, with a message for users.
        OSError: A file cannot be read.
        SnapshotError: The current snapshot cannot be read.
    """
    inputs, output = options.check()
    FileSystems.set_options(options)  # endpoints and credentials, before an object store is read
    check_not_nested(output)
    head, local = head or find_head(options.head), is_local_run(options)
    file_io = FileIO.from_options(options, options.read_timeout, options.compare)
    fields = fields_of(options.values, head)

    current = _open_current(output)
    notes = list(filter(None, [describe_lock(join(output, POINTER))]))
    if listing and current and listing.snapshot == current.name:
        shards, notes = listing.shards, [*notes, *listing.notes]
    else:
        shards = list_shards(options.values, inputs, output, current.shards if current else None, notes)

    settings = encoder_settings(options, head)
    files = model_files(settings)  # before they are read: a later change is then seen
    model = describe_model(head, settings, options.vector_dtype)

    same_model = current is not None and current.manifest["fingerprint"] == model.info.fingerprint
    reasons = reasons_to_read_all(current.manifest, options.values) if current and same_model else []
    if reasons:
        notes.append(f"every shard is read: {'; '.join(reasons)}")
    carry_over, types = decide_carry_over(
        current if same_model and not reasons else None,
        shards,
        head,
        fields,
        file_io,
        compare=options.compare,
        retry_rejected=options.retry_rejected,
    )
    earlier = find_earlier_vectors(output, current, model.info, carry_over, dedupe=not options.no_dedupe)

    listed = Listed.of(carry_over)
    rows = carry_over.new_rows
    return Job(
        output=output,
        given=options.given,
        deciding=deciding_options(options.values),
        model=model,
        model_files=files,
        reading=ReadSettings(
            head,
            fields,
            types.schema if types.open else types.final,
            head.content_limit(options.values),
            file_io,
            open=frozenset(types.open),
            encoder=settings,
            threads=options.values["fetch_threads"] if head.by_reference else 1,
            media_root=_media_root(options, head),
            earlier=SnapshotLists(output, current.name, cast(MediaHead, head), file_io)
            if current and same_model and not reasons and head.by_reference
            else None,
        ),
        types=types,
        settled=None if types.open or types.stored in (None, types.final) else settle_types({}, fields, types)[0],
        carry_over=carry_over,
        earlier=earlier,
        previous=current.manifest if current else None,
        limits=Limits.of(options),
        force=options.force,
        omitted=head.omitted(options.values),
        listed=listed,
        has_large_shards=any_is_large(carry_over.read.table),
        rows=rows,
        bits=0 if options.no_dedupe else bucket_bits(rows + listed.merged_rows, local=local),
        id_bits=bucket_bits(rows + listed.kept_rows, local=local),
        notes=[
            *([model.info.notice] if model.info.notice else []),
            *notes,
            *earlier.notes,
            *carry_over.notes,
            *(
                f"none of the first records has the kept field {name!r}: if no other has it, the run ends before the model"
                for name in sorted(types.missing)
            ),
        ],
    )


def _media_root(options: EmbedOptions, head: Head) -> str | None:
    """Return the directory that paths in lists are relative to, if one is given. Raises InputError if it does not exist."""
    given = options.values["media_root"] if head.by_reference else None
    if given is None:
        return None
    try:
        root = absolute_path(given_path(given))
    except ValueError as error:
        raise InputError(f"--media_root {error}") from None
    if is_local(root) and not os.path.isdir(root):
        raise InputError(f"--media_root {given} is not a directory: name the one that paths in lists are relative to")
    return root


def _open_current(output: str) -> Snapshot | None:
    """Return the current snapshot, or None before the first one."""
    name = current_name(output)
    return Snapshot(output, name, require_manifest(output, name)) if name else None


def encoder_settings(options: EmbedOptions, head: Head) -> EncoderSettings:
    """Return the settings of the encoder that a job's options ask for.

    A worker that was given a GPU must use it: with an accelerator, "auto" is "cuda", which fails without a usable GPU.
    Workers of a remote run may have another current directory: paths of local files are absolute there.
    """
    settings = head.settings(options.values)
    if options.accelerator and settings.device == "auto":
        settings = replace(settings, device="cuda")
    return settings if is_local_run(options) else settings.with_absolute_paths()

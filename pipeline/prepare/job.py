"""prepare_job: everything that is decided before a run starts, and Job, what its workers know of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from ...model.fingerprint import PROVENANCE_PARTS
from ...model.head import EncoderSettings, Head
from ...model.heads import find_head
from ..dedup.buckets import bucket_bits
from ..inference.shared_encoder import ModelDescription, describe_model
from ..io.file_io import FileIO
from ..io.json_file import describe_lock
from ..io.paths import join
from ..layout import POINTER
from ..options import EmbedOptions, is_local_run
from ..readers.infer_schema import KeptTypes
from ..readers.input_files import find_shards
from ..readers.parts import is_large
from ..readers.read_settings import ReadSettings, fields_of
from ..schemas import hashed_schema, part_schema
from ..snapshots.commit import current_name, require_manifest
from ..snapshots.manifest import Manifest, ModelFile
from ..snapshots.snapshot import Snapshot, check_not_nested
from .carry_over import CarryOver, decide_carry_over, has_comparable_rows
from .earlier_vectors import EarlierVectors, estimate_rows, find_earlier_vectors
from .unchanged import model_files


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
class Job:
    """One run, as its workers know it.

    Attributes:
        output: The directory of the snapshots.
        given: The options of `embed` that differ from their defaults.
        model: The encoder.
        model_files: The files that it is loaded from, as they were when the run was prepared.
        reading: How shards are read.
        types: The types of the kept fields, as far as they are known.
        carry_over: What is read, and what is carried over.
        earlier: Which vectors may be reused.
        previous: The manifest of the current snapshot, if there is one.
        limits: What may be published.
        force: Whether everything is embedded again if the canary differs.
        omitted: Columns that part files do not have.
        read_shards: How many shards are read.
        carried_files: How many files are carried over.
        has_large_shards: Whether one of the shards may be read in several parts.
        rows: About how many rows are read.
        bits: How many bits of a content hash name a bucket; 0 if rows are not shuffled.
        id_bits: The same for ids, which are also those of rows carried over.
        notes: What users should know.
    """

    output: str
    given: dict[str, object]
    model: ModelDescription
    model_files: list[ModelFile]
    reading: ReadSettings
    types: KeptTypes = field(repr=False)
    carry_over: CarryOver = field(repr=False)
    earlier: EarlierVectors = field(repr=False)
    previous: Manifest | None = field(repr=False)
    limits: Limits
    force: bool
    omitted: Collection[str]
    read_shards: int
    carried_files: int
    has_large_shards: bool
    rows: int
    bits: int
    id_bits: int
    notes: list[str]

    def without_files(self) -> Job:
        """Return the job without its lists of files, which would make a job graph grow with the corpus."""
        carry_over = replace(self.carry_over, shards=[], changed=[], files=[])
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
            **{name: info.fingerprint_parts[name] for name in (*PROVENANCE_PARTS, *self.head.provenance)},
        }
        schema = part_schema(self.head, info.dim, self.types.final, stored=self.model.stored, omitted=self.omitted)
        return schema.with_metadata(metadata)


def prepare_job(options: EmbedOptions, head: Head | None = None) -> Job:
    """Check everything that can be checked before a run, and decide what it reads and which vectors it may reuse.

    Args:
        options: The options of `embed`.
        head: The head that embeds; by default the one that the options name.

    Raises:
        ValueError: OptionsError, InputError, CheckpointError and others, with a message for users.
        OSError: A file cannot be read.
        SnapshotError: The current snapshot cannot be read.
    """
    inputs, output = options.check()
    FileSystems.set_options(options)  # endpoints and credentials, before an object store is read
    check_not_nested(output)
    head, local = head or find_head(options.head), is_local_run(options)
    file_io, fields = FileIO.from_options(options, options.read_timeout), fields_of(options.values, head)

    current = _open_current(output)
    names = {shard.path: shard.name for shard in current.shards} if current else {}
    notes = list(filter(None, [describe_lock(join(output, POINTER))]))
    shards = find_shards(
        inputs,
        options.input_format,
        options.delimiter,
        names,
        quoting=options.quoting,
        escape=options.escape,
        output=output,
        notes=notes,
    )

    settings = encoder_settings(options, head)
    files = model_files(settings)  # before they are read: a later change is then seen
    model = describe_model(head, settings, options.vector_dtype)

    comparable = current and has_comparable_rows(current.manifest, options.given, model.info.fingerprint)
    carry_over, types = decide_carry_over(current if comparable else None, shards, head, fields, file_io)
    earlier = find_earlier_vectors(output, current, model.info, carry_over, dedupe=not options.no_dedupe)

    rows = estimate_rows(carry_over.read)
    carried_rows = sum(segment["rows"]["vectors"] for segment in carry_over.segments)
    return Job(
        output=output,
        given=options.given,
        model=model,
        model_files=files,
        reading=ReadSettings(
            head,
            fields,
            types.schema if types.open else types.final,
            head.content_limit(options.values),
            file_io,
            open=frozenset(types.open),
        ),
        types=types,
        carry_over=carry_over,
        earlier=earlier,
        previous=current.manifest if current else None,
        limits=Limits.of(options),
        force=options.force,
        omitted=head.omitted(options.values),
        read_shards=len(carry_over.read),
        carried_files=len(carry_over.files),
        has_large_shards=any(map(is_large, carry_over.read)),
        rows=rows,
        bits=0 if options.no_dedupe else bucket_bits(rows, local=local),
        id_bits=bucket_bits(rows + carried_rows, local=local),
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

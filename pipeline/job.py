"""prepare_job: everything that is decided before a run starts, and Job, what its workers know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import zip_longest

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from .canary import Canary
from .dedup.buckets import bucket_bits
from .inference.model_handler import RecordBatchHandler
from .inference.shared_encoder import EncoderSettings, ModelInfo
from .io.file_io import FileIO
from .io.filesystem import base_name
from .options import EmbedOptions, OptionsError, is_local_run
from .readers.fields import Fields, TextField
from .readers.infer_schema import infer_kept_schema
from .readers.shard import Shard
from .readers.shards import check_outside, find_shards
from .schemas import ROW, TEXT_HASH, embedded_schema
from .snapshots.commit import current_name, read_manifest
from .snapshots.dead_runs import dead_runs
from .snapshots.fingerprint import describe_changes
from .snapshots.listing import read_shard_list
from .snapshots.manifest import Manifest, ModelFile
from .snapshots.run_directory import is_complete, list_runs
from .snapshots.snapshot import Snapshot
from .unchanged import model_files

ROW_BYTES = 100

COMPRESSION_RATIO = 4


@dataclass(frozen=True)
class Job:
    """One run, as its workers know it. `bits` is 0 if rows are not shuffled."""

    output: str
    shards: Sequence[Shard] = field(repr=False)
    shard_count: int
    fields: Fields
    kept: pa.Schema
    model: ModelInfo
    model_files: list[ModelFile]
    options: dict[str, object]
    bits: int
    previous: Manifest | None = field(repr=False)
    reusable: Manifest | None = field(repr=False)
    leftovers: list[str]
    earlier: Sequence[str] = field(repr=False)
    notes: list[str]
    max_text_bytes: int
    file_io: FileIO
    max_rejected: str | None
    max_shrink: float
    unique_ids: bool
    allow_damaged: int
    allow_empty: bool
    stored: str
    text: bool

    def without_files(self) -> Job:
        """Return the job without its lists of files, which would make a job graph grow with the corpus."""
        return replace(self, shards=(), earlier=())

    @property
    def prompt(self) -> str:
        """The prompt, with {} for the text."""
        return self.model.fingerprint_parts["prompt"]

    @property
    def dtype(self) -> str:
        """The type that the model computes in."""
        return self.model.fingerprint_parts["dtype"]

    @property
    def on_long(self) -> str:
        """What happens to a text over the context length; the fingerprint does not tell "error" from "truncate"."""
        return str(self.options.get("on_long", "truncate"))

    @property
    def canary(self) -> Canary | None:
        """The canary vectors that the encoder must reproduce before anything is reused."""
        return self.reusable["canary"] if self.reusable else None

    @property
    def row_schema(self) -> pa.Schema:
        """Schema of hashed row batches."""
        return pa.schema([*ROW, *self.kept, TEXT_HASH])

    @property
    def schema(self) -> pa.Schema:
        """Schema of the part files, with the provenance of their vectors; the snapshot's name is added later."""
        model = self.model
        metadata = {
            "fingerprint": model.fingerprint,
            "checkpoint": model.name,
            "checkpoint_sha256": model.sha256,
            "weights": model.weights,
            "tool_version": version("audioclip-text"),
            "dim": str(model.dim),
            **{name: model.fingerprint_parts[name] for name in ("dtype", "normalize", "prompt", "on_long")},
        }
        schema = embedded_schema(model.dim, self.kept, stored=self.stored, text=self.text)
        return schema.with_metadata(metadata)


def prepare_job(options: EmbedOptions, handler: RecordBatchHandler | None = None) -> tuple[Job, RecordBatchHandler]:
    """Check everything that can be checked before a run, and decide which vectors it may reuse.

    Returns the job and the handler of its model. Raises ValueError (OptionsError, InputError, CheckpointError, ...),
    OSError or SnapshotError, each with a message for users.
    """
    inputs, output = options.check()
    FileSystems.set_options(options)  # endpoints and credentials, before an object store is read
    file_io = FileIO.from_options(options, options.read_timeout)
    fields = _fields(options)
    current = current_name(output)
    previous = read_manifest(output, current) if current else None
    names = {shard.path: shard.name for shard in read_shard_list(output, previous)} if previous else {}
    shards = find_shards(inputs, options.input_format, options.delimiter, names)
    check_outside(inputs, shards, output)
    kept = infer_kept_schema(shards, fields, file_io)
    handler = handler or RecordBatchHandler(EncoderSettings.from_options(options), options.vector_dtype)
    files = model_files(options.checkpoint, options.tokenizer_path)  # before they are read: a later change is then seen
    model = handler.describe()
    reusable, notes = _reusable_snapshot(output, previous, model)
    if model.notice:
        notes.insert(0, model.notice)
    rows = sum(shard.bytes * (COMPRESSION_RATIO if shard.compression else 1) for shard in shards) // ROW_BYTES
    leftovers: list[str] = []
    earlier: list[str] = []
    if not options.no_dedupe:
        leftovers, leftover_files, alive = _leftovers(output, model.fingerprint)
        notes += alive
        if reusable:
            earlier = Snapshot(output, reusable["snapshot"], reusable).part_paths()
        earlier += leftover_files
        if leftover_files:
            notes.append(f"{len(leftover_files)} finished files of {len(leftovers)} unfinished runs are reused")
    job = Job(
        output=output,
        shards=shards,
        shard_count=len(shards),
        fields=fields,
        kept=kept,
        model=model,
        model_files=files,
        options={name: value for name, value in options.get_all_options(drop_default=True).items() if name in _OWN},
        bits=0 if options.no_dedupe else bucket_bits(rows, local=is_local_run(options)),
        previous=previous,
        reusable=reusable,
        leftovers=leftovers,
        earlier=earlier,
        notes=notes,
        max_text_bytes=options.max_text_bytes,
        file_io=file_io,
        max_rejected=options.max_rejected,
        max_shrink=options.max_shrink,
        unique_ids=options.unique_ids,
        allow_damaged=options.allow_damaged,
        allow_empty=options.allow_empty,
        stored=options.vector_dtype,
        text=not options.no_text,
    )
    return job, handler


def _fields(options: EmbedOptions) -> Fields:
    """Return the fields that the options name; OptionsError if text fields and id fields do not pair up."""
    texts, ids = _paths(options.text_field), _paths(options.id_field)
    texts = texts or [Fields.text]
    if ids and len(ids) != len(texts):
        raise OptionsError(
            f"--id_field is given {len(ids)} times ({', '.join(ids)}) for {len(texts)} text fields ({', '.join(texts)}): "
            f"give one id field for each text field, in the same order, or none"
        )
    pairs = [TextField(*pair) for pair in zip_longest(texts, ids)]
    return Fields(pairs[0].text, pairs[0].id, tuple(options.keep_fields), tuple(pairs[1:]))


def _paths(given: list[str] | str | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or [])


_OWN = frozenset(name for name in EmbedOptions.__annotations__)


def _reusable_snapshot(output: str, previous: Manifest | None, model: ModelInfo) -> tuple[Manifest | None, list[str]]:
    """Return the newest complete snapshot of the model's fingerprint, and notes on it and on the current one."""
    name = previous["snapshot"] if previous else None
    notes = []
    if previous and previous["fingerprint"] != model.fingerprint:
        changed = describe_changes(model.fingerprint_parts, previous["fingerprint_parts"])
        notes.append(f"the fingerprint changed since {name} ({changed}): its vectors are not reused")
    for run, files in reversed(list_runs(output).items()):
        if run.endswith(model.fingerprint[:8]) and is_complete(files):
            manifest = read_manifest(output, run)
            if manifest and manifest["fingerprint"] == model.fingerprint:
                if run != name:
                    notes.append(f"vectors of {run}, made with this fingerprint, are reused")
                return manifest, notes
    return None, notes


def _leftovers(output: str, fingerprint: str) -> tuple[list[str], list[str], list[str]]:
    """Return the runs that ended before they published, the finished part files of those of this fingerprint, and notes
    on runs that may still be going on.
    """
    dead, notes = dead_runs(output, list_runs(output))
    earlier = []
    for run, files in dead.items():
        for path, _ in files:
            name = base_name(path)
            if run.endswith(fingerprint[:8]) and name.startswith("part-") and name.endswith(".parquet"):
                earlier.append(path)
    return list(dead), earlier, notes

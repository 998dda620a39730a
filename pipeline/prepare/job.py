"""prepare_job: everything that is decided before a run starts, and Job, what its workers know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import zip_longest
from typing import NamedTuple

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from ...model.fingerprint import describe_changes
from ..canary import Canary, canaries_agree
from ..dedup.buckets import bucket_bits
from ..errors import SnapshotError
from ..inference.encoder_settings import EncoderSettings, ModelInfo
from ..inference.model_handler import RecordBatchHandler
from ..io.file_io import FileIO
from ..io.paths import base_name
from ..layout import PART, has_rows
from ..options import EmbedOptions, OptionsError, is_local_run
from ..readers.fields import Fields, TextField
from ..readers.input_files import check_outside, find_shards
from ..readers.parts import is_large
from ..readers.shard import Shard
from ..schemas import ROW, SEGMENT, TEXT_HASH, embedded_schema
from ..snapshots.commit import current_name, read_manifest, require_manifest
from ..snapshots.dead_runs import dead_runs
from ..snapshots.history import measured_work
from ..snapshots.manifest import Lookup, Manifest, ModelFile
from ..snapshots.run_directory import is_complete, list_runs, read_canary
from ..snapshots.snapshot import Snapshot
from ..terminal import plural
from .carry_over import CarryOver, decide_carry_over, files_to_search, has_comparable_rows
from .unchanged import model_files

_OPTIONS = frozenset(EmbedOptions.__annotations__)  # this project's, without Beam's

ROW_BYTES = 100

COMPRESSION_RATIO = 4

# Of earlier rows' hashes: what is read in any case to look up new texts, and what a worker reads in a second.
LOOKUP_BYTES, READ_BYTES_PER_SECOND = 64 << 20, 100e6


@dataclass(frozen=True)
class Job:
    """One run, as its workers know it.

    `canary` has the vectors that the encoder must reproduce before anything is reused or carried over: of `reusable`, or
    else of unpublished files. `rows` is an estimate of the rows to read. `bits` is 0 if rows are not shuffled; `id_bits` is
    for ids, which are also those of rows carried over.
    """

    output: str
    carry_over: CarryOver = field(repr=False)
    read_shards: int
    rows: int
    carried_files: int
    has_large_shards: bool
    fields: Fields
    kept: pa.Schema
    model: ModelInfo
    model_files: list[ModelFile]
    options: dict[str, object]
    force: bool
    bits: int
    id_bits: int
    previous: Manifest | None = field(repr=False)
    reusable: Manifest | None = field(repr=False)
    canary: Canary | None = field(repr=False)
    leftovers: list[str]
    earlier: Sequence[str] = field(repr=False)
    lookup: Lookup
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
        return replace(self, carry_over=replace(self.carry_over, shards=[], changed=[], files=[]), earlier=())

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
        """What happens to a text over the context length; the fingerprint has "truncate" for "error" too."""
        return str(self.options.get("on_long", "truncate"))

    @property
    def row_schema(self) -> pa.Schema:
        """Schema of hashed row batches."""
        return pa.schema([*ROW, *self.kept, SEGMENT, TEXT_HASH])

    @property
    def schema(self) -> pa.Schema:
        """Schema of the part files, with the provenance of their vectors; the snapshot's name is added later."""
        model = self.model
        metadata = {
            "fingerprint": model.fingerprint,
            "checkpoint": model.name,
            "checkpoint_sha256": model.sha256,
            "weights": model.weights,
            "tool_version": version("audioclip-beam"),
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
    previous = require_manifest(output, current) if current else None
    snapshot = Snapshot(output, previous["snapshot"], previous) if previous else None
    names = {shard.path: shard.name for shard in snapshot.shards} if snapshot else {}
    shards = find_shards(inputs, options.input_format, options.delimiter, names)
    check_outside(inputs, shards, output)
    given = {name: value for name, value in options.get_all_options(drop_default=True).items() if name in _OPTIONS}
    comparable = snapshot if snapshot and has_comparable_rows(snapshot.manifest, given) else None
    carry_over, kept = decide_carry_over(comparable, shards, fields, file_io)
    handler = handler or RecordBatchHandler(EncoderSettings.from_options(options), options.vector_dtype)
    files = model_files(options.checkpoint, options.tokenizer_path)  # before they are read: a later change is then seen
    model = handler.describe()
    reusable, notes = _reusable_snapshot(output, previous, model)
    if comparable and comparable.manifest["fingerprint"] != model.fingerprint:
        carry_over, kept = decide_carry_over(None, shards, fields, file_io)
    notes += carry_over.notes
    if model.notice:
        notes.insert(0, model.notice)
    rows = _row_estimate(carry_over.read)
    carried_rows = sum(segment["rows"]["vectors"] for segment in carry_over.segments)
    canary = reusable["canary"] if reusable else None
    leftovers = Leftovers([], [], canary, [])
    earlier: list[str] = []
    lookup: Lookup = {"rows": 0, "bytes": 0, "left_out": 0}
    if not options.no_dedupe:
        leftovers = _leftovers(output, current or "", model, canary)
        notes += leftovers.notes
        leftover_files = leftovers.files
        if reusable:
            if snapshot is None or snapshot.manifest is not reusable:
                snapshot = Snapshot(output, reusable["snapshot"], reusable)
            worth = _bytes_worth_reading(output, model.fingerprint, _row_estimate(carry_over.changed))
            earlier, lookup, left_out = files_to_search(carry_over, snapshot, worth)
            notes += left_out
            known = {file.name for file in snapshot.files}
            leftover_files = [path for path in leftover_files if base_name(path) not in known]
        earlier += leftover_files
        if leftover_files:
            runs = len({path.removesuffix(base_name(path)) for path in leftover_files})
            files_found = plural(len(leftover_files), "finished file")
            notes.append(
                f"vectors are reused from {files_found} of {plural(runs, 'run')} other than the current snapshot's"
            )
    job = Job(
        output=output,
        carry_over=carry_over,
        read_shards=len(carry_over.read),
        rows=rows,
        carried_files=len(carry_over.files),
        has_large_shards=any(map(is_large, carry_over.read)),
        fields=fields,
        kept=kept,
        model=model,
        model_files=files,
        options=given,
        force=options.force,
        bits=0 if options.no_dedupe else bucket_bits(rows, local=is_local_run(options)),
        id_bits=bucket_bits(rows + carried_rows, local=is_local_run(options)),
        previous=previous,
        reusable=reusable,
        canary=leftovers.canary,
        leftovers=leftovers.dead_runs,
        earlier=earlier,
        lookup=lookup,
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


def _row_estimate(shards: Sequence[Shard]) -> int:
    return sum(shard.bytes * (COMPRESSION_RATIO if shard.compression else 1) for shard in shards) // ROW_BYTES


def _bytes_worth_reading(output: str, fingerprint: str, texts: int) -> float:
    """Return how many bytes may be read to look up new texts: as many as are read while the model embeds them."""
    measured = measured_work(output, fingerprint)
    if measured is None:
        return float("inf")
    seconds = texts * measured.seconds / max(1, measured.texts)
    return max(LOOKUP_BYTES, seconds * READ_BYTES_PER_SECOND)


def _reusable_snapshot(output: str, previous: Manifest | None, model: ModelInfo) -> tuple[Manifest | None, list[str]]:
    """Return the snapshot whose vectors are reused, and notes on it and on the current one.

    It is the current one if that has the model's fingerprint, and else the newest complete one that has it.
    """
    name = previous["snapshot"] if previous else None
    if previous and previous["fingerprint"] == model.fingerprint:
        return previous, []
    notes = []
    if previous:
        changed = describe_changes(model.fingerprint_parts, previous["fingerprint_parts"])
        notes.append(f"the fingerprint changed since {name} ({changed}): its vectors are not reused")
    for run, files in reversed(list_runs(output).items()):
        if run.endswith(model.fingerprint[:8]) and is_complete(files):
            try:
                manifest = read_manifest(output, run)
            except SnapshotError as error:  # it is not the current snapshot: this costs model time, nothing else
                notes.append(f"vectors of {run} are not reused: {error}")
                continue
            if manifest and manifest["fingerprint"] == model.fingerprint:
                notes.append(f"vectors of {run}, made with this fingerprint, are reused")
                return manifest, notes
    return None, notes


class Leftovers(NamedTuple):
    """What other runs than the current one have left.

    `dead_runs` ended before they published, `files` are the part files to search, `canary` is that of the encoder that made
    these, and `notes` are on runs that may still be running.
    """

    dead_runs: list[str]
    files: list[str]
    canary: Canary | None
    notes: list[str]


def _leftovers(output: str, current: str, model: ModelInfo, canary: Canary | None) -> Leftovers:
    """Return what other runs have left.

    The files are of runs of the model's fingerprint that ended too early, or that are complete and newer than the current
    one: they ended just before they became current, or are what a rollback left. All have the canary that is given, or
    else that of the newest of these runs; files of a run that ended before its canary was known are not searched.
    """
    runs = list_runs(output)
    dead, notes = dead_runs(output, runs)
    newer = {run: files for run, files in runs.items() if run > current and is_complete(files)}
    earlier: list[str] = []
    for run, files in sorted({**dead, **newer}.items(), reverse=True):
        names = {base_name(path): path for path, _ in files}
        parts = [path for name, path in names.items() if has_rows(name) and name.startswith(PART)]
        if not parts or not run.endswith(model.fingerprint[:8]):
            continue
        try:
            made = read_canary(output, run, names.keys())
        except SnapshotError as error:  # as after a rollback from a damaged snapshot
            notes.append(f"finished files of {run} are not reused: {error}")
            continue
        if made and canaries_agree(made, canary, model.fingerprint_parts["dtype"]):
            canary = canary or made
            earlier += parts
    return Leftovers(list(dead), earlier, canary, notes)

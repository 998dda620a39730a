"""Every row of a snapshot, held against its schema, its manifest and the other rows, a batch at a time."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from ..io.timeout_reader import open_to_read
from ..schemas import REASONS, REJECTED, embedded_schema
from ..search.top_k import vectors_of
from ..snapshots.manifest import FileInfo, Manifest
from ..snapshots.run_directory import run_path
from ..snapshots.snapshot import BATCH_ROWS
from ..text_hash import add_text_hash, hash_ranges
from .result import MAX_EXAMPLES, Check

# How far the length of a normalized vector may be from 1: what rounding each number to half precision does, twofold.
LENGTH_ERROR = {"float32": 1e-4, "float16": 2e-3}


class RowChecks:
    """Checks of rows, fed a file at a time; `scratch` is a path that a file may be made at."""

    def __init__(self, output: str, manifest: Manifest, scratch: str) -> None:
        self.manifest, self.directory = manifest, run_path(output, manifest["snapshot"])
        self.readable, self.schema, self.vectors = Check("readable"), Check("schema"), Check("vectors")
        self.hashes, self.tokens, self.counts = Check("hashes"), Check("tokens"), Check("counts")
        self.ids = Check("ids")
        self._seen, self._kept, self._reasons = Repeats(scratch), None, Counter[str]()
        self._rows = self._truncated = 0
        self._shortest_cut, self._longest_whole = np.inf, -np.inf
        self._lengths = [np.inf, -np.inf]

    def look(self, info: FileInfo) -> None:
        """Look at all rows of a file."""
        try:
            path = FileSystems.join(self.directory, info["name"])
            with open_to_read(path) as handle:
                file = pq.ParquetFile(handle, page_checksum_verification=True)
                (self._part if info["name"].startswith("part-") else self._rejected)(info, file)
        except (OSError, pa.ArrowException) as error:
            self.readable.add_fault(f"{info['name']} cannot be read: {(str(error).splitlines() or [''])[0]}")

    def _part(self, info: FileInfo, file: pq.ParquetFile) -> None:
        if not self._schema_holds(info, file):
            return
        self.schema.expect_equal(f"{info['name']}: rows", file.metadata.num_rows, info["rows"])
        self.schema.expect_equal(f"{info['name']}: row groups", file.num_row_groups, len(info["row_groups"]))
        for number, told in enumerate(info["row_groups"][: file.num_row_groups]):
            hashes = []
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[number]):
                self._batch(batch)
                hashes.append(batch.column("text_hash"))
            ranges: object = [list(pair) for pair in hash_ranges(pa.concat_arrays(hashes))] if hashes else []
            if ranges != told["ranges"]:
                self.hashes.add_fault(f"{info['name']}, row group {number}: other ranges than in the manifest")

    def _rejected(self, info: FileInfo, file: pq.ParquetFile) -> None:
        if not file.schema_arrow.equals(REJECTED):
            self.schema.add_fault(f"{info['name']} has other columns than rejected rows have")
            return
        self.schema.expect_equal(f"{info['name']}: rows", file.metadata.num_rows, info["rows"])
        for batch in file.iter_batches(BATCH_ROWS, columns=["reason"]):
            self._reasons.update(batch.column("reason").to_pylist())

    def _schema_holds(self, info: FileInfo, file: pq.ParquetFile) -> bool:
        """Whether a part file has the columns that the others have, and the provenance that the manifest has."""
        manifest, parts = self.manifest, self.manifest["fingerprint_parts"]
        schema = file.schema_arrow
        own = embedded_schema(
            manifest["dim"], pa.schema([]), stored=parts["stored"], text=not manifest["options"].get("no_text")
        )
        if not pa.schema(list(schema)[: len(own)]).equals(own):
            self.schema.add_fault(f"{info['name']} has columns {', '.join(f'{f.name} {f.type}' for f in schema)}"[:300])
            return False
        kept = pa.schema(list(schema)[len(own) :])
        self._kept = kept if self._kept is None else self._kept
        if not kept.equals(self._kept):
            self.schema.add_fault(
                f"{info['name']} keeps other fields than the files before it: {', '.join(kept.names)}"
            )
        told = {
            "fingerprint": manifest["fingerprint"],
            "checkpoint": manifest["checkpoint"].get("name"),
            "checkpoint_sha256": manifest["checkpoint"].get("sha256"),
            "weights": manifest["weights"],
            "tool_version": manifest["tool_version"],
            "dim": str(manifest["dim"]),
            "snapshot": manifest["snapshot"],
            **{name: parts[name] for name in ("dtype", "normalize", "prompt", "on_long")},
        }
        there = {key.decode("utf-8", "replace"): value for key, value in (schema.metadata or {}).items()}
        for key, value in told.items():
            self.schema.expect_equal(f"{info['name']}: {key}", there.get(key, b"").decode("utf-8", "replace"), value)
        return True

    def _batch(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.num_rows
        self._seen.add(batch.column("id").cast(pa.binary()).to_pylist())
        self._check_vectors(batch)
        self._check_tokens(batch)
        if "text" in batch.schema.names:
            again = add_text_hash(batch.select(["text"]), self.manifest["fingerprint_parts"]["prompt"])
            self._fault_rows(
                self.hashes,
                batch,
                pc.not_equal(again.column("text_hash"), batch.column("text_hash")),
                "has not the hash of its text",
            )

    def _check_vectors(self, batch: pa.RecordBatch) -> None:
        vectors = vectors_of(batch)
        lengths = np.sqrt((vectors * vectors).sum(axis=1))
        self._fault_rows(self.vectors, batch, pa.array(~np.isfinite(lengths)), "has a vector with NaN or infinity")
        self._fault_rows(self.vectors, batch, pa.array(lengths == 0), "has a vector of zeros")
        finite = lengths[np.isfinite(lengths)]
        if not len(finite):
            return
        self._lengths = [min(self._lengths[0], finite.min()), max(self._lengths[1], finite.max())]
        parts = self.manifest["fingerprint_parts"]
        if parts["normalize"] == "true":
            far = np.isfinite(lengths) & (lengths > 0) & (np.abs(lengths - 1) > LENGTH_ERROR[parts["stored"]])
            self._fault_rows(
                self.vectors, batch, pa.array(far), "has a vector that is not of length 1, with --normalize"
            )

    def _check_tokens(self, batch: pa.RecordBatch) -> None:
        tokens, cut = batch.column("n_tokens").to_numpy(), batch.column("truncated").to_numpy(zero_copy_only=False)
        self._fault_rows(self.tokens, batch, pa.array(tokens < 2), "has fewer tokens than start and end")
        self._truncated += int(cut.sum())
        if cut.any():
            self._shortest_cut = min(self._shortest_cut, tokens[cut].min())
        if not cut.all():
            self._longest_whole = max(self._longest_whole, tokens[~cut].max())

    @staticmethod
    def _fault_rows(check: Check, batch: pa.RecordBatch, faulty: pa.Array, what: str) -> None:
        places = np.flatnonzero(faulty.to_numpy(zero_copy_only=False))
        if len(places):
            ids = batch.column("id").take(pa.array(places[:MAX_EXAMPLES])).to_pylist()
            check.add_fault(*(f"row {name!r:.80} {what}" for name in ids), times=len(places))

    def finish(self) -> list[Check]:
        """All checks, once every file was looked at."""
        counts, options = self.manifest["counts"], self.manifest["fingerprint_parts"]
        self.readable.summary = f"{self._rows:,} rows"
        self.schema.summary = "columns and provenance as in the manifest"
        self.vectors.summary = (
            f"finite, of length {self._lengths[0]:.4g} to {self._lengths[1]:.4g}" if self._rows else ""
        )
        self.hashes.summary = (
            "of the texts, as stored" if not self.manifest["options"].get("no_text") else "texts are not stored"
        )
        if self._shortest_cut <= self._longest_whole:
            self.tokens.add_fault(
                f"a row of {self._shortest_cut:.0f} tokens is marked truncated, and one of {self._longest_whole:.0f} is not"
            )
        if options["on_long"] == "reject" and self._truncated:
            self.tokens.add_fault(f"{self._truncated} rows are truncated, with --on_long reject")
        self.tokens.summary = f"{self._truncated:,} rows truncated"
        self.counts.expect_equal("rows truncated", self._truncated, counts["truncated"])
        self.counts.expect_equal("rejected rows by reason", dict(self._reasons), counts["rejected_by_reason"])
        unknown = sorted(set(self._reasons) - set(REASONS))
        if unknown:
            self.counts.add_fault(f"{unknown} are no reasons that rows are rejected for")
        self.counts.summary = "as in the manifest"
        self._check_ids()
        return [self.readable, self.schema, self.ids, self.vectors, self.hashes, self.tokens, self.counts]

    def _check_ids(self) -> None:
        found, examples = self._seen.found(MAX_EXAMPLES)
        self._seen.close()
        options = self.manifest["options"]
        may_repeat = options.get("id_field") and not options.get("unique_ids")
        self.ids.summary = "unique"
        if found and may_repeat:
            self.ids.summary = f"{found:,} occur more than once, which the run did not forbid (--unique_ids)"
        elif found:
            names = (f"{name.decode('utf-8', 'replace')!r:.80} occurs more than once" for name in examples)
            self.ids.add_fault(*names, times=found)


MEMORY_KIB = 32 * 1024


class Repeats:
    """Finds what was added more than once; its memory does not grow with what it holds, the file at `path` does."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        # The file is nobody's after this process: nothing of it need survive a crash.
        for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", f"cache_size=-{MEMORY_KIB}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE seen (value BLOB NOT NULL)")

    def add(self, values: Iterable[bytes]) -> None:
        """Note some more values."""
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO seen VALUES (?)", ((value,) for value in values))
        self._database.execute("COMMIT")

    def found(self, examples: int) -> tuple[int, list[bytes]]:
        """(how many values stand more than once, the first few of them in their order)."""
        self._database.execute("CREATE TEMP TABLE twice AS SELECT value FROM seen GROUP BY value HAVING count(*) > 1")
        (count,) = self._database.execute("SELECT count(*) FROM twice").fetchone()
        rows = self._database.execute("SELECT value FROM twice ORDER BY value LIMIT ?", (examples,)).fetchall()
        return int(count), [bytes(value) for (value,) in rows]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

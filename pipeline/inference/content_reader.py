"""ContentReader: the contents that rows refer to, read and decoded while the model works on others."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from ...model.head import BadRow
from ...model.media import MediaHead
from ..content import NOT_LISTED, Source, digest_in
from ..io.byte_ranges import ByteRange
from ..io.file_io import FileIO
from ..io.in_order import group_calls, map_in_order
from ..io.locate import locate
from ..io.versions import ListedFile
from ..io.worker_thread import read_ahead
from ..readers.input_files import reading_errors
from ..readers.media import hash_content
from ..readers.shard import InputError
from ..remote.decoder_watch import decoding, named
from ..remote.worker_reports import RunReports
from ..schemas import SOURCE

GROUP_BYTES = 96 << 20  # of decoded contents that go to the model together
BUFFER_BYTES = 256 << 10  # of a file that is decoded while it is read: decoders ask for a few kB at a time
WAITING_BYTES = 256 << 20  # of contents that wait for it


class _Run(NamedTuple):
    """Rows that follow each other and have parts of one file.

    Attributes:
        source: The bytes.
        name: Their file, as users know it, with the row's id if it has other contents.
        parts: The values of the head's content columns, of each row.
        size: About how many bytes the contents take in memory, and what they are decoded from.
        digest: That of the bytes, when they were read first.
    """

    source: Source
    name: str
    parts: list[tuple[Any, ...]]
    size: int
    digest: bytes


@dataclass(frozen=True)
class ContentReader:
    """How the step of the model reads the contents that rows refer to.

    Attributes:
        head: The head that embeds them.
        threads: How many files are read and decoded at the same time.
        file_io: How files are opened.
        reports: Reports on a file that changed since it was listed.
    """

    head: MediaHead
    threads: int
    file_io: FileIO = FileIO()
    reports: RunReports = RunReports()

    def groups(self, rows: pa.RecordBatch) -> Iterator[list[Any]]:
        """Yield the encoder's contents of all rows in order, in groups; a ContentError for one that cannot be decoded.

        The next group is read and decoded while the caller works with one. Raises InputError or OSError as open_shard does:
        a file that changed since it was listed ends the run.
        """
        for group, names in read_ahead(self._groups(rows)):
            with named({id(content): name for content, name in zip(group, names, strict=True)}, self.reports):
                yield group

    def _groups(self, rows: pa.RecordBatch) -> Generator[tuple[list[Any], list[str]], None, None]:
        """Yield groups of contents, with the name of each."""
        group, names, size, runs = list[Any](), list[str](), 0, list(self._runs(rows))
        contents = map_in_order(
            self._read_some,
            group_calls(runs, lambda run: run.source.path, lambda run: run.size),
            self.threads,
            lambda some: sum(run.size for run in some),
            WAITING_BYTES,
        )
        for run, read in zip(runs, chain.from_iterable(contents), strict=True):
            for content, part in zip(read, run.parts, strict=True):
                group.append(content)
                names.append(run.name)
                size += self.head.decoded_bytes(part, run.source.size)
                del content
                if size >= GROUP_BYTES:
                    yield group, names
                    group, names, size = [], [], 0
        if group:
            yield group, names

    def _runs(self, rows: pa.RecordBatch) -> Iterator[_Run]:
        sources = [Source.of_row({**value, "units": 0}) for value in rows.column(SOURCE.name).to_pylist()]
        columns = [rows.column(column.name).to_pylist() for column in self.head.content_columns]
        parts = list(zip(*columns, strict=True)) if columns else [()] * len(sources)
        file = rows.column(self.head.content.name)
        uris, checksums = (pc.struct_field(file, name).to_pylist() for name in ("uri", "checksum"))
        ids = rows.column("id").to_pylist()
        start = 0
        for end in range(1, len(sources) + 1):
            if end == len(sources) or sources[end] != sources[start]:
                source = sources[start]
                decoded = sum(self.head.decoded_bytes(part, source.size) for part in parts[start:end])
                size = decoded + min(source.size, self.head.max_held)
                name = uris[start] if source.is_whole else f"{uris[start]} (id {ids[start]})"
                yield _Run(source, name, parts[start:end], size, digest_in(checksums[start]))
                start = end

    def _read_some(self, runs: list[_Run]) -> list[Iterator[Any]]:
        """Return the contents of runs, of which several have small and local sources."""
        runs = [run._replace(source=self._list(run.source, run.digest)) if _is_unlisted(run) else run for run in runs]
        if len(runs) == 1:
            return [self._read(runs[0])]
        return self.file_io.use_each(runs, _range_of, self._read)

    def _read(self, run: _Run, content: bytes | Exception | None = None) -> Iterator[Any]:
        """Return the contents of a run: decoded if they are few, else decoded one by one.

        Args:
            run: The run.
            content: Its bytes, or the error of reading them; None if they are not yet read.
        """
        source = run.source
        if source.size > self.head.max_held:
            return self._decode_from_file(run)
        with reading_errors(source.path, self.reports):
            if content is None:
                content = self.file_io.read_range(_listed(source), source.offset, source.size)
            if isinstance(content, Exception):
                raise content
        decoded = self._decode(io.BytesIO(content), run)
        return decoded if run.size > WAITING_BYTES else iter(list(decoded))

    def _list(self, source: Source, digest: bytes) -> Source:
        """Return a source that an earlier run has read in the version that its file has now.

        Raises InputError if it does not have the bytes with that digest any more. This is the rare case of an entry of a
        list whose earlier vectors turn out to be damaged.
        """
        with reading_errors(source.path, self.reports):
            try:
                _, size, version = locate(source.path, self.file_io.read_timeout)
                source = source._replace(bytes=size, version=version)
                with self._open(source) as opened:
                    if hash_content(opened, source.size, 0)[1] == digest:
                        return source
                fault = "has other content"
            except BadRow as bad:
                fault = f"cannot be read any more ({bad.detail})"
        with self.reports.errors():
            raise InputError(
                f"{source.path}, which a list names, {fault}, and its earlier vectors are damaged: lists name files that do "
                f"not change; --force reads all of them again"
            )

    def _decode_from_file(self, run: _Run) -> Iterator[Any]:
        with self._open(run.source) as opened:
            yield from self._decode(opened, run)

    def _decode(self, opened: BinaryIO, run: _Run) -> Iterator[Any]:
        contents, end = self.head.decode(opened, run.parts), object()
        while True:
            with decoding(run.name, self.reports):
                content = next(contents, end)
            if content is end:
                return
            yield content

    @contextmanager
    def _open(self, source: Source) -> Iterator[BinaryIO]:
        """Open the bytes of a content, for a block."""
        with reading_errors(source.path, self.reports), self.file_io.open_version(_listed(source)) as raw:
            whole = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), BUFFER_BYTES))
            yield cast(BinaryIO, whole if source.is_whole else ByteRange(whole, source.offset, source.size))


def _range_of(run: _Run) -> tuple[ListedFile, int, int]:
    return _listed(run.source), run.source.offset, run.source.size


def _is_unlisted(run: _Run) -> bool:
    return run.source.bytes == NOT_LISTED


def _listed(source: Source) -> ListedFile:
    """Return the file of a source, a spill file as far as it is read."""
    return ListedFile(source.path, source.bytes or source.offset + source.size, source.version)

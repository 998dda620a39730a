"""EntryBuilder: rows of the pictures and sounds that the records of a list or of Parquet name or contain."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from ...model.head import BadRow, EncoderSettings
from ...model.media import Entry, MediaHead
from ..content import NOT_LISTED, MediaContent, Source, content_type_of, file_value
from ..io.byte_ranges import ByteRange
from ..io.in_order import map_in_order
from ..io.locate import locate
from ..io.retries import StoreError
from ..io.versions import ListedFile
from ..remote.decoder_watch import decoding
from .arrow_values import binary_paths
from .batch_builder import BatchBuilder
from .fields import lookup
from .input_files import reading_errors
from .known_entries import KnownEntries
from .media import HASHED_BYTES, digest_of, hash_content
from .read_settings import ReadSettings
from .references import Content, Inline, Reference, parse_content, parse_entry
from .shard import Batches, Record
from .shard import Part as ShardPart

READ_BYTES = 256 << 20  # of files that are read at the same time


class _Pending(NamedTuple):
    """A picture or sound of a record, before it was looked at."""

    row: int
    id: str
    content: Content
    entry: Entry | None
    kept: Sequence[object]


class _Found(NamedTuple):
    """A content that was looked at.

    Attributes:
        size: Its bytes, if the file exists.
        source: Where they are; None if they are in the record.
        digest: Their digest, if they were read.
        examined: What the head knows of them.
        bad: Why no row can have it.
    """

    size: int | None = None
    source: Source | None = None
    digest: bytes | None = None
    examined: Any = None
    bad: BadRow | None = None


class EntryBuilder(BatchBuilder):
    """Rows and rejected rows of a part of a list, or of Parquet.

    The files that the records of a block name are listed, opened, hashed and examined in threads, each once. Those of which
    `known` has all rows of their entries are not opened.
    """

    def __init__(self, part: ShardPart, settings: ReadSettings, known: KnownEntries | None = None) -> None:
        super().__init__(part, settings)
        self.head, self.encoder = cast(MediaHead, settings.head), cast(EncoderSettings, settings.encoder)
        self.root = settings.media_root or part.shard.path.rpartition("/")[0] or "/"
        self.known = known
        self._pending: list[_Pending] = []
        self._binary = frozenset[str]()

    def add_records(
        self,
        first: int,
        records: Iterable[Record | BadRow],
        kept: Sequence[Sequence[object]] | None = None,
        schema: pa.Schema | None = None,
    ) -> Batches:
        """Add the records from row `first` on; yield the batches that this completes."""
        self._binary = binary_paths(schema, self.fields) if schema else frozenset()
        yield from super().add_records(first, records, kept)
        pending, self._pending = self._pending, []
        found = self._find_known(pending)
        waiting = {key: each.content for each in pending if (key := _key(each)) not in found}
        looked = map_in_order(
            lambda each: (each[0], self._look(each[1], each[2])),
            map_in_order(self._locate, waiting.items(), self.settings.threads, lambda _: 0, READ_BYTES),
            self.settings.threads,
            lambda each: self._weight(each[2]),
            READ_BYTES,
        )
        for each in pending:
            key = _key(each)
            while key not in found:
                name, result = next(looked)
                found[name] = result
            yield from self._add_found(each, found[key])

    def _add_value(
        self,
        row: int,
        row_id: str,
        value: object,
        path: str,
        *,
        record: dict[str, object],
        kept: Sequence[object],
        kept_bytes: int,
    ) -> None:
        if isinstance(value, BadRow):
            raise value
        content = parse_content(value, path, self.root, is_binary=path in self._binary)
        fields = [None if field is None else lookup(record, field) for field in self.fields.entry]
        entry = parse_entry(*fields) if fields else None
        self._pending.append(_Pending(row, row_id, content, entry, kept))

    def _find_known(self, pending: Sequence[_Pending]) -> dict[object, _Found]:
        """Return what earlier rows of the list say of references, if there is one for every row of their entries."""
        found = dict[object, _Found]()
        if self.known is None:
            return found
        # An earlier row that names the shard itself has a content that was in it.
        references = {each.content: None for each in pending if isinstance(each.content, Reference)}
        references.pop(Reference(self.shard.path), None)
        for reference, file in zip(references, self.known.find(self.shard.name, list(references)), strict=True):
            if file:
                source = Source(reference.path, NOT_LISTED, "", reference.offset or 0, file.size)
                found[reference] = _Found(file.size, source, file.digest, file.examined)
        for each in pending:
            known = found.get(_key(each))
            if known and not self._is_known(known, each.entry):
                del found[_key(each)]
        return found

    def _is_known(self, found: _Found, entry: Entry | None) -> bool:
        """Return whether earlier rows have all parts of an entry."""
        assert self.known is not None
        assert found.digest is not None
        try:
            return self.known.have(self.head.parts_of(found.examined, found.digest, self.encoder, entry))
        except BadRow:  # the entry is behind the end of its file
            return True

    def _locate(self, waiting: tuple[object, Content]) -> tuple[object, Content, _Found]:
        """Return the size and the source of a content."""
        key, content = waiting
        if isinstance(content, Inline):
            return key, content, _Found(len(content.data))
        try:
            file = locate(content.path, self.settings.file_io.read_timeout)
            offset = content.offset or 0
            size = file.size - offset if content.size is None else content.size
            if offset + size > file.size or size < 0 or (content.offset is None and size != file.size):
                raise BadRow(
                    "not decodable",
                    f"the file has {file.size:,} bytes, and the reference says {size:,} from {offset:,} on"
                    if content.size is not None
                    else f"the file has {file.size:,} bytes, and the reference begins at {offset:,}",
                )
        except BadRow as bad:
            return key, content, _Found(content.size, bad=bad)
        except OSError as error:
            raise StoreError(f"{content.path} cannot be read: {error.strerror or error}") from error
        return key, content, _Found(size, Source(*file, offset, size))

    def _weight(self, found: _Found) -> int:
        """Return about how much memory it takes to look at a content."""
        size = found.size or 0
        if self.settings.headers_only and found.source:
            return HASHED_BYTES
        return size if size <= min(self.head.max_held, self.limit) else HASHED_BYTES

    def _look(self, content: Content, found: _Found) -> _Found:
        """Return what is known of a content that was located, once its bytes were read."""
        if found.bad:
            return found
        if isinstance(content, Inline):
            return self._examine(io.BytesIO(content.data), found)
        source = found.source
        assert source is not None
        file, file_io = ListedFile(source.path, source.bytes, source.version), self.settings.file_io
        with reading_errors(source.path, self.settings.reports):
            if self.settings.headers_only:
                header = file_io.open_headers(file)
                part = header if source.is_whole else ByteRange(header, source.offset, source.size)
                return self._examine(cast(BinaryIO, part), found)
            if not source.is_whole and source.size <= min(self.head.max_held, self.limit):
                return self._examine(io.BytesIO(file_io.read_range(file, source.offset, source.size)), found)
            with file_io.open_version(file) as whole:
                opened = whole if source.is_whole else ByteRange(whole, source.offset, source.size)
                return self._examine(cast(BinaryIO, opened), found)

    def _examine(self, opened: BinaryIO, found: _Found) -> _Found:
        size, digest = found.size or 0, None
        try:
            if size > self.limit:
                self.head.examine(opened, size, self.encoder)  # raises the rejection
            if self.settings.headers_only and found.source:
                digest = digest_of(repr(found.source).encode())
                examined = self.head.glance(opened, size, self.encoder)
            else:
                in_memory, digest = hash_content(opened, size, self.head.max_held)
                with decoding(found.source.path if found.source else self.shard.path, self.settings.reports):
                    examined = self.head.examine(in_memory or opened, size, self.encoder)
        except BadRow as bad:
            return found._replace(digest=digest, bad=bad)
        return found._replace(digest=digest, examined=examined)

    def _add_found(self, pending: _Pending, found: _Found) -> Batches:
        """Add the rows of a content, or its rejection; yield the batches that this completes."""
        content = pending.content
        path, name, offset = self.shard.path, "", None
        if isinstance(content, Inline):
            name = content.name
        else:
            path, name, offset = content.path, content.path, content.offset
        kind = content_type_of(name, self.head.types)
        file = file_value(path, offset=offset, size=found.size, content_type=kind, digest=found.digest)
        try:
            if found.bad:
                raise found.bad
            assert found.digest is not None
            parts = self.head.parts_of(found.examined, found.digest, self.encoder, pending.entry)
        except BadRow as bad:
            self.reject(pending.row, BadRow(bad.reason, bad.detail, id=pending.id), (file,))
            if self._is_full():
                yield self.flush()
            return
        source = found.source
        if source is None:
            assert isinstance(content, Inline)
            source = self.spill.add(content.data)
        for part in parts:
            row = MediaContent(file, part.values, source._replace(units=part.units), part.hash)
            yield from self.add_content(f"{pending.id}{part.fragment}", row, pending.kept, row=pending.row)


def _key(pending: _Pending) -> object:
    """Return what is equal for entries of the same bytes."""
    content = pending.content
    return (pending.row, pending.id) if isinstance(content, Inline) else content

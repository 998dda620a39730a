"""Row batches made a column at a time, from blocks of a shard in which every row is plainly good."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from .fields import BadRow, is_text
from .gathered import Gathered, shard_column
from .lines import Record

# The types of Python values that a column takes as they are.
_TAKES: dict[pa.DataType, set[type]] = {
    pa.string(): {str, type(None)},
    pa.int64(): {int, type(None)},
    pa.float64(): {float, int, type(None)},
    pa.bool_(): {bool, type(None)},
}


def rows_of_block(block: list[Record | BadRow], first: int, gathered: Gathered) -> pa.RecordBatch | None:
    """The row batch of a block in which every row is plainly good; None where a closer look is needed."""
    fields, own = gathered.fields, None
    try:
        if gathered.shard.format == "txt":
            kept = [pa.nulls(len(block), field.type) for field in gathered.kept]
            return _checked(pa.array(block, pa.string()), None, kept, first, gathered)
        texts = [record[fields.text] for record in block]  # type: ignore[index]  # what it may be instead, fails
        if set(map(type, texts)) != {str}:
            return None
        if fields.id is not None:
            ids = [record[fields.id] for record in block]  # type: ignore[index]
            types = set(map(type, ids))
            if not types <= {str, int}:
                return None
            own = pa.array(ids if types == {str} else list(map(str, ids)), pa.string())
        kept = []
        for field in gathered.kept:
            values = [record[field.name] for record in block]  # type: ignore[index]
            if not set(map(type, values)) <= _TAKES.get(field.type, set()):
                return None
            kept.append(pa.array(values, field.type))
        return _checked(pa.array(texts, pa.string()), own, kept, first, gathered)
    except (KeyError, TypeError, UnicodeEncodeError, OverflowError, pa.ArrowException):
        return None


def rows_of_parquet(batch: pa.RecordBatch, first: int, gathered: Gathered) -> pa.RecordBatch | None:
    """As rows_of_block, for a batch of a Parquet shard."""
    fields = gathered.fields
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if not {fields.text, *gathered.kept.names, *([fields.id] if fields.id else [])} <= columns.keys():
        return None
    try:
        text = _strings(columns[fields.text])
        own = _strings(columns[fields.id], numbers=True) if fields.id else None
        kept = [columns[field.name].cast(field.type) for field in gathered.kept]
        for column in (text, own, *kept):
            if column is not None:
                column.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return _checked(text, own, kept, first, gathered)


def _checked(
    text: pa.StringArray, own: pa.StringArray | None, kept: list[pa.Array], first: int, gathered: Gathered
) -> pa.RecordBatch | None:
    """The row batch of these columns, where none of their rows is to be rejected."""
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    long = pc.greater(pc.binary_length(text), gathered.limit)
    if text.null_count or pc.any(pc.or_(blank, long)).as_py():
        return None
    if own is not None and (own.null_count or (pc.max(pc.binary_length(own)).as_py() or 0) > gathered.limit):
        return None
    rows = pa.array(range(first, first + len(text)), pa.int64())
    if own is None:
        own = pc.binary_join_element_wise(f"{gathered.shard.name}#", rows.cast(pa.string()), "")
    columns = [shard_column(gathered.shard, len(text)), rows, own, text, *kept]
    return pa.RecordBatch.from_arrays(columns, schema=gathered.schema)


def _strings(column: pa.Array, *, numbers: bool = False) -> pa.StringArray:
    """A column of texts, or of whole numbers where they may be, as strings; ArrowException for anything else."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (is_text(kind) or binary or (numbers and pa.types.is_integer(kind))):
        raise pa.ArrowInvalid(f"{kind} is not text")
    return column.cast(pa.string())

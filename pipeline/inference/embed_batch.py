"""Embed a row batch: the model's vector and columns for each row, and the reason for each row it cannot embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...model.head import ContentError, DeviceError, Encoder, EncoderSettings, Head, Work
from ...model.messages import OneLineError, plural
from ..canary import Canary, make_canary
from ..embedded_batch import EmbeddedBatch
from ..errors import SnapshotError
from ..remote.worker_reports import RunReports
from ..schemas import CONTENT_HASH, EMBEDDING, arrow_field, vector_type
from .content_reader import ContentReader
from .shared_encoder import ModelDescription

MODEL_ERROR = "model error"  # the reason for a content on which the encoder raises an error


class ForbiddenRowError(OneLineError, ValueError):
    """A row that a setting of the encoder forbids, as a truncated one with --on_long error."""


@dataclass
class _Outcome:
    """What the model gave for n contents: as Encoding; a content that it failed on has the error "model error"."""

    vectors: NDArray[np.float32]  # [n, dim]
    columns: dict[str, NDArray[Any]]  # each [n]
    errors: dict[int, ContentError]
    work: Work


def embed_batch(
    rows: pa.RecordBatch,
    model: ModelDescription,
    encoder: Encoder,
    reports: RunReports = RunReports(),
    reader: ContentReader | None = None,
) -> EmbeddedBatch:
    """Return `rows` with the columns that RecordBatchHandler describes.

    Args:
        rows: Rows with the head's content.
        model: What the launcher knows of the encoder.
        encoder: The encoder.
        reports: The run's reports, which get a forbidden row.
        reader: What reads the contents that rows have references to; None if they have the contents.

    Raises:
        RuntimeError: The model fails, and on the contents of the canary too.
        DeviceError: This process can use its device no more.
        MemoryError: The memory is too small for a single content.
        ForbiddenRowError: The settings of the encoder forbid one of the rows.
    """
    head, stored = model.head, model.stored
    dictionary = rows.column(CONTENT_HASH.name if reader else head.content.name).dictionary_encode()
    n_contents = len(dictionary.dictionary)
    if reader:
        _, first = np.unique(dictionary.indices.to_numpy(), return_index=True)  # of each content the first row
        groups = reader.groups(rows.take(pa.array(first)))
        outcome = _join([_encode_good(group, head, encoder) for group in groups], head, encoder)
    else:
        outcome = _encode(dictionary.dictionary.to_pylist(), head, encoder)
    numbers, finite = _as_stored(outcome.vectors, stored)  # [contents, dim]
    errors = dict(outcome.errors)
    for place in np.flatnonzero(~finite).tolist():
        if place not in errors:
            overflows = np.isfinite(outcome.vectors[place]).all()
            fault = "does not fit float16" if overflows else "contains NaN or infinity"
            errors[place] = ContentError("non-finite vector", f"the model gave a vector that {fault}")
    check_encoder(head, encoder, stored, n_contents, errors)
    pairs = [errors.get(place, (None, None)) for place in range(n_contents)]
    indices, dim = dictionary.indices, outcome.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), type=vector_type(dim, stored))
    added = {
        **{
            column.name: pa.array(outcome.columns[column.name], arrow_field(column).type).take(indices)
            for column in head.model_columns
        },
        EMBEDDING: pa.DictionaryArray.from_arrays(indices, vectors),
        "reason": pa.array([reason for reason, _ in pairs], pa.string()).take(indices),
        "detail": pa.array([detail for _, detail in pairs], pa.string()).take(indices),
    }
    batch = pa.RecordBatch.from_arrays([*rows.columns, *added.values()], names=[*rows.schema.names, *added])
    check_allowed(batch, model.settings, reports)
    return EmbeddedBatch(batch, replace(outcome.work, items=n_contents))


def check_allowed(batch: pa.RecordBatch, settings: EncoderSettings, reports: RunReports = RunReports()) -> None:
    """Raise ForbiddenRowError, which names shard and row, if the settings of the encoder forbid a row of a batch."""
    if settings.forbidden is None:
        return
    index = pc.index(batch.column(settings.forbidden), True).as_py()
    if index >= 0:
        row = batch.slice(index, 1).drop_columns([EMBEDDING]).to_pylist()[0]
        with reports.errors():
            raise ForbiddenRowError(settings.describe_forbidden(row))


def embed_canary(model: ModelDescription, encoder: Encoder) -> Canary:
    """Return the canary of an encoder.

    Raises:
        SnapshotError: The model failed on one of the contents.
    """
    contents = model.head.canary()
    outcome = _encode(list(contents.values()), model.head, encoder)
    vectors, finite = _as_stored(outcome.vectors, model.stored)
    failed = np.flatnonzero(~finite).tolist()
    if failed:
        first = outcome.errors.get(failed[0], ContentError("", "the model gave a vector with NaN or infinity")).detail
        raise SnapshotError(
            f"the model failed on {len(failed)} of the {len(contents)} canary {model.head.items}; the first error is: "
            f"{first}; check the checkpoint, the device and its driver"
        )
    return make_canary(list(contents), vectors)


def _as_stored(vectors: NDArray[np.float32], stored: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return vectors [n, dim] in the type `stored`, and which of them are finite in it, bool [n]."""
    with np.errstate(over="ignore"):
        numbers = vectors.astype(stored, copy=False)
    return numbers, np.isfinite(numbers).all(axis=1)


def is_of_model(error: ContentError | None) -> bool:
    """Return whether a content failed in a way that may be the fault of the model."""
    return error is not None and error.reason in (MODEL_ERROR, "non-finite vector")


def check_encoder(head: Head, encoder: Encoder, stored: str, contents: int, errors: Mapping[int, ContentError]) -> None:
    """Raise RuntimeError if the canary fails as contents of a batch did: then the encoder is at fault, not they.

    It is embedded if there is a "model error", or if no content got a finite vector.

    Args:
        head: The head.
        encoder: The encoder.
        stored: The type in which vectors are stored.
        contents: How many contents the batch has.
        errors: By place in the batch.
    """
    of_model = [error for error in errors.values() if is_of_model(error)]
    raised = [error.detail for error in of_model if error.reason == MODEL_ERROR]
    if not raised and (not contents or len(of_model) < contents):
        return
    first = raised[0] if raised else "no finite vector"
    what = f"the model failed on {len(of_model)} of the {contents} {head.items} of a batch ({first})"
    remedy = "check the checkpoint, the device and its driver"
    try:
        vectors = encoder.encode_rows(list(head.canary().values())).vectors
    except DeviceError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"{what}, and on the canary {head.items}: {type(error).__name__}: {error}; {remedy}"
        ) from error
    if not _as_stored(vectors, stored)[1].all():
        raise RuntimeError(f"{what}, and gave no finite vectors for the canary {head.items}: {remedy}")


def _encode(contents: Sequence[Any], head: Head, encoder: Encoder) -> _Outcome:
    """Encode `contents`; if that fails, halve them until each one that the model cannot embed is alone."""
    try:
        encoding = encoder.encode_rows(contents)
        if len(encoding.vectors) != len(contents):
            given = plural(len(contents), head.item, head.items)
            raise RuntimeError(f"the encoder gave {plural(len(encoding.vectors), 'vector')} for {given}")
        return _Outcome(encoding.vectors, encoding.columns, encoding.errors, encoding.work)
    except DeviceError:
        raise
    except Exception as error:
        if not contents or (len(contents) == 1 and isinstance(error, MemoryError)):  # not the fault of a content
            raise
        if len(contents) == 1:
            nan = np.full((1, encoder.info.dim), np.nan, np.float32)
            columns = {column.name: np.zeros(1, column.type) for column in head.model_columns}
            failure = ContentError(MODEL_ERROR, f"{type(error).__name__}: {error}"[:1000])
            return _Outcome(nan, columns, {0: failure}, Work())
    half = len(contents) // 2
    return _join([_encode(contents[:half], head, encoder), _encode(contents[half:], head, encoder)], head, encoder)


def _encode_good(contents: Sequence[Any], head: Head, encoder: Encoder) -> _Outcome:
    """Encode contents, among which there may be the errors of some that could not be read."""
    good = [place for place, content in enumerate(contents) if not isinstance(content, ContentError)]
    outcome = _encode([contents[place] for place in good], head, encoder)
    if len(good) == len(contents):
        return outcome
    vectors = np.full((len(contents), encoder.info.dim), np.nan, np.float32)
    vectors[good] = outcome.vectors
    columns = {}
    for name, values in outcome.columns.items():
        columns[name] = np.zeros(len(contents), values.dtype)
        columns[name][good] = values
    errors = {place: content for place, content in enumerate(contents) if isinstance(content, ContentError)}
    errors |= {good[place]: error for place, error in outcome.errors.items()}
    return _Outcome(vectors, columns, errors, outcome.work)


def _join(outcomes: Sequence[_Outcome], head: Head, encoder: Encoder) -> _Outcome:
    """Return the outcomes of contents that follow each other as one."""
    joined, place = _Outcome(np.empty((0, encoder.info.dim), np.float32), {}, {}, Work()), 0
    for outcome in outcomes:
        joined.errors |= {place + each: error for each, error in outcome.errors.items()}
        joined.work += outcome.work
        place += len(outcome.vectors)
    joined.vectors = np.concatenate([joined.vectors, *(outcome.vectors for outcome in outcomes)])
    joined.columns = {
        column.name: np.concatenate([np.empty(0, column.type), *(each.columns[column.name] for each in outcomes)])
        for column in head.model_columns
    }
    return joined

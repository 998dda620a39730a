"""Embed a row batch: the model's vector and counts for each row, and the reason for each row it cannot embed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..canary import CANARY_TEXTS
from ..remote.worker_reports import report_errors
from ..schemas import vector_type

if TYPE_CHECKING:
    from ...model.text.encoder import EncodeStats, TextEncoder


class LongTextError(ValueError):
    """A text over the context length, with --on_long error."""


@dataclass
class _Outcome:
    """What the model gave for n texts: arrays of length n, and the errors of the failed ones by position."""

    vectors: NDArray[np.float32]  # [n, dim]
    n_tokens: NDArray[np.int16]
    truncated: NDArray[np.bool_]
    errors: dict[int, str]
    stats: list[EncodeStats]


def embed_batch(
    rows: pa.RecordBatch, encoder: TextEncoder, stored: str = "float32", reports_to: str | None = None
) -> pa.RecordBatch:
    """Return `rows` with the model's columns appended, as RecordBatchHandler describes.

    `stored` is the type of the vectors' numbers in the result, `reports_to` as for `check_not_truncated`. Raises
    RuntimeError if the model fails on all texts, and on the canary texts too, MemoryError if memory is too small for a
    single one, LongTextError with --on_long error.
    """
    dictionary = rows.column("text").dictionary_encode()
    texts = dictionary.dictionary.to_pylist()
    outcome = _encode(texts, encoder)
    with np.errstate(over="ignore"):
        numbers = outcome.vectors.astype(stored, copy=False)  # [texts, dim]
    failed = ~np.isfinite(numbers).all(axis=1)
    too_long = outcome.truncated & (encoder.on_long == "reject")
    if texts and (failed & ~too_long).all():
        _check_encoder(encoder, stored, len(texts), outcome.errors)
    reasons: list[str | None] = [None] * len(texts)
    details: list[str | None] = [None] * len(texts)
    for index in np.flatnonzero(failed).tolist():
        if index in outcome.errors:
            reasons[index], details[index] = "model error", outcome.errors[index]
        elif too_long[index]:
            reasons[index] = "too long"
            details[index] = f"{outcome.n_tokens[index]} tokens, the context length is {encoder.tower.context_length}"
        else:
            overflows = np.isfinite(outcome.vectors[index]).all()
            fault = "does not fit float16" if overflows else "contains NaN or infinity"
            reasons[index], details[index] = "non-finite vector", f"the model gave a vector that {fault}"
    dim = outcome.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), type=vector_type(dim, stored))
    added = {
        "n_tokens": pa.array(outcome.n_tokens).take(dictionary.indices),
        "truncated": pa.array(outcome.truncated).take(dictionary.indices),
        "embedding": pa.DictionaryArray.from_arrays(dictionary.indices, vectors),
        "reason": pa.array(reasons, pa.string()).take(dictionary.indices),
        "detail": pa.array(details, pa.string()).take(dictionary.indices),
    }
    batch = pa.RecordBatch.from_arrays([*rows.columns, *added.values()], names=[*rows.schema.names, *added])
    if encoder.on_long == "error":
        check_not_truncated(batch, reports_to)
    return batch.replace_schema_metadata({"stats": json.dumps(_sum(outcome.stats, len(texts)))})


def check_not_truncated(batch: pa.RecordBatch, reports_to: str | None = None) -> pa.RecordBatch:
    """Return an embedded batch as it is; raise LongTextError, which names shard and row, if a text was truncated.

    `reports_to` is the run directory of a remote job, whose launcher learns of the error there.
    """
    index = pc.index(batch.column("truncated"), True).as_py()
    if index >= 0:
        shard, row, text, n_tokens = (
            batch.column(name)[index].as_py() for name in ("shard", "row", "text", "n_tokens")
        )
        with report_errors(reports_to):
            raise LongTextError(
                f"{shard}, row {row}: the text has {n_tokens} tokens, more than the model reads: {text!r:.80}; shorten "
                f"it, or choose --on_long truncate or reject"
            )
    return batch


def _check_encoder(encoder: TextEncoder, stored: str, texts: int, errors: Mapping[int, str]) -> None:
    """Raise RuntimeError if the canary texts fail as all `texts` of a batch did: then the encoder is at fault."""
    what = f"the model failed on all {texts} texts of a batch ({next(iter(errors.values()), 'no finite vector')})"
    remedy = "check the checkpoint, the device and its driver"
    try:
        vectors = encoder.encode_rows(list(CANARY_TEXTS)).vectors
    except Exception as error:
        raise RuntimeError(f"{what}, and on the canary texts: {type(error).__name__}: {error}; {remedy}") from error
    with np.errstate(over="ignore"):
        if not np.isfinite(vectors.astype(stored, copy=False)).all():
            raise RuntimeError(f"{what}, and gave no finite vectors for the canary texts: {remedy}")


def _encode(texts: list[str], encoder: TextEncoder) -> _Outcome:
    """Encode `texts`; if that fails, halve them until each text that the model cannot embed is alone."""
    try:
        encoding = encoder.encode_rows(texts)
        if len(encoding.vectors) != len(texts):
            raise RuntimeError(f"the encoder gave {len(encoding.vectors)} vectors for {len(texts)} texts")
        return _Outcome(encoding.vectors, encoding.n_tokens, encoding.truncated, {}, [encoding.stats])
    except Exception as error:
        if not texts or (len(texts) == 1 and isinstance(error, MemoryError)):  # not the fault of a text
            raise
        if len(texts) == 1:
            nan = np.full((1, encoder.dim), np.nan, np.float32)
            message = f"{type(error).__name__}: {error}"[:1000]
            return _Outcome(nan, np.zeros(1, np.int16), np.zeros(1, np.bool_), {0: message}, [])
    half = len(texts) // 2
    left, right = _encode(texts[:half], encoder), _encode(texts[half:], encoder)
    return _Outcome(
        np.concatenate([left.vectors, right.vectors]),
        np.concatenate([left.n_tokens, right.n_tokens]),
        np.concatenate([left.truncated, right.truncated]),
        left.errors | {half + index: message for index, message in right.errors.items()},
        left.stats + right.stats,
    )


def _sum(stats: list[EncodeStats], texts: int) -> dict[str, float]:
    """Return the sums of the stats by name, with the number of texts as `model_texts`."""
    total: dict[str, float] = {"model_texts": texts}
    for part in stats:
        for name, value in asdict(part).items():
            total[name] = total.get(name, 0) + value
    return total

"""Row batches to embedded batches: what the model says of each row, and which rows it cannot take."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..schemas import vector_type

if TYPE_CHECKING:
    from ...model.encoder import EncodeStats, TextEncoder

# A batch of this many different texts that fail without exception says that the model is broken, not that its rows are.
ALL_FAILED = 8


@dataclass
class _Outcome:
    """What became of some texts: arrays of their length, and the failures among them by position."""

    vectors: NDArray[np.float32]
    n_tokens: NDArray[np.int16]
    truncated: NDArray[np.bool_]
    failed: dict[int, str]
    stats: list[EncodeStats]


def embed_batch(rows: pa.RecordBatch, encoder: TextEncoder, stored: str = "float32") -> pa.RecordBatch:
    """`rows` with the model's columns behind them, as RecordBatchHandler describes."""
    texts = rows.column("text").dictionary_encode()
    words = texts.dictionary.to_pylist()
    outcome = _encode_each(words, encoder)
    if len(outcome.failed) == len(words) >= ALL_FAILED:
        raise RuntimeError(f"the model failed on all {len(words)} texts of a batch; the last said {outcome.failed[0]}")
    with np.errstate(over="ignore"):
        numbers = outcome.vectors.astype(stored, copy=False)
    broken = ~np.isfinite(numbers).all(axis=1)
    long = outcome.truncated & (encoder.on_long == "reject")
    if len(words) >= ALL_FAILED and (broken & ~long).all():
        raise RuntimeError(f"the model gave no finite vector for any of the {len(words)} texts of a batch")
    reasons: list[str | None] = [None] * len(words)
    details: list[str | None] = [None] * len(words)
    for place in np.flatnonzero(broken).tolist():
        if place in outcome.failed:
            reasons[place], details[place] = "model error", outcome.failed[place]
        elif long[place]:
            reasons[place] = "too long"
            details[place] = f"{outcome.n_tokens[place]} tokens, the context holds {encoder.tower.context_length}"
        else:
            said = "does not fit float16" if np.isfinite(outcome.vectors[place]).all() else "holds NaN or infinity"
            reasons[place], details[place] = "non-finite vector", f"the model gave a vector that {said}"
    dim = outcome.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), type=vector_type(dim, stored))
    made = {
        "n_tokens": pa.array(outcome.n_tokens).take(texts.indices),
        "truncated": pa.array(outcome.truncated).take(texts.indices),
        "embedding": pa.DictionaryArray.from_arrays(texts.indices, vectors),
        "reason": pa.array(reasons, pa.string()).take(texts.indices),
        "detail": pa.array(details, pa.string()).take(texts.indices),
    }
    batch = pa.RecordBatch.from_arrays([*rows.columns, *made.values()], names=[*rows.schema.names, *made])
    return batch.replace_schema_metadata({"stats": json.dumps(_summed(outcome.stats, len(words)))})


def _encode_each(texts: list[str], encoder: TextEncoder) -> _Outcome:
    """Encode `texts`; where that fails, halve until the texts that the model cannot take stand alone."""
    try:
        encoding = encoder.encode_rows(texts)
        if len(encoding.vectors) != len(texts):
            raise RuntimeError(f"the encoder gave {len(encoding.vectors)} vectors for {len(texts)} texts")
        return _Outcome(encoding.vectors, encoding.n_tokens, encoding.truncated, {}, [encoding.stats])
    except Exception as error:
        if len(texts) == 1:
            if isinstance(error, MemoryError):  # the machine's lack and not the text's
                raise
            lost = np.full((1, encoder.dim), np.nan, np.float32)
            what = f"{type(error).__name__}: {error}"[:1000]
            return _Outcome(lost, np.zeros(1, np.int16), np.zeros(1, np.bool_), {0: what}, [])
    half = len(texts) // 2
    left, right = _encode_each(texts[:half], encoder), _encode_each(texts[half:], encoder)
    return _Outcome(
        np.concatenate([left.vectors, right.vectors]),
        np.concatenate([left.n_tokens, right.n_tokens]),
        np.concatenate([left.truncated, right.truncated]),
        left.failed | {half + place: what for place, what in right.failed.items()},
        left.stats + right.stats,
    )


def _summed(parts: list[EncodeStats], texts: int) -> dict[str, float]:
    total: dict[str, float] = {"model_texts": texts}
    for part in parts:
        for name, value in asdict(part).items():
            total[name] = total.get(name, 0) + value
    return total

"""The step of Beam YAML: rows with a text field in, the same rows with a vector behind them out."""

# No `from __future__ import annotations` here: Beam YAML reads the annotations below as the step's configuration.

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import apache_beam as beam
import numpy as np
from apache_beam.ml.transforms.base import EmbeddingTypeAdapter
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type

from .ml_transform import EmbedItems, ItemHandler

VECTOR = Sequence[np.float32]


class EmbedText(beam.PTransform):  # type: ignore[misc]
    """Adds to each row AudioCLIP's vector of its text, a list of floats.

    Raises ValueError where rows have no such field, or the new one already.

    Args:
        field: The field with the text.
        output: The field to add.
        checkpoint: "full", "partial", "untrained", or the path of a checkpoint.
        tokenizer_path: Where the vocabulary lies, if not in the place that `audioclip-text fetch vocabulary` chooses.
        prompt: What stands around each text, such as "a sound of {}".
        on_long: "truncate" or "reject" for texts over the context; rejected ones are errors.
        normalize: Whether vectors are made to length 1.
        device: "auto", "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16", in which the model computes.
        error_handling: `output` names the output that takes rows which cannot be embedded, as element, msg and stack;
            without it such a row fails the pipeline. `threshold` is the share of rows that may be errors, 1 for all.
    """

    def __init__(
        self,
        *,
        field: str = "text",
        output: str = "embedding",
        checkpoint: str = "full",
        tokenizer_path: Optional[str] = None,  # noqa: UP045 - Beam reads this form only
        prompt: str = "{}",
        on_long: str = "truncate",
        normalize: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        error_handling: Optional[dict[str, Any]] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        self._field, self._output = field, output
        self._errors = None if error_handling is None else _checked_errors(error_handling)
        self._handler = ItemHandler(
            EmbeddingTypeAdapter(partial(_texts, field), partial(_with_vectors, output)),
            checkpoint,
            tokenizer_path=tokenizer_path,
            prompt=prompt,
            on_long=on_long,
            normalize=normalize,
            device=device,
            dtype=dtype,
        )

    def expand(self, rows: beam.PCollection) -> Any:
        """Rows with their vectors; with error handling {"good": rows, its output: errors}."""
        fields = named_fields_from_element_type(rows.element_type)
        names = [name for name, _ in fields]
        if self._field not in names:
            raise ValueError(f"EmbedText: rows have no field {self._field!r}, they have {names}: set `field`")
        if self._output in names:
            raise ValueError(f"EmbedText: rows have a field {self._output!r} already: set `output` to another name")
        row = RowTypeConstraint.from_fields([*fields, (self._output, VECTOR)])
        if self._errors is None:
            return rows | EmbedItems(self._handler) | "Rows" >> beam.Map(_same).with_output_types(row)
        name, how = self._errors
        good, bad = rows | EmbedItems(self._handler).with_exception_handling(**how)
        error = RowTypeConstraint.from_fields([("element", rows.element_type), ("msg", str), ("stack", str)])
        return {
            "good": good | "Rows" >> beam.Map(_same).with_output_types(row),
            name: bad | "Errors" >> beam.MapTuple(_error).with_output_types(error),
        }


def _checked_errors(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name of the errors' output and what else Beam shall know; ValueError for anything not understood."""
    how = {key: value for key, value in dict(given).items() if not key.startswith("__")}  # Beam's line numbers
    name = how.pop("output", None)
    if not isinstance(name, str) or name == "good" or not how.keys() <= {"threshold"}:
        raise ValueError(
            f"EmbedText: error_handling is {given!r}: it takes `output`, a name other than good, and `threshold`"
        )
    return name, how


def _texts(field: str, rows: Sequence[Any]) -> list[Any]:
    return [getattr(row, field) for row in rows]


def _with_vectors(output: str, rows: Sequence[Any], vectors: Sequence[list[float]]) -> list[beam.Row]:
    return [beam.Row(**row._asdict(), **{output: vector}) for row, vector in zip(rows, vectors, strict=True)]


def _same(row: Any) -> Any:
    """What is passed through to be given its type, which a PCollection made by others cannot be."""
    return row


def _error(row: Any, error: tuple[Any, Any, Any]) -> beam.Row:
    return beam.Row(element=row, msg=str(error[1]), stack="".join(error[2]))

"""EmbedText, the transform for Beam YAML: rows with a text field to the same rows with a vector."""

# No `from __future__ import annotations` here: Beam YAML reads the annotations below as the transform's configuration.

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import apache_beam as beam
import numpy as np
from apache_beam.ml.transforms.base import EmbeddingTypeAdapter
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type

from ..model.text.settings import TextSettings
from .ml_transform import EmbedItems, ItemHandler

VECTOR = Sequence[np.float32]


class EmbedText(beam.PTransform):  # type: ignore[misc]
    """The transform that adds AudioCLIP's vector of a text field to each row, as a list of floats.

    Raises ValueError if the rows do not have that field, or already have the new one.

    Args:
        field: The field with the text.
        output: The field to add.
        checkpoint: "full", "partial", "untrained", or the path of a checkpoint.
        tokenizer_path: Path of the vocabulary; by default the one that `audioclip fetch vocabulary` writes.
        prompt: A template for each text, such as "a sound of {}".
        on_long: "truncate" or "reject" for texts longer than the context; rejected ones are errors.
        normalize: Whether to scale vectors to length 1.
        device: "auto", "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16", for the model's computation.
        error_handling: `output` names the output for rows that cannot be embedded, as element, msg and stack; without
            it such a row fails the pipeline. `threshold` is the share of rows that may be errors, 1 for all.
    """

    def __init__(
        self,
        *,
        field: str = "text",
        output: str = "embedding",
        checkpoint: str = "full",
        tokenizer_path: Optional[str] = None,  # noqa: UP045 - the only form that Beam reads
        prompt: str = "{}",
        on_long: str = "truncate",
        normalize: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        error_handling: Optional[dict[str, Any]] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        self._field, self._output = field, output
        self._errors = None if error_handling is None else _check_error_handling(error_handling)
        settings = TextSettings(
            checkpoint,
            device=device,
            dtype=dtype,
            normalize=normalize,
            tokenizer_path=tokenizer_path,
            prompt=prompt,
            on_long=on_long,
        )
        adapter = EmbeddingTypeAdapter(partial(_texts, field), partial(_with_vectors, output))
        self._handler = ItemHandler(adapter, settings)

    def expand(self, rows: beam.PCollection) -> Any:
        """Return the rows with their vectors; with error handling {"good": rows, its output: errors}."""
        fields = named_fields_from_element_type(rows.element_type)
        names = [name for name, _ in fields]
        if self._field not in names:
            raise ValueError(f"EmbedText: rows have no field {self._field!r}, they have {names}: set `field`")
        if self._output in names:
            raise ValueError(f"EmbedText: rows already have a field {self._output!r}: set `output` to another name")
        row = RowTypeConstraint.from_fields([*fields, (self._output, VECTOR)])
        if self._errors is None:
            return rows | EmbedItems(self._handler) | "SetRowType" >> beam.Map(_identity).with_output_types(row)
        name, settings = self._errors
        good, bad = rows | EmbedItems(self._handler).with_exception_handling(**settings)
        error = RowTypeConstraint.from_fields([("element", rows.element_type), ("msg", str), ("stack", str)])
        return {
            "good": good | "SetRowType" >> beam.Map(_identity).with_output_types(row),
            name: bad | "MakeErrorRows" >> beam.MapTuple(_error_row).with_output_types(error),
        }


def _check_error_handling(error_handling: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (name of the errors' output, arguments for Beam's exception handling); raise ValueError for other keys."""
    # Keys that begin so are Beam's line numbers.
    settings = {key: value for key, value in dict(error_handling).items() if not key.startswith("__")}
    name = settings.pop("output", None)
    if not isinstance(name, str) or name == "good" or not settings.keys() <= {"threshold"}:
        raise ValueError(
            f"EmbedText: error_handling is {error_handling!r}: give `output`, a name other than good, and "
            f"optionally `threshold`"
        )
    return name, settings


def _texts(field: str, rows: Sequence[Any]) -> list[Any]:
    return [getattr(row, field) for row in rows]


def _with_vectors(output: str, rows: Sequence[Any], vectors: Sequence[list[float]]) -> list[beam.Row]:
    return [_make_row({**row._asdict(), output: vector}) for row, vector in zip(rows, vectors, strict=True)]


def _make_row(fields: dict[str, Any]) -> beam.Row:
    row = beam.Row()
    row.__dict__.update(fields)  # as Row itself does, whose keyword arguments cannot contain a field `self`
    return row


def _identity(row: Any) -> Any:
    """Return the row, in a step that sets its type: a PCollection of another transform cannot be given one."""
    return row


def _error_row(row: Any, error: tuple[Any, Any, Any]) -> beam.Row:
    return beam.Row(element=row, msg=str(error[1]), stack="".join(error[2]))

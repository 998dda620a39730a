"""The labels of `classify`: read from a file, and embedded as one vector each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...model.messages import OneLineError
from ...model.text.texts import PROMPT_RULE, is_prompt
from ..io.file_io import FileIO
from ..io.paths import given_path
from .queries import check_regular, direction

if TYPE_CHECKING:
    from ...model.head import Encoder

TEXTS_AT_A_TIME = 4096


class LabelError(OneLineError, ValueError):
    """Error of a file of labels, or of a label, that cannot be used."""


class LabelText(NamedTuple):
    """A label, and a text that describes it."""

    label: str
    text: str


def read_labels(path: str) -> list[LabelText]:
    """Return the labels of a file in its order: lines of a .txt, or fields `label` and `text` of a .csv or .jsonl.

    Without a field `text` the label is the text. A label may occur several times, with several texts.

    Raises:
        LabelError: The file does not exist or is another one, or a label is missing.
    """
    suffix = path.rpartition(".")[2].lower()
    if suffix not in ("txt", "csv", "jsonl"):
        raise LabelError(
            f"--labels {path} must end in .txt, .csv or .jsonl: a label per line, or fields label and text"
        )
    check_regular(given_path(path), f"--labels {path}")
    try:
        with FileIO().open(given_path(path)) as opened:
            content = opened.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise LabelError(f"--labels {path} does not exist: give a file with a label per line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"--labels {path} cannot be read: {error}") from None
    found = []
    for number, label, text in _records(path, suffix, content):
        if not isinstance(label, str) or not label.strip():
            raise LabelError(f"--labels {path}, record {number}: the label is {label!r:.80}, expected a text")
        if text is not None and not isinstance(text, str):
            raise LabelError(f"--labels {path}, record {number}: the text is {text!r:.80}, expected a text")
        try:
            f"{label}{text}".encode()
        except UnicodeEncodeError:  # half of a pair of \\u escapes
            raise LabelError(f"--labels {path}, record {number}: {label!r:.80} has an incomplete character") from None
        found.append(LabelText(label.strip(), text.strip() if text and text.strip() else label.strip()))
    if not found:
        raise LabelError(f"--labels {path} has no label: write one per line")
    return found


def _records(path: str, suffix: str, content: str) -> Iterator[tuple[int, object, object]]:
    """Yield number, label and text of each record; blank lines are left out."""
    if suffix == "csv":
        yield from _csv_records(path, content)
        return
    for number, line in enumerate(io.StringIO(content, newline=None), 1):  # splitlines would split at U+2028, too
        if not line.strip():
            continue
        if suffix == "txt":
            yield number, line, None
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LabelError(f"--labels {path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise LabelError(f"--labels {path}, line {number} is not an object with the field label")
        yield number, record.get("label"), record.get("text")


def _csv_records(path: str, content: str) -> Iterator[tuple[int, object, object]]:
    """Yield number, label and text of each record of a csv."""
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        names = [name.strip() for name in next(filter(None, rows), ["label"])]
        for name in ("label", "text"):
            if names.count(name) > 1:
                raise LabelError(f"--labels {path} has {names.count(name)} columns {name}: leave one of them")
        if "label" not in names:
            raise LabelError(f"--labels {path} has no column label, only {', '.join(names)}: name one so")
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) > len(names):
                raise LabelError(
                    f"--labels {path}, record {number} has {len(row)} values for {len(names)} columns: put a value with "
                    f"commas in quotes"
                )
            values = dict(zip(names, row, strict=False))
            yield number, values.get("label"), values.get("text")
    except csv.Error as error:
        raise LabelError(f"--labels {path}, line {rows.line_num} is not CSV: {error}") from None


class LabelVectors(NamedTuple):
    """Different labels with their vectors.

    Attributes:
        labels: In the order of their first record.
        vectors: float64 [labels, dim], of length 1.
        note: Empty, or what users must know of the labels.
    """

    labels: list[str]
    vectors: NDArray[np.float64]
    note: str = ""


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise LabelError if a prompt has no {}."""
    for prompt in prompts:
        if not is_prompt(prompt):
            raise LabelError(f"--prompt {prompt!r:.80} is not a prompt: {PROMPT_RULE}")


def embed_labels(texts: Sequence[LabelText], prompts: Sequence[str], encoder: Encoder) -> LabelVectors:
    """Return the vector of each label: the direction of the mean of its texts' directions, each text in each prompt.

    Raises LabelError if a text cannot be embedded, and QueryError if a mean is zero.
    """
    places = {label: place for place, label in enumerate(dict.fromkeys(each.label for each in texts))}
    sums = np.zeros((len(places), encoder.info.dim))
    prompted = [(places[each.label], prompt.format(each.text)) for each in texts for prompt in prompts]
    cut = 0
    for start in range(0, len(prompted), TEXTS_AT_A_TIME):
        part = prompted[start : start + TEXTS_AT_A_TIME]
        encoding = encoder.encode_rows([text for _, text in part])
        for place, error in encoding.errors.items():
            raise LabelError(f"the text {part[place][1]!r:.80} cannot be embedded: {error.reason}: {error.detail}")
        cut += int(np.sum(encoding.columns["truncated"]))
        for (label, text), vector in zip(part, encoding.vectors, strict=True):
            sums[label] += direction(vector, f"the text {text!r:.80}")[0]
    vectors = [direction(total, f"the label {label!r:.80}")[0] for label, total in zip(places, sums, strict=True)]
    note = (
        f"{cut:,} of {len(prompted):,} texts of labels are cut to the {encoder.info.limit} tokens that the model reads"
    )
    return LabelVectors(list(places), np.stack(vectors), note if cut else "")

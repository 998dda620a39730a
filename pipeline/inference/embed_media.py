"""EmbedImage and EmbedAudio: transforms with outputs for vectors and for contents that cannot be embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue
from apache_beam.typehints import typehints
from apache_beam.utils.timestamp import Timestamp

from ...model.head import ContentError, Encoder, is_row
from ..metrics import count
from .fetch_content import content_bytes, content_name
from .media_handlers import AudioEmbeddingHandler, ImageEmbeddingHandler, MediaHandler, Outcome


class Rejected(NamedTuple):
    """A content that cannot be embedded.

    Attributes:
        element: Its key, or without a key its path, or what it is: never its bytes.
        reason: Why, as rejected rows have it: "not decodable", "too large", "missing file" and others.
        detail: The same for people, with what was found.
    """

    element: Any
    reason: str
    detail: str


# An element with its timestamp, in microseconds, which a batch does not keep: ((key,) or (), content, microseconds).
_Item = tuple[tuple[Any, ...], Any, int]


class _EmbedMedia(beam.PTransform):  # type: ignore[misc]
    """The transform over a handler of RunInference."""

    def __init__(self, handler: MediaHandler) -> None:
        super().__init__()
        seconds = handler.batch_elements_kwargs().get("max_batch_duration_secs")
        if seconds is not None:  # measured with Beam 2.77
            raise ValueError(
                f"max_batch_duration_secs={seconds!r}: leave it out, {type(self).__name__} makes batches within bundles; "
                f"Beam's batches across bundles come after the end of their window, and a GroupByKey drops them"
            )
        self._handler = handler

    def expand(self, contents: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Return the outputs `good`, of (key or content, vector), and `bad`, of Rejected."""
        outputs = (
            contents
            | "AddTimestamps" >> beam.Map(_add_timestamp)
            | RunInference(_ItemHandler(self._handler))
            | "SeparateRejected" >> beam.ParDo(_Separate()).with_outputs("bad", main="good")
        )
        given = contents.element_type
        key = given.tuple_types[0] if isinstance(given, typehints.TupleConstraint) else given
        outputs.good.element_type = typehints.Tuple[key, np.ndarray]
        outputs.bad.element_type = Rejected
        return outputs


class EmbedImage(_EmbedMedia):
    """The transform from pictures to their vectors, in which a picture that cannot be embedded costs itself alone.

    Elements are what ImageEmbeddingHandler takes, or (key, picture). The output `good` has (element, vector) or (key,
    vector), a float32 [dim], and `bad` has Rejected. Windows and timestamps are kept.

    Args:
        path: A released .pt, an image-only .safetensors, "full", "partial" or "untrained".
        settings: The keyword arguments of ImageEmbeddingHandler, but for max_batch_duration_secs.
    """

    def __init__(self, path: str, **settings: Any) -> None:
        super().__init__(ImageEmbeddingHandler(path, **settings))


class EmbedAudio(_EmbedMedia):
    """The transform from recordings to their vectors, in which one that cannot be embedded costs itself alone.

    Elements are what AudioEmbeddingHandler takes, or (key, recording). The output `good` has (element, vector) or (key,
    vector), a float32 [dim], and `bad` has Rejected. Windows and timestamps are kept.

    Args:
        path: A released .pt, an audio-only .safetensors, "full", "partial" or "untrained".
        settings: The keyword arguments of AudioEmbeddingHandler, but for max_batch_duration_secs.
    """

    def __init__(self, path: str, **settings: Any) -> None:
        super().__init__(AudioEmbeddingHandler(path, **settings))


def _add_timestamp(element: Any, timestamp: Timestamp = beam.DoFn.TimestampParam) -> _Item:
    """Return an element, (key, content) or a content alone, with its timestamp."""
    if isinstance(element, tuple) and len(element) == 2 and not is_row(element):
        return (element[0],), element[1], timestamp.micros
    return (), element, timestamp.micros


class _ItemHandler(MediaHandler):
    """The handler of items, over a handler of contents: it gives each item its outcome."""

    def __init__(self, handler: MediaHandler) -> None:
        self.__dict__.update(handler.__dict__)  # sharing, copies, batches and settings
        self._handler = handler

    def load_model(self) -> Encoder:
        """Return this process's encoder."""
        return self._handler.load_model()

    def update_model_path(self, model_path: str | None = None) -> None:
        """Use the checkpoint at `model_path` from now on."""
        self._handler.update_model_path(model_path)

    def run_inference(
        self, batch: Sequence[_Item], model: Encoder, inference_args: dict[str, object] | None = None
    ) -> list[tuple[_Item, Outcome]]:
        """Return (item, outcome) for each item, in order."""
        contents = [content for _, content, _ in batch]
        faults = [self._handler.fault(content) for content in contents]
        good = [content for content, fault in zip(contents, faults, strict=True) if not fault]
        found = iter(self._handler.outcomes(good, model, isolate=True))
        outcomes = [ContentError("wrong type", fault) if fault else next(found) for fault in faults]
        return list(zip(batch, outcomes, strict=True))

    def element_size(self, element: Any) -> int:
        """Return as how many elements one counts in a batch."""
        return self._handler.element_size(element[1])

    def get_num_bytes(self, batch: Sequence[_Item]) -> int:
        """Return the size of the contents in memory."""
        return sum(content_bytes(content) for _, content, _ in batch)


class _Separate(beam.DoFn):  # type: ignore[misc]
    """DoFn from (item, outcome) to the two outputs, with the timestamp of each item."""

    def process(self, result: tuple[_Item, Outcome]) -> Iterator[Any]:
        (key, content, micros), outcome = result
        timestamp = Timestamp(micros=micros)
        if not isinstance(outcome, ContentError):
            count("contents_embedded", 1)
            yield TimestampedValue((key[0] if key else content, outcome), timestamp)
            return
        count("contents_rejected", 1)
        count(f"contents_rejected_{outcome.reason.replace(' ', '_')}", 1)
        element = key[0] if key else content_name(content)
        yield TaggedOutput("bad", TimestampedValue(Rejected(element, *outcome), timestamp))

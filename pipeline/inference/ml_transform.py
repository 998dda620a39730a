"""AudioCLIP's texts in Beam's MLTransform: columns of rows, or any element through a type adapter, RAG's included."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.ml.rag.embeddings.base import create_text_adapter
from apache_beam.ml.rag.types import EmbeddableItem
from apache_beam.ml.transforms.base import EmbeddingsManager, EmbeddingTypeAdapter

from .model_handler import TextEmbeddingHandler

if TYPE_CHECKING:
    from ...model.encoder import TextEncoder


class AudioCLIPTextEmbeddings(EmbeddingsManager):  # type: ignore[misc]
    """What MLTransform takes: in place of each text of `columns`, or through `type_adapter`, a list of [dim] floats.

    `settings` are the keyword arguments of TextEmbeddingHandler, which are saved and loaded with the transform.
    Elements are dicts, beam.Rows or NamedTuples for `columns`, and whatever the adapter reads otherwise; none is
    changed in place. Raises ValueError where not exactly one of `columns` and `type_adapter` is given, TypeError for
    settings that the handler does not know.
    """

    def __init__(
        self,
        *,
        columns: Sequence[str] | None = None,
        type_adapter: EmbeddingTypeAdapter | None = None,
        checkpoint: str = "full",
        **settings: Any,
    ) -> None:
        if (columns is None) == (type_adapter is None):
            raise ValueError("AudioCLIPTextEmbeddings takes either columns=[...] or type_adapter=..., and one of them")
        if columns is not None and (isinstance(columns, str) or not columns):
            raise ValueError(f"columns is {columns!r}: give a list of one or more names, as columns=['caption']")
        super().__init__(columns=None if columns is None else list(columns), type_adapter=type_adapter)
        self._handler = ItemHandler(self.type_adapter, checkpoint, **settings)

    def get_model_handler(self) -> ModelHandler:
        """The handler over whole elements."""
        return self._handler

    def get_ptransform_for_processing(self, **_: object) -> beam.PTransform:
        """What MLTransform runs and saves."""
        return EmbedItems(self._handler)


class ItemHandler(TextEmbeddingHandler):
    """TextEmbeddingHandler over whole elements: an adapter finds their texts and puts the vectors in.

    Beam's own wrapper of handlers asks them for neither sharing, copies, hints nor bytes; this one is the handler.
    """

    def __init__(self, adapter: EmbeddingTypeAdapter, checkpoint: str, **settings: Any) -> None:
        super().__init__(checkpoint, **settings)
        self._adapter = adapter
        self._put_aside = False

    def texts(self, item: Any) -> list[str]:
        """The texts of one element; ValueError or TypeError, naming it, where it has none."""
        try:
            found: list[str] = self._adapter.input_fn([item])
        except Exception as error:
            raise ValueError(f"no text in {item!r:.200}: {error}") from error
        for text in found:
            if not isinstance(text, str):
                raise TypeError(f"AudioCLIPTextEmbeddings takes str, got {type(text).__name__} in {item!r:.200}")
        return found

    def run_inference(
        self, batch: Sequence[Any], model: TextEncoder, inference_args: dict[str, object] | None = None
    ) -> list[Any]:
        """The elements in order, as copies with their vectors; each is read alone, whatever keys its neighbours have."""
        self.validate_inference_args(inference_args)
        try:
            return self._embedded(batch, model)
        except Exception as error:
            if not self._put_aside or (len(batch) == 1 and isinstance(error, MemoryError)):  # the machine's fault
                raise
            if len(batch) == 1:
                return [_Failed(batch[0], error)]
        half = len(batch) // 2
        return self.run_inference(batch[:half], model) + self.run_inference(batch[half:], model)

    def _embedded(self, batch: Sequence[Any], model: TextEncoder) -> list[Any]:
        texts = [self.texts(item) for item in batch]
        found = model.encode([text for of_item in texts for text in of_item])
        if not np.isfinite(found).all():
            raise ValueError("the model gave a vector that holds NaN or infinity")
        vectors = iter(found.tolist())
        embedded = []
        for item, of_item in zip(batch, texts, strict=True):
            # Beam's adapters write into the element, which may not happen to the input of a step.
            embedded += self._adapter.output_fn([copy.copy(item)], [next(vectors) for _ in of_item])
        return embedded

    def putting_aside(self) -> ItemHandler:
        """The same handler, which halves a batch that fails until what the model cannot take stands alone."""
        other = copy.copy(self)
        other._put_aside = True
        return other

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """UTF-8 bytes of the texts."""
        return sum(super(ItemHandler, self).get_num_bytes(self.texts(item)) for item in batch)


class EmbedItems(beam.PTransform):  # type: ignore[misc]
    """RunInference over elements; with exception handling, each bad element goes to the errors alone.

    RunInference by itself gives the whole batch up for one bad element.
    """

    def __init__(self, handler: ItemHandler) -> None:
        super().__init__()
        self._handler = handler
        self._catch: dict[str, Any] | None = None

    def with_exception_handling(self, **how: Any) -> EmbedItems:
        """From here on expand gives (embedded, errors), errors as Beam's: (element, (type, message, stack))."""
        caught = EmbedItems(self._handler)
        caught._catch = how
        return caught

    def expand(self, items: beam.PCollection) -> Any:
        """Elements with their vectors."""
        if self._catch is None:
            return items | RunInference(self._handler)
        checked, unread = items | "Check" >> beam.Map(_checked, self._handler).with_exception_handling(**self._catch)
        tried = checked | RunInference(self._handler.putting_aside())
        embedded, failed = tried | "Sort out" >> beam.Map(_unless_failed).with_exception_handling(**self._catch)
        return embedded, (unread, failed | beam.MapTuple(lambda one, error: (one.item, error))) | beam.Flatten()


class _Failed(NamedTuple):
    """An element that the model could not take, and why."""

    item: Any
    error: Exception


def _checked(item: Any, handler: ItemHandler) -> Any:
    """The element, where it has texts."""
    handler.texts(item)
    return item


def _unless_failed(item: Any) -> Any:
    if isinstance(item, _Failed):
        raise item.error
    return item


def content_id(item: EmbeddableItem) -> str:
    """An id, a UUID, made of text, index and metadata: the same on every run and retry.

    Fits `chunk_id_fn` of Beam's chunking transforms. TypeError where the metadata is not what JSON can say.
    """
    said = json.dumps([item.content_string, item.index, item.metadata], sort_keys=True)
    return str(UUID(bytes=blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()))


def content_id_adapter() -> EmbeddingTypeAdapter:
    """Beam's text adapter for RAG's EmbeddableItem (Chunk), which also gives each item its content_id.

    Beam's default id is a random one, so that a retried bundle would be stored twice. Who gives ids of his own takes
    Beam's create_text_adapter.
    """
    return EmbeddingTypeAdapter(input_fn=create_text_adapter().input_fn, output_fn=_with_content_ids)


def _with_content_ids(items: Sequence[EmbeddableItem], vectors: Sequence[list[float]]) -> list[EmbeddableItem]:
    embedded: list[EmbeddableItem] = create_text_adapter().output_fn(items, vectors)
    for item in embedded:
        item.id = content_id(item)
    return embedded

"""AudioCLIP's embeddings of texts and pictures in Beam's MLTransform: columns of rows, or any element by an adapter (RAG).

MLTransform saves its transforms by name. What it saves of this module (EmbedItems, ItemHandler, ImageItemHandler, images_of,
embed_with_content_ids) and the settings in audioclip_beam.model are therefore public names, which do not change within one
ARTIFACT_FORMAT.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.ml.rag.embeddings.base import create_text_adapter
from apache_beam.ml.rag.types import EmbeddableItem
from apache_beam.ml.transforms.base import EmbeddingsManager, EmbeddingTypeAdapter

from ..model.head import DeviceError
from ..model.text.settings import TextSettings
from .inference.item_handlers import ARTIFACT_FORMAT, Failure, ImageItemHandler, contents_of, with_vectors
from .inference.model_handler import TextEmbeddingHandler

if TYPE_CHECKING:
    from ..model.text.encoder import TextEncoder


class _Embeddings(EmbeddingsManager):  # type: ignore[misc]
    """What the transforms of texts and of pictures share."""

    _handler: ItemHandler | ImageItemHandler

    def __init__(self, columns: Sequence[str] | None, type_adapter: EmbeddingTypeAdapter | None) -> None:
        if (columns is None) == (type_adapter is None):
            raise ValueError(
                f"{type(self).__name__} got columns={columns!r} and type_adapter={type_adapter!r}: give exactly one of "
                f"the two"
            )
        if columns is not None and (isinstance(columns, str) or not columns):
            raise ValueError(f"columns={columns!r}: give a list of one or more names, as in columns=['caption']")
        super().__init__(columns=None if columns is None else list(columns), type_adapter=type_adapter)

    def get_model_handler(self) -> ModelHandler:
        """Return the handler for whole elements."""
        return self._handler

    def get_ptransform_for_processing(self, **_: object) -> beam.PTransform:
        """Return the transform that MLTransform runs and saves."""
        return EmbedItems(self._handler)


class AudioCLIPTextEmbeddings(_Embeddings):
    """Transform for MLTransform: replaces each text of `columns` by its vector, a list of floats [dim].

    No element is changed in place.

    Args:
        columns: Names of columns; elements are dicts, beam.Rows or NamedTuples.
        type_adapter: Finds the texts and stores the vectors, instead of `columns`.
        settings: The keyword arguments of TextEmbeddingHandler; they are saved and loaded with the transform.

    Raises:
        ValueError: unless exactly one of `columns` and `type_adapter` is given.
        TypeError: for a setting that the handler does not have.
    """

    def __init__(
        self,
        *,
        columns: Sequence[str] | None = None,
        type_adapter: EmbeddingTypeAdapter | None = None,
        checkpoint: str = "full",
        **settings: Any,
    ) -> None:
        super().__init__(columns, type_adapter)
        of_encoder = {name: settings.pop(name) for name in TextSettings.__dataclass_fields__ if name in settings}
        self._handler = ItemHandler(self.type_adapter, TextSettings(checkpoint, **of_encoder), **settings)


class AudioCLIPImageEmbeddings(_Embeddings):
    """Transform for MLTransform: replaces each picture of `columns` by its vector, a list of floats [dim].

    A picture is a path or URI, or the bytes of a file. No element is changed in place.

    Args:
        columns: Names of columns; elements are dicts, beam.Rows or NamedTuples.
        type_adapter: Finds the pictures and stores the vectors, instead of `columns`: image_adapter for Beam's items.
        settings: The keyword arguments of ImageEmbeddingHandler; they are saved and loaded with the transform.

    Raises:
        ValueError: unless exactly one of `columns` and `type_adapter` is given.
        TypeError: for a setting that the handler does not have.
    """

    def __init__(
        self,
        *,
        columns: Sequence[str] | None = None,
        type_adapter: EmbeddingTypeAdapter | None = None,
        checkpoint: str = "full",
        **settings: Any,
    ) -> None:
        super().__init__(columns, type_adapter)
        self._handler = ImageItemHandler(self.type_adapter, checkpoint, **settings)


class ItemHandler(TextEmbeddingHandler):
    """TextEmbeddingHandler for whole elements: an adapter finds their texts and stores the vectors.

    Beam's own wrapper of a handler does not pass on sharing, model copies, hints and sizes, so this is not a wrapper.
    """

    def __init__(self, adapter: EmbeddingTypeAdapter, settings: TextSettings, **batching: Any) -> None:
        super().__init__(**asdict(settings), **batching)
        self._adapter = adapter
        self._isolates_failures = False
        self._format = ARTIFACT_FORMAT

    def contents(self, item: Any) -> list[str]:
        """Return the texts of an element. Raise ValueError or TypeError, which quote the element, if it has none."""
        texts: list[str] = contents_of(item, self._adapter, "text")
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(
                    f"AudioCLIPTextEmbeddings takes str, got {type(text).__name__} in {item!r:.200}: give a text"
                )
        return texts

    def run_inference(
        self, batch: Sequence[Any], model: TextEncoder, inference_args: dict[str, object] | None = None
    ) -> list[Any]:
        """Return copies of the elements with their vectors, in order. Elements of a batch may have different keys."""
        self.validate_inference_args(inference_args)
        try:
            return self._embed(batch, model)
        except DeviceError:  # never the fault of an element
            raise
        except Exception as error:
            # Too little memory for one element is a fault of the machine, not of the element.
            if not self._isolates_failures or not batch or (len(batch) == 1 and isinstance(error, MemoryError)):
                raise
            if len(batch) == 1:
                return [Failure(batch[0], error)]
        half = len(batch) // 2
        return self.run_inference(batch[:half], model) + self.run_inference(batch[half:], model)

    def _embed(self, batch: Sequence[Any], model: TextEncoder) -> list[Any]:
        texts_by_item = [self.contents(item) for item in batch]
        embeddings = model.encode([text for texts in texts_by_item for text in texts])  # [texts, dim]
        if not np.isfinite(embeddings).all():
            raise ValueError("the model gave a vector with NaN or infinity")
        vectors = iter(embeddings.tolist())
        return [
            with_vectors(item, [next(vectors) for _ in texts], self._adapter)
            for item, texts in zip(batch, texts_by_item, strict=True)
        ]

    def isolating_failures(self) -> ItemHandler:
        """Return a copy that halves a failed batch until each element that the model cannot embed is alone."""
        other = copy.copy(self)
        other._isolates_failures = True
        return other

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return the size of the texts in UTF-8."""
        return sum(super(ItemHandler, self).get_num_bytes(self.contents(item)) for item in batch)


class EmbedItems(beam.PTransform):  # type: ignore[misc]
    """RunInference on elements; with exception handling, only the elements that fail are errors.

    RunInference's own exception handling drops the whole batch for one bad element.
    """

    def __init__(self, handler: ItemHandler | ImageItemHandler) -> None:
        super().__init__()
        self._handler = handler
        self._error_handling: dict[str, Any] | None = None

    def with_exception_handling(self, **settings: Any) -> EmbedItems:
        """Return a transform whose output is (embedded, errors), with errors as Beam's: (element, (type, text, stack))."""
        other = EmbedItems(self._handler)
        other._error_handling = settings
        return other

    def expand(self, items: beam.PCollection) -> Any:
        """Return the elements with their vectors."""
        handler = _check_format(self)
        if self._error_handling is None:
            return items | RunInference(handler)
        checked, without_content = items | "CheckContents" >> beam.Map(
            _check_contents, handler
        ).with_exception_handling(**self._error_handling)
        results = checked | RunInference(handler.isolating_failures())
        embedded, failed = results | "SeparateFailures" >> beam.Map(_raise_failure).with_exception_handling(
            **self._error_handling
        )
        failed_items = failed | "UnwrapFailures" >> beam.MapTuple(lambda result, error: (result.item, error))
        return embedded, (without_content, failed_items) | beam.Flatten()


def _check_format(transform: EmbedItems) -> ItemHandler | ImageItemHandler:
    """Return the transform's handler. Raise ValueError if it comes from an artifact of another format."""
    handler = getattr(transform, "_handler", None)
    found = getattr(handler, "_format", None)
    if found != ARTIFACT_FORMAT or not isinstance(handler, ItemHandler | ImageItemHandler):
        raise ValueError(
            f"this MLTransform artifact has format {found}, and this version of audioclip-beam reads format "
            f"{ARTIFACT_FORMAT}: write it again with write_artifact_location"
        )
    return handler


def _check_contents(item: Any, handler: ItemHandler | ImageItemHandler) -> Any:
    """Return the element; raise ValueError or TypeError if it has no content."""
    handler.contents(item)
    return item


def _raise_failure(result: Any) -> Any:
    if isinstance(result, Failure):
        raise result.error
    return result


def content_id(item: EmbeddableItem) -> str:
    """Return an id, a UUID, made of text or picture, index and metadata: the same in every run and retry.

    Can be the `chunk_id_fn` of Beam's chunking transforms. Raises TypeError if JSON cannot represent the metadata.
    """
    image = item.content.image
    of_bytes = item.content.text is None and isinstance(image, bytes)
    found = f"blake2b:{blake2b(image, digest_size=16).hexdigest()}" if of_bytes else item.content_string
    content = json.dumps([found, item.index, item.metadata], sort_keys=True)
    return str(UUID(bytes=blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()))


def image_adapter() -> EmbeddingTypeAdapter:
    """Return an adapter for the pictures of EmbeddableItem.from_image, as Beam's create_text_adapter is for texts."""
    return EmbeddingTypeAdapter(input_fn=images_of, output_fn=create_text_adapter().output_fn)


def content_id_adapter(content: str = "text") -> EmbeddingTypeAdapter:
    """Return an adapter for RAG's EmbeddableItem (Chunk) that also sets each item's id to its content_id.

    Beam's default id is random, so that a retried bundle would be stored twice. To keep ids that the items already have,
    use Beam's create_text_adapter, or image_adapter.

    Args:
        content: What the items have: "text" or "image".

    Raises:
        ValueError: It is another word.
    """
    if content not in ("text", "image"):
        raise ValueError(f"content={content!r}: choose text or image")
    input_fn = create_text_adapter().input_fn if content == "text" else images_of
    return EmbeddingTypeAdapter(input_fn=input_fn, output_fn=embed_with_content_ids)


def images_of(items: Sequence[EmbeddableItem]) -> list[bytes | str]:
    """Return the pictures of items, as bytes, paths or URIs. Raise ValueError if an item has none."""
    images = [item.content.image for item in items]
    if None in images:
        raise ValueError("the item has no picture: make it by EmbeddableItem.from_image")
    return images


def embed_with_content_ids(items: Sequence[EmbeddableItem], vectors: Sequence[list[float]]) -> list[EmbeddableItem]:
    """Return the items with their vectors, each with its content_id."""
    embedded: list[EmbeddableItem] = create_text_adapter().output_fn(items, vectors)
    for item in embedded:
        item.id = content_id(item)
    return embedded

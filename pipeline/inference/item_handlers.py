"""ImageItemHandler: whole elements to the same elements with the vectors of their pictures, for MLTransform."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from apache_beam.ml.transforms.base import EmbeddingTypeAdapter

from ...model.head import ContentError
from .media_handlers import ImageEmbeddingHandler, error_of

if TYPE_CHECKING:
    from ...model.head import Encoder

ARTIFACT_FORMAT = 1  # of what MLTransform saves; raised when an older artifact would load wrongly


class Failure(NamedTuple):
    """An element that the model could not embed, and the reason."""

    item: Any
    error: Exception


class ImageItemHandler(ImageEmbeddingHandler):
    """ImageEmbeddingHandler for whole elements: an adapter finds their pictures and stores the vectors."""

    def __init__(self, adapter: EmbeddingTypeAdapter, path: str, **settings: Any) -> None:
        super().__init__(path, **settings)
        self._adapter = adapter
        self._isolates_failures = False
        self._format = ARTIFACT_FORMAT

    def contents(self, item: Any) -> list[Any]:
        """Return the pictures of an element. Raise ValueError or TypeError, which quote the element, if it has none."""
        pictures: list[Any] = contents_of(item, self._adapter, "picture")
        for picture in pictures:
            if fault := self.fault(picture):
                raise TypeError(f"AudioCLIPImageEmbeddings: {fault}; the element is {_quote(item)}")
        return pictures

    def run_inference(
        self, batch: Sequence[Any], model: Encoder, inference_args: dict[str, object] | None = None
    ) -> list[Any]:
        """Return copies of the elements with their vectors, in order. Elements of a batch may have different keys."""
        self.validate_inference_args(inference_args)
        pictures = [self.contents(item) for item in batch]
        outcomes = iter(self.outcomes(list(chain(*pictures)), model, isolate=self._isolates_failures))
        embedded = []
        for item, found in zip(batch, pictures, strict=True):
            results = [next(outcomes) for _ in found]
            errors = (error_of(picture, each) for picture, each in zip(found, results, strict=True))
            if error := next(filter(None, errors), None):
                if not self._isolates_failures:
                    raise error
                embedded.append(Failure(item, error))
                continue
            embedded.append(
                with_vectors(
                    item, [each.tolist() for each in results if not isinstance(each, ContentError)], self._adapter
                )
            )
        return embedded

    def isolating_failures(self) -> ImageItemHandler:
        """Return a copy that gives a failure for each element that has no vector."""
        other = copy.copy(self)
        other._isolates_failures = True
        return other

    def element_size(self, element: Any) -> int:
        """Return as how many elements one counts in a batch."""
        try:
            return max(map(super().element_size, self._adapter.input_fn([element])), default=1)
        except Exception:  # it has no picture, and run_inference raises the error
            return 1

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return the size of the pictures in memory."""
        return sum(super(ImageItemHandler, self).get_num_bytes(self.contents(item)) for item in batch)


def contents_of(item: Any, adapter: EmbeddingTypeAdapter, what: str) -> list[Any]:
    """Return the contents that an adapter finds in an element. Raise ValueError or TypeError, which quote the element."""
    try:
        return list(adapter.input_fn([item]))
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"no {what} in {_quote(item)}: {error}") from error


def _quote(item: Any) -> str:
    return f"{item!r:.200}"


def with_vectors(item: Any, vectors: list[list[float]], adapter: EmbeddingTypeAdapter) -> Any:
    """Return a copy of an element with its vectors: Beam's adapters write into it, but a step must not change its input."""
    return adapter.output_fn([copy.copy(item)], vectors)[0]


# MLTransform saves this class by its module: by the public one, which does not change.
ImageItemHandler.__module__ = __name__.replace(".inference.item_handlers", ".ml_transform")

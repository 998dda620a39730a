"""AudioCLIPImageEmbeddings in Beam's MLTransform: columns, EmbeddableItem.from_image, artifacts, and bad pictures."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.rag.types import EmbeddableItem
from apache_beam.ml.transforms.base import MLTransform
from apache_beam.testing.util import assert_that

from audioclip_beam.model import ImageEncoder
from audioclip_beam.pipeline import AudioCLIPImageEmbeddings
from audioclip_beam.pipeline.ml_transform import content_id, content_id_adapter, image_adapter
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import save_small_head

PICTURES = [encoded(picture(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"checkpoint": save_small_head(tmp_path_factory.mktemp("head") / "small.pt"), "device": "cpu"}


@pytest.fixture(scope="module")
def expected(settings: dict[str, Any]) -> np.ndarray:
    """The vectors of PICTURES."""
    return ImageEncoder.load(settings["checkpoint"], device="cpu").encode(PICTURES)


def close(vector: Any, expected: np.ndarray) -> bool:
    assert isinstance(vector, list)
    return np.allclose(vector, expected, rtol=1e-4, atol=1e-5)


def test_columns_of_pictures_and_the_saved_transform(
    settings: dict[str, Any], expected: np.ndarray, tmp_path: Path
) -> None:
    """Bytes and paths become lists of floats; the artifact is enough to do the same again."""
    path, place = tmp_path / "a.png", str(tmp_path / "artifacts")
    path.write_bytes(PICTURES[1])
    rows = [{"n": 0, "picture": PICTURES[0]}, {"n": 1, "picture": str(path)}]

    def check(found: list[dict[str, Any]]) -> None:
        assert sorted(row["n"] for row in found) == [0, 1]
        assert all(close(row["picture"], expected[row["n"]]) for row in found)

    transform = AudioCLIPImageEmbeddings(columns=["picture"], **settings)
    for how in (
        MLTransform(write_artifact_location=place).with_transform(transform),
        MLTransform(read_artifact_location=place),
    ):
        with beam.Pipeline("FnApiRunner") as pipeline:
            assert_that(pipeline | beam.Create(rows) | how, check)
    saved = (tmp_path / "artifacts" / "attributes.json").read_text()
    assert set(re.findall(r"audioclip_beam[\w.]+", saved)) == {
        "audioclip_beam.model.ImageSettings",
        "audioclip_beam.pipeline.ml_transform.EmbedItems",
        "audioclip_beam.pipeline.ml_transform.ImageItemHandler",
    }


def test_an_artifact_with_an_adapter_names_public_paths_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    """A later move of a module does not break saved transforms."""
    for adapter in (image_adapter(), content_id_adapter("image")):
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        how = MLTransform(write_artifact_location=str(place)).with_transform(
            AudioCLIPImageEmbeddings(type_adapter=adapter, **settings)
        )
        _ = beam.Pipeline() | beam.Create([EmbeddableItem.from_image("a.png")]) | how
        for path in set(re.findall(r"audioclip_beam[\w.]+", (place / "attributes.json").read_text())):
            module, _, name = path.rpartition(".")
            assert module in ("audioclip_beam.model", "audioclip_beam.pipeline.ml_transform"), path
            assert callable(getattr(import_module(module), name))


def test_items_of_pictures(settings: dict[str, Any], expected: np.ndarray, tmp_path: Path) -> None:
    """EmbeddableItem.from_image takes bytes, a path or a URI; ids stay, or follow from the content alone."""
    path = tmp_path / "a.png"
    path.write_bytes(PICTURES[1])
    items = [
        EmbeddableItem.from_image(PICTURES[0], metadata={"n": 0}),
        EmbeddableItem.from_image(str(path), metadata={"n": 1}),
        EmbeddableItem.from_image(path.as_uri(), metadata={"n": 1}),
    ]
    for adapter in (image_adapter(), content_id_adapter("image")):
        handler = AudioCLIPImageEmbeddings(type_adapter=adapter, **settings).get_model_handler()
        embedded = handler.run_inference(items, handler.load_model())
        assert all(close(each.dense_embedding, expected[each.metadata["n"]]) for each in embedded)
        assert all(each.embedding is None for each in items)
        same = [each.id for each in embedded] == [each.id for each in items]
        assert same == (adapter.output_fn is image_adapter().output_fn)
    assert [each.id for each in embedded] == [content_id(each) for each in items]
    assert len({str(UUID(each.id)) for each in embedded}) == 3
    again = EmbeddableItem.from_image(PICTURES[0], metadata={"n": 0})
    assert content_id(again) == content_id(items[0]) != content_id(EmbeddableItem.from_image(PICTURES[1]))


def test_only_bad_pictures_are_errors(settings: dict[str, Any], expected: np.ndarray, tmp_path: Path) -> None:
    """With exception handling each is an error of its element only, which says why; without, the pipeline fails."""
    bad = {"junk": b"junk", "null": None, "missing": str(tmp_path / "none.png"), "number": 3, "empty": b""}
    rows = [{"n": n, "picture": content} for n, content in enumerate(PICTURES)]
    rows += [{"n": name, "picture": content} for name, content in bad.items()] + [{"n": "column"}]

    def check_good(found: list[dict[str, Any]]) -> None:
        assert sorted(row["n"] for row in found) == [0, 1, 2]
        assert all(close(row["picture"], expected[row["n"]]) for row in found)

    def check_bad(found: list[Any]) -> None:
        errors = {each.element["n"]: each.msg for each in found}
        words = {
            "junk": "not decodable",
            "null": "None .NoneType. is not a picture",
            "missing": "missing file: No such",
        }
        words |= {"number": "3 .int. is not a picture", "empty": "empty file", "column": "no picture in"}
        assert set(errors) == set(words)
        assert all(re.search(words[name], message) for name, message in errors.items()), errors

    transform = AudioCLIPImageEmbeddings(columns=["picture"], **settings)
    how = MLTransform(write_artifact_location=str(tmp_path / "a")).with_transform(transform)
    with beam.Pipeline("FnApiRunner") as pipeline:
        good, errors = pipeline | beam.Create(rows) | how.with_exception_handling()
        assert_that(good, check_good, "good")
        assert_that(errors, check_bad, "bad")
    handler = transform.get_model_handler()
    with pytest.raises(ValueError, match=r"^4 bytes .*: not decodable: "):
        handler.run_inference([rows[0], rows[3]], handler.load_model())


def test_settings_batches_and_wrong_arguments(settings: dict[str, Any]) -> None:
    transform = AudioCLIPImageEmbeddings(columns=["a", "b"], **settings, max_batch_size=16, large_model=True)
    handler = transform.get_model_handler()
    assert handler.batch_elements_kwargs()["max_batch_size"] == 16
    assert handler.share_model_across_processes()
    assert handler.element_size({"a": b"x", "b": bytes(20 << 20)}) == 5
    assert handler.element_size({"c": 1}) == 1
    assert handler.get_num_bytes([{"a": b"xy", "b": "é.png"}]) == 2 + 6
    for arguments in ({}, {"columns": ["a"], "type_adapter": image_adapter()}):
        with pytest.raises(ValueError, match="^AudioCLIPImageEmbeddings got .* give exactly one of the two"):
            AudioCLIPImageEmbeddings(**settings, **arguments)
    with pytest.raises(TypeError, match="temperature"):
        AudioCLIPImageEmbeddings(columns=["a"], temperature=1, **settings)
    with pytest.raises(ValueError, match="content='sound': choose text or image"):
        content_id_adapter("sound")

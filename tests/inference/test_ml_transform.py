"""AudioCLIPTextEmbeddings in Beam's MLTransform: artifacts, settings, bad elements, and RAG into vector databases."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.rag.embeddings.base import create_text_adapter
from apache_beam.ml.rag.ingestion.base import VectorDatabaseWriteTransform
from apache_beam.ml.rag.ingestion.jdbc_common import ConnectionConfig
from apache_beam.ml.rag.ingestion.postgres import PostgresVectorWriterConfig
from apache_beam.ml.rag.ingestion.postgres_common import ConflictResolution
from apache_beam.ml.rag.types import Chunk, Content, EmbeddableItem
from apache_beam.ml.transforms.base import MLTransform
from apache_beam.testing.util import assert_that

from audioclip_beam.model import TextEncoder
from audioclip_beam.pipeline import AudioCLIPTextEmbeddings
from audioclip_beam.pipeline.ml_transform import EmbedItems, content_id, content_id_adapter

TEXTS = ["dog barking", "rain on a tin roof", "thunder"]
Vectors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def settings(small_head: str, vocabulary: Path) -> dict[str, Any]:
    """Return the settings for a text head with two layers."""
    return {"checkpoint": small_head, "tokenizer_path": str(vocabulary), "device": "cpu"}


@pytest.fixture(scope="module")
def expected(settings: dict[str, Any]) -> Vectors:
    arguments = dict(settings)
    return dict(zip(TEXTS, TextEncoder.load(arguments.pop("checkpoint"), **arguments).encode(TEXTS), strict=True))


def collect(build: Callable[[beam.Pipeline], dict[str, beam.PCollection]]) -> dict[str, list[Any]]:
    """Return the elements of the PCollections that `build` makes, by name, by way of files: steps run as pickled copies."""
    with TemporaryDirectory() as folder:
        with beam.Pipeline("FnApiRunner") as pipeline:
            for name, collection in build(pipeline).items():

                def keep(elements: list[Any], file: str = f"{folder}/{name}") -> None:
                    Path(file).write_bytes(pickle.dumps(elements))

                assert_that(collection, keep, label=name)
        return {file.name: pickle.loads(file.read_bytes()) for file in Path(folder).iterdir()}


def close(vector: list[float], expected: np.ndarray) -> bool:
    assert isinstance(vector, list)
    return np.allclose(vector, expected, atol=1e-5)


def test_a_saved_transform_gives_the_same_vectors(settings: dict[str, Any], expected: Vectors, tmp_path: Path) -> None:
    """MLTransform saves the transform, and needs nothing but the artifact to run it."""
    place = str(tmp_path / "artifacts")
    rows = [{"caption": text, "n": n} for n, text in enumerate(TEXTS)]
    transform = AudioCLIPTextEmbeddings(columns=["caption"], **settings)
    for how in (
        MLTransform(write_artifact_location=place).with_transform(transform),
        MLTransform(read_artifact_location=place),
    ):
        found = collect(lambda pipeline, how=how: {"rows": pipeline | beam.Create(rows) | how})["rows"]
        assert sorted(row["n"] for row in found) == [0, 1, 2]
        assert all(close(row["caption"], expected[TEXTS[row["n"]]]) for row in found)


def test_the_loaded_transform_keeps_every_setting(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharing, model copies, batch sizes, hints, sizes, namespace and the encoder's settings are in the artifact."""
    handlers = []
    expand = EmbedItems.expand
    monkeypatch.setattr(
        EmbedItems, "expand", lambda self, items: [handlers.append(self._handler), expand(self, items)][1]
    )
    original = AudioCLIPTextEmbeddings(
        columns=["caption"],
        **settings,
        prompt="a sound of {}",
        normalize=True,
        on_long="reject",
        dtype="bfloat16",
        min_batch_size=3,
        max_batch_size=7,
        large_model=True,
        model_copies=2,
    )
    for how in ("write", "read"):
        transform = MLTransform(**{f"{how}_artifact_location": str(tmp_path / "artifacts")})
        _ = (
            beam.Pipeline()
            | beam.Create([{"caption": "a"}])
            | (transform.with_transform(original) if how == "write" else transform)
        )
    written, read = handlers
    assert read is not written
    encoder = read.load_model()
    assert encoder is written.load_model()
    assert (encoder.settings.prompt, encoder.settings.normalize, encoder.settings.on_long) == (
        "a sound of {}",
        True,
        "reject",
    )
    assert encoder.info.fingerprint_parts["dtype"] == "bfloat16"
    for handler in handlers:
        assert handler.share_model_across_processes()
        assert handler.model_copies() == 2
        assert handler.batch_elements_kwargs() == {"min_batch_size": 3, "max_batch_size": 7}
        assert handler.get_resource_hints() == {}
        assert handler.get_metrics_namespace() == "audioclip_beam"
        assert handler.get_num_bytes([{"caption": "dog"}, {"caption": "é", "n": 1}]) == 5
        with pytest.raises(ValueError, match="takes no inference_args"):
            handler.validate_inference_args({"temperature": 1})


# What the documentation promises of an artifact: it names these and nothing else of this project.
SAVED = {
    "columns": {
        "audioclip_beam.model.TextSettings",
        "audioclip_beam.pipeline.ml_transform.EmbedItems",
        "audioclip_beam.pipeline.ml_transform.ItemHandler",
    },
    "type_adapter": {
        "audioclip_beam.model.TextSettings",
        "audioclip_beam.pipeline.ml_transform.EmbedItems",
        "audioclip_beam.pipeline.ml_transform.ItemHandler",
        "audioclip_beam.pipeline.ml_transform.embed_with_content_ids",
    },
}


def transform_of(kind: str, settings: dict[str, Any]) -> AudioCLIPTextEmbeddings:
    """Return a transform of columns or with a type adapter."""
    if kind == "columns":
        return AudioCLIPTextEmbeddings(columns=["caption"], **settings)
    return AudioCLIPTextEmbeddings(type_adapter=content_id_adapter(), **settings)


def save_artifact(place: Path, transform: AudioCLIPTextEmbeddings) -> Path:
    """Write the artifact of a transform without running a pipeline; return its attributes.json."""
    how = MLTransform(write_artifact_location=str(place)).with_transform(transform)
    _ = beam.Pipeline() | beam.Create([{"caption": "a"}]) | how
    return place / "attributes.json"


@pytest.mark.parametrize("kind", ["columns", "type_adapter"])
def test_an_artifact_names_public_paths_alone(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """A later move of a module does not break saved transforms."""
    saved = save_artifact(tmp_path / "artifact", transform_of(kind, settings)).read_text()
    named = set(re.findall(r"audioclip_beam[\w.]+", saved))
    assert named == SAVED[kind]
    for path in named:
        module, _, name = path.rpartition(".")
        assert callable(getattr(import_module(module), name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["columns", "type_adapter"])
def test_another_process_loads_an_artifact(
    kind: str, settings: dict[str, Any], expected: Vectors, tmp_path: Path
) -> None:
    """It imports nothing of this project itself."""
    place = tmp_path / "artifact"
    save_artifact(place, transform_of(kind, settings))
    element = "{'caption': 'thunder'}" if kind == "columns" else "EmbeddableItem.from_text('thunder')"
    vector = "row['caption']" if kind == "columns" else "row.dense_embedding"
    code = (
        "import json, sys\n"
        "import apache_beam as beam\n"
        "from apache_beam.ml.rag.types import EmbeddableItem\n"
        "from apache_beam.ml.transforms.base import MLTransform\n"
        "with beam.Pipeline('FnApiRunner') as pipeline:\n"
        f"    rows = pipeline | beam.Create([{element}]) | MLTransform(read_artifact_location=sys.argv[1])\n"
        f"    _ = rows | beam.Map(lambda row: print(json.dumps({vector})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert close(json.loads(done.stdout.splitlines()[-1]), expected["thunder"])


def test_an_artifact_of_another_format_is_a_clear_error(settings: dict[str, Any], tmp_path: Path) -> None:
    """Also one that was written before artifacts had a format, whose classes do not all exist any more."""
    file = save_artifact(tmp_path / "artifact", AudioCLIPTextEmbeddings(columns=["caption"], **settings))
    saved = file.read_text()
    for old, new, found in (
        ('"_format": 1', '"_format": 2', "2"),
        ('"_format": 1', '"_put_aside": false', "None"),
        ("ml_transform.ItemHandler", "embedding.ItemHandler", "None"),
    ):
        assert old in saved
        file.write_text(saved.replace(old, new).replace("model.TextSettings", "model.settings.TextSettings"))
        rows = beam.Pipeline() | beam.Create([{"caption": "a"}])
        message = f"artifact has format {found}, and this version of audioclip-beam reads format 1: write it again"
        with pytest.raises(ValueError, match=message):
            _ = rows | MLTransform(read_artifact_location=str(file.parent))


def test_rows_of_all_kinds_and_two_columns(settings: dict[str, Any], expected: Vectors, tmp_path: Path) -> None:
    """beam.Rows stay Rows; each of two columns gets the vector of its text."""
    rows = [beam.Row(title=TEXTS[0], caption=TEXTS[1]), beam.Row(title=TEXTS[2], caption=TEXTS[0])]
    transform = AudioCLIPTextEmbeddings(columns=["title", "caption"], **settings)
    how = MLTransform(write_artifact_location=str(tmp_path / "a"), transforms=[transform])
    found = collect(lambda pipeline: {"rows": pipeline | beam.Create(rows) | how})["rows"]
    assert sum(close(row.title, expected[TEXTS[0]]) and close(row.caption, expected[TEXTS[1]]) for row in found) == 1
    assert sum(close(row.title, expected[TEXTS[2]]) and close(row.caption, expected[TEXTS[0]]) for row in found) == 1


def test_elements_are_not_changed_in_place(settings: dict[str, Any]) -> None:
    """Other steps may read the same elements."""
    handler = AudioCLIPTextEmbeddings(columns=["caption"], **settings).get_model_handler()
    rows = [{"caption": "dog"}, {"caption": "cat", "only here": 1}]
    embedded = handler.run_inference(rows, handler.load_model())
    assert rows == [{"caption": "dog"}, {"caption": "cat", "only here": 1}]
    assert [set(row) for row in embedded] == [{"caption"}, {"caption", "only here"}]


def test_a_model_that_fails_on_no_elements_is_an_error(settings: dict[str, Any]) -> None:
    """A batch without elements cannot be halved: the model's own error is raised."""

    class Broken:
        def encode(self, texts: list[str]) -> None:
            raise RuntimeError("the model is broken")

    handler = AudioCLIPTextEmbeddings(columns=["caption"], **settings).get_model_handler().isolating_failures()
    with pytest.raises(RuntimeError, match="the model is broken"):
        handler.run_inference([], Broken())


def test_only_bad_elements_are_errors(settings: dict[str, Any], expected: Vectors, tmp_path: Path) -> None:
    """With exception handling, a missing column, a null, a number or a long text is an error of its element only."""
    bad = [{"title": "x"}, {"caption": None}, {"caption": 3}, {"caption": "dog " * 100}, "no row"]
    rows = [*({"caption": text} for text in TEXTS), *bad]
    transform = AudioCLIPTextEmbeddings(columns=["caption"], on_long="reject", **settings)

    def build(pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        how = MLTransform(write_artifact_location=str(tmp_path / "a")).with_transform(transform)
        good, errors = pipeline | beam.Create(rows) | how.with_exception_handling()
        return {"good": good, "errors": errors}

    found = collect(build)
    assert all(any(close(row["caption"], vector) for row in found["good"]) for vector in expected.values())
    assert len(found["good"]) == len(TEXTS)
    errors = {repr(row.element): row.msg for row in found["errors"]}
    assert set(errors) == {repr(row) for row in bad}
    assert "takes str, got NoneType in {'caption': None}" in errors[repr(bad[1])]
    assert "102 tokens" in errors[repr(bad[3])]


def test_wrong_arguments_are_errors(settings: dict[str, Any]) -> None:
    """They are raised before any pipeline is built, and name the remedy."""
    with pytest.raises(ValueError, match="give exactly one of the two"):
        AudioCLIPTextEmbeddings(**settings)
    with pytest.raises(ValueError, match="give exactly one of the two"):
        AudioCLIPTextEmbeddings(columns=["a"], type_adapter=create_text_adapter(), **settings)
    for columns in ("caption", []):
        with pytest.raises(ValueError, match="give a list of one or more names"):
            AudioCLIPTextEmbeddings(columns=columns, **settings)
    with pytest.raises(TypeError, match="temperature"):
        AudioCLIPTextEmbeddings(columns=["a"], temperature=1, **settings)


def items() -> list[EmbeddableItem]:
    """Return items with random ids, as Beam makes them; Chunk is the older name of the same type."""
    made = [EmbeddableItem.from_text(text, index=n, metadata={"page": n}) for n, text in enumerate(TEXTS)]
    return [*made, Chunk(Content(text=TEXTS[0]), index=9, metadata={"page": 9})]


def test_content_ids_depend_on_the_content_alone() -> None:
    """Equal content has the same id, a UUID; another text, index or metadata gives another."""
    first, second = items(), items()
    assert [item.id for item in first] != [item.id for item in second]
    assert [content_id(item) for item in first] == [content_id(item) for item in second]
    assert len({content_id(item) for item in first}) == 4
    assert str(UUID(content_id(first[0]))) == content_id(first[0])
    turned = (
        EmbeddableItem.from_text("a", metadata={"x": 1, "y": 2}),
        EmbeddableItem.from_text("a", metadata={"y": 2, "x": 1}),
    )
    assert content_id(turned[0]) == content_id(turned[1])


def test_rag_into_qdrant_twice(settings: dict[str, Any], expected: Vectors, tmp_path: Path) -> None:
    """Beam's sink writes the items into Qdrant; a second run, whose items have other random ids, stores nothing twice."""
    # Imported here: it takes two seconds, which each process of the tests would need.
    from apache_beam.ml.rag.ingestion.qdrant import QdrantConnectionParameters, QdrantWriteConfig
    from qdrant_client import QdrantClient, models

    path = str(tmp_path / "qdrant")
    client = QdrantClient(path=path)
    client.create_collection("texts", {"dense": models.VectorParams(size=32, distance=models.Distance.COSINE)})
    client.close()
    sink = QdrantWriteConfig(QdrantConnectionParameters.local(path), "texts")
    for time in range(2):
        shuffled = items()
        random.Random(time).shuffle(shuffled)
        transform = AudioCLIPTextEmbeddings(type_adapter=content_id_adapter(), **settings)
        with beam.Pipeline("FnApiRunner") as pipeline:
            _ = (
                pipeline
                | beam.Create(shuffled)
                | MLTransform(write_artifact_location=str(tmp_path / f"artifacts{time}")).with_transform(transform)
                | VectorDatabaseWriteTransform(sink)
            )
    client = QdrantClient(path=path)
    assert client.count("texts").count == 4
    hits = client.query_points("texts", query=expected[TEXTS[1]].tolist(), using="dense", limit=1).points
    assert (hits[0].id, hits[0].payload) == (content_id(items()[1]), {"page": 1})
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    client.close()


def test_beams_text_adapter_keeps_ids(settings: dict[str, Any]) -> None:
    """Beam's adapter keeps the items' ids, and the input items stay without vectors."""
    handler = AudioCLIPTextEmbeddings(type_adapter=create_text_adapter(), **settings).get_model_handler()
    originals = items()
    embedded = handler.run_inference(originals, handler.load_model())
    assert [item.id for item in embedded] == [item.id for item in originals]
    assert all(item.embedding is None for item in originals)
    with pytest.raises(ValueError, match="no text in"):
        handler.contents(EmbeddableItem.from_image("dog.png"))


def test_items_fit_beams_postgres_writer(settings: dict[str, Any]) -> None:
    """Its statement and record for pgvector are right; no server is needed."""
    config = PostgresVectorWriterConfig(
        ConnectionConfig("jdbc:postgresql://localhost:5432/db", "user", "secret"),
        table_name="texts",
        conflict_resolution=ConflictResolution(on_conflict_fields=["id"], action="IGNORE"),
    )
    assert isinstance(config.create_write_transform(), beam.PTransform)
    statement = " ".join(config.query_builder.build_insert().split())
    assert statement.startswith("INSERT INTO texts (id, embedding, content, metadata)")
    assert statement.endswith("?::float[], ?, ?::jsonb) ON CONFLICT (id) DO NOTHING")
    handler = AudioCLIPTextEmbeddings(type_adapter=content_id_adapter(), **settings).get_model_handler()
    (item,) = handler.run_inference(items()[:1], handler.load_model())
    record = config.query_builder.create_converter()(item)
    assert record.id == content_id(items()[0])
    assert record.content == TEXTS[0]
    assert [float(x) for x in record.embedding.strip("{}[]").split(",")] == pytest.approx(item.dense_embedding)

"""AudioCLIPTextEmbeddings in Beam's MLTransform: saved and loaded, settings kept, bad elements alone; RAG into stores."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
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
from apache_beam.ml.rag.ingestion.qdrant import QdrantConnectionParameters, QdrantWriteConfig
from apache_beam.ml.rag.types import Chunk, Content, EmbeddableItem
from apache_beam.ml.transforms.base import MLTransform
from apache_beam.testing.util import assert_that
from qdrant_client import QdrantClient, models

from audioclip_text.model import TextEncoder
from audioclip_text.pipeline import AudioCLIPTextEmbeddings
from audioclip_text.pipeline.inference.ml_transform import EmbedItems, content_id, content_id_adapter

TEXTS = ["dog barking", "rain on a tin roof", "thunder"]
Vectors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def settings(small_head: str, vocabulary: Path) -> dict[str, Any]:
    """A two-layer text head in a file and where its vocabulary lies."""
    return {"checkpoint": small_head, "tokenizer_path": str(vocabulary), "device": "cpu"}


@pytest.fixture(scope="module")
def expected(settings: dict[str, Any]) -> Vectors:
    given = dict(settings)
    return dict(zip(TEXTS, TextEncoder.load(given.pop("checkpoint"), **given).encode(TEXTS), strict=True))


def collect(build: Callable[[beam.Pipeline], dict[str, beam.PCollection]]) -> dict[str, list[Any]]:
    """Elements of the PCollections that `build` makes, by name; through files, as steps are run as pickled copies."""
    with TemporaryDirectory() as folder:
        with beam.Pipeline("FnApiRunner") as pipeline:
            for name, collection in build(pipeline).items():

                def keep(elements: list[Any], file: str = f"{folder}/{name}") -> None:
                    Path(file).write_bytes(pickle.dumps(elements))

                assert_that(collection, keep, label=name)
        return {file.name: pickle.loads(file.read_bytes()) for file in Path(folder).iterdir()}


def close(vector: list[float], wanted: np.ndarray) -> bool:
    assert isinstance(vector, list)
    return np.allclose(vector, wanted, atol=1e-5)


def test_written_and_read_again(settings: dict[str, Any], expected: Vectors, tmp_path: Path) -> None:
    """MLTransform saves the transform; read from the artifacts alone, it gives the same vectors to other rows."""
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
    """Sharing, copies, batch sizes, hints, bytes, namespace and the encoder's own settings outlive the artifacts."""
    handlers = []
    expand = EmbedItems.expand
    monkeypatch.setattr(
        EmbedItems, "expand", lambda self, items: [handlers.append(self._handler), expand(self, items)][1]
    )
    given = AudioCLIPTextEmbeddings(
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
            | (transform.with_transform(given) if how == "write" else transform)
        )
    written, read = handlers
    assert read is not written
    assert read._settings == written._settings
    assert read._settings.prompt == "a sound of {}"
    for handler in handlers:
        assert handler.share_model_across_processes()
        assert handler.model_copies() == 2
        assert handler.batch_elements_kwargs() == {"min_batch_size": 3, "max_batch_size": 7}
        assert handler.get_resource_hints() == {"min_ram": "4GB"}
        assert handler.get_metrics_namespace() == "audioclip_text"
        assert handler.get_num_bytes([{"caption": "dog"}, {"caption": "é", "n": 1}]) == 5
        with pytest.raises(ValueError, match="takes no inference_args"):
            handler.validate_inference_args({"temperature": 1})


def test_rows_of_all_kinds_and_two_columns(settings: dict[str, Any], expected: Vectors, tmp_path: Path) -> None:
    """beam.Rows come back as Rows; two columns each get their own text's vector."""
    rows = [beam.Row(title=TEXTS[0], caption=TEXTS[1]), beam.Row(title=TEXTS[2], caption=TEXTS[0])]
    transform = AudioCLIPTextEmbeddings(columns=["title", "caption"], **settings)
    how = MLTransform(write_artifact_location=str(tmp_path / "a"), transforms=[transform])
    found = collect(lambda pipeline: {"rows": pipeline | beam.Create(rows) | how})["rows"]
    assert sum(close(row.title, expected[TEXTS[0]]) and close(row.caption, expected[TEXTS[1]]) for row in found) == 1
    assert sum(close(row.title, expected[TEXTS[2]]) and close(row.caption, expected[TEXTS[0]]) for row in found) == 1


def test_the_input_stays_as_it_was(settings: dict[str, Any]) -> None:
    """No element is changed in place: other steps may read it too."""
    handler = AudioCLIPTextEmbeddings(columns=["caption"], **settings).get_model_handler()
    rows = [{"caption": "dog"}, {"caption": "cat", "only here": 1}]
    embedded = handler.run_inference(rows, handler.load_model())
    assert rows == [{"caption": "dog"}, {"caption": "cat", "only here": 1}]
    assert [set(row) for row in embedded] == [{"caption"}, {"caption", "only here"}]


def test_bad_elements_alone_are_errors(settings: dict[str, Any], expected: Vectors, tmp_path: Path) -> None:
    """With exception handling a missing column, a null, a number or a text too long costs its own element only."""
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


def test_what_it_refuses(settings: dict[str, Any]) -> None:
    """Wrong arguments fail before any pipeline is built, with the rule."""
    with pytest.raises(ValueError, match="either columns"):
        AudioCLIPTextEmbeddings(**settings)
    with pytest.raises(ValueError, match="either columns"):
        AudioCLIPTextEmbeddings(columns=["a"], type_adapter=create_text_adapter(), **settings)
    for columns in ("caption", []):
        with pytest.raises(ValueError, match="give a list of one or more names"):
            AudioCLIPTextEmbeddings(columns=columns, **settings)
    with pytest.raises(TypeError, match="temperature"):
        AudioCLIPTextEmbeddings(columns=["a"], temperature=1, **settings)


def items() -> list[EmbeddableItem]:
    """Items with random ids, as Beam makes them; Chunk is the older name of the same type."""
    made = [EmbeddableItem.from_text(text, index=n, metadata={"page": n}) for n, text in enumerate(TEXTS)]
    return [*made, Chunk(Content(text=TEXTS[0]), index=9, metadata={"page": 9})]


def test_content_ids() -> None:
    """The same content has the same id, a UUID; other text, index or metadata has another."""
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
    """Items go through MLTransform into Qdrant by Beam's own sink; a second run of fresh items stores nothing twice."""
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


def test_beams_adapter_keeps_ids(settings: dict[str, Any]) -> None:
    """Who gives ids of his own takes Beam's adapter; the items given stay without vectors."""
    handler = AudioCLIPTextEmbeddings(type_adapter=create_text_adapter(), **settings).get_model_handler()
    given = items()
    embedded = handler.run_inference(given, handler.load_model())
    assert [item.id for item in embedded] == [item.id for item in given]
    assert all(item.embedding is None for item in given)
    with pytest.raises(ValueError, match="no text in"):
        handler.texts(EmbeddableItem.from_image("dog.png"))


def test_the_configuration_of_a_sql_sink(settings: dict[str, Any]) -> None:
    """Beam's writer for PostgreSQL with pgvector takes our items: statement and record, without a server."""
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

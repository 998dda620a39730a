"""The RunInference handlers with a small real encoder: Beam's contract, bad rows, and what changes their fingerprint."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.internal import pickler
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.testing.util import assert_that

from audioclip_beam.model import TextEncoder
from audioclip_beam.model.fingerprint import describe_changes
from audioclip_beam.model.head import Encoding
from audioclip_beam.model.text.head import TEXT, TextSettings
from audioclip_beam.pipeline import TextEmbeddingHandler
from audioclip_beam.pipeline.content import add_content_hash
from audioclip_beam.pipeline.inference.embed_batch import embed_batch
from audioclip_beam.pipeline.inference.model_handler import RecordBatchHandler
from audioclip_beam.pipeline.inference.shared_encoder import (
    ModelDescription,
    describe_model,
    load_encoder,
    start_reading,
)
from tests.support.corpus import embed, write_jsonl
from tests.support.preloaded import preloaded_programs
from tests.support.shards import ROW
from tests.support.stub import StubHead


def _described(head: str | Path, vocabulary: Path, **settings: Any) -> ModelDescription:
    """Return what a launcher knows of the encoder of a text head."""
    chosen = TextSettings(str(head), device="cpu", tokenizer_path=str(vocabulary), **settings)
    return describe_model(TEXT, chosen, "float32")


def _rows(texts: list[str]) -> pa.RecordBatch:
    numbers = list(range(len(texts)))
    columns = {"shard": ["s"] * len(texts), "row": numbers, "id": list(map(str, numbers)), "text": texts}
    return add_content_hash(pa.RecordBatch.from_pydict(columns, schema=ROW), "text")


TEXTS = ["dog barking", "rain on a tin roof", "thunder", "dog barking"]


@pytest.fixture
def handler(small_head: str, vocabulary: Path) -> TextEmbeddingHandler:
    return TextEmbeddingHandler(small_head, tokenizer_path=str(vocabulary), device="cpu")


@pytest.fixture
def expected(small_head: str, vocabulary: Path) -> dict[str, np.ndarray]:
    encoder = TextEncoder.load(small_head, tokenizer_path=vocabulary, device="cpu")
    return dict(zip(TEXTS, encoder.encode(TEXTS), strict=True))


def _same(expected: dict[str, np.ndarray], count: int):  # type: ignore[no-untyped-def]
    def check(results: list[PredictionResult]) -> None:
        assert len(results) == count
        for result in results:
            np.testing.assert_allclose(result.inference, expected[result.example], atol=1e-5)

    return check


def test_run_inference_gives_one_prediction_per_text(
    handler: TextEmbeddingHandler, expected: dict[str, np.ndarray]
) -> None:
    """The handler works in any pipeline."""
    with beam.Pipeline("FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create(TEXTS) | RunInference(handler), _same(expected, len(TEXTS)))


def test_run_inference_with_keys_and_exception_handling(
    handler: TextEmbeddingHandler, expected: dict[str, np.ndarray]
) -> None:
    """Keys are kept, and Beam's exception handling works with the handler."""
    with beam.Pipeline("FnApiRunner") as pipeline:
        good, bad = (
            pipeline
            | beam.Create(list(enumerate(TEXTS)))
            | RunInference(KeyedModelHandler(handler)).with_exception_handling()
        )
        assert_that(good | beam.Values(), _same(expected, len(TEXTS)), "good")
        assert_that(bad.failed_inferences, _is_empty, "bad")


def _is_empty(failed: list[object]) -> None:
    assert failed == []


def test_preprocess_and_postprocess_functions(handler: TextEmbeddingHandler, expected: dict[str, np.ndarray]) -> None:
    """with_preprocess_fn and with_postprocess_fn work with the handler."""
    wrapped = handler.with_preprocess_fn(lambda row: row["caption"]).with_postprocess_fn(lambda result: result)
    with beam.Pipeline("FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([{"caption": text} for text in TEXTS])
        assert_that(rows | RunInference(wrapped), _same(expected, len(TEXTS)))


def test_beams_arguments_are_passed_on_and_others_refused(
    small_head: str, vocabulary: Path, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches by length, a time limit and variables of the environment reach Beam; a name that it ignores is an error."""
    monkeypatch.delenv("AUDIOCLIP_TEST", raising=False)
    handler = TextEmbeddingHandler(
        small_head,
        device="cpu",
        tokenizer_path=str(vocabulary),
        max_batch_duration_secs=1,
        batch_length_fn=len,
        batch_bucket_boundaries=[4, 8],
        env_vars={"AUDIOCLIP_TEST": "set"},
    )
    with beam.Pipeline("FnApiRunner") as pipeline:
        predictions = pipeline | beam.Create(TEXTS) | RunInference(handler)
        assert_that(predictions, _same(expected, len(TEXTS)))
    assert os.environ["AUDIOCLIP_TEST"] == "set"
    for name in ("max_batch_weight", "element_size_fn", "batch_sise"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            TextEmbeddingHandler(small_head, **{name: 7})  # type: ignore[arg-type]


def test_a_process_has_one_encoder(handler: TextEmbeddingHandler, small_head: str, vocabulary: Path) -> None:
    """Handlers with the same settings share their encoder."""
    other = RecordBatchHandler(_described(small_head, vocabulary))
    assert handler.load_model() is other.load_model()


def _put_weights(path: Path, head: str, factor: float) -> None:
    """Write the text head with other weights to a new file, and rename that to `path`, as a download does."""
    torch.save({name: tensor * factor for name, tensor in torch.load(head).items()}, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def test_a_checkpoint_that_is_replaced_before_the_run_is_read_again(
    small_head: str, vocabulary: Path, tmp_path: Path
) -> None:
    """`embed` begins to read it while Beam is imported: sha256 and vectors are those of the later file."""
    path = tmp_path / "head.pt"
    settings = TextSettings(str(path), device="cpu", tokenizer_path=str(vocabulary))
    _put_weights(path, small_head, 0.5)
    start_reading(TEXT, settings)
    first = describe_model(TEXT, settings, "float32")
    _put_weights(path, small_head, 0.25)
    second = describe_model(TEXT, settings, "float32")
    assert first.info.sha256 != second.info.sha256
    assert second.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = TextEncoder.load(path, device="cpu", tokenizer_path=vocabulary).encode(TEXTS)
    np.testing.assert_allclose(RecordBatchHandler(second).load_model().encode(TEXTS), expected, atol=1e-6)


def test_each_run_of_a_process_has_its_checkpoint_and_its_threads(
    small_head: str, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the encoder of the first one has the same settings."""
    path, numbers, plain = tmp_path / "head.pt", [], TextEncoder._encode_rows

    def count_threads(encoder: TextEncoder, texts: list[str]) -> Encoding:
        numbers.append(torch.get_num_threads())
        return plain(encoder, texts)

    for factor, threads in ((0.5, 1), (0.25, 2)):
        _put_weights(path, small_head, factor)
        expected = TextEncoder.load(path, device="cpu", tokenizer_path=vocabulary).encode(TEXTS)
        handler = RecordBatchHandler(_described(path, vocabulary), threads)
        with monkeypatch.context() as patch:
            patch.setattr(TextEncoder, "_encode_rows", count_threads)
            np.testing.assert_allclose(handler.load_model().encode(TEXTS), expected, atol=1e-6)
    assert numbers == [1, 2]


def test_the_model_runs_in_one_thread(small_head: str, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls from several threads run one after another in the model's thread; an error is raised in the caller."""
    running, seen = [], []

    def compute(encoder: TextEncoder, texts: list[str]) -> str:
        running.append(threading.current_thread().name)
        time.sleep(0.01)
        seen.append((threading.get_ident(), len(running)))
        running.pop()
        return texts[0] if texts[0] != "bad" else int("bad")

    monkeypatch.setattr(TextEncoder, "_encode_rows", compute)
    encoder = load_encoder(TEXT, TextSettings(small_head, device="cpu", tokenizer_path=str(vocabulary)))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: encoder.encode_rows([str(n)]), range(20))) == [str(n) for n in range(20)]
    with pytest.raises(ValueError, match="invalid literal"):
        encoder.encode_rows(["bad"])
    assert len(set(seen)) == 1
    assert seen[0][0] != threading.get_ident()
    assert seen[0][1] == 1


@pytest.mark.slow
def test_a_forked_process_starts_its_own_thread(small_head: str, vocabulary: Path) -> None:
    """A process forked from one with a model does not wait for the parent's thread."""
    code = (
        "import os, sys\n"
        "from audioclip_beam.model.text.head import TEXT, TextSettings\n"
        "from audioclip_beam.pipeline.inference.shared_encoder import describe_model\n"
        "settings = TextSettings(sys.argv[1], device='cpu', tokenizer_path=sys.argv[2])\n"
        "describe_model(TEXT, settings)\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(7 if describe_model(TEXT, settings).info.dim else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [preloaded_programs() / "python", "-c", code, small_head, str(vocabulary)], timeout=60, check=False
    )
    assert done.returncode == 7


def test_pickled_handlers_have_the_same_encoder(
    handler: TextEmbeddingHandler, small_head: str, vocabulary: Path
) -> None:
    """Beam's pickler and pickle keep the settings, by which handlers share an encoder."""
    for original in (handler, RecordBatchHandler(_described(small_head, vocabulary, normalize=True))):
        for module in (pickler, pickle):
            assert module.loads(module.dumps(original)).load_model() is original.load_model()


def test_sizes_hints_and_arguments(handler: TextEmbeddingHandler) -> None:
    """The handler returns sizes and the metrics namespace, requests no hints, and refuses inference_args."""
    assert handler.get_num_bytes(["dog", "é"]) == 5
    assert handler.get_metrics_namespace() == "audioclip_beam"
    assert handler.get_resource_hints() == {}
    assert handler.batch_elements_kwargs() == {"min_batch_size": 64, "max_batch_size": 4096}
    with pytest.raises(ValueError, match=r"takes no inference_args, got \['temperature'\]"):
        handler.validate_inference_args({"temperature": 1})


def test_embed_batch_adds_columns_to_the_rows(
    small_head: str, vocabulary: Path, expected: dict[str, np.ndarray]
) -> None:
    """Each row gets its counts and vector; equal texts share one vector."""
    described = _described(small_head, vocabulary)
    batch = embed_batch(_rows(TEXTS), described, load_encoder(TEXT, described.settings)).rows
    assert batch.column("n_tokens").to_pylist() == [4, 7, 3, 4]
    assert batch.column("reason").null_count == 4
    vectors = batch.column("embedding")
    assert len(vectors.dictionary) == 3
    np.testing.assert_allclose(np.array(vectors.to_pylist()), np.array([expected[text] for text in TEXTS]), atol=1e-5)


def test_long_texts_are_rejected_if_on_long_is_reject(small_head: str, vocabulary: Path) -> None:
    """The other rows of the batch are embedded."""
    described = _described(small_head, vocabulary, on_long="reject")
    batch = embed_batch(_rows(["dog", "dog " * 100]), described, load_encoder(TEXT, described.settings)).rows
    assert batch.column("reason").to_pylist() == [None, "too long"]
    assert batch.column("detail").to_pylist() == [None, "102 tokens, the context length is 77"]


def test_a_worker_with_another_checkpoint_is_an_error(small_head: str, vocabulary: Path, tmp_path: Path) -> None:
    """A worker whose file differs from the launcher's does not embed with it."""
    path = tmp_path / "head.pt"
    path.write_bytes(Path(small_head).read_bytes())
    worker = pickle.loads(pickle.dumps(RecordBatchHandler(_described(path, vocabulary))))
    state = torch.load(path)
    state["ln_final.bias"] += 1
    torch.save(state, path)
    load_encoder(TEXT, TextSettings(small_head, device="cpu", tokenizer_path=str(vocabulary)))  # replaces the encoder
    with pytest.raises(ValueError, match=r"on this worker gives other vectors .* worker: weights\): give every worker"):
        worker.load_model()


@pytest.mark.parametrize("name", ["ftfy", "regex", "unicode"])
def test_a_worker_with_other_package_versions_is_an_error(
    name: str, small_head: str, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose versions would give other token ids names the version and the launcher's."""
    described = _described(small_head, vocabulary)
    versions = described.info.fingerprint_parts
    worker = pickle.loads(pickle.dumps(RecordBatchHandler(described)))
    other = tmp_path / "other.pt"
    torch.save({name: tensor * 0.5 for name, tensor in torch.load(small_head).items()}, other)
    load_encoder(TEXT, TextSettings(str(other), device="cpu", tokenizer_path=str(vocabulary)))  # replaces the encoder
    changed = TEXT.versions() | {name: "0.1"}
    monkeypatch.setattr("audioclip_beam.model.text.encoder.versions", lambda: changed)
    with pytest.raises(ValueError, match=re.escape(f"worker: {name} {versions[name]} -> 0.1): give every worker")):
        worker.load_model()


def test_a_model_update_changes_the_checkpoint(
    handler: TextEmbeddingHandler, small_head: str, vocabulary: Path, tmp_path: Path
) -> None:
    """update_model_path is how RunInference changes the model of a running job."""
    other = tmp_path / "other.pt"
    torch.save({name: tensor * 0.5 for name, tensor in torch.load(small_head).items()}, other)
    before = handler.load_model().encode(TEXTS)
    handler.update_model_path(None)
    np.testing.assert_array_equal(handler.load_model().encode(TEXTS), before)
    handler.update_model_path(str(other))
    expected = TextEncoder.load(other, tokenizer_path=vocabulary, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(handler.load_model().encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"dtype": "float8"}, {"on_long": "cut"}, {"prompt": "no braces"}, {"prompt": "{[a]}"}, {"prompt": "{:.4}"}],
)
def test_unknown_settings_are_errors_before_a_job_starts(settings: dict[str, str]) -> None:
    """The handler's constructor raises, not the first worker that loads the model."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        TextEmbeddingHandler("full", **settings)  # type: ignore[arg-type]


def test_an_encoder_that_fails_on_no_texts_is_an_error(small_head: str, vocabulary: Path) -> None:
    """A batch without rows cannot be halved: the encoder's own error is raised."""

    class Broken:
        def encode_rows(self, texts: list[str]) -> None:
            raise RuntimeError("the encoder is broken")

    with pytest.raises(RuntimeError, match="the encoder is broken"):
        embed_batch(_rows([]), _described(small_head, vocabulary), Broken())  # type: ignore[arg-type]


def test_a_vector_that_overflows_float16_is_rejected(small_head: str, vocabulary: Path) -> None:
    """No infinity is stored for it."""
    described = _described(small_head, vocabulary)
    encoder = load_encoder(TEXT, described.settings)

    class LargeVectors:
        info = encoder.info

        def encode_rows(self, texts: list[str]) -> object:
            encoding = encoder.encode_rows(texts)
            if "thunder" in texts:
                encoding.vectors[texts.index("thunder")] *= 1e6
            return encoding

    for stored, reasons in (("float32", [None, None]), ("float16", [None, "non-finite vector"])):
        model = describe_model(TEXT, described.settings, stored)
        batch = embed_batch(_rows(["dog barking", "thunder"]), model, LargeVectors()).rows  # type: ignore[arg-type]
        assert batch.column("reason").to_pylist() == reasons
    assert "does not fit float16" in str(batch.column("detail").to_pylist()[1])


def test_changes_are_named_with_their_values() -> None:
    """Versions and options show both values, digests only their names; a part that is missing is unknown."""
    earlier = {"weights": "a" * 64, "dtype": "float32", "ftfy": "6.3.0"}
    parts = {"weights": "b" * 64, "dtype": "float32", "ftfy": "6.3.1", "regex": "2026.1.1"}
    assert describe_changes(parts, earlier) == "weights, ftfy 6.3.0 -> 6.3.1, regex unknown -> 2026.1.1"


@pytest.mark.slow
def test_another_tokenizer_version_embeds_everything_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade of ftfy, vectors of the old version are not reused, and the note names both versions."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": "dog"}, {"text": "cat"}])
    first, _ = embed(tmp_path / "a.jsonl", tmp_path / "out")
    monkeypatch.setattr(
        "audioclip_beam.model.text.settings.version", lambda name: "99.0" if name == "ftfy" else version(name)
    )
    second, texts = embed(
        tmp_path / "a.jsonl", tmp_path / "out", StubHead(delay=1e-6)
    )  # not the encoder that is loaded
    assert sorted(texts) == ["cat", "dog"]
    assert second["fingerprint_parts"]["ftfy"] == "99.0"
    change = f"ftfy {version('ftfy')} -> 99.0"
    assert second["notes"] == [
        f"the fingerprint changed since {first['snapshot']} ({change}): its vectors are not reused"
    ]

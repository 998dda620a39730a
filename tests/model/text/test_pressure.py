"""TextEncoder under pressure: a text at fault fails alone, and low memory only costs time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from audioclip_beam.model import ClipTokenizer, TextEncoder, memory
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.head import Encoding
from audioclip_beam.model.text import encoder as encoder_module
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.prefix_tree import PrefixTree
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.pipeline.inference.embed_batch import embed_batch
from audioclip_beam.pipeline.inference.shared_encoder import ModelDescription, describe_model
from tests.support.plain_tower import small_state
from tests.support.shards import ROW
from tests.support.stub import StubEncoder, StubHead

GOOD = ["a dog", "wind", "a cat sat", *(f"text number {n}" for n in range(40))]
POISON = ["a zebra", "a zebra runs", "a dog barks at the zebra", "a dog and a zebra and a cat"]
FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _encoder(tokenizer: ClipTokenizer, poison: float = 0.0) -> TextEncoder:
    """A small encoder, whose numbers overflow at the word zebra if `poison` is not finite."""
    state = small_state(vocabulary=49408)
    state["token_embedding.weight"][tokenizer.encode("zebra")[0]] = poison
    return TextEncoder(Checkpoint(state, "small", "0" * 64, True), tokenizer, TextSettings("small", device="cpu"))


def _embed_batch(texts: list[str], encoder: Any) -> pa.RecordBatch:
    """Return the embedded rows of these texts."""
    settings = getattr(encoder, "settings", TextSettings("small"))
    return embed_batch(
        _rows(texts), ModelDescription(TEXT, settings, encoder.info.storing("float32"), ()), encoder
    ).rows


def _rows(texts: list[str]) -> pa.RecordBatch:
    numbers = list(range(len(texts)))
    columns = {"shard": ["s"] * len(texts), "row": numbers, "id": list(map(str, numbers)), "text": texts}
    return pa.RecordBatch.from_pydict(columns, schema=ROW)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_text_that_gives_nan_fails_alone(tokenizer: ClipTokenizer, poison: float) -> None:
    """Texts that share prefixes, attention or a micro-batch with it get the same vectors as without it."""
    texts = [text for pair in zip(GOOD, POISON * 11, strict=False) for text in pair]
    encoder = _encoder(tokenizer, poison)
    encoding = encoder.encode_rows(texts)
    good = np.isfinite(encoding.vectors).all(1)
    assert [text for text, ok in zip(texts, good, strict=True) if ok] == GOOD
    np.testing.assert_allclose(encoding.vectors[good], encoder.encode(GOOD), rtol=0, atol=1e-5)
    assert encoding.columns["n_tokens"].tolist() == _encoder(tokenizer).encode_rows(texts).columns["n_tokens"].tolist()
    batch = _embed_batch(texts, encoder)
    reasons = dict(zip(texts, batch.column("reason").to_pylist(), strict=True))
    assert reasons == dict.fromkeys(GOOD, None) | dict.fromkeys(POISON, "non-finite vector")


@pytest.mark.parametrize("position", [0, 1, 17, 42])
def test_a_text_that_raises_fails_alone(tokenizer: ClipTokenizer, position: int) -> None:
    """If the tower raises on one text's tokens, the other texts get their vectors, whatever its position."""
    encoder = _encoder(tokenizer)
    zebra, tower = tokenizer.encode("zebra")[0], encoder.tower

    class Fragile:
        dim, context_length = tower.dim, tower.context_length

        def __call__(self, tree: PrefixTree) -> torch.Tensor:
            if (tree.tokens == zebra).any():
                raise RuntimeError("index out of range in self")
            return tower(tree)

    expected = encoder.encode(GOOD)
    encoder.tower = Fragile()  # type: ignore[assignment]
    batch = _embed_batch([*GOOD[:position], "zebra", *GOOD[position:]], encoder)
    reasons = batch.column("reason").to_pylist()
    assert reasons.pop(position) == "model error"
    assert batch.column("detail")[position].as_py() == "RuntimeError: index out of range in self"
    assert reasons == [None] * len(GOOD)
    vectors = np.delete(np.array(batch.column("embedding").to_pylist()), position, 0)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


def test_a_text_that_gets_no_vector_fails_alone() -> None:
    """An encoder that gives fewer vectors than texts does not shift the vectors of the others."""

    class Forgetful(StubEncoder):
        def encode_rows(self, texts: Sequence[str]) -> Encoding:
            encoding = super().encode_rows(texts)
            return replace(encoding, vectors=encoding.vectors[: len(texts) - ("zebra" in texts)])

    batch = _embed_batch([*GOOD[:5], "zebra", *GOOD[5:]], Forgetful(StubHead().info()))
    assert batch.column("reason").to_pylist() == [None] * 5 + ["model error"] + [None] * (len(GOOD) - 5)
    assert batch.column("detail")[5].as_py() == "RuntimeError: the encoder gave 0 vectors for 1 text"
    vectors = np.array(batch.column("embedding").to_pylist())
    np.testing.assert_array_equal(np.delete(vectors, 5, 0), StubHead().make_encoder().encode_rows(GOOD).vectors)


def test_a_model_that_gives_only_nan_is_broken(tokenizer: ClipTokenizer) -> None:
    """If the canary texts get no finite vector either, the batch fails instead of rejecting its rows."""
    encoder = _encoder(tokenizer, float("nan"))
    texts = [f"zebra {n}" for n in range(9)]
    assert _embed_batch(texts, encoder).column("reason").to_pylist() == ["non-finite vector"] * 9
    tower = encoder.tower

    class Broken:
        dim, context_length = tower.dim, tower.context_length

        def __call__(self, tree: PrefixTree) -> torch.Tensor:
            return tower(tree) * float("nan")

    encoder.tower = Broken()  # type: ignore[assignment]
    found = (
        r"failed on 9 of the 9 texts of a batch \(no finite vector\), and gave no finite vectors for the canary texts"
    )
    with pytest.raises(RuntimeError, match=found):
        _embed_batch(texts, encoder)


def _limit_memory(encoder: TextEncoder, nodes: Callable[[], int], error: Exception = FULL) -> None:
    """Let the encoder's tower raise `error` for more than so many nodes."""
    tower = encoder.tower

    class Short:
        dim, context_length = tower.dim, tower.context_length

        def __call__(self, tree: PrefixTree) -> torch.Tensor:
            if tree.nodes > nodes():
                raise error
            return tower(tree)

    encoder.tower = Short()  # type: ignore[assignment]


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        FULL,
        MemoryError("cannot allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["cuda", "host", "cpu allocator", "cublas"],
)
def test_any_memory_gives_the_result_or_a_clear_error(tokenizer: ClipTokenizer, error: Exception) -> None:
    """Every size of memory gives the right result or, if a single text does not fit, an error that names its size."""
    expected, longest = _encoder(tokenizer).encode(GOOD), 6  # "text number 1 0" with start and end
    for nodes in (1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 23, 31, 32, 47, 63, 64):
        encoder = _encoder(tokenizer)
        _limit_memory(encoder, lambda nodes=nodes: nodes, error)  # type: ignore[misc]
        if nodes < longest:
            with pytest.raises(MemoryError, match="^cpu has too little free memory for a single text of [456] tokens"):
                encoder.encode(GOOD)
            with pytest.raises(MemoryError):  # instead of a rejected row
                _embed_batch(GOOD, encoder)
        else:
            np.testing.assert_allclose(encoder.encode(GOOD), expected, rtol=0, atol=1e-5)


def test_out_of_memory_outside_of_the_tower_is_a_memory_error(tokenizer: ClipTokenizer) -> None:
    """If memory does not suffice for the result itself, the caller gets a MemoryError with the number of texts."""
    encoder = _encoder(tokenizer)

    def full(texts: int) -> None:
        raise FULL

    encoder.on_progress = full
    with pytest.raises(MemoryError, match="cpu has too little free memory for 2 texts"):
        encoder.encode(GOOD[:2])


@pytest.mark.slow
def test_micro_batches_grow_again(tokenizer: ClipTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory is free again, micro-batches grow again, up to their first size."""
    monkeypatch.setattr(memory, "BATCHES_TO_GROW", 8)
    encoder, first = _encoder(tokenizer), encoder_module.MAX_NODES["cpu"]
    free = 20
    _limit_memory(encoder, lambda: free)
    encoder.encode(GOOD)
    assert encoder.nodes.now < 64
    free = 10**6
    for _ in range(100):
        encoder.encode(GOOD)
    assert encoder.nodes.now == first
    free = 20
    assert encoder.encode_rows(GOOD).work.oom_retries > 0
    retries = sum(encoder.encode_rows(GOOD).work.oom_retries for _ in range(20))
    assert retries <= 20 * len(GOOD) / 8, "at most one micro-batch in BATCHES_TO_GROW fails"


def test_a_head_with_too_few_embeddings_is_refused_by_name(
    tokenizer: ClipTokenizer, vocabulary: Path, tmp_path: Path
) -> None:
    """An embedding table smaller than the vocabulary is found before any text, by the encoder and by a job's launcher."""
    state = small_state(vocabulary=49407)
    words = r"cannot be used: its token_embedding.weight has 49,407 rows, and CLIP's tokenizer has 49,408 ids"
    with pytest.raises(ValueError, match=f"^small {words}"):
        TextEncoder(Checkpoint(state, "small", "0" * 64, True), tokenizer, TextSettings("small", device="cpu"))
    torch.save(state, tmp_path / "short.pt")
    settings = TextSettings(str(tmp_path / "short.pt"), tokenizer_path=str(vocabulary))
    with pytest.raises(ValueError, match=rf"^short\.pt {words}"):
        describe_model(TEXT, settings)

"""TextEncoder: the original's numbers, order, long texts, pressure, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from audioclip_text.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_text.model import encoder as room
from audioclip_text.model.checkpoint import Checkpoint
from audioclip_text.model.prefix_tree import PrefixTree
from tests.support.plain_tower import small_state

HERE = Path(__file__)
LONG = "many words " * 50  # 102 tokens with start and end
TEXTS = ["a dog barks", "a dog", "rain on a tin roof", "", "a dog barks at a red car", "wind"]


@pytest.fixture(scope="session")
def goldens() -> tuple[list[str], npt.NDArray[np.float32]]:
    """Texts, and what the original code answers for them with the weights of "untrained"."""
    with np.load(HERE.parents[1] / "data" / "embeddings.npz") as file:
        return json.loads(str(file["texts"])), file["embeddings"]


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """A small checkpoint with the real vocabulary: width 64, two layers, dim 24."""
    return Checkpoint(state=small_state(vocabulary=49408), name="small", sha256="0" * 64, untrained=True)


@pytest.fixture
def small(checkpoint: Checkpoint, tokenizer: ClipTokenizer) -> TextEncoder:
    """An encoder that takes no time."""
    return TextEncoder(checkpoint, tokenizer, device="cpu")


@pytest.mark.parametrize(("dtype", "difference", "cosine"), [("float32", 2e-5, 0.999999), ("bfloat16", 1.0, 0.9995)])
def test_goldens(
    tokenizer: ClipTokenizer,
    goldens: tuple[list[str], npt.NDArray[np.float32]],
    dtype: str,
    difference: float,
    cosine: float,
) -> None:
    """Every number is the original's: within 2e-5 in float32, at a cosine of at least 0.9995 in bfloat16."""
    texts, wanted = goldens
    vectors = TextEncoder(load_checkpoint("untrained"), tokenizer, device="cpu", dtype=dtype).encode(texts)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - wanted).max() <= difference
    lengths = np.linalg.norm(vectors, axis=1).astype(np.float64) * np.linalg.norm(wanted, axis=1)
    assert ((vectors.astype(np.float64) * wanted).sum(1) / lengths).min() >= cosine


def test_order_and_duplicates(small: TextEncoder) -> None:
    """Vectors come in the order given, and equal texts, or texts of equal tokens, go through the model once."""
    texts = [*TEXTS, "A  DOG", *reversed(TEXTS)]
    encoding = small.encode_rows(texts)
    assert encoding.stats.texts == len(TEXTS)
    alone = np.concatenate([small.encode([text]) for text in texts])
    np.testing.assert_allclose(encoding.vectors, alone, rtol=0, atol=1e-5)
    assert encoding.stats.nodes < encoding.stats.tokens


def test_windows_do_not_matter(small: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts taken a few at a time get the same vectors."""
    whole = small.encode(TEXTS)
    monkeypatch.setattr(room, "WINDOW", 2)
    np.testing.assert_allclose(small.encode(TEXTS), whole, rtol=0, atol=1e-5)


def test_no_texts(small: TextEncoder) -> None:
    """No texts give an array of no rows."""
    assert small.encode([]).shape == (0, 24)
    assert small.encode_rows([]).n_tokens.shape == (0,)


def test_one_string_is_not_a_list(small: TextEncoder) -> None:
    """A single string is refused instead of being read letter by letter."""
    with pytest.raises(TypeError, match="texts must be a list of texts, not one string: got 'dog'"):
        small.encode("dog")


def test_lists_and_prompt(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """A list of strings is one text, joined with ", ", and the prompt is put around it."""
    prompted = TextEncoder(checkpoint, tokenizer, device="cpu", prompt="the sound of {}")
    wanted = small.encode(["the sound of dog, bark", "the sound of wind"])
    np.testing.assert_allclose(prompted.encode([["dog", "bark"], "wind"]), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(prompted.encode_rows([["dog", "bark"], "wind"]).vectors, wanted, rtol=0, atol=1e-5)


def test_braces_in_a_text_stay(small: TextEncoder) -> None:
    """A text's own braces are text."""
    assert room.join_and_prompt("a {} b {0}", "say {}") == "say a {} b {0}"


def test_long_texts_are_cut(small: TextEncoder) -> None:
    """A text over the context is read up to its 75th token, flagged, and counted before the cut."""
    encoding = small.encode_rows([LONG, "many words " * 37 + "many", "many words"])
    assert encoding.n_tokens.tolist() == [102, 77, 4]
    assert encoding.n_tokens.dtype == np.int16
    assert encoding.truncated.tolist() == [True, False, False]
    np.testing.assert_array_equal(encoding.vectors[0], encoding.vectors[1])


def test_very_long_texts_are_counted_up_to_the_type(small: TextEncoder) -> None:
    """A count that int16 cannot hold is given as 32,767."""
    assert small.encode_rows(["a " * 40_000]).n_tokens.tolist() == [32_767]


def test_long_texts_are_rejected(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """With on_long="reject", encode names the first too-long text, and encode_rows leaves NaN in its row alone."""
    strict = TextEncoder(checkpoint, tokenizer, device="cpu", on_long="reject")
    with pytest.raises(ValueError, match=r"^text 1 has 102 tokens, and the model reads 77: 'many words .*truncate'$"):
        strict.encode(["wind", LONG, LONG])
    encoding = strict.encode_rows(["wind", LONG, "a dog"])
    assert np.isnan(encoding.vectors).all(1).tolist() == encoding.truncated.tolist() == [False, True, False]
    np.testing.assert_allclose(encoding.vectors[[0, 2]], small.encode(["wind", "a dog"]), rtol=0, atol=1e-5)
    assert np.isnan(strict.encode_rows([LONG]).vectors).all()


def test_end_of_text_in_a_text(small: TextEncoder) -> None:
    """A text that spells out <|endoftext|> is read there, as in the original."""
    vectors = small.encode(["a dog <|endoftext|> barks", "a dog"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_normalize(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """With normalize, vectors have length 1 and the same direction."""
    vectors = TextEncoder(checkpoint, tokenizer, device="cpu", normalize=True).encode(TEXTS)
    wanted = small.encode(TEXTS)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, wanted, rtol=0, atol=1e-6)


class ShortOfMemory:
    """A tower that has room for so many nodes and no more."""

    def __init__(self, encoder: TextEncoder, room_for: int) -> None:
        self.tower, self.room_for = encoder.tower, room_for
        self.dim, self.context_length = encoder.dim, encoder.tower.context_length

    def __call__(self, tree: PrefixTree) -> torch.Tensor:
        if len(tree.tokens) > self.room_for:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.tower(tree)


def test_out_of_memory_halves(small: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch that runs out of memory is halved until it fits, nothing is lost, and the size is remembered."""
    whole = small.encode_rows(TEXTS)
    monkeypatch.setattr(small, "tower", ShortOfMemory(small, room_for=whole.stats.nodes - 1))
    encoding = small.encode_rows(TEXTS)
    np.testing.assert_allclose(encoding.vectors, whole.vectors, rtol=0, atol=1e-5)
    assert encoding.stats.oom_retries == 1
    assert encoding.stats.micro_batches > 1
    assert small.encode_rows(TEXTS).stats.oom_retries == 0


def test_out_of_memory_for_one_text(small: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even one text fits, the error says so."""
    monkeypatch.setattr(small, "tower", ShortOfMemory(small, room_for=3))
    with pytest.raises(MemoryError, match="too little free memory for a single text of 6 tokens"):
        small.encode(["a dog barks"])


def test_devices() -> None:
    """CUDA is never silently a CPU, "auto" takes what is there, and unknown words are refused."""
    assert room.pick_device("cpu", "float32") == torch.device("cpu")
    with pytest.raises(ValueError, match="device='gpu': choose one of auto, cpu, cuda, cuda:N"):
        room.pick_device("gpu", "float32")
    if torch.cuda.is_available():
        assert room.pick_device("auto", "float16") == torch.device("cuda")
    else:
        assert room.pick_device("auto", "float32") == torch.device("cpu")
        with pytest.raises(RuntimeError, match=r"device='cuda': torch .* sees 0 CUDA devices"):
            room.pick_device("cuda", "float32")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("on_long", "cut", "on_long='cut': choose one of truncate, reject"),
        ("dtype", "float64", "dtype='float64': choose one of float32, bfloat16, float16"),
        ("dtype", "float16", "dtype='float16': it needs a CUDA device"),
        ("prompt", "a photo", "prompt='a photo': it must hold {} once"),
        ("prompt", "{} {}", "prompt='{} {}': it must hold {} once"),
        ("prompt", "{text}", "prompt='{text}': it must hold {} once"),
    ],
)
def test_unknown_options(
    checkpoint: Checkpoint, tokenizer: ClipTokenizer, option: str, value: str, message: str
) -> None:
    """An unknown option value is refused by an error that quotes it and says what is known."""
    options = {"device": "cpu", option: value}
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is compared below
        TextEncoder(checkpoint, tokenizer, **options)
    assert str(caught.value).startswith(message)


def test_missing_vocabulary(tmp_path: Path) -> None:
    """Without a vocabulary file, the error says where it was looked for and which command fetches it."""
    with pytest.raises(FileNotFoundError, match="no vocabulary file at .*nowhere.*audioclip-text fetch vocabulary"):
        TextEncoder.load("untrained", tokenizer_path=tmp_path / "nowhere.gz")


def test_fingerprint(checkpoint: Checkpoint, tokenizer: ClipTokenizer) -> None:
    """The fingerprint changes with everything that changes a vector, and needs no tower."""
    options = {"prompt": "{}", "on_long": "truncate", "normalize": False, "dtype": "float32"}
    parts = room.fingerprint_parts(checkpoint, tokenizer.sha256, **options)
    assert list(parts) == ["weights", "vocabulary", "prompt", "on_long", "normalize", "dtype"]
    changes = [{"prompt": "a {}"}, {"on_long": "reject"}, {"normalize": True}, {"dtype": "bfloat16"}]
    others = [room.fingerprint_parts(checkpoint, tokenizer.sha256, **{**options, **change}) for change in changes]
    others.append(room.fingerprint_parts(checkpoint, hashlib.sha256(b"").hexdigest(), **options))
    fingerprints = {room.fingerprint(each) for each in [parts, *others]}
    assert len(fingerprints) == 6
    encoder = TextEncoder(checkpoint, tokenizer, device="cpu")
    assert (encoder.fingerprint_parts, encoder.fingerprint) == (parts, room.fingerprint(parts))
    assert (encoder.checkpoint_name, encoder.untrained, encoder.device.type) == ("small", True, "cpu")


@pytest.mark.gpu
def test_goldens_on_a_card(tokenizer: ClipTokenizer, goldens: tuple[list[str], npt.NDArray[np.float32]]) -> None:
    """On a CUDA device float32 is the original's within 1e-3, and float16 and bfloat16 are at a cosine of 0.9995."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    texts, wanted = goldens
    for dtype in ("float32", "float16", "bfloat16"):
        vectors = TextEncoder(load_checkpoint("untrained"), tokenizer, device="cuda", dtype=dtype).encode(texts)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1)
        assert ((vectors * wanted).sum(1) / lengths).min() >= 0.9995
        assert dtype != "float32" or np.abs(vectors - wanted).max() <= 1e-3

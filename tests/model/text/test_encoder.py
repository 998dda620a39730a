"""TextEncoder: the original's numbers, order, long texts, low memory, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
import torch

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.device import pick_device
from audioclip_beam.model.fingerprint import fingerprint
from audioclip_beam.model.tensors import SCALES
from audioclip_beam.model.text import encoder as encoder_module
from audioclip_beam.model.text.encoder import TooLongError, model_info
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.prefix_tree import PrefixTree
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.model.text.shapes import text_shapes
from tests.support.paths import DATA
from tests.support.plain_tower import small_state
from tests.support.preloaded import preloaded_programs

LONG = "many words " * 50  # 102 tokens with start and end
TEXTS = ["a dog barks", "a dog", "rain on a tin roof", "", "a dog barks at a red car", "wind"]


@pytest.fixture(scope="session")
def goldens() -> tuple[list[str], npt.NDArray[np.float32]]:
    """Texts, and the vectors that the original code computes for them with the weights of "untrained"."""
    with np.load(DATA / "embeddings.npz") as file:
        return json.loads(str(file["texts"])), file["embeddings"]


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """A small checkpoint with the real vocabulary: width 64, two layers, dim 24."""
    return Checkpoint(state=small_state(vocabulary=49408), name="small", sha256="0" * 64, untrained=True)


@pytest.fixture
def small(checkpoint: Checkpoint, tokenizer: ClipTokenizer) -> TextEncoder:
    """A fast encoder."""
    return TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu"))


@pytest.mark.parametrize(
    ("dtype", "nth", "difference", "cosine"),
    [
        ("float32", 8, 2e-5, 0.999999),
        pytest.param("float32", 1, 2e-5, 0.999999, marks=pytest.mark.slow),
        pytest.param("bfloat16", 4, 1.0, 0.9995, marks=pytest.mark.slow),
    ],
)
def test_goldens(  # noqa: PLR0917
    tokenizer: ClipTokenizer,
    goldens: tuple[list[str], npt.NDArray[np.float32]],
    dtype: str,
    nth: int,
    difference: float,
    cosine: float,
) -> None:
    """Every number equals the original's: within 2e-5 in float32, at a cosine of at least 0.9995 in bfloat16.

    Every `nth` text is embedded: CPUs are slow in bfloat16, and the fast tests take a sample.
    """
    texts, expected = (each[::nth] for each in goldens)
    vectors = TextEncoder(
        load_checkpoint("untrained"), tokenizer, TextSettings("small", device="cpu", dtype=dtype)
    ).encode(texts)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() <= difference
    lengths = np.linalg.norm(vectors, axis=1).astype(np.float64) * np.linalg.norm(expected, axis=1)
    assert ((vectors.astype(np.float64) * expected).sum(1) / lengths).min() >= cosine


def test_order_and_duplicates(small: TextEncoder) -> None:
    """Vectors keep the order of the texts, and equal texts, or texts of equal tokens, go through the model once."""
    texts = [*TEXTS, "A  DOG", *reversed(TEXTS)]
    alone = np.concatenate([small.encode([text]) for text in texts])
    np.testing.assert_allclose(small.encode(texts), alone, rtol=0, atol=1e-5)
    encoding = small.encode_rows(texts)
    assert encoding.work.items == len(TEXTS) - 1, "one is blank"
    assert encoding.work.extra["nodes"] < encoding.work.units


def test_windows_do_not_matter(small: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts in small windows get the same vectors."""
    whole = small.encode(TEXTS)
    monkeypatch.setitem(encoder_module.WINDOW, "cpu", 2)
    np.testing.assert_allclose(small.encode(TEXTS), whole, rtol=0, atol=1e-5)


def test_no_texts(small: TextEncoder) -> None:
    """An empty list gives an array without rows."""
    assert small.encode([]).shape == (0, 24)
    assert small.encode_rows([]).columns["n_tokens"].shape == (0,)


def test_one_string_is_not_a_list(small: TextEncoder) -> None:
    """A single string is refused instead of being read letter by letter."""
    with pytest.raises(TypeError, match="texts must be a list of texts, not one string: got 'dog'"):
        small.encode("dog")


def test_lists_and_prompt(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """A list of strings is one text, joined with ", ", and the prompt is put around it."""
    prompted = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu", prompt="the sound of {}"))
    expected = small.encode(["the sound of dog, bark", "the sound of wind"])
    np.testing.assert_allclose(prompted.encode([["dog", "bark"], "wind"]), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(prompted.encode_rows([["dog", "bark"], "wind"]).vectors, expected, rtol=0, atol=1e-5)


def test_prompts(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """{0} is {}, doubled braces are braces, and braces in a text are not placeholders."""
    for prompt, text, expected in (
        ("{0}", "dog", "dog"),
        ("a {}.", "dog", "a dog."),
        ("{{{}}}", "dog", "{dog}"),
        ("{{0}} {}", "dog", "{0} dog"),
        ("say {}", "a {} b {0}", "say a {} b {0}"),
    ):
        prompted = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu", prompt=prompt))
        np.testing.assert_array_equal(prompted.encode([text]), small.encode([expected]), prompt)


def test_long_texts_are_cut(small: TextEncoder) -> None:
    """A text longer than the context is read up to its 75th token, flagged, and counted before truncation."""
    encoding = small.encode_rows([LONG, "many words " * 37 + "many", "many words"])
    assert encoding.columns["n_tokens"].tolist() == [102, 77, 4]
    assert encoding.columns["n_tokens"].dtype == np.int16
    assert encoding.columns["truncated"].tolist() == [True, False, False]
    np.testing.assert_array_equal(encoding.vectors[0], encoding.vectors[1])


def test_token_counts_are_capped(small: TextEncoder) -> None:
    """A count that does not fit int16 becomes 32,767."""
    assert small.encode_rows(["a " * 40_000]).columns["n_tokens"].tolist() == [32_767]


def test_long_texts_are_rejected(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """With on_long="reject", encode names the first text that is too long, and encode_rows leaves NaN in its row only."""
    strict = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu", on_long="reject"))
    with pytest.raises(
        ValueError, match=r"^text 1 has 102 tokens, and the model reads at most 77: 'many words .*truncate'$"
    ):
        strict.encode(["wind", LONG, LONG])
    encoding = strict.encode_rows(["wind", LONG, "a dog"])
    assert np.isnan(encoding.vectors).all(1).tolist() == encoding.columns["truncated"].tolist() == [False, True, False]
    np.testing.assert_allclose(encoding.vectors[[0, 2]], small.encode(["wind", "a dog"]), rtol=0, atol=1e-5)
    assert np.isnan(strict.encode_rows([LONG]).vectors).all()
    longest = strict.encode_rows(["a " * 75])
    assert (longest.columns["n_tokens"].tolist(), longest.columns["truncated"].tolist()) == ([77], [False])
    assert np.isfinite(longest.vectors).all()


def test_end_of_text_in_a_text(small: TextEncoder) -> None:
    """The vector of a text that contains <|endoftext|> is taken there, as in the original."""
    vectors = small.encode(["a dog <|endoftext|> barks", "a dog"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_normalize(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """With normalize, vectors have length 1 and the same direction."""
    vectors = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu", normalize=True)).encode(TEXTS)
    expected = small.encode(TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)


class LowMemory:
    """A tower whose memory suffices for a given number of nodes."""

    def __init__(self, encoder: TextEncoder, max_nodes: int) -> None:
        self.tower, self.max_nodes = encoder.tower, max_nodes
        self.dim, self.context_length = encoder.dim, encoder.tower.context_length

    def __call__(self, tree: PrefixTree) -> torch.Tensor:
        if len(tree.tokens) > self.max_nodes:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.tower(tree)


def test_out_of_memory_halves_the_micro_batch(small: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch that runs out of memory is halved until it fits, nothing is lost, and the size is remembered."""
    whole = small.encode_rows(TEXTS)
    monkeypatch.setattr(small, "tower", LowMemory(small, max_nodes=whole.work.extra["nodes"] - 1))
    encoding = small.encode_rows(TEXTS)
    np.testing.assert_allclose(encoding.vectors, whole.vectors, rtol=0, atol=1e-5)
    assert encoding.work.oom_retries == 1
    assert encoding.work.micro_batches > 1
    assert small.encode_rows(TEXTS).work.oom_retries == 0


def test_out_of_memory_for_one_text(small: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error reports a memory that is too small for a single text."""
    monkeypatch.setattr(small, "tower", LowMemory(small, max_nodes=3))
    with pytest.raises(MemoryError, match="too little free memory for a single text of 6 tokens"):
        small.encode(["a dog barks"])


def test_devices() -> None:
    """CUDA never falls back to a CPU silently, "auto" takes what is available, and unknown words are refused."""
    assert pick_device("cpu", "float32") == torch.device("cpu")
    with pytest.raises(ValueError, match="device='gpu': choose one of auto, cpu, cuda, cuda:N"):
        pick_device("gpu", "float32")
    if torch.cuda.is_available():
        assert pick_device("auto", "float16") == torch.device("cuda", torch.cuda.current_device())
    else:
        assert pick_device("auto", "float32") == torch.device("cpu")
        with pytest.raises(RuntimeError, match=r"device='cuda': torch .* sees no GPU \("):
            pick_device("cuda", "float32")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("on_long", "cut", "on_long='cut': choose one of truncate, reject, error"),
        ("dtype", "float64", "dtype='float64': choose one of float32, bfloat16, float16"),
        ("dtype", "float16", "dtype='float16': it needs a CUDA device"),
        ("prompt", "a photo", "prompt='a photo': it must contain {} once"),
        ("prompt", "{} {}", "prompt='{} {}': it must contain {} once"),
        ("prompt", "{text}", "prompt='{text}': it must contain {} once"),
        ("prompt", "{:.4}", "prompt='{:.4}': it must contain {} once"),
        ("prompt", "{!r}", "prompt='{!r}': it must contain {} once"),
        ("prompt", "{0} {0}", "prompt='{0} {0}': it must contain {} once"),
        ("prompt", "{:>{}}", "prompt='{:>{}}': it must contain {} once"),
        ("prompt", None, "prompt=None: it must contain {} once"),
    ],
)
def test_unknown_options(
    checkpoint: Checkpoint, tokenizer: ClipTokenizer, option: str, value: str, message: str
) -> None:
    """The error for an unknown option value quotes it and names the known ones."""
    options = {"device": "cpu", option: value}
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is compared below
        TextEncoder(checkpoint, tokenizer, TextSettings("small", **options))
    assert str(caught.value).startswith(message)


def test_missing_vocabulary(tmp_path: Path) -> None:
    """The error for a missing vocabulary names the path and the command that fetches it."""
    with pytest.raises(FileNotFoundError, match="no vocabulary file at .*nowhere.*audioclip fetch vocabulary"):
        TextEncoder.load("untrained", tokenizer_path=tmp_path / "nowhere.gz")


def test_fingerprint(checkpoint: Checkpoint, tokenizer: ClipTokenizer) -> None:
    """The fingerprint changes with everything that changes a vector, and is known without a tower."""
    options = {"prompt": "{}", "on_long": "truncate", "normalize": False, "dtype": "float32"}

    def parts_of(vocabulary_sha256: str = tokenizer.sha256, **change: Any) -> dict[str, str]:
        settings = TextSettings("small", **{**options, **change})
        return model_info(checkpoint, vocabulary_sha256, settings).fingerprint_parts

    parts = parts_of()
    options_and_files = ["scheme", "head", "weights", "vocabulary", "prompt", "on_long", "normalize", "dtype"]
    assert list(parts) == [*options_and_files, *TEXT.version_parts]
    changes = [{"prompt": "a {}"}, {"on_long": "reject"}, {"normalize": True}, {"dtype": "bfloat16"}]
    others = [parts_of(**change) for change in changes]
    others.append(parts_of(hashlib.sha256(b"").hexdigest()))
    fingerprints = {fingerprint(each) for each in [parts, *others]}
    assert len(fingerprints) == 6
    encoder = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu"))
    assert (encoder.info.fingerprint_parts, encoder.fingerprint) == (parts, fingerprint(parts))
    assert (encoder.info.name, encoder.info.untrained, encoder.device.type) == ("small", True, "cpu")


@pytest.mark.parametrize("package", ["ftfy", "regex", "unicode"])
def test_versions_of_the_tokenizer_change_the_fingerprint(
    checkpoint: Checkpoint, tokenizer: ClipTokenizer, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Another ftfy, regex or Unicode database may give other token ids, so its vectors are not mixed with earlier ones."""
    before = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu"))
    if package == "unicode":
        monkeypatch.setattr("unicodedata.unidata_version", "1.1.0")
    else:
        monkeypatch.setattr(
            "audioclip_beam.model.text.settings.version", lambda name: "1.1.0" if name == package else version(name)
        )
    after = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu"))
    changed = {
        name for name, value in after.info.fingerprint_parts.items() if before.info.fingerprint_parts[name] != value
    }
    assert (changed, after.info.fingerprint_parts[package]) == ({package}, "1.1.0")
    assert after.fingerprint != before.fingerprint


@pytest.mark.gpu
def test_goldens_on_a_gpu(tokenizer: ClipTokenizer, goldens: tuple[list[str], npt.NDArray[np.float32]]) -> None:
    """On a CUDA device vectors equal the original's within the tolerances that docs/data-format.md promises."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    texts, expected = goldens
    for dtype, cosine in (("float32", 0.999999), ("float16", 0.99999), ("bfloat16", 0.9995)):
        vectors = TextEncoder(
            load_checkpoint("untrained"), tokenizer, TextSettings("small", device="cuda", dtype=dtype)
        ).encode(texts)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((vectors * expected).sum(1) / lengths).min() >= cosine
        assert dtype != "float32" or np.abs(vectors - expected).max() <= 1e-3


def test_long_texts_are_an_error(checkpoint: Checkpoint, tokenizer: ClipTokenizer, small: TextEncoder) -> None:
    """With on_long="error" a text that is too long raises; other vectors, and the fingerprint, are those of "truncate"."""
    strict = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu", on_long="error"))
    assert strict.fingerprint == small.fingerprint
    np.testing.assert_array_equal(strict.encode(TEXTS), small.encode(TEXTS))
    with pytest.raises(TooLongError, match=r"^text 3 has 102 tokens, and the model reads at most 77: "):
        strict.encode(["wind", "a dog", "wind", LONG, LONG + "!"])
    assert strict.encode_rows([LONG, "wind"]).columns["truncated"].tolist() == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    [
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:2], TEXTS[2:]]),
        pa.array(TEXTS).dictionary_encode(),
        pd.Series(TEXTS, index=range(5, 11)),
        np.array(TEXTS),
        np.array(TEXTS, object),
        tuple(TEXTS),
        (text for text in TEXTS),
        [np.array([text]) for text in TEXTS],
    ],
    ids=["arrow", "chunked", "dictionary", "pandas", "numpy", "objects", "tuple", "generator", "parts"],
)
def test_texts_of_other_libraries(small: TextEncoder, texts: Any) -> None:
    """Columns of Arrow, pandas and numpy are embedded like lists."""
    np.testing.assert_array_equal(small.encode(texts), small.encode(TEXTS))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["a", None],
            r"^text 1 is None \(NoneType\), not a string or a list of strings: give a text, or leave it out$",
        ),
        (pa.array(["a", "b", None]), r"^text 2 is None"),
        (pd.Series(["a", float("nan")]), r"^text 1 is nan \(float\)"),
        ([["a", None]], r"^text 0 is \['a', None\] \(list\)"),
        ([b"a"], r"^text 0 is b'a' \(bytes\)"),
        (b"a", r"^text 0 is 97 \(int\)"),
        (pa.array([1, 2]), r"^text 0 is 1 \(int\)"),
        ([{"text": "a"}], r"^text 0 is {'text': 'a'} \(dict\)"),
        ([{"dog"}], r"^text 0 is {'dog'} \(set\)"),
        (["a", frozenset({"dog"})], r"^text 1 is frozenset\({'dog'}\) \(frozenset\)"),
    ],
)
def test_what_is_not_a_text_is_named(small: TextEncoder, texts: Any, message: str) -> None:
    """The error for a missing value or another type names its position."""
    with pytest.raises(TypeError, match=message):
        small.encode(texts)


def test_pickling(small_head: str, vocabulary: Path, small: TextEncoder, tmp_path: Path) -> None:
    """A loaded encoder is pickled as its settings; files that have changed since, and other encoders, are an error."""
    path = tmp_path / "head.pt"
    path.write_bytes(Path(small_head).read_bytes())
    notice = r"^head\.pt is not AudioCLIP's text head"
    with pytest.warns(UserWarning, match=notice):
        encoder = TextEncoder.load(path, device="cpu", tokenizer_path=vocabulary, prompt="a {}", normalize=True)
    pickled = pickle.dumps(encoder)
    with pytest.warns(UserWarning, match=notice):
        again = pickle.loads(pickled)
    assert len(pickled) < 1000
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    torch.save({name: tensor + 1 for name, tensor in torch.load(path).items()}, path)
    with (
        pytest.warns(UserWarning, match=notice),
        pytest.raises(ValueError, match="gives other vectors than the TextEncoder that was"),
    ):
        pickle.loads(pickled)
    with pytest.raises(TypeError, match=r"cannot be pickled: create it by TextEncoder\.load"):
        pickle.dumps(small)


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from audioclip_beam.model import TextEncoder
from tests.support.preloaded import preloaded_programs
encoder = TextEncoder.load(sys.argv[1], device="cpu", tokenizer_path=sys.argv[2])
encoder.encode([f"text number {n}" for n in range(200)])
if (child := os.fork()) == 0:
    try:
        encoder.encode([f"text number {n}" for n in range(200)])
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_use_after_a_fork_is_an_error(small_head: str, vocabulary: Path) -> None:
    """In a forked process, where torch hangs, the error comes at once and names the remedy."""
    command = [str(preloaded_programs() / "python"), "-c", FORK, small_head, str(vocabulary)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert re.match(
        r"this TextEncoder belongs to process \d+, of which process \d+ is a fork, and torch may hang there: load an "
        r"encoder in the new process, or start it with multiprocessing's spawn method$",
        done.stdout.strip(),
    )


@pytest.mark.parametrize(
    ("shapes", "difference"),
    [
        ({"dim": 512}, "512 numbers per vector instead of 1024"),
        ({"width": 768, "dim": 768}, "768 numbers per vector instead of 1024, width 768 instead of 512"),
        ({"layers": 2, "context": 20}, "2 layers instead of 12, a context of 20 tokens instead of 77"),
        ({}, "no logit_scale_at"),
        (None, ""),
    ],
)
def test_another_text_head_is_noticed(shapes: dict[str, int] | None, difference: str) -> None:
    """A CLIP text head of other shapes, or without AudioCLIP's scales, is another vector space, which the notice reports."""
    state = {name: torch.empty(shape, device="meta") for name, shape in text_shapes(**(shapes or {})).items()}
    if shapes is None:
        state |= {name: torch.empty((), device="meta") for name in SCALES}
    checkpoint = Checkpoint(state, "clip.pt", "0" * 64, False)
    assert checkpoint.notice == (
        f"clip.pt is not AudioCLIP's text head ({difference}): its vectors belong to another space and cannot be compared "
        f"with those of AudioCLIP's texts, images or sounds"
        if difference
        else ""
    )

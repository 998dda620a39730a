"""The RunInference handlers of pictures and recordings: Beam's contract, every form of element, and clear errors."""

from __future__ import annotations

import io
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.internal import pickler
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.testing.util import assert_that
from PIL import Image

from audioclip_beam.model import ImageEncoder, Track
from audioclip_beam.pipeline import AudioEmbeddingHandler, ImageEmbeddingHandler
from audioclip_beam.pipeline.inference import fetch_content
from tests.support import object_stores
from tests.support.object_stores import Store
from tests.support.picture_files import encoded, picture
from tests.support.plain_audio import encoder as audio_encoder
from tests.support.plain_image import save_small_head
from tests.support.sound_files import sound_file

store = object_stores.store

PICTURES = [encoded(picture(seed, 30 + seed, 90)) for seed in range(4)]
SOUNDS = [sound_file(samples=n) for n in (3000, 4000)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_head(tmp_path_factory.mktemp("head") / "small.pt")


@pytest.fixture
def handler(head: str) -> ImageEmbeddingHandler:
    return ImageEmbeddingHandler(head, device="cpu")


@pytest.fixture
def expected(head: str) -> np.ndarray:
    """The vectors of PICTURES."""
    return ImageEncoder.load(head, device="cpu").encode(PICTURES)


def _close(actual: Any, expected: np.ndarray) -> None:
    difference = np.linalg.norm(np.asarray(actual) - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert difference.max() < 5e-6


def test_every_form_of_picture_in_a_pipeline(
    handler: ImageEmbeddingHandler, expected: np.ndarray, tmp_path: Path
) -> None:
    """Bytes, paths as a person types them, PIL images and arrays, with keys."""
    path = tmp_path / "a b.png"
    path.write_bytes(PICTURES[1])
    image = Image.open(io.BytesIO(PICTURES[2]))
    image.load()
    forms = [PICTURES[0], str(path), path.as_uri(), path, bytearray(PICTURES[0]), image, np.asarray(image)]
    places = [0, 1, 1, 1, 0, 2, 2]

    def check(results: list[tuple[int, PredictionResult]]) -> None:
        assert sorted(n for n, _ in results) == list(range(len(forms)))
        for n, result in results:
            _close(result.inference, expected[places[n]])
            assert result.inference.dtype == np.float32

    with beam.Pipeline("FnApiRunner") as pipeline:
        elements = pipeline | beam.Create(list(enumerate(forms)))
        assert_that(elements | RunInference(KeyedModelHandler(handler)), check)


@pytest.mark.slow
def test_every_form_of_recording_in_a_pipeline(tmp_path: Path) -> None:
    """Bytes, paths, Tracks, and arrays with the handler's sample rate, whose vectors are those of AudioEncoder."""
    path = tmp_path / "a.wav"
    path.write_bytes(SOUNDS[0])
    noise = (np.random.default_rng(0).random((2, 3000)) - 0.5).astype(np.float32)
    forms = [SOUNDS[0], str(path), SOUNDS[1], Track(noise, 22050), noise, noise[0]]
    alike = [SOUNDS[0], SOUNDS[0], SOUNDS[1], Track(noise, 22050), Track(noise, 8000), Track(noise[0], 8000)]
    vectors = audio_encoder().encode(alike)

    def check(results: list[PredictionResult]) -> None:
        found = np.stack([result.inference for result in results])
        for vector in vectors:  # Beam promises no order
            assert (np.linalg.norm(found - vector, axis=1) / np.linalg.norm(vector)).min() < 5e-6
        assert len(found) == len(forms)

    with beam.Pipeline("FnApiRunner") as pipeline:
        handler = AudioEmbeddingHandler("untrained", device="cpu", sample_rate=8000)
        assert_that(pipeline | beam.Create(forms) | RunInference(handler), check)


def test_objects_are_read_from_a_store(store: Store, handler: ImageEmbeddingHandler, expected: np.ndarray) -> None:
    """By URI, with the limits and retries of this project; what is missing is named."""
    good = [store.put(f"{n}.png", content) for n, content in enumerate(PICTURES)]
    model, refused = handler.load_model(), set()

    def refuse_once(request: object_stores.Request) -> str | None:
        first = ".png" in request.path and request.what not in refused
        refused.add(request.what)
        return "503" if first else None

    store.fault = refuse_once
    _close([each.inference for each in handler.run_inference(good, model)], expected)
    store.fault = lambda _: None
    with pytest.raises(FileNotFoundError, match=f"{store.url}/none.png: missing file: "):
        handler.run_inference([good[0], f"{store.url}/none.png"], model)


@pytest.mark.parametrize(
    ("element", "error", "message"),
    [
        (None, TypeError, r"None \(NoneType\) is not a picture: give a path or URI, bytes, or a PIL image"),
        (3, TypeError, r"3 \(int\) is not a picture"),
        (["a.png"], TypeError, r"\['a.png'\] \(list\) is not a picture"),
        (("k", b"x"), TypeError, r"with KeyedModelHandler\(ImageEmbeddingHandler"),
        ({"file": "a.png"}, TypeError, r"as beam.Map\(lambda row: row\['file'\]\) makes it"),
        (beam.Row(file="a.png"), TypeError, r"as beam.Map\(lambda row: row.file\) makes it"),
        (np.zeros((3, 4), np.uint8), TypeError, r"^ndarray of uint8 \[3, 4\]: wrong type: .* give uint8 \[H, W, 3\]"),
        (b"", ValueError, r"^0 bytes \(content hash [0-9a-f]{32}\): empty file: "),
        (b"junk", ValueError, r"^4 bytes \(content hash [0-9a-f]{32}\): not decodable: "),
        ("none.png", FileNotFoundError, r"^none.png: missing file: No such file"),
        ("/", FileNotFoundError, "^/: missing file: it is not a regular file"),
        ("a\0b", FileNotFoundError, "missing file: .*null"),
        ("a\nb\x1b[2J.png", FileNotFoundError, r"^a\\nb\\x1b\[2J.png: missing file: No such file"),
        ("http://x/a.png", TypeError, "^http://x/a.png: wrong type: .* download it first"),
        ("gs:/x/a.png", TypeError, "wrong type: .* write gs://x/a.png"),
    ],
)
def test_what_is_no_picture_is_named(
    handler: ImageEmbeddingHandler, element: object, error: type[Exception], message: str
) -> None:
    """RunInference fails its batch with an error that says which element it was, and what to give."""
    with pytest.raises(error, match=message):
        handler.run_inference([PICTURES[0], element], handler.load_model())


def test_wrong_types_are_found_before_anything_is_read_or_embedded(handler: ImageEmbeddingHandler) -> None:
    with pytest.raises(TypeError, match="is not a picture"):
        handler.run_inference(["none.png", None], None)  # type: ignore[arg-type]


def test_limits_hold_before_a_file_is_read(head: str, tmp_path: Path) -> None:
    """Also for a file without blocks on the disk, which would fill the memory."""
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    handler = ImageEmbeddingHandler(head, device="cpu")
    with pytest.raises(ValueError, match=r"too large: 1,099,511,627,776 bytes, over 268,435,456 \(max_image_bytes\)"):
        handler.run_inference([str(path)], handler.load_model())
    small = ImageEmbeddingHandler(head, device="cpu", max_pixels=100)
    with pytest.raises(ValueError, match="too large: 30 x 90 pixels"):
        small.run_inference([PICTURES[0]], small.load_model())


def test_a_file_that_gives_no_data_costs_itself_alone(
    head: str, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After read_timeout; the others of its batch are embedded, and no thread is left."""
    good, stuck = tmp_path / "a.png", tmp_path / "stuck.png"
    for path in (good, stuck):
        path.write_bytes(PICTURES[0])
    answer, read, threads = threading.Event(), Path.read_bytes, list[threading.Thread]()

    def read_or_wait(path: Path) -> bytes:
        if path != stuck:
            return read(path)
        threads.append(threading.current_thread())
        answer.wait()
        return b""

    monkeypatch.setattr(Path, "read_bytes", read_or_wait)
    handler = ImageEmbeddingHandler(head, device="cpu", read_timeout=0.3)
    first, second, third = handler.outcomes([str(good), str(stuck), str(good)], handler.load_model(), isolate=True)
    _close([first, third], expected[[0, 0]])
    assert second == ("missing file", "its file system gave no answer for 0.3 s")
    answer.set()
    until = time.monotonic() + 5
    while threads[0].is_alive() or any(thread.name == "read-ahead" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_files_go_to_the_model_in_groups_of_bounded_size(
    handler: ImageEmbeddingHandler, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a batch names; their order stays."""
    paths = []
    for n, content in enumerate(PICTURES):
        (path := tmp_path / f"{n}.png").write_bytes(content)
        paths.append(str(path))
    limit = sum(len(content) for content in PICTURES[:2])
    monkeypatch.setattr(fetch_content, "GROUP_BYTES", limit)
    model, groups = handler.load_model(), []
    encode_rows = model.encode_rows
    monkeypatch.setattr(
        model, "encode_rows", lambda contents: [groups.append(sum(map(len, contents))), encode_rows(contents)][1]
    )
    results = handler.run_inference([*paths, PICTURES[0]], model)
    _close([each.inference for each in results], expected[[0, 1, 2, 3, 0]])
    assert [each.example for each in results] == [*paths, PICTURES[0]]
    assert len(groups) >= 3
    assert max(groups) <= limit


@pytest.mark.parametrize(
    "make", [ImageEmbeddingHandler, AudioEmbeddingHandler], ids=["ImageEmbeddingHandler", "AudioEmbeddingHandler"]
)
def test_settings_are_checked_before_a_job_starts(make: Callable[..., Any]) -> None:
    """Unknown names, and values that the encoder does not know; inference_args have no meaning."""
    for name in ("max_batch_weight", "element_size_fn", "batch_sise"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            make("untrained", **{name: 7})
    for settings in ({"dtype": "float8"}, {"variant": "clip"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make("untrained", **settings)
    with pytest.raises(ValueError, match=rf"{make.__name__} takes no inference_args, got \['temperature'\]"):
        make("untrained").validate_inference_args({"temperature": 1})


def test_settings_of_one_head_alone() -> None:
    with pytest.raises(ValueError, match="max_pixels=0"):
        ImageEmbeddingHandler("untrained", max_pixels=0)
    with pytest.raises(ValueError, match="sample_rate=5"):
        AudioEmbeddingHandler("untrained", sample_rate=5)


def test_sizes_hints_and_sharing(head: str) -> None:
    """Large contents count as several elements of a batch, but never as more than the smallest batch takes."""
    handler = ImageEmbeddingHandler(head, large_model=True, model_copies=2, max_batch_size=32, min_batch_size=4)
    kwargs = dict(handler.batch_elements_kwargs())
    size = kwargs.pop("element_size_fn")
    assert kwargs == {"min_batch_size": 4, "max_batch_size": 32}
    assert [size(bytes(n << 20)) for n in (0, 1, 3, 6, 100)] == [1, 1, 1, 3, 4]
    assert size(("key", bytes(6 << 20))) == 3
    assert size("a.png") == 1
    assert handler.get_num_bytes([b"abc", "é.png", np.zeros((2, 2, 3), np.uint8)]) == 3 + 6 + 12
    assert handler.get_metrics_namespace() == "audioclip_beam"
    assert handler.get_resource_hints() == {}
    assert handler.share_model_across_processes()
    assert handler.model_copies() == 2


def test_pickled_handlers_have_the_same_encoder(handler: ImageEmbeddingHandler) -> None:
    for module in (pickler, pickle):
        assert module.loads(module.dumps(handler)).load_model() is handler.load_model()


def test_a_model_update_changes_the_checkpoint(handler: ImageEmbeddingHandler, head: str, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(Path(head).read_bytes())
    handler.update_model_path(None)
    assert handler.load_model().settings.path == head  # type: ignore[attr-defined]
    handler.update_model_path(str(other))
    assert handler.load_model().settings.path == str(other)  # type: ignore[attr-defined]

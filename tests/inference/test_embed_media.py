"""EmbedImage and EmbedAudio: one bad content costs itself alone, in batches and in streams."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, Sessions, SlidingWindows, TimestampedValue

from audioclip_beam.model import ImageEncoder, Track
from audioclip_beam.model.head import Encoding
from audioclip_beam.pipeline import EmbedAudio, EmbedImage
from audioclip_beam.pipeline.inference.embed_media import Rejected
from tests.support.picture_files import encoded, picture
from tests.support.plain_image import save_small_head
from tests.support.sound_files import sound_file


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_head(tmp_path_factory.mktemp("head") / "small.pt")


@pytest.fixture(scope="module")
def expected(head: str) -> list[float]:
    """The vector of picture 1."""
    return ImageEncoder.load(head, device="cpu").encode([encoded(picture(1))])[0].tolist()


def run(elements: list[Any], transform: beam.PTransform, tmp_path: Path) -> tuple[list[Any], list[Rejected]]:
    """Return what is in the two outputs, each of which went through a shuffle."""
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()

    def keep(element: Any, folder: str) -> None:
        (Path(folder) / str(hash(pickle.dumps(element)))).write_bytes(pickle.dumps(element))

    with beam.Pipeline("FnApiRunner") as pipeline:
        outputs = pipeline | beam.Create(elements, reshuffle=False) | transform
        for name in ("good", "bad"):
            shuffled = outputs[name] | f"Shuffle{name}" >> beam.Reshuffle()
            _ = shuffled | f"Keep{name}" >> beam.Map(keep, str(tmp_path / name))
    return tuple([pickle.loads(file.read_bytes()) for file in (tmp_path / name).iterdir()] for name in ("good", "bad"))  # type: ignore[return-value]


def test_one_bad_picture_costs_itself_alone(head: str, expected: list[float], tmp_path: Path) -> None:
    """Each has its reason; good ones of the same batch have their vectors."""
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "big.png").write_bytes(bytes(3000))
    good = {f"good {n}": encoded(picture(1)) for n in range(3)}
    bad = {
        "junk": (b"junk", "not decodable"),
        "truncated": (encoded(picture(2))[:200], "not decodable"),
        "missing": (str(tmp_path / "none.png"), "missing file"),
        "folder": (str(tmp_path), "missing file"),
        "empty": (str(tmp_path / "empty.png"), "empty file"),
        "no bytes": (b"", "empty file"),
        "big": (str(tmp_path / "big.png"), "too large"),
        "null": (None, "wrong type"),
        "number": (7, "wrong type"),
        "grey": (np.zeros((5, 5), np.uint8), "wrong type"),
        "web": ("https://x.org/a.png", "wrong type"),
        "pixels": (encoded(picture(3, 1000, 600)), "too large"),
    }
    elements = [*good.items(), *((key, content) for key, (content, _) in bad.items())]
    transform = EmbedImage(head, device="cpu", max_image_bytes=2900, max_pixels=100_000)
    found, rejected = run(elements, transform, tmp_path)
    assert sorted(key for key, _ in found) == sorted(good)
    for _, vector in found:
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    assert {each.element: each.reason for each in rejected} == {key: reason for key, (_, reason) in bad.items()}
    assert all(each.detail for each in rejected)


def test_elements_without_keys(head: str, tmp_path: Path) -> None:
    """A good one comes with its vector, a bad one by its path or by what it is, never with its bytes."""
    path, content = str(tmp_path / "none.png"), encoded(picture(1))
    found, rejected = run([content, path, b"junk", ("a", "b", "c"), {"a": 1}], EmbedImage(head, device="cpu"), tmp_path)
    assert [element for element, _ in found] == [content]
    reasons = {each.element: each.reason for each in rejected}
    assert reasons == {
        path: "missing file",
        "4 bytes (content hash c58a30c4b85110216c1df0663487fc3f)": "not decodable",
        "('a', 'b', 'c') (tuple)": "wrong type",
        "{'a': 1} (dict)": "wrong type",
    }


@pytest.mark.slow
def test_one_bad_recording_costs_itself_alone(tmp_path: Path) -> None:
    """Also a Track without samples or with a rate that no recording has."""
    noise = np.zeros(700, np.float32)
    contents: dict[str, Any] = {
        "good": sound_file(samples=900),
        "array": noise,
        "track": Track(noise, 8000),
        "text": b"not a sound",
        "missing": "none.wav",
        "short": Track(noise[:0], 8000),
        "rate": Track(noise, 5),
        "rows": np.zeros((5000, 2), np.float32),
        "long": Track(np.zeros(301 * 1000, np.int16), 1000),
        "null": None,
    }
    found, rejected = run(list(contents.items()), EmbedAudio("untrained", device="cpu", sample_rate=22050), tmp_path)
    assert sorted(key for key, _ in found) == ["array", "good", "track"]
    assert all(vector.shape == (1024,) and np.isfinite(vector).all() for _, vector in found)
    assert {each.element: each.reason for each in rejected} == {
        "text": "not decodable",
        "missing": "missing file",
        "short": "too short",
        "rate": "wrong type",
        "rows": "wrong type",
        "long": "too long",
        "null": "wrong type",
    }


def _poison(monkeypatch: pytest.MonkeyPatch, is_poison: Callable[[Any], bool]) -> None:
    """Let the model fail on some contents."""
    plain = ImageEncoder._encode_rows

    def encode_rows(encoder: ImageEncoder, pictures: list[Any]) -> Encoding:
        if any(map(is_poison, pictures)):
            raise RuntimeError("this picture is poison")
        return plain(encoder, pictures)

    monkeypatch.setattr(ImageEncoder, "_encode_rows", encode_rows)


def test_a_picture_that_the_model_fails_on_is_alone(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batch is halved; if the canary fails too, the model is at fault, and the pipeline fails."""
    poison = encoded(picture(3))
    _poison(monkeypatch, lambda content: content == poison)
    elements = [(str(n), encoded(picture(1)) if n != 5 else poison) for n in range(8)]
    found, rejected = run(elements, EmbedImage(head, device="cpu"), tmp_path)
    assert len(found) == 7
    assert rejected == [Rejected("5", "model error", "RuntimeError: this picture is poison")]
    _poison(monkeypatch, lambda content: True)
    (tmp_path / "again").mkdir()
    with pytest.raises(Exception, match="and on the canary"):
        run(elements, EmbedImage(head, device="cpu"), tmp_path / "again")


@pytest.mark.parametrize("windowing", [FixedWindows(30), SlidingWindows(30, 30), Sessions(5)])
def test_a_stream_keeps_windows_and_timestamps(head: str, windowing: Any, tmp_path: Path) -> None:
    """Elements of both outputs have theirs, and none comes too late to be grouped in its window."""
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    contents = [
        encoded(picture(1)),
        b"junk",
        str(tmp_path / "a.png"),
        str(tmp_path / "none.png"),
        None,
        encoded(picture(1)),
    ]
    stream = test_stream.TestStream().advance_watermark_to(0)
    for n, content in enumerate(contents):
        stream = stream.add_elements([TimestampedValue((n, content), 10 * n + 1)]).advance_watermark_to(10 * n + 2)
    windows = {n: 10 * n + 1 if isinstance(windowing, Sessions) else n // 3 * 30 for n in range(6)}

    def moment(element: Any, time: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam) -> Any:
        return element[0], int(time), int(window.start)

    with beam.Pipeline("BundleBasedDirectRunner", options=PipelineOptions(["--streaming"])) as pipeline:
        elements = pipeline | stream.advance_watermark_to_infinity() | beam.WindowInto(windowing)
        outputs = elements | EmbedImage(head, device="cpu")
        for name, numbers in (("good", (0, 2, 5)), ("bad", (1, 3, 4))):
            moments = outputs[name] | f"{name} moments" >> beam.Map(moment)
            assert_that(moments, equal_to([(n, 10 * n + 1, windows[n]) for n in numbers]), f"{name} is kept")
            grouped = (
                outputs[name]
                | f"{name} pairs" >> beam.Map(lambda element: (element[0], None))
                | f"{name} group" >> beam.GroupByKey()
            )
            assert_that(grouped | f"{name} keys" >> beam.Keys(), equal_to(list(numbers)), f"{name} is grouped")


def test_batches_that_would_come_too_late_for_their_windows_are_refused(head: str) -> None:
    """Beam hands them over at the end of the window, and a GroupByKey would drop them silently."""
    for transform in (EmbedImage, EmbedAudio):
        with pytest.raises(ValueError, match=r"^max_batch_duration_secs=1: leave it out, "):
            transform(head, max_batch_duration_secs=1)


def test_types_of_the_outputs(head: str) -> None:
    """Keys keep their type, so that they can be grouped by a coder of their own."""
    keyed = beam.Pipeline() | beam.Create([("a", "a.png")]) | EmbedImage(head)
    assert keyed.good.element_type == beam.typehints.Tuple[str, np.ndarray]
    plain = beam.Pipeline() | beam.Create(["a.png"]) | EmbedImage(head)
    assert plain.good.element_type == beam.typehints.Tuple[str, np.ndarray]
    assert plain.bad.element_type == Rejected


def test_counters(head: str) -> None:
    """Beam's metrics have the embedded and the rejected ones, by reason."""
    pipeline = beam.Pipeline("FnApiRunner")
    _ = (
        pipeline
        | beam.Create([("a", encoded(picture(1))), ("b", b"junk"), ("c", "none.png")])
        | EmbedImage(head, device="cpu")
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = {counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]}
    assert counters["contents_embedded"] == 1
    assert counters["contents_rejected"] == 2
    assert counters["contents_rejected_not_decodable"] == counters["contents_rejected_missing_file"] == 1
    assert counters["num_inferences"] == 3

"""The zero-shot benchmark on tiny synthetic sets in the layouts of ESC-50, UrbanSound8K and a csv of pairs."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioclip_beam.model.head import ContentError, Encoding, Work
from tests.support.paths import ROOT

BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "zero_shot.py"), run_name="zero_shot")


def test_figures_are_those_of_made_up_vectors() -> None:
    """Two of three sounds are nearest to their label; one partner of two is first, the other one second."""
    labels = np.eye(3)
    sounds = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0.8, 0.6]])
    assert BENCHMARK["accuracy"](sounds, labels, np.array([0, 1, 2])) == pytest.approx(200 / 3)
    partners = np.eye(3, dtype=np.bool_)
    assert BENCHMARK["recall"](labels, sounds, partners, 1) == 100
    assert BENCHMARK["recall"](sounds, labels, partners, 1) == pytest.approx(200 / 3)
    assert BENCHMARK["recall"](sounds, labels, partners, 2) == 100


def test_clips_with_several_captions_are_counted_once() -> None:
    """A clip is found by each of its captions, and any of these is right for it; clips may have the same caption."""
    pairs = [BENCHMARK["Clip"](Path(path), text) for path, text in (("a", "x"), ("a", "y"), ("b", "z"), ("c", "z"))]
    clips = [pairs[0], pairs[2], pairs[3]]
    partners = BENCHMARK["partners_of"](pairs, clips, ["x", "y", "z"])
    assert partners.tolist() == [[True, True, False], [False, False, True], [False, False, True]]
    sounds, captions = np.array([[1.0, 0], [0, 1], [0, 1]]), np.array([[1.0, 0], [0.6, 0.8], [0, 1]])
    assert BENCHMARK["recall"](sounds, captions, partners, 1) == 100
    assert BENCHMARK["recall"](captions, sounds, partners.T, 1) == pytest.approx(200 / 3)
    assert BENCHMARK["recall"](captions, sounds, partners.T, 3) == 100


@pytest.mark.slow
def test_sets_are_read_and_measured(tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each set has a line per variant, beside the paper's figure."""
    esc50, us8k = tmp_path / "esc50", tmp_path / "us8k"
    for folder in (esc50 / "audio", esc50 / "meta", us8k / "audio" / "fold2", us8k / "metadata"):
        folder.mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal((3, 2000)) * 0.1
    for number, samples in enumerate(noise):
        soundfile.write(esc50 / "audio" / f"{number}.wav", samples, 8000)
        soundfile.write(us8k / "audio" / "fold2" / f"{number}.wav", samples, 8000)
    (esc50 / "meta" / "esc50.csv").write_text("filename,fold,category\n0.wav,1,dog\n1.wav,1,sea_waves\n2.wav,2,dog\n")
    (us8k / "metadata" / "UrbanSound8K.csv").write_text(
        "slice_file_name,fold,class\n0.wav,2,siren\n1.wav,2,drilling\n2.wav,2,siren\n"
    )
    (tmp_path / "pairs.csv").write_text(
        "file,caption\nesc50/audio/0.wav,a dog barks\nesc50/audio/1.wav,rain\nesc50/audio/1.wav,it rains\n"
    )
    command = ["--checkpoint", "untrained", "--tokenizer_path", str(vocabulary), "--device", "cpu"]
    BENCHMARK["main"]([*command, "--esc50", str(esc50), "--us8k", str(us8k), "--pairs", str(tmp_path / "pairs.csv")])
    notice, *lines = capsys.readouterr().out.splitlines()
    assert notice.startswith("untrained: random weights")
    assert [line.split()[0] for line in lines] == ["audioclip"] * 5 + ["jina"] * 5
    assert " % of 3 clips, 2 classes (paper: 69.40 %, of clips stretched in time)" in lines[0]
    assert "UrbanSound8K" in lines[1]
    assert "Recall@10 of 3 pairs: clips 100.00 %, captions 100.00 %" in lines[4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"esc50\.csv cannot be read: .*No such file"),
        (b"", r"esc50\.csv has no row; it needs the columns filename, category"),
        (b"filename,class\n0.wav,dog\n", r"esc50\.csv, row 1: no category; it needs the columns filename, category"),
        (b"filename,category\n0.wav\n", r"row 1: no category"),
        (b"filename,category\n\xff,dog\n", r"esc50\.csv cannot be read: .*utf-8"),
    ],
)
def test_sets_that_cannot_be_read_are_errors(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "meta").mkdir()
    if content is not None:
        (tmp_path / "meta/esc50.csv").write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        BENCHMARK["main"](["--checkpoint", "untrained", "--esc50", str(tmp_path)])


def test_clips_that_cannot_be_embedded_are_named(tmp_path: Path) -> None:
    class Encoder:
        def encode_rows(self, paths: list[Path]) -> Encoding:
            vectors = np.zeros((len(paths), 2), np.float32)
            return Encoding(vectors, {}, {1: ContentError("not decodable", "unknown format")}, Work())

    clips = [BENCHMARK["Clip"](tmp_path / f"{number}.wav", "dog") for number in range(66)]
    with pytest.raises(SystemExit) as raised:
        BENCHMARK["embed_clips"](clips, Encoder())
    first, *rest = str(raised.value).splitlines()
    assert first == "2 of 66 clips cannot be embedded:"
    assert rest == [f"{tmp_path}/{number}.wav: unknown format" for number in (1, 65)]


def test_options_that_measure_nothing_are_errors(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("file,caption\n0.wav,dog\n")
    for flags, message in (
        ([], "nothing to measure"),
        (["--pairs", str(tmp_path / "pairs.csv"), "--prompt", "a sound"], "--prompt has no {}"),
        (["--pairs", str(tmp_path / "pairs.csv"), "--checkpoint", str(tmp_path / "none.pt")], r"none\.pt"),
    ):
        with pytest.raises(SystemExit, match=message):
            BENCHMARK["main"](flags)

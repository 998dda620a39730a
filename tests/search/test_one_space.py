"""`search`, `classify` and `pairs` between texts, sounds and pictures, with real models and made-up snapshots."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image

from audioclip_beam.model import AudioEncoder, ImageEncoder, TextEncoder
from audioclip_beam.model.audio.shapes import untrained_state as untrained_audio
from audioclip_beam.model.checkpoint import load_checkpoint
from audioclip_beam.model.fingerprint import fingerprint
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.search.classify_rows import Labelled, label_rows
from audioclip_beam.pipeline.search.exact_search import search
from audioclip_beam.pipeline.search.labels import LabelError, LabelVectors, read_labels
from audioclip_beam.pipeline.search.pairs import find_pairs
from audioclip_beam.pipeline.search.queries import QueryError
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from audioclip_beam.pipeline.snapshots.snapshot import open_snapshot
from tests.support.pages import blocks, environment_of_the_tests, read_page, run_blocks, sections
from tests.support.plain_image import small_image_state
from tests.support.plain_tower import small_state
from tests.support.snapshots import batch_of, directory_of, edit_manifest, random_batches, write_snapshot

PAGE = read_page("docs/one-space.md")
SECTIONS = sections(PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """Return a directory with the files that the page names; .cache has the vocabulary and, as `full`, a checkpoint.

    It has the audio head's shapes and small heads of texts and pictures, all of 1,024 numbers.
    """
    folder, random = tmp_path_factory.mktemp("space"), np.random.default_rng(0)
    for name in ("sounds", "pictures", ".cache"):
        (folder / name).mkdir()
    for path, seconds in (("sounds/a", 0.3), ("sounds/b", 0.4), ("sounds/long", 1.3), ("walk", 11)):
        soundfile.write(folder / f"{path}.wav", random.standard_normal(int(8000 * seconds)) * 0.1, 8000)
    for path in ("pictures/x", "pictures/y", "pictures/z", "dog"):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{path}.jpg")
    (folder / "labels.txt").write_text("dog\nrain\nsiren\n")
    (folder / "labels.csv").write_text("label,text\ndog,a dog\ndog,a puppy\nrain,\n")
    (folder / ".cache" / vocabulary.name).symlink_to(vocabulary)
    scales = {"logit_scale": 2.0, "logit_scale_ai": 2.5, "logit_scale_at": 3.0}
    state = {**untrained_audio(), **small_image_state(1024), **small_state(vocabulary=49_408, dim=1024)}
    state |= {name: torch.tensor(value) for name, value in scales.items()}
    torch.save(state, folder / ".cache" / "AudioCLIP-Full-Training.pt")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """The checkpoint."""
    return folder / ".cache" / "AudioCLIP-Full-Training.pt"


@pytest.fixture(scope="module")
def media(folder: Path) -> Path:
    """The sounds, one of which has several windows; the pictures are beside them."""
    return folder / "sounds"


@pytest.fixture(scope="module")
def snapshots(folder: Path) -> Path:
    """Snapshots of both, made by the page's commands, of short windows."""
    (block,) = blocks(PAGE.partition("\n## ")[0], "sh")
    sounds, pictures = block.splitlines()
    run_blocks(f"```sh\n{sounds} --window 0.5\n{pictures}\n```", "sh", folder)
    return folder / "out"


def run_program(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `audioclip` in a process of its own."""
    return subprocess.run(
        ["audioclip", *map(str, arguments)],
        cwd=folder,
        env=environment_of_the_tests(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def rows_of(output: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Return ids and directions of the stored vectors."""
    rows = pq.read_table(sorted(directory_of(output).glob("part-*")))
    vectors = np.array(rows["embedding"].to_pylist(), np.float64)
    return rows["id"].to_pylist(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain(output: Path, query: NDArray[np.floating]) -> list[tuple[str, float]]:
    ids, vectors = rows_of(output)
    cosines = vectors @ (query / np.linalg.norm(query))
    return sorted(zip(ids, cosines.tolist(), strict=True), key=lambda row: -row[1])


@pytest.mark.slow
def test_the_commands_of_the_page(folder: Path, snapshots: Path) -> None:
    """Run searches, labels and pairs as the page shows them."""
    search_names = "Search with a text, a sound or a picture"
    tables = list(run_blocks(SECTIONS[search_names], "sh", folder).values())
    assert [len(table.splitlines()) for table in tables[:2]] == [13, 4]
    assert tables[0].splitlines()[7] == "dog.jpg"
    assert pq.read_table(folder / "out/hits/hits-00000.parquet").num_rows == 5
    printed, _ = run_blocks(SECTIONS["Label sounds or pictures"], "sh", folder).values()
    assert len(printed.splitlines()) == 5
    assert set(pq.read_table(folder / "out/classes/classes-00000.parquet")["label"].to_pylist()) <= {"dog", "rain"}
    run_blocks(SECTIONS["Pairs of two snapshots"], "sh", folder)
    assert pq.read_table(folder / "out/pairs/pairs-00000.parquet")["rank"].to_pylist() == [1, 2, 3] * 5


@pytest.mark.slow
def test_each_head_finds_the_others(snapshots: Path, folder: Path, model: Path, vocabulary: Path, media: Path) -> None:
    """Text and picture over sounds, sound over pictures: the order and the cosines are numpy's on the stored vectors."""
    audio = AudioEncoder.load(model, device="cpu")
    texts = TextEncoder.load(model, device="cpu", tokenizer_path=vocabulary)
    pictures = ImageEncoder.load(model, device="cpu")
    expected = {
        "sounds": {"dog": texts.encode(["dog"]), "dog.jpg": pictures.encode([folder / "dog.jpg"])},
        "pictures": {"sounds/b.wav": audio.encode([media / "b.wav"])},
    }
    for kind, queries in expected.items():
        process = run_program(folder, "search", f"out/{kind}", *queries, "--json")
        assert process.returncode == 0, process.stderr
        found = {query["query"]: query["hits"] for query in json.loads(process.stdout)["queries"]}
        for query, vectors in queries.items():
            ranked = plain(snapshots / kind, vectors[0].astype(np.float64))
            assert [hit["id"] for hit in found[query]] == [row_id for row_id, _ in ranked], query
            assert np.allclose([hit["score"] for hit in found[query]], [cosine for _, cosine in ranked], atol=1e-5)
    found = search(str(snapshots / "pictures"), [f"{media}/b.wav"], by="logits")
    cosines = search(str(snapshots / "pictures"), [f"{media}/b.wav"])
    assert [hit.score for hit in found.hits[0]] == pytest.approx([hit.score * np.exp(2.5) for hit in cosines.hits[0]])
    dots = search(str(snapshots / "sounds"), [f"{media}/a.wav"], by="dot")
    stored = pq.read_table(sorted(directory_of(snapshots / "sounds").glob("part-*")))
    products = np.array(stored["embedding"].to_pylist()) @ audio.encode([media / "a.wav"])[0]
    assert [hit.score for hit in dots.hits[0]] == pytest.approx(sorted(products.tolist(), reverse=True), rel=1e-4)


@pytest.mark.slow
def test_windows_are_decoded_as_rows_are(
    snapshots: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A window finds its row with cosine 1, a long sound its first window; the table names the place in the file."""
    assert main(["search", str(snapshots / "sounds"), f"{media}/long.wav#t=0.5,1", f"{media}/long.wav", "--top=1"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1].split()[1:3] == ["1.000000", "long.wav#t=0.5,1"]
    assert lines[1].endswith("/long.wav#t=0.5,1")
    assert lines[4].split()[1:3] == ["1.000000", "long.wav#t=0,0.5"]
    assert "its first window, #t=0,0.5, is searched for" in printed.err
    target = tmp_path / "hits"
    command = ["search", str(snapshots / "sounds"), f"{media}/a.wav", "--output", str(target)]
    assert main(command) == 0
    hits = pq.read_table(target / "hits-00000.parquet").to_pylist()
    assert [hit["rank"] for hit in hits] == list(range(1, 6))
    assert hits[0]["id"] == "a.wav"
    assert main(command) == 2
    assert "is not empty: name a new directory" in capsys.readouterr().err
    for query, message in (
        (f"{media}/gone.wav", "search for the text with --text"),
        (f"{media}/a.wav#t=7,8", "it has 0.3 s, and nothing in #t=7,8"),
        (f"{media}/../pictures/x.jpg#t=0,1", "it has no part #t=0,1"),
    ):
        assert main(["search", str(snapshots / "sounds"), query]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_other_trainings_are_refused(snapshots: Path, folder: Path, model: Path, tmp_path: Path) -> None:
    """A text head of the same file is accepted, one of another file is refused, an unknown file is a warning."""
    sounds = snapshots / "sounds"
    command = "search", sounds, "dog", "--checkpoint"
    text = tmp_path / "text.safetensors"
    assert run_program(folder, "extract", model, text, "--head", "text").returncode == 0
    assert load_checkpoint(text).released == load_checkpoint(model).sha256
    accepted = run_program(folder, *command, text)
    assert accepted.returncode == 0
    assert "WARNING: it is not known" not in accepted.stderr
    assert accepted.stdout == run_program(folder, "search", sounds, "dog").stdout
    scales = dict.fromkeys(("logit_scale", "logit_scale_ai", "logit_scale_at"), torch.tensor(1.0))
    torch.save({**small_state(vocabulary=49_408, dim=1024, seed=1), **scales}, tmp_path / "other.pt")
    refused = run_program(folder, *command, tmp_path / "other.pt")
    assert refused.returncode == 2
    assert "(AudioCLIP-Full-Training.pt) is of the training" in refused.stderr
    assert "(other.pt) of" in refused.stderr
    manifest = json.loads((directory_of(sounds) / "manifest.json").read_text())
    edit_manifest(sounds, lambda edited: edited["checkpoint"].pop("released_sha256"))
    try:
        unknown = run_program(folder, *command, text)
        assert unknown.returncode == 0
        assert "WARNING: it is not known from which released file the model of the snapshot" in unknown.stderr
    finally:
        edit_manifest(sounds, lambda edited: edited.update(manifest))


@pytest.mark.slow
def test_rows_are_labelled(
    snapshots: Path, model: Path, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The probabilities are the softmax of the scaled cosines; a label's texts and prompts are averaged."""
    (tmp_path / "labels.csv").write_text("label,text\ndog,a dog\ndog,a puppy\nrain,\n")
    command = ["classify", str(snapshots / "sounds"), "--labels", str(tmp_path / "labels.csv"), "--top", "2"]
    command += ["--tokenizer_path", str(vocabulary), "--prompt", "{}", "--prompt", "the sound of {}"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    assert "rows are printed" not in printed.err
    assert main([*command, "--output", str(tmp_path / "classes")]) == 0
    assert "10 labels in" in capsys.readouterr().out
    found = pq.read_table(tmp_path / "classes" / "classes-00000.parquet").to_pylist()
    encoder = TextEncoder.load(model, device="cpu", tokenizer_path=vocabulary)

    def of(*texts: str) -> NDArray[np.float64]:
        each = encoder.encode([prompt.format(text) for text in texts for prompt in ("{}", "the sound of {}")])
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float64).sum(axis=0)
        return mean / np.linalg.norm(mean)

    ids, vectors = rows_of(snapshots / "sounds")
    logits = vectors @ np.stack([of("a dog", "a puppy"), of("rain")]).T * np.exp(3.0)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = {}
    for row_id, (dog, rain) in zip(ids, chances, strict=True):
        expected |= {(row_id, "dog"): dog, (row_id, "rain"): rain}
    assert {(row["id"], row["label"]): row["probability"] for row in found} == pytest.approx(expected, rel=1e-3)
    assert [row["rank"] for row in found] == [1, 2] * 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audioclip_beam.pipeline.search.classify_rows.PRINTED_ROWS", 3)
        assert main(command) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert "the first 3 rows are printed; --output DIR writes all of them" in printed.err
    (tmp_path / "labels.csv").write_text("label\n" + "word " * 100 + "\nrain\n")
    assert main([*command, "--min_probability", "1"]) == 0
    printed = capsys.readouterr().err
    assert "2 of 4 texts of labels are cut to the 77 tokens that the model reads" in printed
    assert "no row has a label with a probability of at least 1" in printed


def test_texts_have_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_snapshot(tmp_path / "out", [batch_of(["a"], ["one"], np.ones((1, 4), np.float32))], 4)
    (tmp_path / "labels.txt").write_text("dog\n")
    assert main(["classify", str(tmp_path / "out"), "--labels", str(tmp_path / "labels.txt")]) == 2
    assert "is of texts, and AudioCLIP labels pictures and sounds" in capsys.readouterr().err


def test_labels_of_odd_files(tmp_path: Path) -> None:
    """A label keeps separators that do not end a line, and a damaged csv is named."""
    (tmp_path / "a.jsonl").write_text('{"label": "dog\u2028barking"}\r\n\n{"label": "rain"}\n', encoding="utf-8")
    assert [each.label for each in read_labels(str(tmp_path / "a.jsonl"))] == ["dog\u2028barking", "rain"]
    limit = csv.field_size_limit(100_000)  # of the whole process: the reader of csv shards sets a larger one
    try:
        for content in ("label\n" + "a" * 200_000, "label," + "a" * 200_000):
            (tmp_path / "a.csv").write_text(content)
            with pytest.raises(LabelError, match="line . is not CSV: field larger than field limit"):
                read_labels(str(tmp_path / "a.csv"))
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "has no label"),
        ("a.csv", "label,text\n", "has no label"),
        ("a.csv", "label\ndog, barking\n", "record 1 has 2 values for 1 columns"),
        ("a.csv", "label,label\na,b\n", "has 2 columns label"),
        ("a.csv", 'label,text\n"a,b\nc\n', "is not CSV: unexpected end of data"),
        ("a.csv", "text,label\na\n", "the label is None"),
        ("a.jsonl", '{"label": "a\\ud800"}\n', "record 1: .* has an incomplete character"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.txt", "\ufeff\r\n \t\r\n", "has no label"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Nothing of a label is left out without an error."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(LabelError, match=message):
        read_labels(str(tmp_path / name))


def test_labels_of_a_csv_with_spaces_and_of_a_pipe(tmp_path: Path) -> None:
    """Spaces around names and values are left out; what is not a file is not waited for."""
    (tmp_path / "a.csv").write_text("label, text\r\ndog, a dog\r\nrain\r\n")
    assert read_labels(str(tmp_path / "a.csv")) == [("dog", "a dog"), ("rain", "rain")]
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(QueryError, match="a.txt is not a regular file"):
        read_labels(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("top", [1, 5])
def test_labels_are_those_of_a_naive_computation(tmp_path: Path, top: int) -> None:
    """2,000 rows, 50 labels, of which two are equal: the first of them comes first."""
    write_snapshot(tmp_path / "out", random_batches(2000, 16), 16)
    labels = np.random.default_rng(5).standard_normal((50, 16))
    labels /= np.linalg.norm(labels, axis=1, keepdims=True)
    labels[7] = labels[3]
    known = LabelVectors([f"label {n}" for n in range(50)], labels)
    labelled = Labelled()
    batches = list(label_rows(open_snapshot(str(tmp_path / "out")), known, 20.0, top, 0.0, labelled=labelled))
    assert labelled == Labelled(2000, 0, 2000 * top)
    found = [
        (row["id"], row["label"], row["rank"], row["probability"]) for batch in batches for row in batch.to_pylist()
    ]
    ids, vectors = rows_of(tmp_path / "out")
    expected = []
    for row_id, vector in zip(ids, vectors, strict=True):
        cosines = [round(float(vector @ label), 9) for label in labels]
        total = sum(np.exp(20 * cosine) for cosine in cosines)
        best = sorted(range(50), key=lambda n: (-cosines[n], n))[:top]
        expected += [(row_id, f"label {n}", rank, np.exp(20 * cosines[n]) / total) for rank, n in enumerate(best, 1)]
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in expected], rel=1e-6)
    kept = [
        row
        for batch in label_rows(open_snapshot(str(tmp_path / "out")), known, 20.0, top, 0.5, labelled=Labelled())
        for row in batch.to_pylist()
    ]
    assert len(kept) == sum(row[3] >= 0.5 for row in found)


def test_pairs_are_those_of_a_naive_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2,000 rows with 2,000 others, in several blocks; what is not comparable or new is refused."""
    monkeypatch.setattr("audioclip_beam.pipeline.search.pairs.BLOCK_ROWS", 1000)
    write_snapshot(tmp_path / "a", random_batches(2000, 16), 16)
    write_snapshot(tmp_path / "b", random_batches(2000, 16, seed=1), 16)
    assert find_pairs(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "pairs"), top=3).pairs == 6000
    found = pq.read_table(tmp_path / "pairs" / "pairs-00000.parquet").to_pylist()
    (ids, first), (others, second) = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    cosines = first @ second.T
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :3]
    expected = [
        (row_id, others[place], rank, cosines[number, place])
        for number, row_id in enumerate(ids)
        for rank, place in enumerate(places[number], 1)
    ]
    assert [(row["id_a"], row["id_b"], row["rank"]) for row in found] == [row[:3] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row[3] for row in expected], abs=1e-11)
    write_snapshot(tmp_path / "empty", [], 16)
    assert (
        f"{directory_of(tmp_path / 'empty')} has no rows"
        in find_pairs(str(tmp_path / "a"), str(tmp_path / "empty"), str(tmp_path / "none")).notes
    )
    command = ["pairs", str(tmp_path / "a"), str(tmp_path / "b"), "--output"]
    assert main([*command, str(tmp_path / "pairs")]) == 2
    assert "is not empty: name a new directory" in capsys.readouterr().err

    for name in "ab":

        def change(manifest: Manifest, name: str = name) -> None:
            parts = {**manifest["fingerprint_parts"], "weights": name}
            manifest.update(fingerprint_parts=parts, fingerprint=fingerprint(parts))
            manifest["checkpoint"]["released_sha256"] = name * 64

        edit_manifest(tmp_path / name, change)
    assert main([*command, str(tmp_path / "others")]) == 2
    printed = capsys.readouterr().err
    assert "is of the training aaaaaaaaaaaaaaaa, and" in printed
    assert "(made.pt) of bbbbbbbbbbbbbbbb" in printed
    assert not (tmp_path / "others").exists()

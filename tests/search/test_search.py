"""`search`: texts by the model of the snapshot, vectors from files, tables and JSON."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from audioclip_beam.model.fingerprint import fingerprint
from audioclip_beam.model.tensors import logit_scale
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.shapes import untrained_state
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.inference.find_model import find_model
from audioclip_beam.pipeline.search.exact_search import search
from audioclip_beam.pipeline.search.queries import QueryError, _path_and_fragment, kind_of
from audioclip_beam.pipeline.snapshots.commit import read_manifest
from audioclip_beam.pipeline.snapshots.manifest import Manifest
from tests.support import object_stores
from tests.support.corpus import embed as embed_with_stub
from tests.support.corpus import write_jsonl
from tests.support.object_stores import Store
from tests.support.snapshots import batch_of, directory_of, edit_manifest, random_batches, rewrite, write_snapshot

store = object_stores.store

TEXTS = ["dog barking", "a dog barks", "rain on a tin roof", "glass breaking", "dog barking", "slow piano music"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """A snapshot of a few texts, with random weights and a prompt."""
    folder = tmp_path_factory.mktemp("search")
    shard = write_jsonl(folder / "a.jsonl", [{"id": f"r{n}", "text": text} for n, text in enumerate(TEXTS)])
    command = ["embed", "--input", str(shard), "--output", str(folder / "out"), "--checkpoint", "untrained"]
    command += ["--tokenizer_path", str(vocabulary), "--id_field", "id", "--prompt", "a sound of {}"]
    assert main(command) == 0
    return folder / "out"


def test_text_finds_itself_first(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The query gets the prompt of the snapshot; equal texts are in the order of their ids; random weights are named."""
    assert main(["search", str(output), "dog barking", "glass breaking", "--top", "3"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "dog barking"
    assert lines[1].split() == ["1", "1.000000", "r0", "dog", "barking"]
    assert lines[2].split() == ["2", "1.000000", "r4", "dog", "barking"]
    assert lines[4] == ""
    assert lines[5] == "glass breaking"
    assert lines[6].split() == ["1", "1.000000", "r3", "glass", "breaking"]
    assert len(lines) == 9
    assert "random weights, for testing only" in printed.err


def test_json_is_complete_and_deterministic(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object contains every query in the order given, scores with all digits, and the notes."""
    command = ["search", str(output), "rain", "dog barking", "rain", "--json"]
    assert main(command) == 0
    first = capsys.readouterr().out
    found = json.loads(first)
    assert [query["query"] for query in found["queries"]] == ["rain", "dog barking", "rain"]
    assert found["queries"][0] == found["queries"][2]
    hits = found["queries"][1]["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert {hit["id"]: hit["text"] for hit in hits} == {f"r{n}": text for n, text in enumerate(TEXTS)}
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert found["weights"] == "untrained"
    assert found["by"] == "cosine"
    assert any("random weights" in note for note in found["notes"])
    assert main(command) == 0
    assert capsys.readouterr().out == first


def test_vectors_from_files_need_no_model(output: Path, tmp_path: Path) -> None:
    """[d] and [n, d], half, single and double precision, of any length; the checkpoint is not opened."""
    rows = pq.read_table(sorted(directory_of(output).glob("part-*"))).sort_by("id")
    vectors = np.array(rows["embedding"].to_pylist())
    edit_manifest(output, lambda manifest: manifest["options"].update(checkpoint="gone.pt"))
    try:
        np.save(tmp_path / "one.npy", vectors[2] * 1e30)
        np.save(tmp_path / "three.npy", vectors[[3, 5, 0]].astype(np.float16))
        found = search(str(output), [str(tmp_path / "one.npy"), str(tmp_path / "three.npy")], top=1)
        assert [hits[0].id for hits in found.hits] == ["r2", "r3", "r5", "r0"]
        names = ["one.npy", "three.npy[0]", "three.npy[1]", "three.npy[2]"]
        assert [query.name for query in found.queries] == [str(tmp_path / name) for name in names]
        assert found.hits[0][0].score == pytest.approx(1.0, abs=1e-6)
        assert main(["search", str(output), "dog"]) == 2
    finally:
        edit_manifest(output, lambda manifest: manifest["options"].update(checkpoint="untrained"))


@pytest.mark.slow
def test_logits_are_scaled_cosines(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scale is that of the checkpoint, e to the parameter, clamped as in the original; the order is the cosine's."""
    query = tmp_path / "sound.npy"
    np.save(query, np.random.default_rng(0).standard_normal(1024))
    cosines, state = search(str(output), [str(query)]), untrained_state()
    for head, name in (("audio", "logit_scale_at"), ("image", "logit_scale")):
        logits = search(str(output), [str(query)], by="logits", query_head=head)
        scale = min(max(math.exp(float(state[name])), 1.0), 100.0)
        assert [hit.id for hit in logits.hits[0]] == [hit.id for hit in cosines.hits[0]]
        assert [hit.score for hit in logits.hits[0]] == [hit.score * scale for hit in cosines.hits[0]]
    for arguments, message in (
        (["dog"], "AudioCLIP has no trained scale for two vectors of the text head"),
        ([str(query), "--query_head", "text"], "AudioCLIP has no trained scale for two vectors of the text head"),
        ([str(query)], "name it with --query_head"),
    ):
        assert main(["search", str(output), *arguments, "--by", "logits"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("trained", "scale"), [(math.log(14.3), 14.3), (5.0, 100.0), (1000.0, 100.0), (-3.0, 1.0)])
def test_scale_is_clamped(trained: float, scale: float) -> None:
    """e to the parameter, at least 1 and at most 100."""
    assert logit_scale({"logit_scale_at": torch.tensor(trained)}, "logit_scale_at") == pytest.approx(scale)


def test_checkpoint_without_scales_is_an_error() -> None:
    """A missing scale has no default."""
    with pytest.raises(ValueError, match="this checkpoint does not contain logit_scale_at: extract its head again"):
        logit_scale({"logit_scale": torch.tensor(1.0)}, "logit_scale_at")


@pytest.mark.slow
def test_other_checkpoint_is_refused(output: Path, safetensors_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fingerprint decides, not the path: equal weights in another file are accepted, other weights are refused."""
    found = search(str(output), ["dog barking"], top=1, checkpoint=str(safetensors_file))
    assert found.hits[0][0].id == "r0"

    def change(manifest: Manifest, weights: str) -> None:
        parts = {**manifest["fingerprint_parts"], "weights": weights}
        manifest.update(fingerprint_parts=parts, fingerprint=fingerprint(parts))

    manifest = json.loads((directory_of(output) / "manifest.json").read_text())
    edit_manifest(output, lambda manifest: change(manifest, "0" * 64))
    try:
        assert main(["search", str(output), "dog"]) == 2
    finally:
        edit_manifest(output, lambda now: now.update(manifest))
    printed = capsys.readouterr().err
    assert "untrained gives other vectors: its fingerprint is" in printed
    assert "(different: weights)" in printed
    assert "give the path of the right checkpoint with --checkpoint" in printed
    assert main(["search", str(output), "dog", "--checkpoint", "nowhere.pt"]) == 2
    printed = capsys.readouterr().err
    assert (
        "was embedded with the checkpoint untrained, and its model cannot be read: no checkpoint at nowhere.pt"
        in printed
    )


@pytest.mark.slow
def test_other_tokenizer_versions_are_a_warning(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If only the versions differ that decide the token ids of rare texts, search and validate warn and go on."""
    assert set(TEXT.version_parts) == set(TEXT.versions())
    shutil.copytree(output, tmp_path / "out")

    def change(manifest: Manifest) -> None:
        parts = {**manifest["fingerprint_parts"], "ftfy": "5.0"}
        del parts["regex"]
        manifest.update(fingerprint_parts=parts, fingerprint=fingerprint(parts))

    edit_manifest(tmp_path / "out", change)
    rewrite(tmp_path / "out", with_fingerprint_of(tmp_path / "out"))
    installed = TEXT.versions()
    warning = (
        f"WARNING: other versions than those of the snapshot (ftfy 5.0 -> {installed['ftfy']}, "
        f"regex unknown -> {installed['regex']}) may give other vectors in rare cases"
    )
    assert main(["search", str(tmp_path / "out"), "dog barking", "--top", "1"]) == 0
    printed = capsys.readouterr()
    assert "r0" in printed.out
    assert printed.err.count(warning) == 1
    query = save(tmp_path / "q.npy", np.ones(1024))
    assert main(["search", str(tmp_path / "out"), query]) == 0
    assert warning not in capsys.readouterr().err  # no text is tokenized
    assert main(["validate", str(tmp_path / "out")]) == 0
    assert f"the checkpoint gives the 16 vectors in the manifest again; {warning}" in capsys.readouterr().out


def with_fingerprint_of(output: Path) -> Callable[[pa.Table], pa.Table]:
    """Return a change of a part file that gives it the fingerprint of the manifest."""
    manifest = json.loads((directory_of(output) / "manifest.json").read_text())

    def change(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({**table.schema.metadata, b"fingerprint": manifest["fingerprint"]})

    return change


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device, which computes in float16")
def test_float16_snapshot_is_searched_without_a_gpu(output: Path) -> None:
    """The fingerprint is compared for float16, and the query is computed in float32."""
    manifest = read_manifest(str(output), directory_of(output).name)
    assert manifest is not None
    parts = {**manifest["fingerprint_parts"], "dtype": "float16"}
    manifest.update(fingerprint_parts=parts, fingerprint=fingerprint(parts))
    encoder = find_model(manifest, {}).encoder()
    assert encoder.info.fingerprint_parts["dtype"] == "float32"
    assert encoder.encode(["dog"]).shape == (1, 1024)


def save(path: Path, array: object) -> str:
    np.save(path, array, allow_pickle=True)  # type: ignore[arg-type]
    return str(path)


def test_vectors_of_an_object(output: Path, tmp_path: Path, store: Store) -> None:
    """A .npy file may be on an object store, as sounds and pictures may."""
    rows = pq.read_table(sorted(directory_of(output).glob("part-*"))).sort_by("id")
    store.put("query.npy", Path(save(tmp_path / "query.npy", np.array(rows["embedding"].to_pylist()[2]))).read_bytes())
    found = search(str(output), [f"{store.url}/query.npy"], top=1)
    assert [hits[0].id for hits in found.hits] == ["r2"]
    with pytest.raises(QueryError, match="gone.npy cannot be read"):
        search(str(output), [f"{store.url}/gone.npy"])


def npy(header: str) -> bytes:
    """A .npy file with any header."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(8192)


def test_impossible_queries(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one line and exit status 2; a header with a false size costs no memory, and no pickle is loaded."""
    ones = np.ones(1024)
    (tmp_path / "text.npy").write_text("dog barking")
    lying = bytearray((Path(save(tmp_path / "lying.npy", ones))).read_bytes())
    (tmp_path / "lying.npy").write_bytes(lying.replace(b"(1024,), }", b"(99999999999999, 1024), }", 1))
    np.savez(tmp_path / "archive", ones)
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    cases = {
        "": "an empty text cannot be searched for",
        " \t": "an empty text cannot be searched for",
        "dog \udcff": "is not UTF-8 (character 4)",
        str(tmp_path / "gone.npy"): "does not exist: a query that ends in .npy is the name of a file of vectors",
        str(tmp_path / "gone.NPY"): "does not exist: a query that ends in .npy is the name of a file of vectors",
        f"{tmp_path}/text.npy#t=1,2": "does not exist: a query that ends in .npy is the name of a file of vectors",
        __file__: "is a file whose suffix is neither of sounds or pictures nor .npy",
        str(tmp_path / "text.npy"): "cannot be read as a .npy file",
        str(tmp_path / "lying.npy"): "cannot be read as a .npy file",
        str(tmp_path / "archive.npy"): "is an archive of arrays (.npz)",
        save(tmp_path / "object.npy", np.array([{}, ones], object)): "cannot be read as a .npy file",
        save(tmp_path / "short.npy", np.ones(512)): "float64 [512], expected floats of shape [1024] or [n, 1024]",
        save(tmp_path / "deep.npy", np.ones((1, 1, 1024))): "expected floats of shape [1024] or [n, 1024]",
        save(tmp_path / "none.npy", np.ones((0, 1024))): "expected floats of shape [1024] or [n, 1024]",
        save(tmp_path / "whole.npy", np.ones(1024, np.int64)): "expected floats of shape [1024] or [n, 1024]",
        save(tmp_path / "nan.npy", ones * np.nan): "nan.npy has a vector that is not finite",
        save(tmp_path / "zero.npy", [ones, ones * 0]): "zero.npy[1] has a vector that is zero",
    }
    header = "{{'descr': '<f8', 'fortran_order': False, 'shape': ({},)}}"
    for name, content in {
        "zip": b"PK\3\4garbage",
        "negative": npy(header.format(-1024)),
        "huge": npy(header.format("9" * 23)),
        "true": npy(header.format(True)),
        "keys": npy("{1: 2, 'a': 3}"),
        "open": npy("(" * 3000),
        "minus": npy("-" * 9000),
    }.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
        cases[str(tmp_path / f"{name}.npy")] = f"{name}.npy cannot be read as a .npy file"
    for query, message in cases.items():
        assert main(["search", str(output), query]) == 2, query
        printed = capsys.readouterr().err
        assert message in printed, query
        assert printed.count("\n") == 1


def test_queries_that_are_no_media_files(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe or a device is not waited for, a picture of a terabyte is not read, and a wrong fragment is not a text."""
    for kind in ("npy", "wav"):
        os.mkfifo(tmp_path / f"pipe.{kind}")
        (tmp_path / f"folder.{kind}").mkdir()
        (tmp_path / f"zero.{kind}").symlink_to("/dev/zero")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    sound = Path("examples/sounds/siren.ogg").resolve()
    cases = {
        f"{tmp_path}/{name}.{kind}": "is not a regular file"
        for name in ("pipe", "folder", "zero")
        for kind in ("npy", "wav")
    }
    cases |= {
        f"{sound}#{each}": f"#{each} is not #t=START,END in seconds" for each in ("", "t=", "t=5", "x=1,2", "1,2")
    }
    cases |= {f"{tmp_path}/": "is not a file: name files", f"{tmp_path}/huge.jpg": "too large: 1,099,511,627,776 bytes"}
    for query, message in cases.items():
        assert main(["search", str(output), query]) == 2, query
        assert message in capsys.readouterr().err, query


@pytest.mark.parametrize(
    ("query", "kind", "path"),
    [
        ("a.wav#t=1,2", "audio", "a.wav"), ("a.wav#t=1.wav", "audio", "a.wav"), ("a#b.wav", "audio", "a#b.wav"),
        ("a#t=0,1.ogg", "audio", "a#t=0,1.ogg"), ("a#b.wav#t=0,1", "audio", "a#b.wav"), ("a.wav#", "audio", "a.wav"),
        ("a.jpg#xywh=1,2", "image", "a.jpg"), ("a.wav#b/c", "text", "a.wav#b/c"), ("C# and F#", "text", "C# and F#"),
        ("#1.wav", "audio", "#1.wav"), ("a\n.wav#t=1,2", "audio", "a\n.wav"),
    ],
)  # fmt: skip
def test_names_with_fragments(query: str, kind: str, path: str) -> None:
    """A fragment is what follows the last # behind a suffix; a name may have others."""
    assert kind_of(query) == kind
    assert _path_and_fragment(query)[0] == path


@pytest.mark.slow
def test_long_text_is_truncated_with_a_note(output: Path) -> None:
    """A query is truncated like the texts of the corpus, with a note."""
    found = search(str(output), ["bark " * 100])
    assert any("truncated from 105 to the 77 tokens that the model reads" in note for note in found.notes)


def test_float16_vectors_and_hostile_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vectors in half precision are searched; control characters in ids and texts are printed as visible ones."""
    ids, texts = ["\x1b[2Jid", "b\u202egnp.exe", "猫" * 30], ["\x1b]0;title\x07", "two\nlines", "x" * 500]
    vectors = np.eye(3, 4, dtype=np.float16) * 0.1
    write_snapshot(tmp_path / "out", [batch_of(ids, texts, vectors)], 4, stored="float16")
    query = save(tmp_path / "q.npy", [3.0, 2.0, 1.0, 0.0])
    assert main(["search", str(tmp_path / "out"), query]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1:3] == [
        rf"    1  0.801784  \x1b[2Jid{' ' * 30}  \x1b]0;title\x07",
        rf"    2  0.534522  b\u202egnp.exe{' ' * 25}  two\nlines",
    ]
    assert out.splitlines()[3].endswith("x" * 100 + "…")
    assert main(["search", str(tmp_path / "out"), query, "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert [hit["id"] for hit in json.loads(printed)["queries"][0]["hits"]] == ids


def test_ascii_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters that an ASCII terminal cannot show are escaped."""
    write_snapshot(tmp_path / "out", [batch_of(["é"], ["猫"], np.ones((1, 4), np.float32))], 4)
    query = save(tmp_path / "q.npy", np.ones(4))
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, "ascii", write_through=True))
    assert main(["search", str(tmp_path / "out"), query]) == 0
    assert stream.getvalue().splitlines()[1] == rb"    1  1.000000  \xe9  \u732b"


@pytest.mark.parametrize("flag", ["--top=0", "--top=x", "--by=audio_logits"])
def test_flags_out_of_range(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The usage error names the flag."""
    assert main(["search", "out", "dog", flag]) == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_damaged_snapshot_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, exchanged and damaged files end the search; rows without a usable vector are counted in a note."""
    query = save(tmp_path / "q.npy", np.ones(4))
    rows = batch_of(["a", "b"], ["one", "two"], np.array([[1, 0, 0, 0], [np.nan, 0, 0, 0]], np.float32))
    out = tmp_path / "out"
    write_snapshot(out, [rows], 4)
    assert main(["search", str(out), query]) == 0
    assert "1 of 2 rows cannot be compared, because their vectors are zero or not finite" in capsys.readouterr().err
    rewrite(out, lambda table: table.drop_columns(["embedding"]))
    assert main(["search", str(out), query]) == 1
    assert "is not the file that the manifest describes" in capsys.readouterr().err
    shutil.rmtree(out)
    write_snapshot(out, [rows], 4)
    rewrite(out, lambda table: table.replace_schema_metadata({**table.schema.metadata, b"fingerprint": b"f" * 64}))
    assert main(["search", str(out), query]) == 1
    assert "is not the file that the manifest describes" in capsys.readouterr().err
    shutil.rmtree(out)
    write_snapshot(out, [rows], 4)
    rewrite(out, lambda table: table.slice(0, 1), sign=False)
    assert main(["search", str(out), query]) == 1
    assert "is not the file that the manifest describes: audioclip validate lists" in capsys.readouterr().err
    (part,) = directory_of(out).glob("part-*")
    data = part.read_bytes()
    part.write_bytes(b"PAR1" + data[:-4])
    assert main(["search", str(out), query]) == 1
    assert "cannot be read" in capsys.readouterr().err
    part.write_bytes(data.replace(b"content_hash", b"content_has\xff"))  # a name in its footer
    assert main(["search", str(out), query]) == 1
    assert f"{part} cannot be read ('utf-8' codec can't decode" in capsys.readouterr().err
    part.unlink()
    assert main(["search", str(out), query]) == 1
    assert "cannot be read" in capsys.readouterr().err
    edit_manifest(out, lambda manifest: manifest.pop("counts"))
    assert main(["search", str(out), query]) == 1
    assert "is not a valid manifest: counts is missing" in capsys.readouterr().err
    (directory_of(out) / "manifest.json").unlink()
    assert main(["search", str(out), query]) == 1
    assert "has no finished snapshot" in capsys.readouterr().err
    (out / "current.json").write_text("{}")
    assert main(["search", str(out), query]) == 1
    assert "does not name a snapshot" in capsys.readouterr().err
    assert main(["search", str(tmp_path), query]) == 1
    assert "has no current snapshot" in capsys.readouterr().err


def test_columns_of_other_types_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named before a row is shown."""
    write_snapshot(tmp_path / "out", random_batches(3, 4), 4)
    rewrite(
        tmp_path / "out",
        lambda table: table.set_column(table.schema.get_field_index("text"), "text", pa.array([1] * 3)),
    )
    assert main(["search", str(tmp_path / "out"), save(tmp_path / "q.npy", np.ones(4))]) == 1
    assert "is not the file that the manifest describes" in capsys.readouterr().err


def test_snapshot_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A search over a snapshot of rejected rows alone has no hits, and a note says why."""
    shard = write_jsonl(tmp_path / "a.jsonl", [{"text": ""}, {"text": "poison"}])
    embed_with_stub(shard, tmp_path / "out", allow_empty=True)
    assert main(["search", str(tmp_path / "out"), save(tmp_path / "q.npy", np.ones(8))]) == 0
    assert "the snapshot has no rows" in capsys.readouterr().err


MEASURE = """
import sys
from audioclip_beam.pipeline.search.exact_search import search
from tests.support.memory import peak
search(sys.argv[1], [sys.argv[2]])
print(peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_snapshot(tmp_path: Path) -> None:
    """With eight times the rows the peak grows by less than a quarter of the size of the additional vectors."""
    query, peaks = save(tmp_path / "q.npy", np.random.default_rng(9).standard_normal((3, 512))), {}
    for rows in (8_192, 65_536):
        output = tmp_path / str(rows)
        write_snapshot(output, random_batches(rows, 512), 512, max_rows=8_192)
        command = [sys.executable, "-c", MEASURE, str(output), query]
        # With more threads the peak differs by 15 MB from run to run.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=True)
        peaks[rows] = int(done.stdout.split()[-1]) * 1024
    assert peaks[65_536] - peaks[8_192] < 57_344 * 512 * 4 / 4, peaks

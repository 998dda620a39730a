"""Whole jobs on gs:// and s3://: texts, checkpoint, vocabulary and snapshots are objects in a bucket on loopback."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apache_beam.internal import cloudpickle_pickler
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.value_provider import RuntimeValueProvider
from safetensors.torch import save_file

from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.model.text.shapes import text_shapes
from audioclip_beam.pipeline.cli import main
from audioclip_beam.pipeline.inference.model_handler import RecordBatchHandler
from audioclip_beam.pipeline.inference.shared_encoder import describe_model
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.filesystem import read, remove_below, upload
from audioclip_beam.pipeline.io.local_cache import ReplacedError
from audioclip_beam.pipeline.io.retries import StoreError
from audioclip_beam.pipeline.snapshots.commit import current_name, read_manifest
from audioclip_beam.pipeline.snapshots.run_directory import end_run, start_run
from audioclip_beam.pipeline.snapshots.snapshot import Snapshot
from tests.support import object_stores
from tests.support.object_stores import Store

store = object_stores.store

CAPTIONS = ["dog barking", "rain on a tin roof", "thunder", "glass breaking", "a choir singing", "slow piano music"]


@pytest.fixture(scope="module")
def small_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a text head of one narrow layer over the whole vocabulary."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("head") / "small-head.safetensors"
    shapes = text_shapes(width=64, layers=1, dim=16)
    save_file({name: torch.randn(shape) / 8 for name, shape in shapes.items()}, path)
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the temporary directory of this test, in which checkpoints are cached."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def shard(first: int, last: int) -> bytes:
    rows = [{"id": f"r{n}", "text": f"{CAPTIONS[n % 6]} {n}"} for n in range(first, last)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def rows_in(output: str) -> pa.Table:
    """Return all rows of the current snapshot, by id."""
    name = current_name(output)
    assert name
    manifest = read_manifest(output, name)
    assert manifest
    parts = Snapshot(output, name, manifest).part_paths()
    tables = [pq.read_table(io.BytesIO(read(part) or b"")) for part in parts]
    return pa.concat_tables(tables).sort_by("id")


@pytest.mark.slow
@pytest.mark.usefixtures("temporary")
def test_every_command_on_an_object_store(
    store: Store,
    small_head: Path,
    vocabulary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """embed, plan, log, current, rollback and gc, with all files in a bucket: vectors equal those from local files."""
    texts, output = f"{store.url}/texts/*.jsonl", f"{store.url}/out"
    store.put("texts/a.jsonl", shard(0, 40))
    store.put("texts/b.jsonl", shard(40, 60) + b"{broken\n")
    checkpoint = store.put("models/small-head.safetensors", small_head.read_bytes())
    words = store.put("models/bpe_simple_vocab_16e6.txt.gz", vocabulary.read_bytes())
    model = ["--checkpoint", checkpoint, "--tokenizer_path", words, "--id_field", "id"]

    assert main(["embed", "--input", texts, "--output", output, *model]) == 0
    assert "61 read = 60 embedded + 0 reused + 1 rejected" in capsys.readouterr().out
    for name, content in (("a", shard(0, 40)), ("b", shard(40, 60) + b"{broken\n")):
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    local = ["--checkpoint", str(small_head), "--tokenizer_path", str(vocabulary), "--id_field", "id"]
    assert main(["embed", "--input", f"{tmp_path}/*.jsonl", "--output", f"{tmp_path}/out", *local]) == 0
    remote_rows, local_rows = rows_in(output), rows_in(f"{tmp_path}/out")
    assert remote_rows.equals(local_rows)
    assert remote_rows.schema.metadata[b"checkpoint"] == b"small-head.safetensors"
    assert remote_rows.schema.metadata[b"fingerprint"] == local_rows.schema.metadata[b"fingerprint"]
    first = current_name(output)
    assert first
    assert not [name for name in store.names("out/") if name.endswith((".tmp", ".lock"))]

    store.put("texts/b.jsonl", shard(40, 61))
    capsys.readouterr()
    assert main(["plan", "--input", texts, "--output", output, *model]) == 0
    assert "20 rows reused, 1 row to embed" in capsys.readouterr().out
    assert main(["embed", "--input", texts, "--output", output, *model]) == 0
    assert "21 read = 1 embedded + 20 reused + 0 rejected" in capsys.readouterr().out
    second = current_name(output)

    assert main(["log", output]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2].strip() for line in lines[1:]] == ["", "*"]
    assert main(["current", output]) == 0
    assert capsys.readouterr().out == f"{output}/snapshots/{second}\n"
    assert main(["rollback", output]) == 0
    assert capsys.readouterr().out == f"{output}/snapshots/{first}\n"
    assert rows_in(output).equals(local_rows)
    assert main(["rollback", output, str(second)]) == 0
    capsys.readouterr()
    assert main(["gc", output, "--keep", "1"]) == 0
    assert capsys.readouterr().out == f"removed {first}\n"
    assert {name.split("/")[2] for name in store.names("out/snapshots/")} == {second}
    assert len(rows_in(output)) == 61


@pytest.mark.slow
@pytest.mark.usefixtures("temporary")
def test_a_worker_refuses_a_checkpoint_that_was_replaced(store: Store, small_head: Path, vocabulary: Path) -> None:
    """The pickled handler contains size and digest; another file of the same name is refused, with a remedy."""
    checkpoint = store.put("models/head.safetensors", small_head.read_bytes())
    model = describe_model(TEXT, TextSettings(checkpoint, tokenizer_path=str(vocabulary)))
    launched = RecordBatchHandler(model)
    assert model.info.name == "head.safetensors"
    worker = cloudpickle_pickler.loads(cloudpickle_pickler.dumps(launched))
    other = RecordBatchHandler(describe_model(TEXT, TextSettings(str(small_head), tokenizer_path=str(vocabulary))))
    other.load_model()  # a process has one encoder: this one's place is free, as in another process
    assert worker.load_model().info.dim == model.info.dim == 16
    other.load_model()
    store.put("models/head.safetensors", small_head.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(
        ReplacedError, match=r"models/head\.safetensors has sha256 .*it was replaced since; start the job"
    ):
        worker.load_model()


@pytest.mark.usefixtures("temporary")
def test_a_damaged_checkpoint_is_named_by_its_url(store: Store, vocabulary: Path) -> None:
    """The error does not name the copy on this machine."""
    checkpoint = store.put("models/head.safetensors", b"no tensors")
    with pytest.raises(ValueError, match=f"^{checkpoint} cannot be read as safetensors"):
        describe_model(TEXT, TextSettings(checkpoint, tokenizer_path=str(vocabulary)))


def test_a_directory_is_removed_with_its_objects(store: Store) -> None:
    """Objects below it are removed, but not those whose names only begin like its name."""
    for name in ("out/one/a", "out/one/b/c", "out/one-more/a"):
        store.put(name, b"x")
    remove_below(f"{store.url}/out/one")
    assert store.names("out/") == ["out/one-more/a"]
    remove_below(f"{store.url}/out/one")


def test_an_upload_is_whole(store: Store) -> None:
    """Some megabytes arrive unchanged, whatever the position of the file before the upload."""
    data = bytes(range(256)) * (70 << 10)
    source = io.BytesIO(data)
    source.seek(1000)
    upload(source, f"{store.url}/big")
    assert read(f"{store.url}/big") == data
    assert read(f"{store.url}/none") is None


def test_two_simultaneous_runs_get_different_directories(store: Store) -> None:
    """A marker with a precondition reserves a snapshot's name for one run."""
    names = [start_run(f"{store.url}/out", "0123456789")[0] for _ in range(2)]
    assert len(set(names)) == 2


@pytest.mark.slow
def test_a_run_never_gets_the_directory_of_one_that_ended(store: Store) -> None:
    """Not even in the same second: it would reuse the files in it, and then remove them with its own."""
    out, later = f"{store.url}/out", "29990101T000000Z-01234567"  # later names, all in the same second
    name, _ = start_run(out, "0123456789", after=later)
    store.put(f"out/snapshots/{name}/part-0.parquet", b"finished")
    end_run(out, name)
    other, _ = start_run(out, "0123456789", after=later)
    assert other > name
    assert store.names("out/snapshots/") == [
        f"out/snapshots/{name}/part-0.parquet",
        f"out/snapshots/{other}/run.json",
    ]


@pytest.mark.parametrize("command", [["log"], ["current"], ["rollback"], ["gc", "--keep", "1"]])
def test_an_output_without_a_snapshot_is_a_clear_error(
    store: Store, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command reports that nothing was published."""
    assert main([command[0], f"{store.url}/out", *command[1:]]) == 1
    assert "has no current snapshot (no current.json)" in capsys.readouterr().err


def test_a_missing_bucket_is_a_clear_error(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is one line, without a traceback, and comes within seconds."""
    url = f"{store.url}-not"
    assert main(["embed", "--input", f"{url}/*.txt", "--output", f"{url}/out"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert url in error


def test_missing_s3_credentials_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam alone would retry for minutes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/missing")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/missing")
    FileSystems.set_options(None)
    with pytest.raises(
        StoreError, match="s3://missing-bucket cannot be reached without credentials: set AWS_ACCESS_KEY_ID"
    ):
        read("s3://missing-bucket/out/current.json")


@pytest.mark.slow
def test_commands_need_no_flags_of_object_stores(
    store: Store,
    small_head: Path,
    vocabulary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a new process, in which no run and no flag has set Beam's options, variables suffice for every command."""
    store.put("texts/a.txt", b"dog\nbird\n")
    embed = ["embed", "--input", f"{store.url}/texts/*.txt", "--output", f"{store.url}/out"]
    embed += ["--checkpoint", str(small_head), "--tokenizer_path", str(vocabulary)]
    for flags in ([], ["--force"]):
        assert main([*embed, *flags]) == 0

    def in_new_process() -> None:
        monkeypatch.setattr(FileSystems, "_pipeline_options", None)
        monkeypatch.setattr(RuntimeValueProvider, "runtime_options", None)

    in_new_process()
    capsys.readouterr()
    assert main(embed) == 0
    assert capsys.readouterr().out.startswith("unchanged since ")
    for arguments in (["log"], ["validate"], ["report"], ["changes", "--output", f"{store.url}/changes"], ["rollback"]):
        in_new_process()
        assert main([arguments[0], f"{store.url}/out", *arguments[1:]]) == 0, capsys.readouterr().err
    in_new_process()
    assert main(["gc", f"{store.url}/out", "--keep", "1"]) == 0
    in_new_process()
    assert read(f"{store.url}/texts/a.txt") == b"dog\nbird\n"
    FileIO(store_options={"s3_region_name": "eu-west-1"}).open(f"{store.url}/texts/a.txt").close()
    assert FileSystems._pipeline_options.get_all_options()["s3_region_name"] == "eu-west-1"


def test_commands_on_snapshots_take_flags_of_object_stores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--s3_endpoint_url and the like have the effect of environment variables; an unknown flag is named."""
    with object_stores.s3() as bucket:
        for name in bucket.env:
            monkeypatch.delenv(name, raising=False)
        flags = [f"--s3_endpoint_url={bucket.env['AWS_ENDPOINT_URL']}", "--s3_access_key_id=a"]
        flags += ["--s3_secret_access_key=b", "--s3_region_name=us-east-1"]
        assert main(["log", f"{bucket.url}/out", *flags]) == 1
        assert "has no current snapshot" in capsys.readouterr().err
    assert main(["log", "out", "--s3_endpiont_url=x"]) == 2
    assert "unknown flag --s3_endpiont_url" in capsys.readouterr().err

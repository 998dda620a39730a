"""FileIO carries a job's read timeout and object store options to its workers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apache_beam.internal import cloudpickle_pickler
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.io.retries import StoreError
from tests.support import object_stores

ROOT = Path(__file__).parents[2]


def test_file_io_pickles_and_hides_keys() -> None:
    """It reaches workers by Beam's pickler or pickle; its repr, which may be logged, has no secret."""
    options = PipelineOptions(["--s3_access_key_id=id", "--s3_secret_access_key=secret", "--runner=DirectRunner"])
    file_io = FileIO.from_options(options, 7)
    assert file_io == FileIO(7, {"s3_access_key_id": "id", "s3_secret_access_key": "secret"})
    assert pickle.loads(pickle.dumps(file_io)) == file_io
    assert cloudpickle_pickler.loads(cloudpickle_pickler.dumps(file_io)) == file_io
    assert "secret" not in repr(file_io)


def test_file_io_opens_local_files_with_its_timeout(tmp_path: Path) -> None:
    """A file is read as it is; a pipe without a writer is an error after the read timeout."""
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b not decompressed")
    with FileIO().open(str(tmp_path / "a.gz")) as handle:
        assert handle.read() == b"\x1f\x8b not decompressed"
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"pipe gave no data for 0\.2 s"):
        FileIO(0.2).open(str(tmp_path / "pipe"))
    assert time.monotonic() - start < 5
    (tmp_path / "pipe").write_bytes(b"")


@pytest.mark.slow
def test_a_process_without_options_reaches_the_store() -> None:
    """A worker process in which no one set Beam's options uses the endpoint and keys that FileIO carries."""
    pytest.importorskip("boto3")
    with object_stores.s3() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.env.items():
            patch.setenv(name, value)
        FileSystems.set_options(PipelineOptions([]))  # of this process, which writes the object
        path = store.put("texts/a.txt", b"dog\n")
        options = {
            "s3_endpoint_url": store.env["AWS_ENDPOINT_URL"],
            "s3_access_key_id": "a",
            "s3_secret_access_key": "b",
            "s3_region_name": "us-east-1",
        }
        code = (
            "import pickle, sys; file_io = pickle.load(sys.stdin.buffer); "
            "sys.stdout.buffer.write(file_io.open(sys.argv[1]).read())"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [sys.executable, "-c", code, path],
            input=pickle.dumps(FileIO(30, options)),
            capture_output=True,
            cwd=ROOT,
            env=environment,
            timeout=120,
            check=False,
        )
    assert done.stdout == b"dog\n", done.stderr.decode()[-2000:]

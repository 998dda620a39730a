"""A device that fails is never the fault of a content: its error ends the batch at once, whatever it says."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from audioclip_beam.model import memory
from audioclip_beam.model.device import launching
from audioclip_beam.model.head import DeviceError, Encoding, ModelInfo, Work
from audioclip_beam.model.loaded import LoadedEncoder
from audioclip_beam.model.memory import BatchSize, is_broken, is_out_of_memory, loading_errors
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.pipeline.inference import model_handler
from audioclip_beam.pipeline.inference.embed_batch import embed_batch
from audioclip_beam.pipeline.inference.media_handlers import ImageEmbeddingHandler
from audioclip_beam.pipeline.inference.model_handler import RecordBatchHandler
from audioclip_beam.pipeline.inference.shared_encoder import ModelDescription
from audioclip_beam.pipeline.remote.worker_reports import RunReports
from tests.support.shards import ROW
from tests.support.stub import StubHead

BROKEN = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, ...)`"),
    RuntimeError("CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasLtMatmul`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
FULL = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131, please report a bug'),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
]
CPU = torch.device("cpu")


class FailingEncoder(LoadedEncoder):
    """Its device works for the first calls, and then fails at every later one; `calls` counts them."""

    def __init__(self, error: Exception, good_calls: int = 0, first: Exception | None = None) -> None:
        self._start(StubHead().info(), TextSettings("small", device="cpu"), CPU)
        self.error, self.good_calls, self.first, self.calls = error, good_calls, first, 0

    def encode_rows(self, contents: Sequence[Any]) -> Encoding:
        return self._run(lambda: self._encode_rows(contents), f"{len(contents)} texts")

    def _encode_rows(self, contents: Sequence[Any]) -> Encoding:
        self.calls += 1
        if self.first is not None and self.calls == 1:
            raise self.first
        if self.calls > self.good_calls:
            raise self.error
        size = len(contents)
        columns = {"n_tokens": np.full(size, 3, np.int16), "truncated": np.zeros(size, np.bool_)}
        return Encoding(np.ones((size, self.dim), np.float32), columns, {}, Work(items=size))


def _rows(texts: int) -> pa.RecordBatch:
    numbers = list(range(texts))
    columns = {"shard": ["s"] * texts, "row": numbers, "id": list(map(str, numbers)), "text": list(map(str, numbers))}
    return pa.RecordBatch.from_pydict(columns, schema=ROW)


def _model(info: ModelInfo) -> ModelDescription:
    return ModelDescription(TEXT, TextSettings("small"), info.storing("float32"), ())


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: str(error)[:30])
@pytest.mark.parametrize("good_calls", [0, 1, 2, 5])
def test_a_broken_device_rejects_no_row_and_is_not_called_again(error: Exception, good_calls: int) -> None:
    """At whatever call it breaks, also after an error that had the batch halved: no half is tried on it."""
    assert is_broken(error)
    assert not is_out_of_memory(error)
    for first in (None, RuntimeError("index out of range in self")) if good_calls else (None,):
        encoder = FailingEncoder(error, good_calls, first)

        def embed(encoder: FailingEncoder = encoder) -> None:
            for _ in range(9):
                embedded = embed_batch(_rows(64), _model(encoder.info), encoder)
                assert embedded.rows.column("reason").null_count == 64

        with pytest.raises(DeviceError, match=r"^cpu failed \(.*fails at every later call of this process: run again"):
            embed()
        assert encoder.calls == good_calls + 1


def test_a_broken_device_is_not_the_fault_of_a_picture() -> None:
    """Nor in the handlers for pipelines of users, which isolate contents at fault."""
    encoder = FailingEncoder(BROKEN[0])
    handler = ImageEmbeddingHandler("untrained", device="cpu")
    with pytest.raises(DeviceError):
        handler.outcomes([b"1", b"2", b"3"], encoder, isolate=True)
    assert encoder.calls == 1


def test_the_canary_is_checked_whenever_a_content_fails() -> None:
    """If the model fails on one content and on the canary, the model is at fault, though the others have vectors."""

    class Fragile(FailingEncoder):
        def _encode_rows(self, contents: Sequence[Any]) -> Encoding:
            if "7" in contents or "a cat" in contents or len(contents) == 16:
                raise RuntimeError("no such kernel")
            self.good_calls = self.calls + 1
            return super()._encode_rows(contents)

    encoder = Fragile(RuntimeError())
    with pytest.raises(RuntimeError, match=r"the model failed on 1 of the 40 texts of a batch \(RuntimeError: no such"):
        embed_batch(_rows(40), _model(encoder.info), encoder)


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_every_message_of_exhausted_memory_is_known(error: Exception) -> None:
    """Micro-batches become smaller, and while a model is loaded the remedy is named."""
    assert is_out_of_memory(error)
    assert not is_broken(error)

    def compute(part: slice) -> int:
        if part.stop - part.start > 4:
            raise error
        return part.stop - part.start

    assert sum(_in_parts(compute)) == 10
    with (
        pytest.raises(MemoryError, match="too little free memory for the model: .*--direct_num_workers"),
        loading_errors("cuda:0"),
    ):
        raise error


def _in_parts(compute: Any) -> list[int]:
    sizes = BatchSize(8)
    parts = sizes.in_parts(
        range(10), CPU, Work(), lambda start, size: start + size, compute, lambda part: (8, "one", "free some")
    )
    return list(parts)


def test_a_library_that_stays_uninitialized_is_a_broken_device() -> None:
    """CUBLAS_STATUS_NOT_INITIALIZED may mean a full GPU: freed memory repairs that, and nothing repairs a broken context."""
    failed = 0

    def compute(part: slice) -> int:
        nonlocal failed
        failed += 1
        raise FULL[-1]

    with pytest.raises(DeviceError, match="CUBLAS_STATUS_NOT_INITIALIZED"):
        _in_parts(compute)
    assert failed == 2


def test_a_gpu_of_another_process_is_named_while_loading() -> None:
    """In compute mode Exclusive_Process the second process gets a message with the remedy; a broken GPU has its own."""
    busy = torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")
    with pytest.raises(DeviceError, match="compute mode is Exclusive_Process"), loading_errors("cuda:0"):
        raise busy
    with pytest.raises(DeviceError, match=r"^cuda:0 failed \(CUDA error: an illegal"), loading_errors("cuda:0"):
        raise BROKEN[0]


class Ended(BaseException):
    """The process would have ended."""


def test_a_worker_process_of_a_remote_runner_ends_with_its_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So that the runner starts another one. Locally, and in the launcher, the error is raised."""
    encoder = FailingEncoder(BROKEN[0])

    def end(status: int) -> None:
        raise Ended(status)

    def embed(reports: RunReports) -> None:
        RecordBatchHandler(_model(encoder.info), reports=reports).run_inference([_rows(1)], encoder)

    monkeypatch.setattr(model_handler, "LOG_SECONDS", 0)
    monkeypatch.setattr(model_handler.os, "_exit", end)
    for reports in (RunReports(), RunReports("/run")):
        with pytest.raises(DeviceError):
            embed(reports)
    with pytest.raises(Ended):
        embed(RunReports("/run", launcher="another process"))
    assert "this worker process ends, and the runner starts another one" in caplog.text


def test_threads_launch_one_after_the_other_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all heads, whose micro-batches go through BatchSize; on a CPU they compute at the same time."""
    inside, most, meet = 0, 0, threading.Barrier(3)

    def compute(part: slice) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.01)
        inside -= 1
        return 0

    def run() -> None:
        meet.wait()
        device = torch.device("cuda", 0)
        list(BatchSize(1).in_parts(range(3), device, Work(), lambda start, size: start + size, compute, None))  # type: ignore[arg-type]

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert memory.launching is launching

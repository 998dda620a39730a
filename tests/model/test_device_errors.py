"""A device that fails is never the fault of a content: its error ends the batch at once, whatever it says."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from audioclip_beam.model import memory
from audioclip_beam.model.device import launching
from audioclip_beam.model.head import DeviceError, Encoding, InstallationError, ModelInfo, Work
from audioclip_beam.model.loaded import LoadedEncoder
from audioclip_beam.model.memory import BatchSize, device_error, is_out_of_memory, loading_errors
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.pipeline.inference import model_handler
from audioclip_beam.pipeline.inference.embed_batch import embed_batch
from audioclip_beam.pipeline.inference.media_handlers import ImageEmbeddingHandler
from audioclip_beam.pipeline.inference.model_handler import RecordBatchHandler
from audioclip_beam.pipeline.inference.shared_encoder import ModelDescription
from audioclip_beam.pipeline.ml_transform import AudioCLIPTextEmbeddings
from audioclip_beam.pipeline.remote import decoder_watch
from audioclip_beam.pipeline.remote.worker_reports import RunReports, read_reports
from tests.support.processes import start_process
from tests.support.shards import ROW
from tests.support.stub import StubHead

BROKEN = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, ...)`"),
    RuntimeError("CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasLtMatmul`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    torch.AcceleratorError("CUDA error: operation not supported on global/shared address space"),
    torch.AcceleratorError("CUDA error: the MPS client has been terminated by the server"),
    torch.AcceleratorError("CUDA error: initialization error"),
    torch.AcceleratorError("CUDA error: unknown error"),
]
FULL = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131, please report a bug'),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
]
# As torch writes errors of CUDA's runtime, with what the remedy is about.
_SEARCH = "\nSearch for `cudaErrorUnknown' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"
WRONG = {
    "CUDA error: no kernel image is available for execution on the device": "install a torch that was built for this GPU",
    "CUDA error: invalid device function": "install a torch that was built for this GPU",
    "CUDA error: device kernel image is invalid": "install a torch that was built for this GPU",
    "CUDA error: the provided PTX was compiled with an unsupported toolchain.": "install a driver",
    "CUDA error: CUDA driver version is insufficient for CUDA runtime version": "install a driver",
    "CUDA error: system has unsupported display driver / cuda driver combination": "install a driver",
    "CUDA error: forward compatibility was attempted on non supported HW": "install a driver",
    "CUDA error: system not yet initialized": "fabric manager",
    "CUDA error: invalid device ordinal": "CUDA_VISIBLE_DEVICES",
    "CUDA error: no CUDA-capable device is detected": "CUDA_VISIBLE_DEVICES",
    "CUDA driver error: operation not supported": "PYTORCH_CUDA_ALLOC_CONF",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable": "compute mode is Exclusive_Process",
    "CUDA error: all CUDA-capable devices are busy or unavailable": "compute mode is Exclusive_Process",
    "CUDA error: MPS client failed to connect to the MPS control daemon or the MPS server": "nvidia-cuda-mps-control",
    "CUDA error: the hardware resources required to create MPS client have been exhausted": "fewer processes",
    "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm( handle, ...)`": "LD_LIBRARY_PATH",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`": "LD_LIBRARY_PATH",
}
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
    assert type(device_error(CPU, error)) is DeviceError
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


def test_a_broken_device_is_not_the_fault_of_an_element_of_mltransform() -> None:
    """With exception handling, too: no half of a batch is tried on it, and no element is an error."""
    encoder = FailingEncoder(BROKEN[0])
    encoder.encode = lambda texts: encoder.encode_rows(texts).vectors  # type: ignore[attr-defined]
    handler = AudioCLIPTextEmbeddings(columns=["text"], checkpoint="untrained", device="cpu").get_model_handler()
    with pytest.raises(DeviceError):
        handler.isolating_failures().run_inference([{"text": "a"}, {"text": "b"}], encoder)
    assert encoder.calls == 1


@pytest.mark.parametrize("message", WRONG, ids=lambda message: message[12:42])
@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_a_wrong_installation_is_not_a_broken_device(message: str, kind: type[Exception]) -> None:
    """No new process repairs it, so the message has the remedy, and a worker process does not end for it."""
    encoder = FailingEncoder(kind(message + _SEARCH))
    handler = RecordBatchHandler(_model(encoder.info), reports=RunReports("/run", launcher="another process"))
    with pytest.raises(InstallationError) as raised:
        handler.run_inference([_rows(64)], encoder)
    assert encoder.calls == 1
    assert f"cpu cannot be used by torch {torch.__version__} ({message}; it was built for CUDA " in str(raised.value)
    assert WRONG[message] in str(raised.value).rpartition("): ")[2]
    with pytest.raises(InstallationError), loading_errors("cuda:0"):
        raise encoder.error


def test_the_message_on_a_wrong_installation_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its compute capability, what torch was built for, and the driver."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 5090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    error = device_error("cuda:0", torch.AcceleratorError(next(iter(WRONG)) + _SEARCH))
    assert str(error).startswith("cuda:0, NVIDIA GeForce RTX 5090, compute capability 12.0, cannot be used by torch ")
    assert ", sm_80, sm_90; " in str(error)


@pytest.mark.parametrize(
    "words", ["invalid argument", "invalid configuration argument", "too many resources requested for launch"]
)
def test_a_call_that_cuda_refuses_is_not_the_fault_of_the_device(words: str) -> None:
    """Later ones work, so that the batch is halved like after any other error."""
    error = torch.AcceleratorError(f"CUDA error: {words}{_SEARCH}")
    assert device_error(CPU, error) is None
    encoder = FailingEncoder(RuntimeError(), good_calls=9, first=error)
    assert embed_batch(_rows(64), _model(encoder.info), encoder).rows.column("reason").null_count == 64
    assert encoder.calls == 3


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
    assert device_error(CPU, error) is None

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
    with pytest.raises(InstallationError, match="compute mode is Exclusive_Process"), loading_errors("cuda:0"):
        raise busy
    with pytest.raises(DeviceError, match=r"^cuda:0 failed \(CUDA error: an illegal"), loading_errors("cuda:0"):
        raise BROKEN[0]


def _embed_on_a_broken_device(directory: str, launcher: str) -> None:
    """Embed, in a process of its own whose log is sent when its handler is closed, while another thread decodes."""

    class Remote(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.lines.append(self.format(record))

        def close(self) -> None:
            Path(directory, "log").write_text("\n".join(self.lines))
            super().close()

    def end(status: int, end_now: Any = os._exit) -> None:
        watch = decoder_watch._STATE.watch
        assert watch
        Path(directory, "watch").write_text(str(watch._process.poll()))
        end_now(status)

    model_handler.os._exit = end  # type: ignore[assignment]
    logging.getLogger().addHandler(Remote())
    encoder, reports = FailingEncoder(BROKEN[0]), RunReports(directory, launcher=launcher)
    with decoder_watch.decoding("innocent.jpg", reports):
        RecordBatchHandler(_model(encoder.info), reports=reports).run_inference([_rows(1)], encoder)


def test_a_worker_process_of_a_remote_runner_ends_with_its_device(tmp_path: Path) -> None:
    """So that the runner starts another one. The reason is in the runner's log, on stderr, and for the launcher."""
    process = start_process(_embed_on_a_broken_device, str(tmp_path), "another process", stderr=tmp_path / "stderr")
    process.join(60)
    assert process.exitcode == 1
    reason = "cpu failed (CUDA error: an illegal memory access was encountered), and fails at every later call"
    for name in ("log", "stderr"):
        found = (tmp_path / name).read_text()
        assert reason in found
        assert "this worker process ends, and the runner starts another one" in found
    assert (tmp_path / "watch").read_text() == "0", "the watch of decoders has ended, and names no file"
    (end,) = read_reports(str(tmp_path)).ends
    assert end.startswith(f"a worker ended: {reason}")


def test_another_process_lives_on_with_a_broken_device() -> None:
    """A local run, and the launcher, in which some runners run workers: the error is raised."""
    encoder = FailingEncoder(BROKEN[0])
    for reports in (RunReports(), RunReports("/run")):
        with pytest.raises(DeviceError):
            RecordBatchHandler(_model(encoder.info), reports=reports).run_inference([_rows(1)], encoder)


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

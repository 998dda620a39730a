"""CUDA devices that are too old, without a number, or not seen; and TF32. What torch reports of GPUs is patched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from audioclip_beam.model import ImageEncoder, ImageSettings, TextEncoder
from audioclip_beam.model import device as device_module
from audioclip_beam.model.device import HostCopy, launching, pick_device, stack_on_device, unseen_gpu
from audioclip_beam.model.head import InstallationError, ModelInfo
from audioclip_beam.model.image import encoder as image_module
from audioclip_beam.model.memory import BatchSize
from audioclip_beam.model.text.head import TEXT
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.pipeline.cli.embed_command import check_device, parse_options
from audioclip_beam.pipeline.inference import model_handler, shared_encoder
from audioclip_beam.pipeline.inference.gpus import gpu_memory
from audioclip_beam.pipeline.inference.model_handler import CanaryHandler, TextEmbeddingHandler
from audioclip_beam.pipeline.inference.shared_encoder import ModelDescription
from audioclip_beam.pipeline.remote.worker_reports import RunReports
from tests.support.stub import StubHead


def _see_gpus(patch: pytest.MonkeyPatch, *gpus: tuple[str, tuple[int, int]], current: int = 0) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    patch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    if gpus:
        patch.setattr(torch.cuda, "init", lambda: None)
    patch.setattr(torch.cuda, "current_device", lambda: current)
    patch.setattr(torch.cuda, "get_device_name", lambda device: gpus[device.index][0])
    patch.setattr(torch.cuda, "get_device_capability", lambda device: gpus[device.index][1])


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_a_cuda_device_has_a_number_from_the_start(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Without one it is the caller's current one: in another thread another GPU may be current."""
    _see_gpus(monkeypatch, ("NVIDIA L4", (8, 9)), ("NVIDIA L4", (8, 9)), current=1)
    assert pick_device(device, "bfloat16") == torch.device("cuda", 1)
    assert pick_device("cuda:0", "bfloat16") == torch.device("cuda", 0)


def test_types_and_gpus_that_torch_cannot_use_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without kernels in torch's packages; and bfloat16 if torch would only emulate it."""
    _see_gpus(monkeypatch, ("Tesla P100-PCIE-16GB", (6, 0)), ("Tesla V100", (7, 0)), ("Tesla T4", (7, 5)))
    for number, name in enumerate(("P100-PCIE-16GB, has compute capability 6.0", "V100, has compute capability 7.0")):
        with pytest.raises(RuntimeError, match=rf"^cuda:{number}, Tesla {name}, and torch's packages need 7\.5: "):
            pick_device(f"cuda:{number}", "float32")
    with pytest.raises(ValueError, match=r"^dtype='bfloat16': cuda:2, Tesla T4, has .* 7\.5, .*; use float16$"):
        pick_device("cuda:2", "bfloat16")
    assert pick_device("cuda:2", "float16") == torch.device("cuda", 2)


def test_a_gpu_that_torch_was_not_built_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a model is loaded, with what torch was built for. Kernels of a lower minor version run, and drivers compile."""
    built = ["sm_75", "sm_80", "sm_86", "sm_90"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    names = "Tesla T4", "NVIDIA A100", "NVIDIA L4", "NVIDIA H100", "NVIDIA B200"
    _see_gpus(monkeypatch, *zip(names, ((7, 5), (8, 0), (8, 9), (9, 0), (10, 0)), strict=True))
    assert [pick_device(f"cuda:{number}", "float32").index for number in range(4)] == [0, 1, 2, 3]
    with pytest.raises(
        InstallationError, match=r"^cuda:4, NVIDIA B200, has compute capability 10\.0, for which torch .* has no"
    ):
        pick_device("cuda:4", "float32")
    built.append("compute_90")
    assert pick_device("cuda:4", "float32").index == 4
    built[:] = ["gfx942"]  # names that say nothing of a capability
    assert pick_device("cuda:4", "float32").index == 4


def test_parts_of_gpus_are_counted_as_cuda_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of eight GPUs in parts (MIG) a process sees one part; until CUDA is initialised torch counts eight."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=10 << 30))

    def see_eight() -> None:
        _see_gpus(monkeypatch, *[("NVIDIA H100 MIG 1g.10gb", (9, 0))] * 8)
        monkeypatch.setattr(torch.cuda, "init", lambda: monkeypatch.setattr(torch.cuda, "device_count", lambda: 1))

    see_eight()
    assert gpu_memory() == [10 << 30]
    see_eight()
    with pytest.raises(InstallationError, match="torch sees cuda:0 alone: choose one that it sees"):
        pick_device("cuda:1", "float32")


def test_a_gpu_that_is_hidden_is_not_blamed_on_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA_VISIBLE_DEVICES=1 the only one that torch sees is cuda:0. And torch's own reason is given."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    _see_gpus(monkeypatch, ("NVIDIA L4", (8, 9)))
    with pytest.raises(
        RuntimeError, match=r"^device='cuda:1': torch sees cuda:0 alone \(CUDA_VISIBLE_DEVICES is '1'\): "
    ):
        pick_device("cuda:1", "float32")
    _see_gpus(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RuntimeError, match=r"CUDA_VISIBLE_DEVICES is ''\): compare CUDA_VISIBLE_DEVICES with"):
        pick_device("cuda", "float32")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def fail() -> None:
        raise RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized\nmore")

    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(
        RuntimeError, match=r"sees no GPU \(Unexpected .* system not yet initialized; .*\): start NVIDIA's fabric"
    ):
        pick_device("cuda", "float32")


def test_a_gpu_that_torch_does_not_see_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With "auto", which then takes the CPU: by `embed`, and as a warning by `load`."""
    driver = tmp_path / "version"
    monkeypatch.setattr(device_module, "DRIVER", driver)
    _see_gpus(monkeypatch)
    assert not unseen_gpu("auto")
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.42\n")
    assert not unseen_gpu("cpu")
    check_device(parse_options(["--input=a.txt", "--output=out"]))
    found = capsys.readouterr().err
    assert "this machine has an NVIDIA driver, but torch" in found
    assert "470.42" in found
    with pytest.warns(RuntimeWarning, match="sees no GPU"), pytest.raises(FileNotFoundError):
        TextEncoder.load("untrained", tokenizer_path=tmp_path / "missing")


def test_workers_and_handlers_note_a_gpu_that_torch_does_not_see(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A worker of a remote runner in its log, as the launcher has another machine; a handler of a user by a warning."""
    info, encoder = StubHead().info(), StubHead().encoder()
    model = ModelDescription(TEXT, TextSettings("untrained"), info.storing("float32"), ())
    encoder.info = info
    monkeypatch.setattr(device_module, "DRIVER", tmp_path)
    monkeypatch.setattr(model_handler, "load_encoder", lambda *arguments: encoder)
    _see_gpus(monkeypatch)
    monkeypatch.setattr(RunReports, "start", lambda reports: None)
    for launcher, notes in ((model_handler.RunReports().launcher, 0), ("another process", 1)):
        CanaryHandler(model, reports=RunReports("/run", launcher)).load_model()
        assert caplog.text.count("so the CPU is used") == notes
    with pytest.warns(UserWarning, match="so the CPU is used"):
        TextEmbeddingHandler("untrained").load_model()


@pytest.fixture
def flags() -> Iterator[Any]:
    """The flags of products on CUDA, which are as before afterwards."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    yield matmul
    torch.set_float32_matmul_precision("highest")
    matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("name", "value"), [("allow_tf32", True), ("fp32_precision", "tf32"), ("fp32_precision", "ieee")]
)
def test_float32_is_never_tf32(flags: Any, name: str, value: object) -> None:
    """Whatever the program allows, by the older interface or by the newer one; then its settings are as before."""
    conv, cpu = torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
    setattr(flags, name, value)
    before = conv.fp32_precision, cpu.fp32_precision
    with launching(torch.device("cuda", 0)):
        assert (flags.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
        assert not flags.allow_tf32, "torch raises an error if the two interfaces differ"
    assert (getattr(flags, name), (conv.fp32_precision, cpu.fp32_precision)) == (value, before)


def test_vectors_on_a_cpu_are_not_copied() -> None:
    """Only those of another device are on their way."""
    tensor = torch.arange(4.0)
    assert np.shares_memory(HostCopy(tensor).arrays()[0], tensor.numpy())


def test_vectors_of_pictures_leave_the_gpu_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pictures a call has, those of a few micro-batches are on the GPU, and no order is lost."""
    on_their_way: list[object] = []
    most = 0

    class Copy(HostCopy):
        def __init__(self, *tensors: torch.Tensor) -> None:
            nonlocal most
            assert device_module._LAUNCHES.locked(), "an exit waits for it"
            super().__init__(*tensors)
            on_their_way.append(self)
            most = max(most, len(on_their_way))

        def arrays(self) -> list[Any]:
            assert not device_module._LAUNCHES.locked(), "another thread can launch meanwhile"
            on_their_way.remove(self)
            return super().arrays()

    monkeypatch.setattr(image_module, "HostCopy", Copy)
    monkeypatch.setattr(image_module, "current_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(image_module, "stack_on_device", lambda tensors, device: torch.stack(tensors))
    encoder = object.__new__(ImageEncoder)
    info = ModelInfo("image", "stub", "0" * 64, True, 3, {})
    encoder._start(info, ImageSettings("untrained", device="cpu"), torch.device("cpu"))
    encoder.device = torch.device("cuda", 0)
    encoder.tower = lambda x: x.mean((2, 3))  # type: ignore[assignment]
    encoder.pictures, encoder._ahead = BatchSize(2), image_module.AHEAD
    pictures = [np.full((8, 8, 3), 5 * number, np.uint8) for number in range(21)]
    vectors = encoder.encode(pictures)
    assert (np.diff(vectors, axis=0) > 0).all()
    assert (most, on_their_way) == (image_module.AHEAD + 1, [])


class Copies(TorchDispatchMode):
    """Notes the types of each copy between devices, and how much memory is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[tuple[torch.dtype, torch.dtype]] = []
        self.pinned = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (kwargs or {}).get("pin_memory"):
            self.pinned += result.numel()
        source = args[0] if args else None
        if isinstance(source, torch.Tensor) and isinstance(result, torch.Tensor) and source.device != result.device:
            self.types.append((source.dtype, result.dtype))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_copied_from_pinned_memory(dtype: torch.dtype) -> None:
    """As they are: with a conversion torch would first copy them into other memory. On a CPU nothing is pinned."""
    with FakeTensorMode():
        pictures = [torch.zeros(3, 224, 224) for _ in range(4)]
        with Copies() as copies:
            whole = stack_on_device(pictures, torch.device("cuda", 0)).to(torch.device("cuda", 0), dtype)
        assert (whole.shape, whole.dtype, whole.device.type) == ((4, 3, 224, 224), dtype, "cuda")
        assert (copies.types, copies.pinned) == ([(torch.float32, torch.float32)], whole.numel())
        with Copies() as copies:
            stack_on_device(pictures, torch.device("cpu"))
        assert (copies.types, copies.pinned) == ([], 0)


def test_a_thread_of_another_library_ends_with_an_error_at_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA calls run in Beam's threads, which SystemExit would end silently; the model's own thread ends by it."""
    encoder = shared_encoder.EncoderThread()
    monkeypatch.setattr(shared_encoder.atexit, "register", lambda *call: None)
    encoder.run(encoder._exiting.set)
    with pytest.raises(RuntimeError, match="about to exit"):
        encoder._count_items(1)
    thread = encoder._thread
    assert thread
    thread.submit(lambda: encoder._count_items(1))
    thread.thread.join(5)
    assert not thread.thread.is_alive()


def test_the_exit_waits_for_a_launch_and_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that exits during a kernel is aborted."""
    ended: list[object] = []
    monkeypatch.setattr(device_module, "_launched_on", set())
    monkeypatch.setattr(torch.cuda, "synchronize", ended.append)
    entered, go_on = threading.Event(), threading.Event()

    def launch() -> None:
        with launching(torch.device("cuda", 1)):
            entered.set()
            go_on.wait(5)
            ended.append("launch")

    thread = threading.Thread(target=launch)
    thread.start()
    entered.wait(5)
    threading.Timer(0.05, go_on.set).start()
    device_module.wait_for_launches()
    thread.join()
    assert ended == ["launch", torch.device("cuda", 1)]

"""Devices and types of torch, by the names that settings have for them, and what is common to all work on a GPU."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .head import InstallationError, UnavailableSettingError
from .messages import WrongSettingError

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OLDEST = (7, 5)  # compute capability: torch's packages contain no kernels for older GPUs
BFLOAT16 = (8, 0)  # older GPUs have no products in bfloat16: torch emulates them at a small part of float16's speed

DRIVER = Path("/proc/driver/nvidia/version")

_OTHER_TORCH = "install a torch that was built for this GPU"
_OTHER_DRIVER = "install a driver that is new enough for this torch, or a torch for an older CUDA"
_OTHER_LIBRARIES = "remove other copies of CUDA's libraries from LD_LIBRARY_PATH"
_VISIBLE = "compare CUDA_VISIBLE_DEVICES with the GPUs that nvidia-smi -L lists"
# How CUDA reports that a GPU, its driver, torch and their settings do not fit together, and what to do.
_INSTALLATION = {
    r"no kernel image is available|invalid device function|kernel image is invalid": _OTHER_TORCH,
    r"driver version is insufficient|driver on your system is too old|in the installed CUDA driver": _OTHER_DRIVER,
    r"driver combination|stub library|attempted on non supported HW|unsupported toolchain|PTX JIT": _OTHER_DRIVER,
    r"CUBLAS_STATUS_(INVALID_VALUE|NOT_SUPPORTED|ARCH_MISMATCH)": _OTHER_LIBRARIES,
    r"CUDNN_STATUS_(SUBLIBRARY|ARCH_MISMATCH|VERSION)|cuDNN version incompatib": _OTHER_LIBRARIES,
    r"system not yet initialized": "start NVIDIA's fabric manager (nvidia-fabricmanager), which GPUs with NVSwitch need",
    r"invalid device ordinal|no CUDA-capable device": _VISIBLE,
    r"valid Grid license": "give the virtual GPU a licence",
    r"operation not supported$": "unset PYTORCH_CUDA_ALLOC_CONF and PYTORCH_ALLOC_CONF, because not every "
    "virtual GPU has expandable segments",
    r"are busy or unavailable": "another process uses it, and its compute mode is Exclusive_Process: start one process "
    "for each GPU (--direct_num_workers), or set the mode by `nvidia-smi --compute-mode=DEFAULT`",
    r"failed to connect to the MPS control daemon": "start nvidia-cuda-mps-control, or unset CUDA_MPS_PIPE_DIRECTORY",
    r"resources required to (create MPS client|support device connections)": "let fewer processes share the GPU",
}


def pick_device(device: str, dtype: str) -> torch.device:
    """Return the torch device for "auto", "cpu", "cuda" or "cuda:N"; "auto" is CUDA if available, else the CPU.

    A CUDA device always has a number: "cuda" is the caller's current one, whatever is current later.

    Raises:
        ValueError: Another word, float16 on a CPU, or bfloat16 on a GPU without products in it.
        InstallationError: The CUDA device does not exist, or torch has no kernels for it: CUDA never falls back to a CPU
            silently.
    """
    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise WrongSettingError("device", device, "choose one of auto, cpu, cuda, cuda:N")
    gpus = count_gpus()
    if kind == "cuda" and gpus and int(number or 0) >= gpus:
        listed = "cuda:0 alone" if gpus == 1 else f"cuda:0 to cuda:{gpus - 1}"
        raise UnavailableSettingError("device", device, f"torch sees {listed}{_visible()}: choose one that it sees")
    if kind == "cuda" and not gpus:
        reason, remedy = _why_unseen()
        raise UnavailableSettingError(
            "device", device, f"torch {torch.__version__} sees no GPU ({reason}): {remedy}, or use the device cpu"
        )
    if kind == "cpu" or not gpus:
        if dtype == "float16":
            raise WrongSettingError(
                "dtype", dtype, "it needs a CUDA device, and this is a CPU; use bfloat16 or float32"
            )
        return torch.device("cpu")
    chosen = torch.device("cuda", int(number) if number else torch.cuda.current_device())
    _check_capability(chosen, dtype)
    return chosen


def count_gpus() -> int:
    """Return how many GPUs torch can use; none of their memory is taken for that.

    Before CUDA is initialised torch counts whole GPUs, although a process sees one part alone of GPUs in parts (MIG).
    """
    if not torch.cuda.is_available():
        return 0
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return torch.cuda.device_count()


def _check_capability(device: torch.device, dtype: str) -> None:
    capability, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
    what = f"{device}, {name}, has compute capability {'.'.join(map(str, capability))}"
    if capability < OLDEST:
        raise InstallationError(
            f"{what}, and torch's packages need {'.'.join(map(str, OLDEST))}: use a newer GPU, or the device cpu"
        )
    if not _has_kernels(capability):
        raise InstallationError(
            f"{what}, for which torch {torch.__version__} has no kernels ({_versions()}): {_OTHER_TORCH}, "
            f"or use the device cpu"
        )
    if dtype == "bfloat16" and capability < BFLOAT16:
        raise WrongSettingError("dtype", dtype, f"{what}, which has no products in bfloat16; use float16")


def _has_kernels(capability: tuple[int, int]) -> bool:
    """Return whether torch has kernels for a GPU: for its major version and no later minor one, or as drivers compile."""
    found = [re.match(r"(sm|compute)_(\d+)(\d)", name) for name in torch.cuda.get_arch_list()]
    built = [(one[1], int(one[2]), int(one[3])) for one in found if one]
    return not built or any(
        (major, minor) <= capability and (kind == "compute" or major == capability[0]) for kind, major, minor in built
    )


def installation_fault(device: torch.device | str, message: str) -> str:
    """Return what does not fit together if an error's message of CUDA means that, with a remedy; else ""."""
    remedy = _remedy(message)
    if not remedy:
        return ""
    what = str(device)
    with suppress(Exception):
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        what += f", {torch.cuda.get_device_name(device)}, compute capability {capability},"
    return f"{what} cannot be used by torch {torch.__version__} ({message}; {_versions()}): {remedy}"


def _remedy(message: str) -> str:
    return next((remedy for words, remedy in _INSTALLATION.items() if re.search(words, message)), "")


def _why_unseen() -> tuple[str, str]:
    """Return why torch sees no GPU, in its own words and with the versions, and a remedy."""
    reason = ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        reason = str(error).splitlines()[0].rstrip(".") + "; "
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    remedy = _VISIBLE if hidden else "install a torch with CUDA and a driver that is new enough for it"
    return f"{reason}{_versions()}{_visible('; ', '')}", _remedy(reason) or remedy


def _visible(before: str = " (", after: str = ")") -> str:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if value is None else f"{before}CUDA_VISIBLE_DEVICES is {value!r}{after}"


def unseen_gpu(device: str) -> str:
    """Return a note if `device` is "auto" and torch sees no GPU on a machine that has a driver for one; else ""."""
    if device != "auto" or not DRIVER.exists() or torch.cuda.is_available():
        return ""
    reason, remedy = _why_unseen()
    return (
        f"this machine has an NVIDIA driver, but torch {torch.__version__} sees no GPU ({reason}), so the CPU is used: "
        f"{remedy}, or choose the device cpu"
    )


def _versions() -> str:
    """Return what torch was built for, and what the kernel reports of NVIDIA's driver."""
    driver = "this machine has no NVIDIA driver"
    with suppress(OSError, IndexError):
        driver = DRIVER.read_text(encoding="utf-8").splitlines()[0]
    built = ", ".join([f"CUDA {torch.version.cuda}", *torch.cuda.get_arch_list()]) if torch.version.cuda else "no CUDA"
    return f"it was built for {built}; {driver}"


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which to compute on `device`.

    Pinned memory belongs to the current GPU, which in every thread is the first one until another one is chosen: with
    "cuda:1" each process would occupy memory of the first GPU as well.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


_LAUNCHES = threading.Lock()
_launched_on = set[torch.device]()


def launching(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which to launch a micro-batch on `device`; nothing on a CPU.

    On CUDA one thread of a process launches at a time: all use one stream, so no speed is lost, and the memory of one
    micro-batch suffices for them. Products of float32 are exact to their last bits, whatever the process allows elsewhere:
    TF32 would change vectors without changing the fingerprint.
    """
    return _launching(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _launching(device: torch.device) -> Iterator[None]:
    with _LAUNCHES, no_tf32():
        _launched_on.add(device)
        yield


def wait_for_launches(seconds: float = 10.0) -> None:
    """Wait until the GPU has ended what was launched, as far as a thread that launches ends in that time."""
    if not _LAUNCHES.acquire(timeout=seconds):
        return
    try:
        with suppress(RuntimeError):
            for device in _launched_on:  # not the current one of this thread, which may be another GPU
                torch.cuda.synchronize(device)
    finally:
        _LAUNCHES.release()


@contextmanager
def no_tf32() -> Iterator[None]:
    """Have products and convolutions of float32 on a GPU keep their last bits, until the block ends."""
    older = _older_precision()
    flags = _tf32_flags(with_cpu=older != "highest")  # the older interface sets that of a CPU, too
    before = [getattr(owner, name) for owner, name, _ in flags]
    if older != "highest":
        torch.set_float32_matmul_precision("highest")
    for owner, name, exact in flags:
        setattr(owner, name, exact)
    try:
        yield
    finally:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
        for (owner, name, _), value in zip(flags, before, strict=True):
            setattr(owner, name, value)


def _older_precision() -> str:
    """Return the precision of float32 products by the older interface, which NVIDIA's images set to "high".

    If it differed from the newer one, some functions of torch would raise RuntimeError. It is not readable if it is
    "highest" and the newer one allows TF32.
    """
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return "highest"


def _tf32_flags(*, with_cpu: bool) -> list[tuple[Any, str, object]]:
    """Return (owner, name, value without TF32) of the flags that decide.

    The newer ones come first: reading an older one raises RuntimeError once a newer one was set.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # from torch 2.9 on
        mkldnn: Any = torch.backends.mkldnn
        cpu = [(mkldnn.matmul, "fp32_precision", "ieee")] if with_cpu else []
        return [(matmul, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee"), *cpu]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return the array as a tensor on `device`.

    It is copied to CUDA through pinned memory: a copy of other memory would wait for all kernels before it, and none could
    be queued ahead. Torch keeps pinned memory until its copy has ended, and uses it again.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def stack_on_device(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return tensors of a CPU, all of one shape and type, as one on `device`.

    They are copied on the CPU once: for CUDA into pinned memory, from which their type is kept, because torch would convert
    them into other memory first.
    """
    if device.type == "cpu":
        return torch.stack(list(tensors))
    whole = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype, pin_memory=True)
    return torch.stack(list(tensors), out=whole).to(device, non_blocking=True)


class HostCopy:
    """Tensors on their way from the device: the copy waits for the kernels before it, and no later kernel is waited for.

    It belongs into the block of `launching`: it queues copies, and an exit waits for what was queued there.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._event = None
        if tensors[0].device.type == "cpu":
            self._copies = list(tensors)
            return
        self._copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def arrays(self) -> list[npt.NDArray[np.generic]]:
        """Return the tensors as arrays, when they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return [copy.numpy() for copy in self._copies]

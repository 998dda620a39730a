"""What failed on a device: its memory, which smaller micro-batches repair, or the device itself.

A device that is broken for a process works in a new one; one that torch or its settings do not fit does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from .device import installation_fault, launching
from .head import DeviceError, InstallationError, Work

Result = TypeVar("Result")

BATCHES_TO_GROW = 256  # after this many micro-batches without running out of memory, their size is doubled again

# How torch reports that memory ran out, other than by its own class of error: on a CPU, in CUDA's libraries, and outside of
# torch's own allocator.
_NOT_INITIALIZED = "CUBLAS_STATUS_NOT_INITIALIZED"  # on a full GPU, and on one whose context is broken
_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    _NOT_INITIALIZED,
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # with expandable segments
    "NVML_SUCCESS == r INTERNAL ASSERT",  # instead of the allocator's error, on a part of a GPU and in some containers
    "unable to find an engine to execute",  # of cuDNN, after every engine for a convolution ran out of memory
)
# How torch reports that this process can use its GPU no more: an illegal access, a lost GPU, memory with errors.
_BROKEN_MESSAGES = (
    "CUDA error",
    "CUDA driver error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)
# How it reports that one call was wrong, after which others work: a smaller one may be right.
_WRONG_CALL = re.compile("invalid (configuration )?argument|too many resources requested for launch")
_ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", torch.cuda.OutOfMemoryError)  # from torch 2.8 on


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    if isinstance(error, DeviceError):
        return False
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_MESSAGES)


def device_error(device: torch.device | str, error: Exception) -> DeviceError | None:
    """Return what to raise for an error that is the fault of the device, not of its memory or of one call; else None.

    Whatever CUDA reports that is not known here counts as a broken device: no content must be rejected for it.
    """
    if is_out_of_memory(error) or isinstance(error, DeviceError) or not isinstance(error, RuntimeError):
        return None
    message = _first_line(error)
    of_cuda = isinstance(error, _ACCELERATOR_ERROR) or re.search("CUDA|CUBLAS|CUDNN|cuDNN", message)
    if of_cuda and (fault := installation_fault(device, message)):
        return InstallationError(fault)
    is_known = isinstance(error, _ACCELERATOR_ERROR) or any(words in message for words in _BROKEN_MESSAGES)
    return _broken(device, error) if is_known and not _WRONG_CALL.search(message) else None


def _broken(device: torch.device | str, error: Exception) -> DeviceError:
    """Return the error of a device that is broken for this process."""
    return DeviceError(
        f"{device} failed ({_first_line(error)}), and fails at every later call of this process: run again; if it happens "
        f"again, check the GPU by nvidia-smi and by the kernel's log, and its driver"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def loading_errors(device: torch.device | str) -> Iterator[None]:
    """Raise errors of a device in the block, which loads a model, with a remedy.

    Raises:
        MemoryError: The memory of the device does not suffice.
        DeviceError: The device is broken.
        InstallationError: This process cannot use the device; another process has it for itself, for example.
    """
    try:
        yield
    except Exception as error:
        if failed := device_error(device, error):
            raise failed from error
        if isinstance(error, MemoryError) or not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"{device} has too little free memory for the model: let fewer processes share it (--direct_num_workers), or "
            f"use the device cpu ({_first_line(error)})"
        ) from error


class BatchSize:
    """The most that a micro-batch contains now, at most `largest`, in any measure of its cost."""

    def __init__(self, largest: int) -> None:
        self.largest = self.now = largest
        self.batches_since_oom = 0  # OOM: out of memory

    def shrink(self, size: int) -> None:
        """Halve the size after a micro-batch of `size` did not fit."""
        self.now, self.batches_since_oom = max(1, min(self.now, size) // 2), 0

    def grow(self) -> None:
        """Count a micro-batch that fitted, and try larger ones after many: another process may have freed memory."""
        self.batches_since_oom += 1
        if self.batches_since_oom % BATCHES_TO_GROW == 0:
            self.now = min(2 * self.now, self.largest)

    def in_parts(  # noqa: PLR0917
        self,
        contents: range,
        device: torch.device,
        work: Work,
        cut: Callable[[int, int], int],
        compute: Callable[[slice], Result],
        describe: Callable[[slice], tuple[int, str, str]],
    ) -> Iterator[Result]:
        """Yield the results of consecutive micro-batches, which become smaller when memory runs out.

        Args:
            contents: The places of the contents.
            device: The device that is computed on.
            work: What counts the micro-batches and failures.
            cut: Returns the end of the micro-batch that begins at a place and contains at most so much, one at least.
            compute: Returns the result of a micro-batch.
            describe: Returns what a micro-batch contains, in the measure of this size, and, if it is a single content, its
                words, as in "a single picture", with a remedy.

        Raises:
            MemoryError: The memory is too small for a single content.
            DeviceError: The device is broken.
        """
        start, suspect = contents.start, False
        while start < contents.stop:
            with launching(device):
                part = slice(start, min(cut(start, self.now), contents.stop))
                if work.oom_retries and not self.batches_since_oom and device.type == "cuda":
                    torch.cuda.empty_cache()  # for libraries that allocate memory without torch's allocator
                try:
                    result = compute(part)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    size, single, remedy = describe(part)
                    if _NOT_INITIALIZED in str(error):
                        if suspect:  # memory was freed, and did not help
                            raise _broken(device, error) from error
                        suspect = True
                    elif part.stop - start == 1:
                        raise MemoryError(
                            f"{device} has too little free memory for {single}: {remedy}, or use the device cpu ({error})"
                        ) from error
                    self.shrink(size)
                    work.oom_retries += 1
                    continue
                work.micro_batches += 1
                self.grow()
            start, suspect = part.stop, False
            yield result

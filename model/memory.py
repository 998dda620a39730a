"""The size of micro-batches: halved when memory runs out, and doubled again when it has sufficed for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from .head import Work

Result = TypeVar("Result")

BATCHES_TO_GROW = 256  # after this many micro-batches without running out of memory, their size is doubled again

# How torch reports that memory ran out, other than by its own class of error: on a CPU, and in cuBLAS.
_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # on a full GPU
    "CUDA error: out of memory",  # outside of torch's own allocator
)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_MESSAGES)


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
        """
        start = contents.start
        while start < contents.stop:
            part = slice(start, min(cut(start, self.now), contents.stop))
            if work.oom_retries and not self.batches_since_oom and device.type == "cuda":
                torch.cuda.empty_cache()  # for libraries that allocate memory without torch's allocator
            try:
                result = compute(part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                size, single, remedy = describe(part)
                if part.stop - start == 1:
                    raise MemoryError(
                        f"{device} has too little free memory for {single}: {remedy}, or use device='cpu' ({error})"
                    ) from error
                self.shrink(size)
                work.oom_retries += 1
                continue
            work.micro_batches += 1
            self.grow()
            start = part.stop
            yield result

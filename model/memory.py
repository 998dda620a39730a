"""The size of micro-batches: halved when memory runs out, and doubled again when it has sufficed for long."""

from __future__ import annotations

import torch

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

"""The network of the audio head: weights are packed for each length, and never used for another one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from audioclip_beam.model import load_checkpoint
from audioclip_beam.model.audio.tower import MAX_PACKED, AudioTower, max_pool

CPU = torch.device("cpu")


def _tower() -> AudioTower:
    return AudioTower(load_checkpoint("untrained", "audio").state, device=CPU, dtype=torch.float32)


def _spectrogram(frames: int) -> torch.Tensor:
    return torch.rand(1, 3, 341, frames, generator=torch.Generator().manual_seed(frames)) * 60 - 80


@pytest.mark.slow
def test_a_second_length_is_as_fast_as_the_first() -> None:
    """Weights that oneDNN packed for 392 frames would take eight times as long for 16."""
    tower, fresh, x = _tower(), _tower(), _spectrogram(16)
    tower.expect(392, 100)
    tower(_spectrogram(392))
    times: dict[AudioTower, list[float]] = {tower: [], fresh: []}
    for each in times:
        each.expect(16, 100)
        each(x)
    for _ in range(5):
        for each, seconds in times.items():
            began = time.process_time()
            each(x)
            seconds.append(time.process_time() - began)
    assert min(times[tower]) < 1.5 * min(times[fresh])


@pytest.mark.slow
def test_few_lengths_keep_packed_weights() -> None:
    """The vectors of many lengths stay the same bits, whichever of them have packed weights."""
    tower = _tower()
    plain = {frames: tower(_spectrogram(frames)).numpy() for frames in range(1, MAX_PACKED + 3)}
    for _ in range(2):
        for frames, vectors in plain.items():
            tower.expect(frames, 2)
            np.testing.assert_array_equal(tower(_spectrogram(frames)).numpy(), vectors)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 9), (6, 4), (5, 1), (1, 1)])
@pytest.mark.parametrize("overlapping", [True, False])
def test_maxima_in_bfloat16_are_torchs(height: int, width: int, overlapping: bool) -> None:
    x = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(height)).relu().bfloat16()
    kernel = [3, 3] if overlapping else [2 + height % 2, 2 + width % 2]
    pooled = max_pool(x.contiguous(memory_format=torch.channels_last), kernel)
    assert torch.equal(pooled, F.max_pool2d(x, kernel, 2, [size - 2 for size in kernel]))

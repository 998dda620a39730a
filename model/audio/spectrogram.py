"""Spectrograms by AudioCLIP's learnt filter bank: frequency B-spline wavelets (fbsp), in decibels.

A quiet bin holds rounding errors, which the logarithm makes visible. So the rows are built as the original builds them, in
float32 on the CPU; products are float32 in blocks of few shapes, without TF32, for each track by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import linear
from .settings import FRAME, FRAME_HOP, frame_count
from .shapes import BINS

POINTS = 2048  # samples of a row of the filter bank; a frame is in its middle
BANDS, BAND = 3, 341  # the first 1,023 bins are the network's three input channels
# Frames per product: the last one is filled up to a multiple of the first number, the others have the second one.
# A product reads all 14 MB of the filter bank, which takes a CPU as long as computing some 10 frames.
BLOCK_FRAMES = {"cpu": (80, 400), "cuda": (512, 512)}
SILENCE = 1e-18  # the power of a bin that has none


class Spectrogram:
    """The filter bank of a state dict, on one device."""

    def __init__(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        names = (f"audio.fbsp.{name}" for name in ("m", "fb", "fc"))
        rows = filter_rows(*(state[name].detach().float().cpu().numpy().tobytes() for name in names)).to(device)
        self.rows = linear(rows, rows.new_zeros(len(rows)))
        self.window = state["audio.window"].detach().float().to(device)
        self.multiple, self.largest = BLOCK_FRAMES[device.type]

    @torch.inference_mode()
    def __call__(self, samples: Tensor) -> Tensor:
        """Return the spectrogram [341, frames, 3] of samples [n], float32 in the range of 16-bit integers."""
        frames = frame_count(len(samples))
        padding = (frames - 1) * FRAME_HOP + FRAME - len(samples)
        x = (samples + 32768.0) * 2.0 / 65535.0 - 1.0  # in this order, as the original
        x = F.pad(x, (padding // 2, padding - padding // 2))
        power = x.new_empty(frames, BANDS * BAND)
        for start in range(0, frames, self.largest):
            part = x[start * FRAME_HOP : (start + self.largest - 1) * FRAME_HOP + FRAME].unfold(0, FRAME, FRAME_HOP)
            block = x.new_zeros(-(-len(part) // self.multiple) * self.multiple, FRAME)
            torch.mul(part, self.window, out=block[: len(part)])
            real, imaginary = torch.split(self.rows(block)[: len(part)], BANDS * BAND, 1)
            torch.addcmul(real.square(), imaginary, imaginary, out=power[start : start + len(part)])
        power = torch.where(power > 0, power, SILENCE).log10_().mul_(10.0)
        return power.view(frames, BANDS, BAND).permute(2, 0, 1).contiguous()


@functools.lru_cache(maxsize=2)
def filter_rows(m: bytes, fb: bytes, fc: bytes) -> Tensor:
    """Return the rows [2046, 1654] of a filter bank: real parts, then imaginary parts, as far as a frame reaches.

    Args:
        m: Order of each of 1,025 rows, float32 as bytes.
        fb: Bandwidths.
        fc: Centre frequencies.
    """
    m_, fb_, fc_ = (torch.from_numpy(np.frombuffer(part, np.float32).copy()).view(BINS, 1) for part in (m, fb, fc))
    t = math.pi * torch.linspace(-1.0, 1.0, POINTS) + 1e-8  # [2048]
    a = fb_ * t / (m_ + 1e-8)  # [1025, 2048]
    u = torch.where(a == 0, 1.0, torch.sin(a) / a)
    size, angle = u.abs() ** m_, torch.where(u >= 0, 0.0, math.pi) * m_  # of u to the power m, a complex number
    scale = torch.sqrt(fb_)
    envelope_real, envelope_imaginary = scale * (size * torch.cos(angle)), scale * (size * torch.sin(angle))
    real, imaginary = torch.cos(fc_ * t), -torch.sin(fc_ * t)
    rows = (
        envelope_real * real - envelope_imaginary * imaginary,
        envelope_real * imaginary + envelope_imaginary * real,
    )
    start = (POINTS - FRAME) // 2
    return torch.cat([part[: BANDS * BAND, start : start + FRAME] / math.sqrt(POINTS) for part in rows])

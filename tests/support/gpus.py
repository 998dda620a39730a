"""A head on a machine whose GPUs do not exist: each process notes which one it chose."""

from __future__ import annotations

import os
from pathlib import Path

from audioclip_beam.pipeline.inference.gpus import GpuPlace
from tests.support.stub import StubEncoder, StubHead

PLACES: dict[str, GpuPlace] = {}  # of this process


class FakeGpuHead(StubHead):
    """A StubHead whose workers choose among `gpus`, and write the choice into `folder`, a file for each process."""

    def __init__(self, folder: str, name: str, gpus: list[str]) -> None:
        super().__init__(delay=0.002)
        self.folder, self.lock, self.gpus = folder, name, gpus

    def encoder(self) -> StubEncoder:
        place = PLACES.setdefault(self.lock, GpuPlace(self.lock, lambda: self.gpus))
        Path(self.folder).mkdir(exist_ok=True)
        (Path(self.folder) / str(os.getpid())).write_text(place.choose("cuda"))
        return super().encoder()

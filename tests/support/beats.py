"""A head that is not AudioCLIP's: it embeds rhythms, bytes whose values are the strengths of beats, by arithmetic.

Nothing of it is like text: the type of the content, the unit, the model columns, the reasons, the settings. Its weights are
a real file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from audioclip_beam.model.fingerprint import SCHEME
from audioclip_beam.model.head import (
    BadRow,
    Column,
    ContentError,
    EncoderSettings,
    Encoding,
    Flag,
    Measure,
    ModelInfo,
    Work,
    type_name,
)
from audioclip_beam.model.heads import HEADS
from audioclip_beam.pipeline import flags

ACCENTS = ("none", "first")

LIMIT = 12  # beats that the encoder reads

BROKEN, FATAL = 255, 254  # the encoder has an error for a rhythm with the one, and raises for one with the other

CALLS: list[list[bytes]] = []  # the rhythms of each call of an encoder of this process


@dataclass(frozen=True)
class BeatSettings(EncoderSettings):
    """What a BeatEncoder is loaded from; `accent` says whether the first beat counts twice."""

    accent: str = "none"

    def check(self) -> None:
        super().check()
        if self.accent not in ACCENTS:
            raise ValueError(f"accent={self.accent!r}: choose one of {', '.join(ACCENTS)}")


class BeatEncoder:
    """An encoder whose vectors are sums of weights."""

    device_type = ""

    def __init__(self, info: ModelInfo, settings: BeatSettings, weights: NDArray[np.float32]) -> None:
        self.info, self.settings, self.weights = info, settings, weights
        self.on_progress: Callable[[int], object] = lambda items: None
        self.run_call: Callable[[Callable[[], Any]], Any] | None = None

    def encode_rows(self, contents: Sequence[bytes]) -> Encoding:
        if any(FATAL in rhythm for rhythm in contents):
            raise RuntimeError("the drum is torn")
        CALLS.append(list(contents))
        errors = {
            place: ContentError("broken beat", f"beat {rhythm.index(BROKEN)} is broken")
            for place, rhythm in enumerate(contents)
            if BROKEN in rhythm
        }
        distinct = {rhythm for rhythm in contents if BROKEN not in rhythm}
        work = Work(len(distinct), sum(map(_units, distinct)), 1, model_seconds=0.001, extra={"bars": len(distinct)})
        self.on_progress(len(distinct))
        vectors = [self._vector(rhythm) for rhythm in contents]
        columns = {
            "n_beats": np.array([len(rhythm) for rhythm in contents], np.int32),
            "loudness": np.array([max(rhythm) / 255 for rhythm in contents], np.float32),
        }
        return Encoding(np.array(vectors, np.float32).reshape(-1, self.info.dim), columns, errors, work)

    def _vector(self, rhythm: bytes) -> NDArray[np.float32]:
        if BROKEN in rhythm:
            return np.full(self.info.dim, np.nan, np.float32)
        strengths = self.weights[list(rhythm[:LIMIT])] * np.arange(1, _units(rhythm) + 1)[:, None]  # [beats, dim]
        if self.settings.accent == "first":
            strengths[0] *= 2
        vector = strengths.sum(axis=0, dtype=np.float32)
        if self.settings.dtype != "float32":
            vector = vector.astype(np.float16).astype(np.float32)
        return vector / np.linalg.norm(vector) if self.settings.normalize else vector


def _units(rhythm: bytes) -> int:
    """Return how many beats of a rhythm the encoder reads."""
    return min(len(rhythm), LIMIT)


class BeatCheck:
    """The check of the column `n_beats`."""

    def __init__(self) -> None:
        self.beats = 0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> Iterable[tuple[NDArray[np.bool_], str]]:
        self.beats += int(columns["n_beats"].sum())
        return [(columns["n_beats"] < 1, "has no beat")]

    def finish(self) -> tuple[list[str], str]:
        return [], f"{self.beats:,} beats in all"


class BeatHead:
    """The head, as the protocol Head describes it."""

    name = "beats"
    item = "rhythm"
    items = "rhythms"
    field_flag = "--rhythm_field"
    unit = size_unit = "beats"
    content = Column("rhythm", "binary")
    content_columns = ()
    types: Mapping[str, str] = {}
    by_reference = False
    entry_fields = ()
    batch_items = 1024
    gpu_memory = 1 << 30
    model_columns = (Column("n_beats", "int32"), Column("loudness", "float32"))
    size_column = "n_beats"
    preview = ""
    cut_column = None
    max_size = 16
    reasons = ("silence", "broken beat")
    sort_by = None
    keeps_strings = False
    provenance = ("accent",)
    version_parts = ("metronome",)
    flags = (
        Flag("rhythm_field", "field of the rhythm (default: rhythm); can be repeated", kind="list", metavar="PATH"),
        Flag("accent", "the beat that counts twice (default: none)", default="none", choices=ACCENTS),
        Flag("no_rhythm", "leave the rhythm column out of the output", default=False, kind="switch"),
        Flag("max_rhythm_bytes", "reject longer rhythms (default: 64)", default=64, kind="count"),
    )

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def settings(self, options: Mapping[str, Any]) -> BeatSettings:
        names = ("device", "dtype", "normalize", "accent")
        return BeatSettings(options["checkpoint"], **{name: options[name] for name in names})

    def settings_of(self, parts: Mapping[str, str], options: Mapping[str, Any]) -> BeatSettings:
        normalize = parts["normalize"] == "true"
        return BeatSettings(options["checkpoint"], dtype=parts["dtype"], normalize=normalize, accent=parts["accent"])

    def content_limit(self, options: Mapping[str, Any]) -> int:
        return int(options["max_rhythm_bytes"])

    def omitted(self, options: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"rhythm"} if options.get("no_rhythm") else ())

    def fingerprint_faults(self, parts: Mapping[str, str]) -> list[str]:
        return [] if parts["accent"] in ACCENTS else [f"accent is {parts['accent']!r}"]

    def versions(self) -> dict[str, str]:
        return {"metronome": "1.2"}

    def parse(self, value: object, field: str, limit: int) -> bytes:
        if not isinstance(value, bytes):
            raise BadRow("wrong type", f"field {field!r} is {type_name(value)}, not a rhythm")
        if not any(value):
            raise BadRow("silence", f"field {field!r} has no beat")
        if len(value) > limit:
            raise BadRow("too long", f"the rhythm is over {limit:,} bytes (--max_rhythm_bytes)")
        return value

    def extent(self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer]) -> dict[str, int]:
        return {"beats": int(columns["n_beats"].sum())}

    def describe_extent(self, extent: Mapping[str, int]) -> str:
        return f"{extent.get('beats', 0)} beats"

    def canary(self) -> dict[str, bytes]:
        return {f"rhythm {number}": bytes(range(number + 1, 2 * number + 2)) for number in range(16)}

    def read(self, copies: Sequence[str]) -> tuple[str, NDArray[np.float32]]:
        (path,) = copies
        try:
            return path, np.load(path)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a file of weights ({error}): name a .npy") from None

    def describe(self, settings: EncoderSettings, files: tuple[str, NDArray[np.float32]]) -> ModelInfo:
        assert isinstance(settings, BeatSettings)
        settings.check()
        path, weights = files
        parts = {"scheme": SCHEME, "head": self.name, "weights": hashlib.sha256(weights.tobytes()).hexdigest()}
        parts |= {"accent": settings.accent, "normalize": str(settings.normalize).lower(), "dtype": settings.dtype}
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return ModelInfo(
            self.name, Path(path).name, digest, False, weights.shape[1], {**parts, **self.versions()}, LIMIT
        )

    def load(self, settings: BeatSettings, files: tuple[str, NDArray[np.float32]], device: str) -> BeatEncoder:
        return BeatEncoder(self.describe(settings, files), settings, files[1])

    def measurer(
        self, settings: EncoderSettings, info: ModelInfo, copy_of: Callable[[int], str]
    ) -> Callable[[Sequence[bytes]], Measure]:
        def measure(rhythms: Sequence[bytes]) -> Measure:
            broken = np.array([BROKEN in rhythm for rhythm in rhythms], np.bool_)
            units = sum(_units(rhythm) for rhythm in set(rhythms) if BROKEN not in rhythm)
            return Measure(units, broken, np.zeros(len(rhythms), np.bool_))

        return measure

    def logit_scale(self, files: object, other: str) -> float:
        raise ValueError(f"rhythms have no scale for {other}")

    def describe_work(self, work: Work) -> str:
        return f"{work.items:,} rhythms, {work.units:,} beats"

    def column_check(self, parts: Mapping[str, str]) -> BeatCheck:
        return BeatCheck()


BEATS = BeatHead()


def write_weights(path: Path, *, dim: int = 8, seed: int = 0) -> str:
    """Write the weights of a BeatEncoder, and return the path."""
    np.save(path, np.random.default_rng(seed).standard_normal((256, dim), np.float32))
    return str(path)


@contextmanager
def beats_registered() -> Iterator[None]:
    """Make the head known by its name, as in `--head beats`, within the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HEADS, BEATS.name, f"{__name__}:BEATS")
        flags.defaults.cache_clear()  # they include those of the head now
        yield
    flags.defaults.cache_clear()

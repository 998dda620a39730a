"""Contents per second from files to vectors, beside what people write with the best libraries, in alternation in one run.

    python benchmarks/files.py [--kinds small,large,flac,mp3] [--items N] [--rounds 3] [--dtypes float32,bfloat16]
                               [--clock wall|cpu] [--without PART_OF_A_NAME,...] [--smoke]

Kinds: JPEG of 640 x 480 (small) and of 4000 x 3000 pixels (large), FLAC of 5 seconds at 44.1 kHz, and MP3 of a minute at
48 kHz in two channels, embedded by windows of 10 seconds. All compute the same seeded weights. The others decode and prepare
in as many threads as there are cores, while OpenVINO or onnxruntime computes what is prepared:

- "Pillow": Pillow decodes and resizes 8-bit pixels, as CLIP's own transform does; "Pillow's draft" has the JPEG decoder make
  a smaller picture first; "torchvision": Pillow decodes, torchvision resizes 8-bit tensors with antialiasing.
- "soundfile, soxr": decoded and resampled by these, then the learnt filter bank as one product of torch.
- "original's way": AudioCLIP's demo: simplejpeg and torchvision's transforms of float32 tensors, or librosa and the filter
  bank as two products of 2,048 samples; then the network as it is written, all with torch's own threads.

8-bit pixels and smaller pictures have other vectors: below each table are the lowest cosines with ours.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import encoder as benchmark
import media
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from audioclip_beam.model import AudioEncoder, load_checkpoint
from audioclip_beam.model.audio.settings import FRAME, FRAME_HOP, RATE, frame_count
from audioclip_beam.model.audio.spectrogram import BAND, BANDS, filter_rows
from audioclip_beam.model.image.pictures import DEVIATION, MEAN

COUNTS = {"small": 64, "large": 16, "flac": 16, "mp3": 2}  # files per round
NEEDED = {"image": ["torchvision"], "audio": ["librosa"]}  # packages that the project does not need itself
WINDOW, POINTS = 10.0, 2048
Encode = Callable[[list[Path]], np.ndarray]
Prepare = Callable[[Path], list[Tensor]]  # a file to inputs of the network, [3, height, width] each


def head_of(kind: str) -> str:
    """Return the head that embeds a kind of file."""
    return "image" if kind in ("small", "large") else "audio"


def write_files(kind: str, count: int, folder: Path, smoke: bool) -> list[Path]:
    """Write files of a kind, smooth random pictures and sounds with some noise, and return their paths."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        path = folder / f"{number}.{kind if head_of(kind) == 'audio' else 'jpg'}"
        if head_of(kind) == "image":
            width, height = (640, 480) if kind == "small" or smoke else (4000, 3000)
            pixels = np.zeros((height, width, 3), np.float32)
            for grain in (8, 32, 128):
                few = random.integers(0, 256, (height // grain + 1, width // grain + 1, 3), np.uint8)
                pixels += np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))
            pixels = pixels / 3 + random.normal(0, 3, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            import soundfile

            rate, channels, seconds = (44100, 1, 5) if kind == "flac" else (48000, 2, 60)
            noise = random.normal(0, 1, (rate * (1 if smoke else seconds), channels))
            smooth = np.cumsum(noise, 0) - np.linspace(0, 1, len(noise))[:, None] * noise.sum(0)
            soundfile.write(path, 0.4 * smooth / np.abs(smooth).max() + 0.01 * noise, rate)
        paths.append(path)
    return paths


def ours(kind: str, dtype: str) -> Encode:
    """Encode paths; MP3 by windows."""
    encoder = media.our_encoder(head_of(kind), dtype)
    if kind != "mp3":
        return encoder.encode
    return lambda paths: encoder.encode(window for path in paths for window in AudioEncoder.windows(path, WINDOW))


def piped(run: media.Run, prepare: Prepare, size: int) -> Encode:
    """Encode paths: threads prepare inputs, a bounded number ahead, while `run` computes batches of `size`."""
    threads = torch.get_num_threads()

    def prepared(paths: list[Path], pool: ThreadPoolExecutor) -> Iterator[Tensor]:
        waiting = deque(pool.submit(prepare, path) for path in paths[: 4 * size * threads])
        for path in [*paths[len(waiting) :], *[None] * len(waiting)]:
            if path is not None:
                waiting.append(pool.submit(prepare, path))
            yield from waiting.popleft().result()

    def batches(inputs: Iterable[Tensor]) -> Iterator[Tensor]:
        batch = []
        for x in inputs:
            batch.append(x)
            if len(batch) == size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)

    def encode(paths: list[Path]) -> np.ndarray:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            vectors = run(batches(prepared(paths, pool)))
        torch.set_num_threads(threads)
        return vectors

    return encode


def cropped(x: Tensor) -> Tensor:
    """Return the centre [c, 224, 224] of x [c, height, width]."""
    top, left = (round((size - 224) / 2) for size in x.shape[1:])
    return x[:, top : top + 224, left : left + 224]


def with_pillow(path: Path, draft: bool = False) -> list[Tensor]:
    """Decode, resize and crop by Pillow."""
    with Image.open(path) as picture:
        if draft:
            picture.draft("RGB", (224, 224))
        picture = picture.convert("RGB")
    scale = 224 / min(picture.size)
    width, height = (max(224, int(edge * scale)) for edge in picture.size)
    small = torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    return [(cropped(small).float().div_(255) - MEAN).div_(DEVIATION)]


def with_torchvision(path: Path) -> list[Tensor]:
    """Decode by Pillow, and resize 8-bit pixels by torchvision."""
    from torchvision.transforms.v2 import functional as transforms

    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    small = transforms.resize(pixels, [224], transforms.InterpolationMode.BICUBIC, antialias=True)
    return [(cropped(small).float().div_(255) - MEAN).div_(DEVIATION)]


def as_the_demo_prepares_pictures(path: Path) -> list[Tensor]:
    """Decode by simplejpeg, and resize float32 tensors."""
    import simplejpeg
    from torchvision.transforms.v2 import functional as transforms

    pixels = torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes())).permute(2, 0, 1).float().div_(255)
    small = transforms.resize(pixels, [224], transforms.InterpolationMode.BICUBIC, antialias=True)
    return [(cropped(small) - MEAN) / DEVIATION]


@functools.cache
def filter_bank() -> tuple[Tensor, Tensor]:
    """Return the rows [2046, 1654] of the filter bank and its window [1654]."""
    state = load_checkpoint("untrained", "audio").state
    rows = filter_rows(*(state[f"audio.fbsp.{name}"].numpy().tobytes() for name in ("m", "fb", "fc")))
    return rows, state["audio.window"].float()


@torch.inference_mode()
def spectrogram(samples: np.ndarray, points: int = FRAME) -> Tensor:
    """Return the network's input [3, 341, frames] of samples of full scale 1; frames have `points`, zeros at both ends."""
    rows, window = filter_bank()
    x = torch.from_numpy(samples) * 32768
    frames = frame_count(len(x))
    padding = (frames - 1) * FRAME_HOP + FRAME - len(x)
    x = F.pad((x + 32768.0) * 2.0 / 65535.0 - 1.0, (padding // 2, padding - padding // 2))
    x = x.unfold(0, FRAME, FRAME_HOP) * window  # [frames, 1654]
    if points == FRAME:
        real, imaginary = F.linear(x, rows).split(BANDS * BAND, 1)
    else:
        sides = (points - FRAME) // 2, points - FRAME - (points - FRAME) // 2
        real, imaginary = (F.pad(x, sides) @ F.pad(part, sides).T for part in rows.split(BANDS * BAND))
    power = (real.square() + imaginary.square()).clamp_(min=1e-18)
    return power.log10_().mul_(10).view(frames, BANDS, BAND).permute(1, 2, 0)


def with_soundfile(path: Path, points: int = FRAME, by_librosa: bool = False) -> list[Tensor]:
    """Decode, mix, resample, and compute the spectrograms of the windows, or of the whole."""
    if by_librosa:
        import librosa

        samples, rate = librosa.load(path, sr=RATE, mono=True)
    else:
        import soundfile
        import soxr

        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = samples.mean(1)
        if rate != RATE:
            samples = soxr.resample(samples, rate, RATE, quality="HQ")
    window = int(WINDOW * RATE) if path.suffix == ".mp3" else len(samples)
    starts = [*range(0, max(1, len(samples) - window // 2), window)]
    return [spectrogram(np.ascontiguousarray(samples[start : start + window]), points).contiguous() for start in starts]


def original(kind: str) -> Encode:
    """Do as AudioCLIP's demo does, a file after the other, with torch's own threads."""
    network = media.NETWORKS[head_of(kind)](load_checkpoint("untrained", head_of(kind)).state, torch.float32)

    @torch.inference_mode()
    def encode(paths: list[Path]) -> np.ndarray:
        prepare = as_the_demo_prepares_pictures
        if head_of(kind) == "audio":
            prepare = functools.partial(with_soundfile, points=POINTS, by_librosa=True)
        return torch.cat([network(x[None]) for path in paths for x in prepare(path)]).numpy()

    return encode


def is_chosen(name: str, without: list[str]) -> bool:
    """Return whether a contender's name contains nothing that is left out."""
    return not any(part and part in name for part in without)


def build(kind: str, dtypes: list[str], without: list[str]) -> Iterator[tuple[str, str, Encode]]:
    """Yield (name, dtype, encode) of every contender that is installed and not in `without`, ours first."""
    head = head_of(kind)
    names: dict[str, Prepare] = {"soundfile, soxr": with_soundfile}
    missing = [name for name in NEEDED[head] if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: what needs {', '.join(missing)}, which is not installed")
    if head == "image":
        names = {"Pillow": with_pillow} | ({} if missing else {"torchvision": with_torchvision})
        names |= {"Pillow's draft": functools.partial(with_pillow, draft=True)} if kind == "large" else {}
    frames = {"flac": frame_count(5 * RATE), "mp3": frame_count(int(WINDOW * RATE))}
    example = torch.zeros(media.BATCH[head], 3, *((224, 224) if head == "image" else (BAND, frames[kind])))
    for dtype in dtypes:
        yield "audioclip-beam", dtype, ours(kind, dtype)
        libraries = {"OpenVINO": functools.partial(media.openvino, streams=None)}
        if dtype == "float32":
            libraries["onnxruntime"] = media.onnxruntime
        for library, make in libraries.items():
            chosen = {name: prepare for name, prepare in names.items() if is_chosen(f"{library}, {name}", without)}
            try:
                run = make(head, dtype, example) if chosen else None
            except ImportError as error:
                print(f"left out: {library} {dtype} ({error})")
                continue
            for name, prepare in chosen.items():
                assert run is not None
                yield f"{library}, {name}", dtype, piped(run, prepare, media.BATCH[head])
        if dtype == "float32" and not missing and is_chosen("original's way", without):
            yield "original's way", dtype, original(kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="small,large,flac,mp3")
    parser.add_argument("--items", type=int, help="files per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--without", default="", help="leave out contenders with these in their names")
    parser.add_argument(
        "--smoke", action="store_true", help="two small files of a kind, ours and the original's way alone"
    )
    args = parser.parse_args()
    if args.smoke:
        args.items, args.rounds, args.dtypes, args.without = 2, 1, "float32", "OpenVINO,onnxruntime"
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    packages = [
        "torch",
        "torchvision",
        "pillow",
        "simplejpeg",
        "soundfile",
        "soxr",
        "librosa",
        "onnxruntime",
        "openvino",
    ]
    versions = ", ".join(map(benchmark.package_version, packages))
    print(benchmark.machine(), versions, f"Python {platform.python_version()}", sep="\n")
    for kind in args.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            paths = write_files(kind, args.items or COUNTS[kind], Path(folder), args.smoke)
            measure(kind, paths, args, clock)


def measure(kind: str, paths: list[Path], args: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Print the table of a kind of files."""
    encoders = list(build(kind, args.dtypes.split(","), args.without.split(",")))
    expected = encoders[0][2](paths)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    speeds: dict[tuple[str, str], list[float]] = {(name, dtype): [] for name, dtype, _ in encoders}
    lowest = {}
    for name, dtype, encode in encoders:  # also packs weights
        vectors = encode(paths)
        cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1)
        lowest[name, dtype] = float(cosines.min())
    for _ in range(args.rounds):
        for name, dtype, encode in encoders:
            began = clock()
            encode(paths)
            speeds[name, dtype].append(len(paths) / (clock() - began))
    sizes = statistics.median(os.path.getsize(path) for path in paths)
    print(f"\n{kind}: {len(paths)} files of {sizes:,.0f} bytes, {len(expected)} vectors")
    benchmark.print_rates(kind, f"{args.clock} clock: files", speeds)
    print("lowest cosines:", ", ".join(f"{name} {dtype} {cosine:.4f}" for (name, dtype), cosine in lowest.items()))


if __name__ == "__main__":
    main()

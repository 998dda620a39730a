"""Measure how well a checkpoint labels clips that it was not trained on, and finds clips by captions: zero-shot accuracy.

    python benchmarks/zero_shot.py --checkpoint full --esc50 ESC-50-master
    python benchmarks/zero_shot.py --checkpoint full --us8k UrbanSound8K
    python benchmarks/zero_shot.py --checkpoint full --pairs clips.csv

Each clip is compared with the text of each class, by cosine; the label of the nearest one counts. Both variants of the audio
head are measured. The paper's figures (arXiv 2106.13043, zero-shot) are printed beside them. Its published preprocessing
stretches each clip in time, which neither variant does, so small differences are expected. A csv of pairs has the columns
`file`, a path relative to the csv, and `caption`; a clip may have several captions, each in a row of its own.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audioclip_beam.model import AudioEncoder, TextEncoder
from audioclip_beam.model.media import VARIANTS
from audioclip_beam.model.release import UNTRAINED

CLIPS_AT_A_TIME = 64
RECALL_AT = (1, 5, 10)
PAPER = {"ESC-50": 69.40, "UrbanSound8K": 68.78}  # percent


class Clip(NamedTuple):
    """A sound file, and its class or caption."""

    path: Path
    text: str


def read_esc50(folder: Path) -> list[Clip]:
    """Return the clips of ESC-50, a folder with meta/esc50.csv and audio/."""
    rows = _rows(folder / "meta" / "esc50.csv", "filename", "category")
    return [Clip(folder / "audio" / row["filename"], row["category"].replace("_", " ")) for row in rows]


def read_us8k(folder: Path) -> list[Clip]:
    """Return the clips of UrbanSound8K, a folder with metadata/UrbanSound8K.csv and audio/fold1 to audio/fold10."""
    rows = _rows(folder / "metadata" / "UrbanSound8K.csv", "slice_file_name", "fold", "class")
    return [
        Clip(folder / "audio" / f"fold{row['fold']}" / row["slice_file_name"], row["class"].replace("_", " "))
        for row in rows
    ]


def read_pairs(path: Path) -> list[Clip]:
    """Return the clips of a csv with the columns file and caption."""
    return [Clip(path.parent / row["file"], row["caption"]) for row in _rows(path, "file", "caption")]


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Return the rows of a csv. Raise SystemExit if it has no row, or if one has no value in one of the columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
    for number, row in enumerate(rows, 1):
        for column in columns:
            if not row.get(column):
                raise SystemExit(f"{path}, row {number}: no {column}; it needs the columns {', '.join(columns)}")
    if not rows:
        raise SystemExit(f"{path} has no row; it needs the columns {', '.join(columns)}")
    return rows


def directions(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return vectors [n, dim] scaled to length 1."""
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def embed_clips(clips: Sequence[Clip], encoder: AudioEncoder) -> NDArray[np.float64]:
    """Return the directions [n, dim] of clips. Raise SystemExit with the files that cannot be embedded."""
    parts, faults = list[NDArray[np.float32]](), list[str]()
    for start in range(0, len(clips), CLIPS_AT_A_TIME):
        some = clips[start : start + CLIPS_AT_A_TIME]
        encoding = encoder.encode_rows([clip.path for clip in some])
        faults += [f"{some[place].path}: {detail}" for place, (_, detail) in sorted(encoding.errors.items())]
        parts.append(encoding.vectors)
    if faults:
        raise SystemExit("\n".join([f"{len(faults):,} of {len(clips):,} clips cannot be embedded:", *faults[:20]]))
    return directions(np.concatenate(parts))


def accuracy(sounds: NDArray[np.float64], labels: NDArray[np.float64], places: NDArray[np.int64]) -> float:
    """Return the percentage of sounds whose nearest label is the one at their place in `places`."""
    return 100 * float(((sounds @ labels.T).argmax(axis=1) == places).mean())


def recall(queries: NDArray[np.float64], others: NDArray[np.float64], partners: NDArray[np.bool_], k: int) -> float:
    """Return the percentage of queries that have a partner among their k nearest others.

    Args:
        queries: Directions [n, dim].
        others: Directions [m, dim].
        partners: Which others are partners of each query, [n, m], at least one each.
        k: How many of the nearest count.
    """
    cosines = queries @ others.T
    nearest = np.where(partners, cosines, -np.inf).max(axis=1, keepdims=True)
    return 100 * float(((cosines > nearest).sum(axis=1) < k).mean())


def partners_of(pairs: Sequence[Clip], clips: Sequence[Clip], words: Sequence[str]) -> NDArray[np.bool_]:
    """Return which texts are captions of which clips, [clips, words]."""
    rows = {clip.path: row for row, clip in enumerate(clips)}
    columns = {word: column for column, word in enumerate(words)}
    partners = np.zeros((len(clips), len(words)), np.bool_)
    for pair in pairs:
        partners[rows[pair.path], columns[pair.text]] = True
    return partners


def measure(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield a line for each figure."""
    sets: list[tuple[str, list[Clip]]] = []
    if arguments.esc50:
        sets.append(("ESC-50", read_esc50(arguments.esc50)))
    if arguments.us8k:
        sets.append(("UrbanSound8K", read_us8k(arguments.us8k)))
    if arguments.pairs:
        sets.append(("pairs", read_pairs(arguments.pairs)))
    if not sets:
        raise SystemExit("nothing to measure: give --esc50, --us8k or --pairs")
    if "{}" not in arguments.prompt:
        raise SystemExit("--prompt has no {}, where the class goes")
    if arguments.checkpoint == UNTRAINED:
        yield "untrained: random weights, for testing only; the figures mean nothing"
    texts = TextEncoder.load(arguments.checkpoint, tokenizer_path=arguments.tokenizer_path, device=arguments.device)
    vectors = []
    for name, clips in sets:
        words = sorted({clip.text for clip in clips})
        prompts = [word if name == "pairs" else arguments.prompt.replace("{}", word) for word in words]
        vectors.append((words, directions(texts.encode(prompts))))
    del texts
    for variant in VARIANTS:
        encoder = AudioEncoder.load(arguments.checkpoint, variant=variant, device=arguments.device)
        for (name, clips), (words, labels) in zip(sets, vectors, strict=True):
            if name == "pairs":
                files = list({clip.path: clip for clip in clips}.values())
                sounds, partners = embed_clips(files, encoder), partners_of(clips, files, words)
                for k in RECALL_AT:
                    both = recall(labels, sounds, partners.T, k), recall(sounds, labels, partners, k)
                    found = f"clips {both[0]:.2f} %, captions {both[1]:.2f} %"
                    yield f"{variant:<10} Recall@{k:<2} of {len(clips):,} pairs: {found}"
                continue
            sounds = embed_clips(clips, encoder)
            places = np.array([words.index(clip.text) for clip in clips])
            yield (
                f"{variant:<10} {name}: {accuracy(sounds, labels, places):.2f} % of {len(clips):,} clips, "
                f"{len(words)} classes (paper: {PAPER[name]:.2f} %, of clips stretched in time)"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--checkpoint", default="full", help="the checkpoint (default: full)")
    parser.add_argument("--tokenizer_path", help="the vocabulary (default: as fetched)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--prompt", default="{}", help="template for the classes (default: {})")
    parser.add_argument("--esc50", type=Path, metavar="DIR", help="the folder of ESC-50")
    parser.add_argument("--us8k", type=Path, metavar="DIR", help="the folder of UrbanSound8K")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="a csv with the columns file and caption")
    try:
        for line in measure(parser.parse_args(argv)):
            print(line, flush=True)
    except (ValueError, OSError, RuntimeError) as error:  # of a checkpoint, a device or a vocabulary
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()

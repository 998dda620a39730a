"""Run all benchmarks in turn, on a quiet machine: python benchmarks [NAME...], names as in ALL.

The one of a GPU runs by default only if there is a GPU. zero_shot.py is not among them: it needs a checkpoint and data.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ALL = (
    "tokenizer",
    "encoder",
    "image",
    "audio",
    "files",
    "shares",
    "search",
    "shuffle",
    "scaling",
    "pipeline",
    "media_pipeline",
    "nights",
    "compaction",
    "object_store",
    "gpu",
)
HEADS = {name: ["encoder.py", "--head", name] for name in ("image", "audio")}


def default() -> tuple[str, ...]:
    """Return the benchmarks that this machine can run."""
    import torch

    return ALL if torch.cuda.is_available() else ALL[:-1]


if __name__ == "__main__":
    chosen = sys.argv[1:] or default()
    unknown = [name for name in chosen if name not in ALL]
    if unknown:
        raise SystemExit(
            f"no benchmark named {', '.join(unknown)}: choose from {', '.join(ALL)}; run one alone to give it flags"
        )
    for name in chosen:
        print(f"\n== {name} ==", flush=True)
        script, *flags = HEADS.get(name, [f"{name}.py"])
        done = subprocess.run([sys.executable, FOLDER / script, *flags], cwd=FOLDER.parent, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)

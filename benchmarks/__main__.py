"""Run all benchmarks in turn, on a quiet machine: python benchmarks [tokenizer] [encoder] [shuffle] [pipeline]"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ALL = ("tokenizer", "encoder", "shuffle", "pipeline")

if __name__ == "__main__":
    chosen = sys.argv[1:] or ALL
    unknown = [name for name in chosen if name not in ALL]
    if unknown:
        raise SystemExit(
            f"no benchmark named {', '.join(unknown)}: choose from {', '.join(ALL)}; run one alone to give it flags"
        )
    for name in chosen:
        print(f"\n== {name} ==", flush=True)
        done = subprocess.run([sys.executable, FOLDER / f"{name}.py"], cwd=FOLDER.parent, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)

"""Counters of a job: Beam metrics under one namespace, and this process's own tally for the progress line.

What a snapshot's manifest says is added up from what was written, not from these: a bundle that runs twice counts
twice here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from apache_beam.metrics import Metrics

NAMESPACE = "audioclip_text"

# What a file's counts hold of the model's work, in the manifest under `counts`; seconds are under `seconds`.
MODEL_COUNTS = ("model_texts", "tokens", "nodes", "slots", "micro_batches", "oom_retries")
SECONDS = ("read_seconds", "tokenize_seconds", "model_seconds", "write_seconds")

# What this process has counted so far. A progress line reads it while a runner's own metrics are not to be had yet.
TALLY: Counter[str] = Counter()


def model_ran(texts: int) -> None:
    """Tell the progress line of texts that the model has embedded, long before their batch is whole and counted."""
    TALLY["texts_modelled"] += texts


def count_file(counts: Mapping[str, float]) -> None:
    """Count what a file's counts say beside its rows, which are counted as they pass; seconds in milliseconds."""
    for name, amount in counts.items():
        if name in SECONDS:
            count(name.replace("_seconds", "_msecs"), round(1000 * amount))
        elif name in MODEL_COUNTS:
            count(name, int(amount))
        elif name == "truncated":
            count("rows_truncated", int(amount))
        elif name.startswith("rejected: "):
            count(
                "rows_rejected_" + name.removeprefix("rejected: ").lower().replace(" ", "_").replace("-", "_"),
                int(amount),
            )


def count(name: str, amount: int) -> None:
    """Add `amount` to the counter `name`, in Beam's metrics and in this process's tally."""
    if amount:
        Metrics.counter(NAMESPACE, name).inc(amount)
        TALLY[name] += amount

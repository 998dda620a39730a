"""Counters of a job: Beam metrics under one namespace, and this process's own tally for the progress line."""

from __future__ import annotations

from collections import Counter

from apache_beam.metrics import Metrics

NAMESPACE = "audioclip_text"

# What this process has counted so far. A progress line reads it while a runner's own metrics are not to be had yet.
TALLY: Counter[str] = Counter()


def model_ran(texts: int) -> None:
    """Tell the progress line of texts that the model has embedded, long before their batch is whole and counted."""
    TALLY["texts_modelled"] += texts


def count(name: str, amount: int) -> None:
    """Add `amount` to the counter `name`, in Beam's metrics and in this process's tally."""
    if amount:
        Metrics.counter(NAMESPACE, name).inc(amount)
        TALLY[name] += amount

"""Streams: micro-batches on several cores at once, with the results of one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from audioclip_beam.model import ClipTokenizer, TextEncoder, load_checkpoint
from audioclip_beam.model.streams import map_in_streams
from audioclip_beam.model.text.settings import TextSettings

TEXTS = [f"{words} number {n}" for n in range(100) for words in ("dog", "a cat", "the sound of rain on a roof")]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_bit(tokenizer: ClipTokenizer, small_head: str) -> None:
    """The same calls give the same bits and the same cost with one core, and with several."""
    encoder = TextEncoder(load_checkpoint(small_head), tokenizer, TextSettings("small", device="cpu"))
    encoder.nodes.now = 64
    encodings = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        encodings.append(encoder.encode_rows(TEXTS))
    one, *others = encodings
    assert one.work.micro_batches > 10
    for other in others:
        np.testing.assert_array_equal(one.vectors, other.vectors)
        assert one.work.counts() == other.work.counts()


@pytest.mark.parametrize(("threads", "items", "streamed"), [(1, 5, 0), (2, 1, 0), (2, 5, 4), (3, 9, 9), (3, 2, 0)])
def test_items_that_share_out_evenly_are_streamed(threads: int, items: int, streamed: int) -> None:
    """They are computed on one core each, the rest on all cores; results keep their order."""
    torch.set_num_threads(threads)
    results = list(map_in_streams(lambda item: (item, torch.get_num_threads(), threading.get_ident()), range(items)))
    assert [item for item, _, _ in results] == list(range(items))
    caller = threading.get_ident()
    assert [ident != caller for _, _, ident in results] == [True] * streamed + [False] * (items - streamed)
    assert {count for _, count, ident in results if ident != caller} <= {1}
    assert {count for _, count, ident in results if ident == caller} <= {threads}


def test_other_threads_keep_their_number_of_threads() -> None:
    """After a call torch computes with as many threads as before, in this thread and in those that start later."""
    torch.set_num_threads(2)
    list(map_in_streams(torch.zeros, [10] * 4))
    seen = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2, 2]


def test_an_error_ends_the_call_without_computing_the_rest() -> None:
    """The first error is raised after the items in progress, and the pool's threads end."""
    torch.set_num_threads(2)
    computed = []

    def compute(item: int) -> int:
        if item == 1:
            raise ValueError("item 1")
        time.sleep(0.05)
        computed.append(item)
        return item

    results = map_in_streams(compute, range(100))
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(results)
    assert len(computed) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("model-stream")]

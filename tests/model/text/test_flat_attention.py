"""Attention over rows of any length, as on CUDA: by reference kernels on the CPU, and by fake tensors on a GPU."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from audioclip_beam.model import ClipTokenizer, TextEncoder
from audioclip_beam.model import device as device_module
from audioclip_beam.model.checkpoint import Checkpoint
from audioclip_beam.model.text import encoder as encoder_module
from audioclip_beam.model.text import flat_attention
from audioclip_beam.model.text.flat_attention import flat_works
from audioclip_beam.model.text.prefix_tree import SortedRows
from audioclip_beam.model.text.settings import TextSettings
from audioclip_beam.model.text.shapes import text_shapes
from audioclip_beam.model.text.tower import TextTower
from tests.support import plain_tower as oracle

START, END = 48, 49
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
STATE = oracle.small_state(width=128)
Kernel = tuple[torch.Tensor, ...]


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, key_starts: torch.Tensor
) -> torch.Tensor:
    """The definition: the queries of a row are its last nodes; each sees the keys up to itself."""
    out = torch.empty(len(q), *v.shape[1:], dtype=q.dtype)
    for row in range(len(starts) - 1):
        mine = slice(int(starts[row]), int(starts[row + 1]))
        keys, values = (part[int(key_starts[row]) : int(key_starts[row + 1])] for part in (k, v))  # [keys, h, d]
        scores = torch.einsum("qhd,khd->hqk", q[mine], keys) * q.shape[2] ** -0.5
        mask = torch.ones(scores.shape[1:]).tril(scores.shape[2] - scores.shape[1])
        out[mine] = torch.einsum("hqk,khd->qhd", scores.masked_fill(mask == 0, -torch.inf).softmax(-1), values)
    return out


def _flash(q: Any, k: Any, v: Any, *rest: Any) -> Kernel:
    starts, key_starts, most, longest, dropout, causal, debug = rest
    assert (dropout, causal, debug) == (0.0, True, False)
    assert (most, longest) == (int(starts.diff().max()), int(key_starts.diff().max()))
    return (_attention(q, k, v, starts, key_starts),)


def _efficient(q: Any, k: Any, v: Any, bias: Any, *rest: Any) -> Kernel:
    starts, key_starts, most, longest, dropout, mask = rest
    assert (bias, dropout, mask) == (None, 0.0, 2)
    assert (most, longest) == (int(starts.diff().max()), int(key_starts.diff().max()))
    return (_attention(q[0], k[0], v[0], starts, key_starts)[None],)


@pytest.fixture(params=[True, False], ids=["flash", "efficient"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """The two kernels by their names, as references on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat_attention, "_has_flash", lambda device, dtype: request.param)
        patch.setattr(torch.ops.aten, "_flash_attention_forward", _flash)
        patch.setattr(torch.ops.aten, "_efficient_attention_forward", _efficient)
        flat_works.cache_clear()
        yield
        flat_works.cache_clear()


def _arrange(rows: Sequence[Sequence[int]]) -> SortedRows:
    return SortedRows.of(np.array([token for row in rows for token in row]), np.array([len(row) for row in rows]))


some_rows = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=12).map(
    lambda rows: [[START, *row, END] for row in rows]
)


@pytest.mark.usefixtures("kernels")
def test_flat_trees_give_the_same_vectors() -> None:
    """As the plain padded tower, for rows with shared prefixes and duplicates, in any micro-batches, in order."""
    tower = TextTower(STATE, device=CPU, dtype=torch.float32)

    @given(rows=some_rows, nodes=st.integers(1, 60))
    @settings(max_examples=15, deadline=None)
    def check(rows: list[list[int]], nodes: int) -> None:
        arranged = _arrange(rows)
        vectors = torch.cat([tower(arranged.flat_tree(batch, CPU)) for batch in arranged.batches(nodes, 2 * nodes)])
        expected = oracle.plain_tower(STATE, rows, END)
        torch.testing.assert_close(vectors[torch.from_numpy(arranged.inverse)], expected, rtol=0, atol=2e-5)

    check()


@pytest.mark.usefixtures("kernels")
def test_kernels_are_checked_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that give other numbers, or that this torch does not have, are not used; a broken GPU is an error."""
    assert flat_works(CPU, torch.float32)
    assert flat_works(CPU, torch.bfloat16)

    def unknown(*arguments: Any) -> Kernel:
        raise NotImplementedError("Could not run 'aten::_flash_attention_forward'")

    def wrong_numbers(*arguments: Any) -> Kernel:
        return (torch.zeros_like(arguments[0]),)

    def missing(*arguments: Any) -> Kernel:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    for wrong in (unknown, missing, wrong_numbers):
        for name in ("_flash_attention_forward", "_efficient_attention_forward"):
            monkeypatch.setattr(torch.ops.aten, name, wrong)
        flat_works.cache_clear()
        assert not flat_works(CPU, torch.float32)

    def broken(*arguments: Any) -> Kernel:
        raise RuntimeError("CUDA error: misaligned address")

    for name in ("_flash_attention_forward", "_efficient_attention_forward"):
        monkeypatch.setattr(torch.ops.aten, name, broken)
    flat_works.cache_clear()
    with pytest.raises(RuntimeError, match="misaligned"):
        flat_works(CPU, torch.float32)


class Launches(TorchDispatchMode):
    """Counts operators that launch a kernel on the GPU; views do not."""

    VIEWS = re.compile(
        r"_?(unsafe_)?(view|t|transpose|permute|slice|select|(tensor_)?split|split_with_sizes|unbind|expand|flatten|(un)?squeeze|detach|device"
        r"|(new_)?empty(_strided)?)"
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.VIEWS.fullmatch(name):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU of fake tensors: each has a shape, a type and the device, and no operator computes anything."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(encoder_module, "flat_works", lambda device, dtype: True)
    monkeypatch.setattr(flat_attention, "to_device", lambda array, device: torch.from_numpy(array).to(device))
    flat_attention._has_flash.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    flat_attention._has_flash.cache_clear()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_micro_batch_on_a_gpu_takes_half_of_the_launches(dtype: torch.dtype) -> None:
    """At most 160 for twelve layers, however many lengths its rows have; with groups of rows there were 310 and more."""
    state = {name: torch.empty(shape) for name, shape in text_shapes(vocabulary=50).items()}
    tower = TextTower(state, device=GPU, dtype=dtype)
    rows = _arrange([[START, *range(1, 1 + length), 40 + branch, END] for length in range(30) for branch in range(3)])
    tree = rows.flat_tree(slice(0, 90), GPU)
    with Launches() as launches:
        vectors = tower(tree)
    assert vectors.shape == (90, 1024)
    assert (vectors.device, vectors.dtype) == (GPU, torch.float32)
    kernel = "_efficient_attention_forward" if dtype == torch.float32 else "_flash_attention_forward"
    assert launches.counts[kernel] == 12
    assert launches.counts.total() <= 160, launches.counts


def test_a_micro_batch_is_bounded_in_slots_too(tokenizer: ClipTokenizer) -> None:
    """With a long prompt, of which every text has the slots and no text the nodes, on CUDA; on a CPU nodes alone count."""
    template = " ".join(["one two three four five"] * 12) + " {}"
    ids, lengths = tokenizer.encode_all([template.format(f"word{n}") for n in range(500)])
    encoder = TextEncoder(
        Checkpoint(oracle.small_state(vocabulary=49408), "small", "0" * 64, True),
        tokenizer,
        TextSettings("small", device="cpu"),
    )
    rows = SortedRows.of(ids, lengths)
    assert list(rows.batches(2000, encoder._slots(2000))) == [slice(0, 500)]
    encoder.device = GPU
    batches = list(rows.batches(2000, encoder._slots(2000)))
    slots = [int(-(-rows.lengths[batch] // 8).sum() * 8) for batch in batches]
    assert max(slots) <= 4000
    assert min(slots[:-1]) > 3800
    assert sum(batch.stop - batch.start for batch in batches) == 500


def test_a_gpu_kernel_takes_every_row_of_a_micro_batch() -> None:
    """Its grid has at most 65,535, and every row has a node of its own."""
    assert encoder_module.MAX_NODES["cuda"] <= 65_535


@pytest.mark.usefixtures("kernels")
def test_a_window_is_prepared_while_the_one_before_is_computed(
    tokenizer: ClipTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA, where vectors come back window by window: no text is lost, and those that are not finite fail alone."""
    state = oracle.small_state(vocabulary=49408)
    state["token_embedding.weight"][tokenizer.encode("zebra")[0]] = torch.nan
    checkpoint = Checkpoint(state, "small", "0" * 64, True)
    encoder = TextEncoder(checkpoint, tokenizer, TextSettings("small", device="cpu", on_long="reject"))
    texts = [f"text {n} of many" for n in range(20)] + ["a zebra", "", "long " * 100, "a dog", "text 3 of many"]
    expected = encoder.encode_rows(texts)
    events: list[str] = []

    class Copy:
        """The copy of a window from the device."""

        def __init__(self, vectors: torch.Tensor, finite: torch.Tensor) -> None:
            assert device_module._LAUNCHES.locked(), "an exit waits for it"
            events.append("launched")
            self.tensors = vectors, finite

        def arrays(self) -> list[np.ndarray]:
            events.append("arrived")
            return [tensor.numpy() for tensor in self.tensors]

    monkeypatch.setattr(encoder_module, "HostCopy", Copy)
    monkeypatch.setattr(encoder_module, "current_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(flat_attention, "to_device", lambda array, device: torch.from_numpy(array))
    monkeypatch.setitem(encoder_module.WINDOW, "cuda", 6)
    encoder.device, encoder._flat = GPU, True
    found = encoder.encode_rows(texts)
    np.testing.assert_allclose(found.vectors, expected.vectors, rtol=0, atol=2e-5)
    assert found.errors == expected.errors
    assert found.columns["n_tokens"].tolist() == expected.columns["n_tokens"].tolist()
    assert events[:8] == ["launched", *["launched", "arrived"] * 3, "arrived"], "one window is on its way"

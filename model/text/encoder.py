"""TextEncoder: texts to float32 vectors, in the order given."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import Checkpoint, load_checkpoint
from ..fingerprint import fingerprint
from ..release import VOCABULARY
from ..settings import (
    DTYPES,
    Text,
    check_options,
    fingerprint_parts,
    join_and_prompt,
    list_texts,
    pick_device,
)
from ..text_head import check_vocabulary
from .prefix_tree import Ints, SortedRows, to_device
from .streams import map_in_streams
from .tokenizer import EOT, SOT, ClipTokenizer
from .tower import TextTower

# Per micro-batch. The CPU's was found by measurement (benchmarks/README.md). CUDA's is reasoned: its products have rows for
# every multiprocessor, and its tensors take some 0.6 GB in float32, so that eight processes fit on a GPU of 16 GB.
MAX_NODES = {"cpu": 1536, "cuda": 32768}
WINDOW = 65536  # texts sorted together: more would share more prefixes, and start the model later
BATCHES_TO_GROW = 256  # after this many micro-batches without running out of memory, their size is doubled again
# How torch reports that memory ran out, other than by its own class of error: on a CPU, and in cuBLAS.
_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # on a full GPU
    "CUDA error: out of memory",  # outside of torch's own allocator
)


@dataclass
class EncodeStats:
    """The cost of one call.

    `tokens` includes start and end, after truncation; `nodes` are the tokens that remain when prefixes are shared; `slots`
    are the positions in attention's rows, which alone are padded, to similar lengths.
    """

    texts: int = 0
    tokens: int = 0
    nodes: int = 0
    slots: int = 0
    micro_batches: int = 0
    oom_retries: int = 0
    tokenize_seconds: float = 0.0
    model_seconds: float = 0.0

    def add(self, other: EncodeStats) -> None:
        """Add the cost of `other`."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True)
class Encoding:
    """Vectors of n texts, with their token counts.

    vectors: float32 [n, dim], NaN for a text that is too long if on_long is "reject". n_tokens: int16 [n], before
    truncation, including start and end, at most 32,767. truncated: bool [n], whether there are more tokens than the
    context length.
    """

    vectors: npt.NDArray[np.float32]
    n_tokens: npt.NDArray[np.int16]
    truncated: npt.NDArray[np.bool_]
    stats: EncodeStats


class TooLongError(ValueError):
    """A text with more tokens than the context length; the message names its position."""


class TextEncoder:
    """AudioCLIP's text head with its tokenizer, on one device; usually created by `load`.

    An encoder that was created by `load` can be pickled: it is loaded again from the same paths.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: ClipTokenizer,
        *,
        device: str = "auto",
        dtype: str = "float32",
        prompt: str = "{}",
        on_long: str = "truncate",
        normalize: bool = False,
    ) -> None:
        check_options(prompt=prompt, on_long=on_long, dtype=dtype)
        check_vocabulary(checkpoint.name, checkpoint.state)
        self.device = pick_device(device, dtype)
        self.prompt, self.on_long, self.normalize = prompt, on_long, normalize
        self.tokenizer = tokenizer
        self.tower = TextTower(checkpoint.state, device=self.device, dtype=DTYPES[dtype])
        self.max_nodes = MAX_NODES[self.device.type]
        self.on_progress: Callable[[int], object] = lambda texts: None  # gets the number of distinct texts embedded
        self._batches_since_oom = 0  # OOM: out of memory
        self.dim = self.tower.dim
        self.checkpoint_name, self.checkpoint_sha256 = checkpoint.name, checkpoint.sha256
        self.untrained, self.notice = checkpoint.untrained, checkpoint.notice
        self._pid = os.getpid()
        self._load_arguments: tuple[str | os.PathLike[str], dict[str, Any]] | None = None
        self.fingerprint_parts = fingerprint_parts(
            checkpoint, tokenizer.sha256, prompt=prompt, on_long=on_long, normalize=normalize, dtype=dtype
        )
        self.fingerprint = fingerprint(self.fingerprint_parts)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "float32",
        tokenizer_path: str | os.PathLike[str] | None = None,
        prompt: str = "{}",
        on_long: str = "truncate",
        normalize: bool = False,
    ) -> TextEncoder:
        """Return the encoder of a released .pt, a text-only .safetensors, "full", "partial" or "untrained".

        `device` is "auto" (CUDA if available, else CPU), "cpu", "cuda" or "cuda:N"; `dtype` is "float32", "bfloat16" or,
        on CUDA, "float16"; `on_long` is "truncate", "reject" or "error", for texts longer than the context. Raises
        ValueError for other values or an unusable checkpoint, RuntimeError for a device that does not exist,
        FileNotFoundError for a missing vocabulary. Warns about a text head that is not AudioCLIP's.
        """
        check_options(prompt=prompt, on_long=on_long, dtype=dtype)
        pick_device(device, dtype)  # fails before a checkpoint of half a gigabyte is read
        vocabulary = VOCABULARY if tokenizer_path is None else Path(tokenizer_path)
        if not vocabulary.exists():
            raise FileNotFoundError(
                f"no vocabulary file at {vocabulary}: run `audioclip fetch vocabulary`, or give its path as "
                "tokenizer_path"
            )
        checkpoint, tokenizer = load_checkpoint(path), ClipTokenizer(vocabulary)
        options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "prompt": prompt,
            "on_long": on_long,
            "normalize": normalize,
        }
        encoder = cls(checkpoint, tokenizer, **options)
        encoder._load_arguments = path, {**options, "tokenizer_path": tokenizer_path}
        if encoder.notice:
            warnings.warn(encoder.notice, stacklevel=2)
        return encoder

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the arguments of `load`; raise TypeError for an encoder that `load` did not create."""
        if self._load_arguments is None:
            raise TypeError("a TextEncoder made of a Checkpoint cannot be pickled: create it by TextEncoder.load")
        path, options = self._load_arguments
        return _load_again, (type(self), path, options, self.fingerprint)

    def encode(self, texts: Iterable[Text]) -> npt.NDArray[np.float32]:
        """Return the vectors of n texts, float32 [n, dim], in their order; a list of strings is one text, joined with ", ".

        `texts` may be a list, an Arrow array, a pandas Series or a numpy array. Raises TypeError for anything else than
        texts, and TooLongError, a ValueError, if on_long is "reject" or "error" and a text has more tokens than the
        context length.
        """
        texts = list_texts(texts)
        encoding = self.encode_rows(texts)
        if self.on_long != "truncate" and encoding.truncated.any():
            first = int(encoding.truncated.argmax())
            raise TooLongError(
                f"text {first} has {encoding.n_tokens[first]} tokens, and the model reads at most "
                f"{self.tower.context_length}: {texts[first]!r:.80}; shorten it, or load the encoder with "
                "on_long='truncate'"
            )
        return encoding.vectors

    def encode_rows(self, texts: Iterable[Text]) -> Encoding:
        """Return the vectors of n texts, as for `encode`, with token counts, which texts were too long, and the cost.

        If a vector is not finite, the reason is its own text, never a neighbour's. Raises MemoryError if the memory is
        too small for a single text, RuntimeError in a process that was forked from the encoder's, where torch would wait
        for threads that do not exist. It never raises for a long text: with on_long="error" as with "truncate".
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this TextEncoder belongs to process {self._pid}, of which process {os.getpid()} is a fork, and torch "
                "may hang there: load an encoder in the new process, or start it with multiprocessing's spawn method"
            )
        texts = list_texts(texts)
        began = time.perf_counter()
        stats = EncodeStats()
        distinct: dict[str, int] = {}
        indices = [distinct.setdefault(join_and_prompt(text, self.prompt), len(distinct)) for text in texts]
        inverse = np.array(indices, np.int64)
        n_tokens = np.zeros(len(distinct), np.int64)
        try:
            with self._current_device():
                vectors = self._finite(list(distinct), n_tokens, stats)[inverse]
        except Exception as error:
            if isinstance(error, MemoryError) or not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"{self.device} has too little free memory for {len(texts)} texts: free some, or encode fewer at a time "
                f"({error})"
            ) from error
        counts = n_tokens[inverse]
        stats.model_seconds = time.perf_counter() - began - stats.tokenize_seconds
        return Encoding(
            vectors=vectors,
            n_tokens=np.minimum(counts, np.iinfo(np.int16).max).astype(np.int16),
            truncated=counts > self.tower.context_length,
            stats=stats,
        )

    def _current_device(self) -> AbstractContextManager[object]:
        """Return the context in which to compute.

        Pinned memory belongs to the current GPU, which in every thread is the first one until another one is chosen: with
        "cuda:1" each process would occupy memory of the first GPU as well.
        """
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _finite(self, texts: list[str], n_tokens: Ints, stats: EncodeStats) -> npt.NDArray[np.float32]:
        """Return vectors [n, dim] of n distinct texts; fill in n_tokens and stats.

        A text whose numbers overflow also makes its neighbours' not finite, because 0 times NaN is NaN. Such texts are
        computed again in ever smaller parts, until each one at fault is alone.
        """
        vectors = self._vectors(texts, n_tokens, stats).cpu().numpy()  # [n, dim]
        fits = n_tokens <= self.tower.context_length if self.on_long == "reject" else np.ones(len(texts), np.bool_)
        not_finite = np.flatnonzero(fits & ~np.isfinite(vectors).all(1))
        if len(texts) > 1 and len(not_finite):
            for part in np.array_split(not_finite, 2) if len(not_finite) == len(texts) else [not_finite]:
                again = [texts[index] for index in part]
                vectors[part] = self._finite(again, np.zeros(len(part), np.int64), EncodeStats())
        return vectors

    @torch.inference_mode()
    def _vectors(self, texts: list[str], n_tokens: npt.NDArray[np.int64], stats: EncodeStats) -> Tensor:
        """Return vectors [n, dim] of n distinct texts, on the device; fill in n_tokens and stats.

        Nothing here waits for a CUDA device, which can compute one window of texts while the next one is tokenized. One
        stream is enough: a micro-batch fills the GPU, and the next one is queued before it ends.
        """
        vectors = torch.full((len(texts), self.dim), torch.nan, device=self.device)
        for start in range(0, len(texts), WINDOW):
            began = time.perf_counter()
            window = [self.tokenizer.encode(text) for text in texts[start : start + WINDOW]]
            counts = np.fromiter(map(len, window), np.int64, len(window)) + 2
            n_tokens[start : start + len(window)] = counts
            fits = counts <= self.tower.context_length if self.on_long == "reject" else counts > 0
            chosen = fits.nonzero()[0]
            rows = SortedRows.of([model_row(window[i], self.tower.context_length) for i in chosen])
            stats.tokenize_seconds += time.perf_counter() - began
            if len(chosen):
                embedded = self._embed(rows, stats)  # [d, dim]
                embedded = embedded.index_select(0, to_device(rows.inverse, self.device))  # [chosen, dim]
                vectors.index_copy_(0, to_device(chosen + start, self.device), embedded)
        return vectors

    def _embed(self, rows: SortedRows, stats: EncodeStats) -> Tensor:
        """Return vectors [d, dim] of d sorted rows, on the device; add to stats."""
        batches = list(rows.batches(self.max_nodes))
        compute = functools.partial(self._embed_batch, rows)
        # Work for a CUDA device is only queued here, and one thread is enough for that.
        results = map_in_streams(compute, batches) if self.device.type == "cpu" else map(compute, batches)
        embedded = []
        for vectors, cost in results:
            embedded.append(vectors)
            stats.add(cost)
            self.on_progress(len(vectors))
        return torch.cat(embedded)

    @torch.inference_mode()
    def _embed_batch(self, rows: SortedRows, batch: slice) -> tuple[Tensor, EncodeStats]:
        """Return vectors [rows of the batch, dim] on the device and their cost; in parts if memory runs out."""
        stats = EncodeStats(texts=batch.stop - batch.start, tokens=int(rows.lengths[batch].sum()))
        embedded, start = [], batch.start
        while start < batch.stop:
            part = rows.batch_from(start, self.max_nodes, batch.stop)
            if stats.oom_retries and not self._batches_since_oom and self.device.type == "cuda":
                torch.cuda.empty_cache()  # for libraries that allocate memory without torch's allocator
            try:
                tree = rows.tree(part, self.device)
                vectors = self.tower(tree)  # [rows of the part, dim]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(int(rows.lengths[part].sum()), part.stop - part.start, error)
                stats.oom_retries += 1
                continue
            embedded.append(F.normalize(vectors, dim=-1) if self.normalize else vectors)
            stats.nodes += tree.nodes
            stats.slots += sum(group.paths.numel() for group in tree.groups)
            stats.micro_batches += 1
            self._grow()
            start = part.stop
        return torch.cat(embedded), stats

    def _shrink(self, tokens: int, texts: int, error: Exception) -> None:
        """Halve the size of micro-batches after one of this size failed; raise MemoryError if it was a single text."""
        if texts == 1:
            raise MemoryError(
                f"{self.device} has too little free memory for a single text of {tokens} tokens: free some, or use "
                f"device='cpu' ({error})"
            ) from error
        self.max_nodes, self._batches_since_oom = max(1, min(self.max_nodes, tokens) // 2), 0

    def _grow(self) -> None:
        """Try larger micro-batches again after memory has sufficed for long: another process may have freed it."""
        self._batches_since_oom += 1
        if self._batches_since_oom % BATCHES_TO_GROW == 0:
            self.max_nodes = min(2 * self.max_nodes, MAX_NODES[self.device.type])


def _load_again(
    encoder_class: type[TextEncoder], path: str | os.PathLike[str], options: dict[str, Any], fingerprint: str
) -> TextEncoder:
    """Return the encoder that was pickled; raise ValueError if its files have changed."""
    encoder = encoder_class.load(path, **options)
    if encoder.fingerprint != fingerprint:
        raise ValueError(
            f"{os.fspath(path)} gives other vectors than the TextEncoder that was pickled: its fingerprint is "
            f"{encoder.fingerprint[:8]} instead of {fingerprint[:8]}; use the same files and package versions"
        )
    return encoder


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_MESSAGES)


def model_row(tokens: Sequence[int], context: int) -> list[int]:
    """Return the token ids of a text as the model reads them: start, the first context - 2 of `tokens`, end.

    A text may contain <|endoftext|>: the original takes the vector at the first one, so nothing after it counts.
    """
    row = [SOT, *tokens[: context - 2], EOT]
    return row[: row.index(EOT) + 1]

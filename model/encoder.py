"""TextEncoder: texts in, float32 vectors out, in the order given."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import Checkpoint, load_checkpoint
from .prefix_tree import Ints, SortedRows, to_device
from .settings import DTYPES, Text, check_options, fingerprint, fingerprint_parts, join_and_prompt, pick_device
from .text_head import check_vocabulary
from .text_tower import TextTower
from .tokenizer import EOT, SOT, ClipTokenizer

VOCABULARY = Path(".cache/bpe_simple_vocab_16e6.txt.gz")
NODES = {"cpu": 1536, "cuda": 32768}  # of a micro-batch; the CPU's found by measurement (benchmarks/README.md)
WINDOW = 16384  # texts sorted together: more would share more beginnings, and start the model later
CALM = 256  # micro-batches without running out of memory, after which twice their size is tried again
# How torch says, but for its own class of error, that memory is out: on a CPU, and where cuBLAS finds none for itself.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # on a full card
    "CUDA error: out of memory",  # outside of torch's own allocator
)


@dataclass
class EncodeStats:
    """What one call cost.

    `tokens` counts start and end, after truncation; `nodes` those left once beginnings are shared; `slots` the places in
    attention's rows, which are padded to like lengths: nothing else is.
    """

    texts: int = 0
    tokens: int = 0
    nodes: int = 0
    slots: int = 0
    micro_batches: int = 0
    oom_retries: int = 0
    tokenize_seconds: float = 0.0
    model_seconds: float = 0.0


@dataclass(frozen=True)
class Encoding:
    """Vectors of n texts and what became of each.

    vectors: float32 [n, dim], NaN where a text was too long and on_long is "reject". n_tokens: int16 [n], before
    truncation, start and end included, at most 32,767. truncated: bool [n], more tokens than the context holds.
    """

    vectors: npt.NDArray[np.float32]
    n_tokens: npt.NDArray[np.int16]
    truncated: npt.NDArray[np.bool_]
    stats: EncodeStats


class TextEncoder:
    """AudioCLIP's text head with its tokenizer, on one device; `load` is the usual way to one."""

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
        self.nodes = NODES[self.device.type]
        self.on_progress: Callable[[int], object] = lambda texts: None  # told how many distinct texts were embedded
        self._calm = 0  # micro-batches since memory last ran out
        self.dim = self.tower.dim
        self.checkpoint_name, self.checkpoint_sha256 = checkpoint.name, checkpoint.sha256
        self.untrained = checkpoint.untrained
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
        """Encoder of a released .pt, a text-only .safetensors, "full", "partial" or "untrained".

        `device` is "auto" (CUDA, then CPU), "cpu", "cuda" or "cuda:N"; `dtype` "float32", "bfloat16", or on CUDA
        "float16"; `on_long` "truncate" or "reject". Raises ValueError for other values, RuntimeError for a device that
        is not there, FileNotFoundError for a missing file.
        """
        check_options(prompt=prompt, on_long=on_long, dtype=dtype)
        pick_device(device, dtype)  # before a checkpoint is read for nothing
        vocabulary = VOCABULARY if tokenizer_path is None else Path(tokenizer_path)
        if not vocabulary.exists():
            raise FileNotFoundError(
                f"no vocabulary file at {vocabulary}: run `audioclip-text fetch vocabulary`, or give its path as "
                "tokenizer_path"
            )
        checkpoint, tokenizer = load_checkpoint(path), ClipTokenizer(vocabulary)
        return cls(
            checkpoint, tokenizer, device=device, dtype=dtype, prompt=prompt, on_long=on_long, normalize=normalize
        )

    def encode(self, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        """Vectors of n texts, float32 [n, dim] in the order given; a list of strings is one text, joined with ", ".

        Raises ValueError with on_long="reject" where a text has more tokens than the context holds.
        """
        encoding = self.encode_rows(texts)
        if self.on_long == "reject" and encoding.truncated.any():
            first = int(encoding.truncated.argmax())
            raise ValueError(
                f"text {first} has {encoding.n_tokens[first]} tokens, and the model reads {self.tower.context_length}: "
                f"{texts[first]!r:.80}; shorten it, or load the encoder with on_long='truncate'"
            )
        return encoding.vectors

    def encode_rows(self, texts: Sequence[Text]) -> Encoding:
        """Vectors of n texts, as `encode` takes them, with token counts, what was too long, and what it cost.

        A row that is not finite is so by its own text. Raises MemoryError where there is not enough for one text.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of texts, not one string: got {texts!r:.80}; write [text]")
        began = time.perf_counter()
        stats = EncodeStats()
        distinct: dict[str, int] = {}
        places = [distinct.setdefault(join_and_prompt(text, self.prompt), len(distinct)) for text in texts]
        which = np.array(places, np.int64)
        n_tokens = np.zeros(len(distinct), np.int64)
        try:
            vectors = self._finite(list(distinct), n_tokens, stats)[which]
        except Exception as error:
            if isinstance(error, MemoryError) or not is_out_of_memory(error):
                raise
            raise MemoryError(f"{self.device} has too little free memory for {len(texts)} texts ({error})") from error
        counts = n_tokens[which]
        stats.model_seconds = time.perf_counter() - began - stats.tokenize_seconds
        return Encoding(
            vectors=vectors,
            n_tokens=np.minimum(counts, np.iinfo(np.int16).max).astype(np.int16),
            truncated=counts > self.tower.context_length,
            stats=stats,
        )

    def _finite(self, texts: list[str], n_tokens: Ints, stats: EncodeStats) -> npt.NDArray[np.float32]:
        """[n, dim] for n distinct texts; fills in n_tokens and stats.

        A text whose numbers overflow spoils what is computed beside it, for 0 times NaN is NaN. What is not finite is
        computed again in ever smaller parts, until the texts that are to blame stand alone.
        """
        vectors = self._vectors(texts, n_tokens, stats).cpu().numpy()  # [n, dim]
        read = n_tokens <= self.tower.context_length if self.on_long == "reject" else np.ones(len(texts), np.bool_)
        spoilt = np.flatnonzero(read & ~np.isfinite(vectors).all(1))
        if len(texts) > 1 and len(spoilt):
            for part in np.array_split(spoilt, 2) if len(spoilt) == len(texts) else [spoilt]:
                again = [texts[place] for place in part]
                vectors[part] = self._finite(again, np.zeros(len(part), np.int64), EncodeStats())
        return vectors

    @torch.inference_mode()
    def _vectors(self, texts: list[str], n_tokens: npt.NDArray[np.int64], stats: EncodeStats) -> Tensor:
        """[n, dim] on the device for n distinct texts; fills in n_tokens and stats.

        Nothing here waits for a CUDA device, so it works on one window of texts while the next one is tokenized.
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
                embedded = embedded.index_select(0, to_device(rows.place, self.device))  # [chosen, dim]
                vectors.index_copy_(0, to_device(chosen + start, self.device), embedded)
        return vectors

    def _embed(self, rows: SortedRows, stats: EncodeStats) -> Tensor:
        """[d, dim] on the device for d sorted rows, in micro-batches, smaller ones for a while where memory runs out."""
        embedded, start, count = [], 0, len(rows.lengths)
        while start < count:
            run = rows.run_from(start, self.nodes)
            if stats.oom_retries and not self._calm and self.device.type == "cuda":
                torch.cuda.empty_cache()  # for those who take memory past torch's allocator
            try:
                tree = rows.tree(run, self.device)
                vectors = self.tower(tree)  # [rows of the run, dim]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(int(rows.lengths[run].sum()), run.stop - run.start, error)
                stats.oom_retries += 1
                continue
            embedded.append(F.normalize(vectors, dim=-1) if self.normalize else vectors)
            stats.nodes += len(tree.tokens)
            stats.slots += sum(group.paths.numel() for group in tree.groups)
            stats.micro_batches += 1
            self.on_progress(run.stop - start)
            self._grow()
            start = run.stop
        stats.texts += count
        stats.tokens += int(rows.lengths.sum())
        return torch.cat(embedded)

    def _shrink(self, tokens: int, texts: int, error: Exception) -> None:
        """Halve micro-batches below one of so many tokens; MemoryError where that was a single text."""
        if texts == 1:
            raise MemoryError(
                f"{self.device} has too little free memory for a single text of {tokens} tokens: free some, or use "
                f"device='cpu' ({error})"
            ) from error
        self.nodes, self._calm = max(1, min(self.nodes, tokens) // 2), 0

    def _grow(self) -> None:
        """Try larger micro-batches again once memory has sufficed for long: who took it may have given it back."""
        self._calm += 1
        if self._calm % CALM == 0:
            self.nodes = min(2 * self.nodes, NODES[self.device.type])


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def model_row(tokens: Sequence[int], context: int) -> list[int]:
    """Token ids of a text as the model reads them: start, at most context - 2 of its own, end.

    A text may spell out <|endoftext|>: the original reads its vector at the first one, and nothing behind that counts.
    """
    row = [SOT, *tokens[: context - 2], EOT]
    return row[: row.index(EOT) + 1]

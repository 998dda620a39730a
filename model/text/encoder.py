"""TextEncoder: texts to float32 vectors, in the order given."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import Checkpoint, load_checkpoint
from ..device import TORCH_DTYPES, HostCopy, current_device, launching, pick_device
from ..head import ContentError, Encoding, ModelInfo, Work
from ..loaded import LoadedEncoder
from ..memory import BatchSize
from ..messages import plural
from ..streams import map_in_streams
from .flat_attention import flat_works
from .prefix_tree import Ints, SortedRows
from .settings import TextSettings, versions
from .shapes import check_vocabulary
from .texts import BLANK, Text, join, list_texts
from .tokenizer import ClipTokenizer, model_rows
from .tower import TextTower

# Per micro-batch. The CPU's was found by measurement (benchmarks/README.md). CUDA's is reasoned: its products have rows for
# every multiprocessor, its tensors take some 0.6 GB in float32, so that eight processes fit on a GPU of 16 GB, and a kernel
# takes at most 65,535 rows.
MAX_NODES = {"cpu": 1536, "cuda": 32768}
# On CUDA also so many slots of attention per node: with a template as prompt there are 32, which would take 11 GB.
SLOTS_PER_NODE = 2
# Texts sorted together: more would share more prefixes, and start the model later. A CUDA device computes one window while
# the next one is tokenized.
WINDOW = {"cpu": 65536, "cuda": 4096}

Bools = npt.NDArray[np.bool_]


class TooLongError(ValueError):
    """A text with more tokens than the context length; the message names its position."""


def model_info(checkpoint: Checkpoint, vocabulary_sha256: str, settings: TextSettings) -> ModelInfo:
    """Return what the encoder of a checkpoint, a vocabulary and settings is; no tower is built.

    Raises ValueError if a setting is not known, or if the text head lacks an embedding for an id of the tokenizer.
    """
    settings.check()
    check_vocabulary(checkpoint.name, checkpoint.state)
    return checkpoint.info(
        checkpoint.state["text_projection"].shape[1],  # text_projection: [width, dim]
        {"vocabulary": vocabulary_sha256, **settings.fingerprint_parts(), **versions()},
        checkpoint.state["positional_embedding"].shape[0],  # positional_embedding: [context, width]
    )


class TextEncoder(LoadedEncoder):
    """AudioCLIP's text head with its tokenizer, on one device; usually created by `load`."""

    settings: TextSettings

    def __init__(self, checkpoint: Checkpoint, tokenizer: ClipTokenizer, settings: TextSettings) -> None:
        info = model_info(checkpoint, tokenizer.sha256, settings)
        self._start(info, settings, pick_device(settings.device, settings.dtype))
        self.tokenizer = tokenizer
        self.tower = TextTower(checkpoint.state, device=self.device, dtype=TORCH_DTYPES[settings.dtype])
        self.nodes = BatchSize(MAX_NODES[self.device.type])  # of a micro-batch
        self._flat = self.device.type == "cuda" and _attends_flat(self.device, TORCH_DTYPES[settings.dtype])

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
        """Return the encoder of a text head.

        Warns about a text head that is not AudioCLIP's.

        Args:
            path: A released .pt, a text-only .safetensors, "full", "partial" or "untrained".
            device: "auto" (CUDA if available, else CPU), "cpu", "cuda" or "cuda:N".
            dtype: "float32", "bfloat16" or, on CUDA, "float16": the type in which the model computes.
            tokenizer_path: The BPE vocabulary; by default the one that `audioclip fetch` writes.
            prompt: A template for each text, with {} for the text.
            on_long: "truncate", "reject" or "error", for texts longer than the context.
            normalize: Whether to scale vectors to length 1.

        Raises:
            ValueError: An argument has another value, or the checkpoint cannot be used.
            RuntimeError: The device does not exist.
            FileNotFoundError: The vocabulary is missing.
        """
        settings = TextSettings(
            os.fspath(path),
            device=device,
            dtype=dtype,
            normalize=normalize,
            tokenizer_path=None if tokenizer_path is None else os.fspath(tokenizer_path),
            prompt=prompt,
            on_long=on_long,
        )
        return cls._load(settings)

    @classmethod
    def _read(cls, settings: TextSettings) -> TextEncoder:
        if not os.path.exists(settings.vocabulary_path):
            raise FileNotFoundError(
                f"no vocabulary file at {settings.vocabulary_path}: run `audioclip fetch vocabulary`, or give its path as "
                "tokenizer_path"
            )
        return cls(load_checkpoint(settings.path), ClipTokenizer(settings.vocabulary_path), settings)

    def encode(self, texts: Iterable[Text]) -> npt.NDArray[np.float32]:
        """Return the vectors of n texts, float32 [n, dim], in their order; a list of strings is one text, joined with ", ".

        `texts` may be a list, an Arrow array, a pandas Series or a numpy array. Raises TypeError for anything else than
        texts, and TooLongError, a ValueError, if on_long is "reject" or "error" and a text has more tokens than the
        context length.
        """
        texts = list_texts(texts)
        encoding = self.encode_rows(texts)
        blank = [place for place, error in encoding.errors.items() if error is BLANK]
        if blank:
            of_blank = functools.partial(self._encode_rows, [texts[place] for place in blank], blank=True)
            encoding.vectors[blank] = self._run(of_blank, plural(len(blank), "text")).vectors
        truncated = encoding.columns["truncated"]
        if self.settings.on_long != "truncate" and truncated.any():
            first = int(truncated.argmax())
            raise TooLongError(
                f"text {first} has {encoding.columns['n_tokens'][first]} tokens, and the model reads at most "
                f"{self.info.limit}: {texts[first]!r:.80}; shorten it, or load the encoder with on_long='truncate'"
            )
        return encoding.vectors

    def encode_rows(self, texts: Iterable[Text]) -> Encoding:
        """Return the vectors of n texts, as for `encode`, with token counts, which texts were too long, and the cost.

        The columns are n_tokens, int16 [n], before truncation, including start and end, at most 32,767; and truncated,
        bool [n], whether there are more tokens than the context length. With on_long="reject" texts that are too long have
        an error instead of a vector; with on_long="error" they are truncated. Texts of which cleaning leaves nothing, judged
        without the prompt, have an error, though `encode` embeds them.

        If a vector is not finite, the reason is its own text, never a neighbour's.

        Raises:
            MemoryError: The memory is too small for a single text.
            RuntimeError: This process was forked from the encoder's, and torch would wait for threads that do not exist.
        """
        listed = list_texts(texts)
        return self._run(lambda: self._encode_rows(listed), plural(len(listed), "text"))

    def _encode_rows(self, texts: list[Text], *, blank: bool = False) -> Encoding:
        """Return what encode_rows does; with `blank` blank texts have vectors too."""
        began = time.perf_counter()
        work = Work(extra={"nodes": 0, "slots": 0})
        distinct: dict[str, int] = {}
        indices = [distinct.setdefault(join(text), len(distinct)) for text in texts]
        inverse = np.array(indices, np.int64)
        n_tokens, is_blank = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.bool_)
        if not blank:
            is_blank[self.tokenizer.blank_places(list(distinct))] = True
        prompt = self.settings.prompt
        prompted = list(distinct) if prompt == "{}" else [prompt.format(text) for text in distinct]
        work.prepare_seconds = time.perf_counter() - began
        with current_device(self.device):
            vectors = self._finite(prompted, is_blank, n_tokens, work)
        if len(distinct) < len(texts):
            vectors = vectors[inverse]
        counts = n_tokens[inverse]
        truncated = counts > self.tower.context_length
        work.model_seconds = time.perf_counter() - began - work.prepare_seconds
        n_tokens = np.minimum(counts, np.iinfo(np.int16).max).astype(np.int16)
        errors = {}
        if self.settings.on_long == "reject":
            errors = {
                place: ContentError("too long", f"{n_tokens[place]} tokens, the context length is {self.info.limit}")
                for place in np.flatnonzero(truncated).tolist()
            }
        errors |= dict.fromkeys(np.flatnonzero(is_blank[inverse]).tolist(), BLANK)
        return Encoding(vectors, {"n_tokens": n_tokens, "truncated": truncated}, errors, work)

    def _finite(self, texts: list[str], skipped: Bools, n_tokens: Ints, work: Work) -> npt.NDArray[np.float32]:
        """Return vectors [n, dim] of n distinct texts, NaN for `skipped` ones; fill in n_tokens and work.

        A text whose numbers overflow also makes its neighbours' not finite, because 0 times NaN is NaN. Such texts are
        computed again in ever smaller parts, until each one at fault is alone.
        """
        skipped = skipped.copy()  # also texts that are too long
        vectors, finite = self._vectors(texts, skipped, n_tokens, work)
        not_finite = np.flatnonzero(~skipped & ~finite)
        if len(texts) > 1 and len(not_finite):
            for part in np.array_split(not_finite, 2) if len(not_finite) == len(texts) else [not_finite]:
                again = [texts[index] for index in part]
                vectors[part] = self._finite(again, skipped[part], np.zeros(len(part), np.int64), Work())
        return vectors

    @torch.inference_mode()
    def _vectors(
        self, texts: list[str], skipped: Bools, n_tokens: Ints, work: Work
    ) -> tuple[npt.NDArray[np.float32], Bools]:
        """Return vectors [n, dim] of n distinct texts, and which are finite [n]; fill in n_tokens and work.

        `skipped` texts have no vector: with on_long="reject" those that are too long are added to them.

        A CUDA device computes one window of texts while the next one is tokenized, and its vectors are copied from it while
        it computes that one. One stream is enough: a micro-batch fills the GPU, and the next one is queued before it ends.
        """
        vectors, finite = np.empty((len(texts), self.dim), np.float32), np.ones(len(texts), np.bool_)
        on_their_way = deque[tuple[HostCopy, Ints, Ints]]()  # of a window: vectors of its rows, texts, and their rows

        def store(copied: HostCopy, chosen: Ints, inverse: Ints) -> None:
            embedded, *flags = copied.arrays()
            is_finite = flags[0] if flags else np.isfinite(embedded).all(1)  # [d]
            if len(chosen) == int(chosen[-1]) + 1 - int(chosen[0]):
                # Any other mode than "clip" would write into a buffer first.
                np.take(embedded, inverse, 0, vectors[chosen[0] : chosen[-1] + 1], mode="clip")
            else:
                vectors[chosen] = embedded[inverse]
            finite[chosen] = is_finite[inverse]

        size = WINDOW[self.device.type]
        for start in range(0, len(texts), size):
            began = time.perf_counter()
            part = slice(start, start + size)
            tokens, lengths = self.tokenizer.encode_all(texts[part])
            n_tokens[part] = lengths + 2
            if self.settings.on_long == "reject":
                skipped[part] |= n_tokens[part] > self.tower.context_length
            left_out = skipped[part]
            if left_out.any():
                tokens, lengths = tokens[np.repeat(~left_out, lengths)], lengths[~left_out]
                vectors[part][left_out] = np.nan
            chosen = np.flatnonzero(~left_out) + start
            rows = SortedRows.of(*model_rows(tokens, lengths, self.tower.context_length))
            work.prepare_seconds += time.perf_counter() - began
            if len(chosen):
                parts = self._embed(rows, work)
                with launching(self.device):
                    embedded = torch.cat(parts)  # [d, dim]
                    flags = [] if self.device.type == "cpu" else [embedded.isfinite().all(1)]
                    copied = HostCopy(embedded, *flags)
                on_their_way.append((copied, chosen, rows.inverse))
            if len(on_their_way) > (self.device.type != "cpu"):
                store(*on_their_way.popleft())
        while on_their_way:
            store(*on_their_way.popleft())
        return vectors, finite

    def _embed(self, rows: SortedRows, work: Work) -> list[Tensor]:
        """Return vectors [d, dim] of d sorted rows, in parts, on the device; add to work."""
        batches = list(rows.batches(self.nodes.now, self._slots(self.nodes.now)))
        compute = functools.partial(self._embed_batch, rows)
        # Work for a CUDA device is only queued here, and one thread is enough for that.
        results = map_in_streams(compute, batches) if self.device.type == "cpu" else map(compute, batches)
        embedded = []
        for vectors, cost in results:
            embedded.append(vectors)
            work += cost
            self.on_progress(len(vectors))
        return embedded

    @torch.inference_mode()
    def _embed_batch(self, rows: SortedRows, batch: slice) -> tuple[Tensor, Work]:
        """Return vectors [rows of the batch, dim] on the device and their cost; in parts if memory runs out."""
        work = Work(items=batch.stop - batch.start, units=int(rows.lengths[batch].sum()))
        nodes = slots = 0

        def compute(part: slice) -> Tensor:
            nonlocal nodes, slots
            tree = rows.flat_tree(part, self.device) if self._flat else rows.tree(part, self.device)
            vectors = self.tower(tree)  # [rows of the part, dim]
            nodes += tree.nodes
            slots += tree.slots
            return F.normalize(vectors, dim=-1) if self.settings.normalize else vectors

        def describe(part: slice) -> tuple[int, str, str]:
            tokens = int(rows.lengths[part].sum())
            return tokens, f"a single text of {tokens} tokens", "free some"

        parts = self.nodes.in_parts(
            range(batch.start, batch.stop),
            self.device,
            work,
            cut=lambda start, size: rows.batch_from(start, size, batch.stop, self._slots(size)).stop,
            compute=compute,
            describe=describe,
        )
        embedded = torch.cat(list(parts))
        work.extra = {"nodes": nodes, "slots": slots}
        return embedded, work

    def _slots(self, nodes: int) -> int | None:
        """Return the most slots of a micro-batch of so many nodes; None if there may be any number."""
        return None if self.device.type == "cpu" else SLOTS_PER_NODE * nodes


def _attends_flat(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether attention takes rows of any length on this GPU; warn if not."""
    with current_device(device):
        works = flat_works(device, dtype)
    if not works:
        warnings.warn(
            f"torch {torch.__version__} on {device} has no correct attention over rows of any length in {dtype}, so rows "
            f"are padded, which takes twice as many kernels",
            RuntimeWarning,
            stacklevel=2,
        )
    return works

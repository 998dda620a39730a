"""The text head: what the pipeline must know of it. Imports no torch until an encoder is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..head import Column, Flag, Measure, ModelInfo, Preview, Work
from ..messages import plural
from .settings import ON_LONG, TextSettings, versions
from .texts import PROMPT_RULE, Text, is_prompt, join, parse_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..checkpoint import Checkpoint
    from .encoder import TextEncoder
    from .tokenizer import ClipTokenizer

MAX_TEXT_BYTES = 1 << 20

CANARY_TEXTS = (
    "dog barking",
    "rain on a tin roof",
    "a choir singing in a cathedral",
    "glass breaking, then footsteps running away",
    "thunder",
    "Coffee machine grinding beans; cups clinking in the background",
    "an old steam train leaving the station",
    "1, 2, 3, 4 - count-in with drum sticks",
    "le vent dans les arbres",
    "Möwen über dem Hafen",
    "猫がのどを鳴らす",
    "шум прибоя",
    "a",
    "people laughing & applauding (crowd)",
    "slow piano music with a crackling vinyl noise, recorded from far away in a large empty hall",
    "🎸 solo",
)


class TextFiles(NamedTuple):
    """Checkpoint and vocabulary, read."""

    checkpoint: Checkpoint
    tokenizer: ClipTokenizer


FLAGS = (
    Flag(
        "tokenizer_path",
        "BPE vocabulary (default: the one that fetch wrote to .cache)",
        metavar="PATH",
        is_file=True,
    ),
    Flag(
        "text_field",
        "field of the text: text, meta.caption, chunks[].text (default: text); can be repeated",
        kind="list",
        metavar="PATH",
    ),
    Flag(
        "prompt",
        "template for each text, as in 'a sound of {}' (default: {})",
        default="{}",
        fault=lambda text: "" if is_prompt(text) else f"is not a prompt: {PROMPT_RULE}",
    ),
    Flag(
        "on_long",
        "for a text over the context length: truncate it, reject its row, or fail (default: truncate)",
        default="truncate",
        choices=ON_LONG,
    ),
    Flag("no_text", "leave the text column out of the output", default=False, kind="switch"),
    Flag(
        "max_text_bytes",
        f"reject longer texts (default: {MAX_TEXT_BYTES})",
        default=MAX_TEXT_BYTES,
        kind="count",
    ),
)


class TextHead:
    """AudioCLIP's text head, as the protocol Head describes it."""

    name = "text"
    item = "text"
    items = "texts"
    field_flag = "--text_field"
    unit = size_unit = "tokens"
    content = Column("text", "string")
    content_columns: tuple[Column, ...] = ()
    types: Mapping[str, str] = {}
    by_reference = False
    entry_fields = ()
    batch_items = 16_384
    gpu_memory = 2 << 30
    model_columns = (Column("n_tokens", "int16"), Column("truncated", "bool"))
    size_column = "n_tokens"
    preview: Preview = ""
    cut_column: str | None = "truncated"
    max_size = 128
    reasons = ("empty text", "null text")
    sort_by = "text"
    keeps_strings = True
    provenance = ("prompt", "on_long")
    version_parts = ("ftfy", "regex", "unicode")
    flags = FLAGS

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def settings(self, options: Mapping[str, Any]) -> TextSettings:
        """Return the settings of the encoder that options of `embed` ask for."""
        return TextSettings(
            options["checkpoint"],
            device=options["device"],
            dtype=options["dtype"],
            normalize=options["normalize"],
            tokenizer_path=options["tokenizer_path"],
            prompt=options["prompt"],
            on_long=options["on_long"],
        )

    def settings_of(self, parts: Mapping[str, str], options: Mapping[str, Any]) -> TextSettings:
        """Return the settings of the encoder with these parts of a fingerprint, and files as options name them."""
        vocabulary = options.get("tokenizer_path")
        return TextSettings(
            str(options.get("checkpoint", "full")),
            dtype=parts["dtype"],
            normalize=parts["normalize"] == "true",
            tokenizer_path=None if vocabulary is None else str(vocabulary),
            prompt=parts["prompt"],
            on_long=parts["on_long"],
        )

    def content_limit(self, options: Mapping[str, Any]) -> int:
        """Return the most bytes of one text."""
        return int(options["max_text_bytes"])

    def omitted(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the columns that options of `embed` leave out of part files."""
        return frozenset({"text"} if options.get("no_text") else ())

    def fingerprint_faults(self, parts: Mapping[str, str]) -> list[str]:
        """Return what is wrong with the values of a fingerprint's parts."""
        return [] if is_prompt(parts["prompt"]) else [f"prompt is {parts['prompt']!r:.80}, and {PROMPT_RULE}"]

    def versions(self) -> dict[str, str]:
        """Return the versions of packages that decide token ids."""
        return versions()

    def parse(self, value: object, field: str, limit: int) -> str:
        """Return a value as text, a list of strings joined with ", ". Raise BadRow if it is not a text."""
        return parse_text(value, field, limit)

    def extent(self, columns: Mapping[str, NDArray[Any]], parts: NDArray[np.integer]) -> dict[str, int]:
        """Return nothing."""
        return {}

    def describe_extent(self, extent: Mapping[str, int]) -> str:
        """Return nothing."""
        return ""

    def canary(self) -> dict[str, str]:
        """Return CANARY_TEXTS, each by itself."""
        return {text: text for text in CANARY_TEXTS}

    def read(self, copies: Sequence[str]) -> TextFiles:
        """Read checkpoint and vocabulary. Raise CheckpointError or TokenizerError if they cannot be used."""
        from ..checkpoint import load_checkpoint
        from .tokenizer import ClipTokenizer

        checkpoint, vocabulary = copies
        return TextFiles(load_checkpoint(checkpoint, self.name), ClipTokenizer(vocabulary))

    def describe(self, settings: TextSettings, files: TextFiles) -> ModelInfo:
        """Return what the encoder of these settings and files is. Raise ValueError if it cannot be built."""
        from .encoder import model_info

        return model_info(files.checkpoint, files.tokenizer.sha256, settings)

    def load(self, settings: TextSettings, files: TextFiles, device: str) -> TextEncoder:
        """Return the encoder on a device."""
        from .encoder import TextEncoder

        return TextEncoder(files.checkpoint, files.tokenizer, replace(settings, device=device))

    def measurer(
        self, settings: TextSettings, info: ModelInfo, copy_of: Callable[[int], str]
    ) -> Callable[[Sequence[Text]], Measure]:
        """Return a function that tokenizes texts: tokens count as a call of the encoder counts them, after truncation.

        Texts of equal tokens count once, and blank ones not at all.
        """
        import numpy as np

        from .tokenizer import ClipTokenizer, model_rows

        tokenizer, context = ClipTokenizer(copy_of(1)), info.limit or 0

        def measure(texts: Sequence[Text]) -> Measure:
            joined = [join(text) for text in texts]
            tokens, lengths = tokenizer.encode_all([settings.prompt.format(text) for text in joined])
            too_long = lengths + 2 > context
            rejected = too_long & (settings.on_long == "reject")
            rejected[tokenizer.blank_places(joined)] = True
            rows, lengths = model_rows(tokens, lengths, context)
            good = zip(
                np.split(rows, np.cumsum(lengths)), ~rejected, strict=False
            )  # after the last row there is nothing
            different = {row.tobytes(): len(row) for row, is_good in good if is_good}
            return Measure(sum(different.values()), rejected, too_long & (settings.on_long == "error"))

        return measure

    def logit_scale(self, files: TextFiles, other: str) -> float:
        """Return the factor that AudioCLIP multiplies cosines of texts with `other`, "audio" or "image", by."""
        from ..tensors import pair_scale
        from .shapes import SCALE_NAMES

        return pair_scale(files.checkpoint.state, SCALE_NAMES, other)

    def describe_work(self, work: Work) -> str:
        """Return the work of a run as a phrase."""
        nodes, slots = work.extra.get("nodes", 0), work.extra.get("slots", 0)
        return (
            f"{plural(work.items, 'text')}, {plural(work.units, 'token')}"
            + (f", {1 - nodes / work.units:.0%} of them shared" if nodes else "")
            + (f", {plural(work.micro_batches, 'micro-batch', 'micro-batches')}" if work.micro_batches else "")
            + (f" with {1 - work.units / slots:.0%} padding in attention" if slots else "")
            + (f", {work.items / work.seconds:,.0f} texts/s" if work.seconds else "")
        )

    def column_check(self, parts: Mapping[str, str]) -> TokenCheck:
        """Return a new check of tokens and truncation."""
        return TokenCheck(parts["on_long"])


class TokenCheck:
    """The check of the columns `n_tokens` and `truncated`: whether they agree in all rows of a snapshot."""

    def __init__(self, on_long: str) -> None:
        self.on_long = on_long
        self.truncated = 0
        self.shortest_truncated, self.longest_whole = float("inf"), float("-inf")  # in tokens

    def add(self, columns: Mapping[str, NDArray[Any]]) -> Iterable[tuple[NDArray[np.bool_], str]]:
        """Check a batch; return the faulty rows, with what they have."""
        tokens, truncated = columns["n_tokens"], columns["truncated"]
        self.truncated += int(truncated.sum())
        if truncated.any():
            self.shortest_truncated = min(self.shortest_truncated, tokens[truncated].min())
        if not truncated.all():
            self.longest_whole = max(self.longest_whole, tokens[~truncated].max())
        return [(tokens < 2, "has fewer than two tokens, the start and the end")]

    def finish(self) -> tuple[list[str], str]:
        """Return faults of all rows together, and what was checked."""
        faults = []
        if self.shortest_truncated <= self.longest_whole:
            faults.append(
                f"a row of {self.shortest_truncated:.0f} tokens is marked truncated, but one of "
                f"{self.longest_whole:.0f} is not"
            )
        if self.on_long == "reject" and self.truncated:
            faults.append(
                f"{plural(self.truncated, 'row is', 'rows are')} truncated, expected none with --on_long reject"
            )
        return faults, f"{plural(self.truncated, 'row')} truncated"


TEXT = TextHead()

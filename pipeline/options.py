"""EmbedOptions: the job's settings as Beam pipeline options, checked before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from .flags import add_flags


class OptionsError(ValueError):
    """The options do not make a job; the text says which one and what to do."""


class EmbedOptions(PipelineOptions):  # type: ignore[misc]
    """Options of one embedding job: `EmbedOptions(["--input", "a.txt"])` or `EmbedOptions(input=["a.txt"])`."""

    # Typed for readers; the values live in PipelineOptions.
    input: list[str] | None
    output: str | None
    checkpoint: str
    tokenizer_path: str | None
    download_model: bool
    text_field: str
    id_field: str | None
    keep_fields: list[str]
    input_format: str | None
    prompt: str
    on_long: str
    normalize: bool
    no_text: bool
    vector_dtype: str
    dtype: str
    device: str
    accelerator: str | None
    batch_size: int
    max_file_rows: int
    max_text_bytes: int
    read_timeout: int
    max_rejected: str | None
    max_shrink: float
    unique_ids: bool
    allow_damaged: int
    allow_empty: bool
    no_dedupe: bool

    def __init__(self, flags: Sequence[str] | None = None, **options: object) -> None:
        # Beam reads sys.argv where no flags are given: in a library call those are somebody else's.
        super().__init__([] if flags is None else list(flags), **options)

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        add_flags(parser)

    def check(self) -> tuple[list[str], str]:
        """The inputs and the output; OptionsError where one is missing."""
        if not self.input:
            raise OptionsError("--input is missing: name the text shards, as in --input 'texts/*.jsonl'")
        if not self.output:
            raise OptionsError("--output is missing: name the directory that keeps the snapshots, as in --output out")
        return self.input, self.output


def set_object_store_options(flags: Sequence[str]) -> None:
    """Have all file systems use what Beam's `flags` say of endpoints and credentials; OptionsError for unknown ones."""
    options = PipelineOptions(list(flags))
    reject_unknown_flags(options)
    FileSystems.set_options(options)


def reject_unknown_flags(options: PipelineOptions) -> None:
    """OptionsError for flags that neither we nor Beam know."""
    known = options.get_all_options(retain_unknown_options=False)
    unknown = [name for name in options.get_all_options(retain_unknown_options=True) if name not in known]
    if unknown:
        flags = ", ".join(f"--{name}" for name in sorted(unknown))
        raise OptionsError(f"unknown flags: {flags}; see audioclip-text COMMAND --help, and Beam's pipeline options")


def is_local_run(options: PipelineOptions) -> bool:
    """Whether the job runs on Beam's runner for one machine."""
    return options.view_as(StandardOptions).runner in (None, "DirectRunner")


def rejected_limit(max_rejected: str | None, read: int) -> float:
    """Rows out of `read` that may be rejected by a --max_rejected of "100" or "0.5%"; infinite where there is none."""
    if max_rejected is None:
        return float("inf")
    if max_rejected.endswith("%"):
        return read * float(max_rejected[:-1]) / 100
    return float(max_rejected)

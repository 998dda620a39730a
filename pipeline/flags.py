"""The flags of `audioclip-text embed`, without Beam: `--help` must not wait for its import."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable


def at_least(lowest: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `lowest` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}")
        return number

    return parse


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _rejected_limit(text: str) -> str:
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", text) or (text.endswith("%") and float(text[:-1]) > 100):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of rows (100) nor a percentage (0.5%)")
    return text


def _prompt(text: str) -> str:
    try:
        if text.format("\0") == text:
            raise ValueError("it has no {}")
    except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no prompt: it needs one {{}} for the text ({error})") from None
    return text


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different field names, as in a,b")
    return names


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `embed` and `plan` to `parser`; Beam's own are parsed beside them."""
    add = parser.add_argument
    add("--input", action="append", metavar="GLOB", help="text shards to read; may be given several times")
    add("--output", metavar="DIR", help="where snapshots of the corpus are kept")
    add(
        "--checkpoint",
        "--model_path",
        default="full",
        help="a released .pt, a text-only .safetensors, full, partial or untrained (default: full)",
    )
    add("--tokenizer_path", metavar="PATH", help="the BPE vocabulary (default: in .cache, where fetch puts it)")
    add("--download_model", action="store_true", help="fetch the checkpoint and the vocabulary first where missing")
    add("--text_field", default="text", metavar="PATH", help="field with the text: text, meta.caption, chunks[].text")
    add("--id_field", metavar="PATH", help="field with the id (default: <shard>#<row number>)")
    add("--keep_fields", type=_names, default=[], metavar="A,B", help="fields to copy beside the vectors")
    add("--input_format", choices=("txt", "jsonl", "csv", "tsv", "parquet"), help="default: by each shard's suffix")
    add("--prompt", type=_prompt, default="{}", help="put around each text, as in 'a sound of {}' (default: {})")
    add("--on_long", choices=("truncate", "reject"), default="truncate", help="texts over the context length")
    add("--normalize", action="store_true", help="scale each vector to length 1")
    add("--no_text", action="store_true", help="leave the text column out of the output")
    add("--vector_dtype", choices=("float32", "float16"), default="float32", help="how vectors are stored")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="what the model computes in")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto, CUDA where there is one)")
    add("--accelerator", metavar="KIND", help="a card for the model's steps on remote workers, as in nvidia-l4")
    add("--batch_size", type=at_least(1), default=16384, help="texts handed to the encoder at once (default: 16384)")
    add("--max_file_rows", type=at_least(1), default=32768, help="rows in a part file at most (default: 32768)")
    add("--max_text_bytes", type=at_least(1), default=1 << 20, help="longer texts are rejected (default: 1048576)")
    add("--read_timeout", type=at_least(1), default=600, help="seconds that a read may give nothing (default: 600)")
    add("--max_rejected", type=_rejected_limit, metavar="N|P%", help="fail and publish nothing above this")
    add("--max_shrink", type=_share, default=0.5, help="fail where rows fall below this share of the last run's")
    add("--allow_damaged", type=at_least(0), default=0, metavar="N", help="publish although N shards break off (default: 0)")
    add("--allow_empty", action="store_true", help="publish although no row could be embedded")
    add("--unique_ids", action="store_true", help="fail where an id stands more than once")
    add("--no_dedupe", action="store_true", help="no shuffle: equal texts are embedded each time, nothing is reused")

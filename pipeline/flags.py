"""The flags of `audioclip embed`, without an import of Beam: `--help` must be quick."""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..model.head import DTYPES, Flag
from ..model.heads import HEADS, find_head
from ..model.paths import given_path
from .terminal import did_you_mean

CHECKPOINT_WORDS = ("full", "partial", "untrained")

MAX_FILE_ROWS = 32768

READ_TIMEOUT = 600  # seconds, longer than requests to an object store are repeated

# Of shards, in the order of the readers in readers/registry.py.
FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet", "media", "tar")


def at_least(lowest: int) -> Callable[[str], int]:
    """Return a type for argparse that accepts whole numbers from `lowest` on."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least {lowest}")
        return number

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """Return a type for argparse that accepts one of `words` and suggests the nearest one for any other."""

    def parse(value: str) -> str:
        if value not in words:
            near = did_you_mean(value, words)
            raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(words)}{near}")
        return value

    return parse


def not_empty(value: str) -> str:
    """Return `value`; a type for argparse, so that a variable that a script did not set is not taken for a default."""
    if not value:
        raise argparse.ArgumentTypeError("the value is empty: check the variable that it comes from")
    return value


def _utf8(value: str, remedy: str = "check the terminal's encoding") -> str:
    """Return `value`; a type for argparse, for values that the job graph contains, which must be UTF-8."""
    try:
        not_empty(value).encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not UTF-8 (character {error.start}): {remedy}") from None
    return value


def path_type(value: str, check: Callable[[str], str] = not_empty) -> str:
    """Return a path as given_path does, of a value that passes `check`; a type for argparse."""
    try:
        return given_path(check(value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _glob(value: str) -> str:
    return path_type(value, lambda glob: _utf8(glob, "write * or ? for what is not"))


def _utf8_path(value: str) -> str:
    return path_type(value, _utf8)


def _choice(*words: str) -> dict[str, Any]:
    return {"type": one_of(*words), "choices": words}


def underscore_flags(argv: Sequence[str], known: Collection[str]) -> list[str]:
    """Return `argv` with underscores for the hyphens in the names of `known` flags: --batch-size is --batch_size."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [_underscored(word, known) if n < end else word for n, word in enumerate(argv)]


def _underscored(word: str, known: Collection[str]) -> str:
    flag, equals, value = word.partition("=")
    name = "--" + flag[2:].replace("-", "_")
    return name + equals + value if flag.startswith("--") and name in known else word


def share(value: str) -> float:
    """Return a number from 0 to 1; a type for argparse."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from 0 to 1")
    return number


def port(value: str) -> int:
    """Return the number of a TCP port, or 0; a type for argparse."""
    if not re.fullmatch(r"[0-9]{1,5}", value) or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is not a port, a number from 0 to 65535")
    return int(value)


def _rows_or_percent(value: str) -> str:
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value) or (value.endswith("%") and float(value[:-1]) > 100):
        raise argparse.ArgumentTypeError(f"{value!r} is neither a number of rows (100) nor a percentage (0.5%)")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        near = "; did you mean cuda?" if "gpu" in value.lower() else did_you_mean(value, ("auto", "cpu", "cuda"))
        raise argparse.ArgumentTypeError(f"{value!r} is not auto, cpu, cuda or cuda:N{near}")
    return value


def _accelerator(value: str) -> str:
    """Return Dataflow's full form: "nvidia-l4" stands for one L4 with the driver that Dataflow installs.

    For older GPUs, whose names contain "tesla", that may be one that is too old for the image's torch: they get a 5xx.
    """
    driver = "install-nvidia-driver:5xx" if "tesla" in value else "install-nvidia-driver"
    full = value if ":" in value else f"type:{value};count:1;{driver}"
    if not re.fullmatch(
        r"type:[a-z0-9-]+;count:[1-9][0-9]*(;machine_type:[a-z0-9-]+)?(;install-nvidia-driver(:[a-z0-9]+)?)?", full
    ):
        raise argparse.ArgumentTypeError(
            f"{value!r} is neither the name of a GPU, as nvidia-l4, nor "
            "type:NAME;count:N[;machine_type:M];install-nvidia-driver[:VERSION]"
        )
    return full


def _delimiter(value: str) -> str:
    character = "\t" if value == "\\t" else value
    if len(character) != 1 or character in '"\r\n\0':
        raise argparse.ArgumentTypeError(f"{value!r} is not one character, as in ';' or '|'")
    return character


def _escape(value: str) -> str:
    if value == '"':
        raise argparse.ArgumentTypeError("a quote in quotes is doubled without this flag: leave it out")
    if len(value) != 1 or value in "\r\n\0":
        raise argparse.ArgumentTypeError(rf"{value!r} is not one character, as in '\'")
    return value


def _checkpoint(value: str) -> str:
    near = did_you_mean(_utf8(value), CHECKPOINT_WORDS)
    if near and re.fullmatch(r"\w+", value) and value not in CHECKPOINT_WORDS and not os.path.exists(value):
        raise argparse.ArgumentTypeError(f"{value!r} is neither a file nor one of {', '.join(CHECKPOINT_WORDS)}{near}")
    return _utf8_path(value)


_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]

# The types that --keep_fields may give, with Arrow's names of them.
KEPT_TYPES = {
    **{name: name for name in ("string", "bool", *_INTEGERS, "float", "double")},
    "date": "date32",
    "time_ms": "time32[ms]",
    **{f"time_{unit}": f"time64[{unit}]" for unit in ("us", "ns")},
    **{f"timestamp_{unit}": f"timestamp[{unit}]" for unit in ("s", "ms", "us", "ns")},
}


class KeptField(NamedTuple):
    """A field to keep: the name of its column, its path in a record, and its type in KEPT_TYPES if one was given."""

    name: str
    path: str
    type: str | None = None

    @classmethod
    def parse(cls, value: str) -> KeptField:
        """Return what NAME=FIELD:TYPE says; only a known type after the last colon is one, as names may have colons."""
        name, equals, path = value.partition("=")
        path = path if equals else name
        before, colon, kind = path.rpartition(":")
        if colon and kind in KEPT_TYPES:
            return cls(name if equals else before, before, kind)
        return cls(name if equals else path, path)


def _kept_fields(value: str) -> list[str]:
    """Return the fields to keep, as given."""
    given = [field.strip() for field in value.split(",")]
    kept = list(map(KeptField.parse, given))
    if not all(field.name and field.path for field in kept) or len({field.name for field in kept}) != len(kept):
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a list of fields with different names, as in a,b or NAME=FIELD:TYPE"
        )
    return given


# Flags that name files of a model, with their help.
MODEL_FLAGS = {
    "checkpoint": "a released .pt, a .safetensors that extract wrote, full, partial or untrained",
    **{flag.name: flag.help.partition(" (")[0] for name in HEADS for flag in find_head(name).flags if flag.is_file},
}

# Options that do not decide what a snapshot contains: what is read is compared by the files, not by the paths given.
WITHOUT_EFFECT = frozenset(
    {
        "input",
        "output",
        "download_model",
        "device",
        "accelerator",
        "model_threads",
        "batch_size",
        "fetch_threads",
        "read_timeout",
        "compare",
        "force",
        "retry_rejected",
        *MODEL_FLAGS,
    }
)

# Options that decide whether a snapshot is published and how its rows are spread over files, but not which rows it has.
WITHOUT_EFFECT_ON_ROWS = WITHOUT_EFFECT | {
    "max_file_rows",
    "max_rejected",
    "max_shrink",
    "unique_ids",
    "allow_damaged",
    "allow_empty",
}


def add_flags(parser: argparse.ArgumentParser, *, for_plan: bool = False) -> None:
    """Add the flags of `embed` and `plan` to `parser`; the help of `plan` leaves out --no_dedupe, which it refuses."""
    add = parser.add_argument
    add("--input", action="extend", nargs="+", type=_glob, metavar="GLOB", help="shards to read; can be repeated")
    add("--output", type=_utf8_path, metavar="DIR", help="directory of the snapshots")
    add(
        "--checkpoint",
        "--model_path",
        type=_checkpoint,
        default="full",
        help=f"{MODEL_FLAGS['checkpoint']} (default: full)",
    )
    add("--head", **_choice(*HEADS), help="what is embedded (default: by the suffixes of --input, else text)")
    add("--download_model", action="store_true", help="first fetch the files of the model that are missing")
    add(
        "--id_field",
        action="append",
        metavar="PATH",
        help="field of the id (default: <shard>#<row number>); if several contents are read of a record, one for each",
    )
    add(
        "--keep_fields",
        type=_kept_fields,
        default=[],
        metavar="A,B",
        help="more fields to copy to the output, each as FIELD, FIELD:TYPE, NAME=FIELD or NAME=FIELD:TYPE",
    )
    add(
        "--input_format",
        **_choice(*FORMATS),
        help="format of all shards (default: by suffix)",
    )
    add("--delimiter", type=_delimiter, metavar="CHAR", help="separator of fields in csv (default: a comma)")
    add(
        "--quoting",
        **_choice("minimal", "none"),
        help="minimal: values may be quoted; none: quotes are characters (default: minimal for csv, none for tsv)",
    )
    add(
        "--escape",
        type=_escape,
        metavar="CHAR",
        help=r"escape in csv and tsv, as '\' for Spark and MySQL (default: none)",
    )
    add("--normalize", action="store_true", help="scale each vector to length 1")
    add(
        "--vector_dtype",
        **_choice("float32", "float16"),
        default="float32",
        help="type of the stored vectors (default: float32)",
    )
    add(
        "--vector_encoding",
        **_choice("plain", "byte_stream_split"),
        default="plain",
        help="Parquet encoding of the vectors: plain for every reader, byte_stream_split for smaller files (default: plain)",
    )
    add(
        "--dtype",
        **_choice(*DTYPES),
        default="float32",
        help="type in which the model computes (default: float32)",
    )
    add(
        "--device",
        type=_device,
        default="auto",
        help="auto, cpu, cuda (all GPUs) or cuda:N (default: auto, GPUs if there are any)",
    )
    add(
        "--accelerator",
        type=_accelerator,
        metavar="GPU",
        help="GPU for the model's steps on Dataflow: nvidia-l4, or type:nvidia-l4;count:1;install-nvidia-driver:5xx",
    )
    add(
        "--model_threads",
        type=at_least(1),
        metavar="N",
        help="threads of the model on a CPU (default: the cores, shared by all processes with a model)",
    )
    for name, default, meaning in (
        ("--max_file_rows", MAX_FILE_ROWS, "most rows per part file"),
        ("--read_timeout", READ_TIMEOUT, "seconds to wait for data of a read"),
    ):
        add(name, type=at_least(1), default=default, help=f"{meaning} (default: {default})")
    sizes = ", ".join(f"{find_head(name).batch_items} {find_head(name).items}" for name in HEADS)
    add("--batch_size", type=at_least(1), metavar="N", help=f"most contents per call of the encoder (default: {sizes})")
    add(
        "--max_rejected",
        type=_rows_or_percent,
        metavar="N|P%",
        help="fail if more rows are rejected (default: no limit)",
    )
    add(
        "--max_shrink",
        type=share,
        default=0.5,
        help="fail if the rows with vectors are fewer than this share of the previous snapshot's (default: 0.5)",
    )
    add(
        "--allow_damaged",
        type=at_least(0),
        default=0,
        metavar="N",
        help="publish although up to N shards cannot be read to their end (default: 0)",
    )
    add("--allow_empty", action="store_true", help="publish although no row could be embedded")
    add(
        "--force",
        action="store_true",
        help="read every shard, even if none changed; if the canary differs, embed everything again",
    )
    add(
        "--compare",
        **_choice("version", "size_mtime"),
        default="version",
        help="what tells that a local file changed: version (inode, size, times), or size_mtime for mounts whose inodes or "
        "ctimes change by themselves; without effect on object stores (default: version)",
    )
    add(
        "--retry_rejected",
        action="store_true",
        help="also read shards with rows that were rejected for reasons that may pass: missing file, model error",
    )
    add("--unique_ids", action="store_true", help="fail if an id occurs twice")
    if for_plan:
        words = "read pictures and sounds whole, to know which of them have a vector (default: only their headers)"
        add("--read", action="store_true", help=words)
    no_dedupe = "embed every row: contents are not compared, and no vector is reused"
    add("--no_dedupe", action="store_true", help=argparse.SUPPRESS if for_plan else no_dedupe)
    groups = dict[str, argparse._ArgumentGroup]()
    for flag, heads in head_flags().values():
        title = f"flags of --head {' and '.join(heads)}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], flag)


def head_of(patterns: Sequence[str]) -> str:
    """Return the head that embeds the files of some globs, by the globs' suffixes: that of media files, else text.

    Raises ValueError if they name files of several heads.
    """
    found = dict[str, str]()
    for pattern in patterns:
        suffix = os.path.splitext(pattern)[1].lower()
        found.update({name: pattern for name in HEADS if suffix in find_head(name).types})
    if len(found) > 1:
        globs = ", ".join(f"{pattern} ({find_head(name).items})" for name, pattern in found.items())
        choices = " or ".join(f"--head {name}" for name in found)
        raise ValueError(f"--input names files of several heads: {globs}: give {choices}, or run once for each")
    return next(iter(found), "text")


def head_flags() -> dict[str, tuple[Flag, list[str]]]:
    """Return by name the flags that not every head has, each with the heads that have it."""
    found = dict[str, tuple[Flag, list[str]]]()
    for head in HEADS:
        for flag in find_head(head).flags:
            found.setdefault(flag.name, (flag, []))[1].append(head)
    return found


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    """Add a flag of a head."""

    def parse(value: str) -> str:
        if flag.fault and (fault := flag.fault(_utf8(value))):
            raise argparse.ArgumentTypeError(f"{value!r} {fault}")
        return _utf8_path(value) if flag.is_file else _utf8(value)

    settings: dict[str, Any] = {"type": parse, "metavar": flag.metavar}
    if flag.kind == "switch":
        settings = {"action": "store_true"}
    elif flag.kind == "list":
        settings = {"action": "append", "metavar": flag.metavar}
    elif flag.kind == "count":
        settings = {"type": at_least(1)}
    elif flag.choices:
        settings = _choice(*flag.choices)
    group.add_argument(f"--{flag.name}", default=flag.default, help=flag.help, **settings)


@functools.cache
def defaults() -> Mapping[str, Any]:
    """Return the default of every flag of `embed`, by name."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return MappingProxyType({action.dest: action.default for action in parser._actions})


@functools.cache
def parsers() -> Mapping[str, Callable[[str], Any]]:
    """Return by name what parses the value of each flag of `embed` that has one word, and refuses wrong ones."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return MappingProxyType({action.dest: action.type for action in parser._actions if callable(action.type)})


@functools.cache
def types() -> Mapping[str, type]:
    """Return the type of the value of every flag of `embed`, by name: bool, int, float, str, or list of str."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return MappingProxyType({action.dest: _type_of(action) for action in parser._actions})


def _type_of(action: argparse.Action) -> type:
    if action.nargs == 0:
        return bool
    if isinstance(action, argparse._AppendAction):  # and its subclass for "extend"
        return list
    try:
        return type(action.type("1")) if callable(action.type) else str
    except (ValueError, argparse.ArgumentTypeError):
        return str


def store_once(parser: argparse.ArgumentParser) -> None:
    """Have `parser` refuse a second value for a flag that takes one; for flags that are added from now on."""
    for name in (None, "store"):
        parser.register("action", name, StoreOnce)


class StoreOnce(argparse.Action):
    """The action "store", for one value only."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        """Store `values`, or raise ArgumentError if the flag was given before."""
        if flag is not None:
            given: set[str] = vars(namespace).setdefault("_given", set())
            if self.dest in given:
                raise argparse.ArgumentError(self, f"is given twice: {getattr(namespace, self.dest)!r}, {values!r}")
            given.add(self.dest)
        setattr(namespace, self.dest, values)

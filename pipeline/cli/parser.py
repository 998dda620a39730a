"""The strict parser of `audioclip-text`: a token of the command line that no command uses is a usage error."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ..flags import add_flags, at_least, one_of, store_once, underscore_flags
from ..terminal import did_you_mean
from . import commands

PROGRAM = "audioclip-text"


class UsageError(ValueError):
    """A command line that cannot be parsed; `command` is the one whose help explains it, or empty."""

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command


@dataclass(frozen=True)
class Command:
    """One command: the function that runs it, its arguments, and which of Beam's flags it takes.

    `changes` says that it writes files: its exit status says whether that succeeded, even if stdout cannot be written.
    """

    run: Callable[[argparse.Namespace], int]
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    beam: str = "none"  # "all", "object stores" or "none"
    changes: bool = False


class StrictParser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, and that refuses a second value for a flag with one value."""

    def __init__(self, prog: str, command: str = "", **kwargs: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **kwargs)
        self.command = command
        store_once(self)

    def error(self, message: str) -> Any:
        """Raise UsageError with a message of argparse's, shortened."""
        for pattern, replacement in _REWORDED:
            message = re.sub(pattern, replacement, message)
        raise UsageError(message, self.command)

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Every flag with its action."""
        return dict(self._option_string_actions)


# argparse's words, and ours.
_REWORDED = (
    (r"^argument (\S+): (is given twice)", r"\1 \2"),
    (r"^argument (\S+): expected (one|at least one) argument", r"\1 needs \2 value"),
    (
        r"^argument (\S+): ignored explicit argument (.*)",
        r"\1 takes no value, but \2 is given: leave it out to turn it off",
    ),
    (r"^argument (\S+): ", r"\1: "),
    (r"^the following arguments are required: ", "missing: "),
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line without the program's name.

    Besides the command's arguments the namespace has `command`, `run` and `changes` (as in Command), `argv`, the flags
    with underscores, and `beam`, the values of Beam's flags that differ from their defaults. --help and --version are
    printed and raise SystemExit.

    Raises:
        UsageError: A token is unknown, left over or missing.
    """
    if not argv or argv[0] in ("-h", "--help", "--version"):
        build_parser().parse_args(argv[:1])
    name = argv[0]
    if name.startswith("-"):
        raise UsageError(f"{name} is given before the command: flags follow it, as in {PROGRAM} embed {name}")
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}")
    parser = command_parser(name)
    tokens = underscore_flags(argv[1:], parser.flags)
    flags = _flags_in(tokens, parser)
    if {"-h", "--help"} & set(flags):
        parser.parse_args(["--help"])
    beam: argparse.ArgumentParser | None = None
    if name in ("embed", "plan"):
        _refuse_dry_run(tokens, flags, name)
    if any(flag not in parser.flags for flag in flags):
        if COMMANDS[name].beam != "none":
            from ..options import beam_parser

            beam = beam_parser(object_stores_only=COMMANDS[name].beam == "object stores")
            parser = command_parser(name, beam)
            if COMMANDS[name].beam == "all" and any(flag not in parser.flags for flag in flags):
                _add_server_options(beam, [token for token in tokens if token not in flags or token in parser.flags])
                parser = command_parser(name, beam)
        for flag in flags:
            _check_flag(flag, name, parser)
    namespace, rest = parser.parse_known_args(tokens)
    if rest:
        _refuse_rest(rest[0], tokens, parser)
    namespace.command, namespace.run, namespace.changes = name, COMMANDS[name].run, COMMANDS[name].changes
    namespace.argv, namespace.beam = tokens, _given_values(beam, namespace)
    return namespace


def _add_server_options(beam: argparse.ArgumentParser, tokens: Sequence[str]) -> None:
    """Add the flags that the job server describes to `beam`, if `tokens` name its endpoint."""
    from apache_beam.options.pipeline_options import PipelineOptions

    from .check_runner import job_server_options

    for option in job_server_options(PipelineOptions(list(tokens))):
        settings: dict[str, Any] = {"action": "store"}
        if option.kind == "switch":
            settings["action"] = "store_false" if option.default == "true" else "store_true"
        elif option.kind == "list":
            settings["action"] = "append"
        elif option.kind == "number":
            settings["type"] = int
        if f"--{option.name}" not in beam._option_string_actions:
            beam.add_argument(f"--{option.name}", help=argparse.SUPPRESS, **settings)


def command_parser(name: str, beam: argparse.ArgumentParser | None = None) -> StrictParser:
    """Return the parser of one command, which also knows the flags of `beam`."""
    command = COMMANDS[name]
    parser = StrictParser(f"{PROGRAM} {name}", description=command.help, command=name, parents=[beam] if beam else [])
    _fill(parser, command)
    return parser


def build_parser() -> StrictParser:
    """Return the parser of all commands, whose help lists them."""
    parser = StrictParser(PROGRAM, description="Embed text corpora with AudioCLIP's text head.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version(PROGRAM)}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        _fill(subparsers.add_parser(name, help=command.help, description=command.help, command=name), command)
    return parser


def _fill(parser: StrictParser, command: Command) -> None:
    command.add_arguments(parser)
    parser.epilog = {
        "all": "All flags of Apache Beam can be added: --runner, --direct_num_workers, --temp_location, ...",
        "object stores": "Beam's flags for object stores can be added, as in --s3_endpoint_url=URL.",
        "none": None,
    }[command.beam]


def _flags_in(tokens: Sequence[str], parser: StrictParser) -> list[str]:
    """Return the names of the flags in `tokens`, by argparse's rules: none after "--", and no unknown one with a space."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    flags = [token.partition("=")[0] for token in tokens[:end] if token.startswith("--") or token == "-h"]
    return [flag for flag in flags if " " not in flag]


def _refuse_dry_run(tokens: Sequence[str], flags: Sequence[str], command: str) -> None:
    """Raise UsageError for --dry-run, which is `plan`; --dry_run=True is a flag of Beam's for Dataflow."""
    if "--dry-run" in flags or "--dry_run" in tokens:
        raise UsageError(
            f"{command} has no flag --dry-run: `{PROGRAM} plan` with the same flags is the dry run", command
        )


def _check_flag(flag: str, command: str, parser: StrictParser) -> None:
    """Raise UsageError for an unknown flag, with the nearest known one or the commands that take it."""
    if flag in parser.flags:
        return
    underscored = flag[:2] + flag[2:].replace("-", "_")
    if underscored in parser.flags:
        raise UsageError(f"unknown flag {flag}: Beam's flag is {underscored}, with underscores", command)
    others = [other for other in COMMANDS if {flag, underscored} & set(command_parser(other).flags)]
    if others:
        raise UsageError(f"{command} has no flag {flag}: it is a flag of {' and '.join(others)}", command)
    if COMMANDS[command].beam == "object stores":
        from ..options import beam_parser

        if underscored in vars(beam_parser())["_option_string_actions"]:
            raise UsageError(f"{command} has no flag {flag}: Beam's flags are for embed and plan", command)
    raise UsageError(f"unknown flag {flag}{did_you_mean(underscored, parser.flags)}", command)


def _refuse_rest(value: str, tokens: Sequence[str], parser: StrictParser) -> None:
    """Raise UsageError for the first token that no argument takes."""
    if value.startswith("-") and value in tokens and len(value) > 1:
        raise UsageError(f"unknown flag {value}: flags begin with two hyphens", parser.command)
    before = tokens[tokens.index(value) - 1] if value in tokens[1:] else ""
    if before in parser.flags and parser.flags[before].nargs == 0:
        raise UsageError(
            f"{before} takes no value, but {value!r} is given: leave it out to turn it off", parser.command
        )
    raise UsageError(f"unexpected argument {value!r}: no flag and no position takes it", parser.command)


def _given_values(beam: argparse.ArgumentParser | None, namespace: argparse.Namespace) -> dict[str, object]:
    """Return the values of Beam's flags that differ from their defaults."""
    actions = beam._actions if beam else []
    given = {action.dest: getattr(namespace, action.dest) for action in actions}
    return {action.dest: given[action.dest] for action in actions if given[action.dest] != action.default}


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="directory of the snapshots")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that loads the model of a snapshot."""
    parser.add_argument("--checkpoint", metavar="PATH", help="path of the snapshot's checkpoint (default: as recorded)")
    parser.add_argument("--tokenizer_path", metavar="PATH", help="path of its vocabulary (default: as recorded)")


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    words = ("full", "partial", "vocabulary")
    parser.add_argument("what", type=one_of(*words), choices=words, help="the checkpoint, or the vocabulary alone")
    parser.add_argument("--dir", default=".cache", help="directory for the files (default: .cache)")


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a released .pt file")
    parser.add_argument("target", help="the .safetensors file to write")


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="a text, or a .npy file: floats [dim] or [n, dim]")
    parser.add_argument("--top", type=at_least(1), default=10, metavar="N", help="number of rows (default: 10)")
    words = ("cosine", "audio_logits", "image_logits")
    parser.add_argument(
        "--by",
        type=one_of(*words),
        choices=words,
        default="cosine",
        help="cosine, or AudioCLIP's scaled logits for vectors of its audio or image encoder (default: cosine)",
    )
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _validate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--snapshot", metavar="NAME", help="snapshot to check (default: the current one)")
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--remake", action="store_true", help="make the report again")
    parser.add_argument("--open", action="store_true", help="open the report in a browser on this machine")


def _changes_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "--from", dest="before", metavar="SNAPSHOT", help="older snapshot (default: the one before the newer)"
    )
    parser.add_argument("--to", dest="now", metavar="SNAPSHOT", help="newer snapshot (default: the current one)")
    parser.add_argument(
        "--output",
        dest="target",
        metavar="DIR",
        help="new directory for the rows, as Parquet files (default: none, the numbers are printed)",
    )


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("snapshot", nargs="?", help="snapshot to make current (default: the one before the current)")


def _gc_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--keep", type=int, required=True, metavar="N", help="number of snapshots to keep")
    parser.add_argument("--dry_run", action="store_true", help="print what would be removed, and remove nothing")


COMMANDS: dict[str, Command] = {
    "embed": Command(
        commands.run_embed,
        "embed text shards into a new snapshot; known texts cost no model time",
        add_flags,
        "all",
        True,
    ),
    "plan": Command(commands.run_plan, "dry run of embed: count what it would do, without the model", add_flags, "all"),
    "fetch": Command(
        commands.run_fetch,
        "download and verify a released checkpoint and the vocabulary",
        _fetch_arguments,
        changes=True,
    ),
    "extract": Command(
        commands.run_extract,
        "write the text head of a checkpoint as .safetensors: 254 MB instead of 537",
        _extract_arguments,
        changes=True,
    ),
    "log": Command(commands.run_log, "list the snapshots with their counts", _add_output, "object stores"),
    "current": Command(commands.run_current, "print the path of the current snapshot", _add_output, "object stores"),
    "search": Command(
        commands.run_search,
        "find the rows of the current snapshot nearest to texts or vectors",
        _search_arguments,
        "object stores",
    ),
    "validate": Command(
        commands.run_validate,
        "check a snapshot against its manifest; exit status 0 if it is valid, else 1",
        _validate_arguments,
        "object stores",
    ),
    "report": Command(
        commands.run_report,
        "print the path of the current snapshot's report.html; make it if it is missing",
        _report_arguments,
        "object stores",
    ),
    "changes": Command(
        commands.run_changes,
        "compare two snapshots: the ids that were added, changed and removed, with their rows",
        _changes_arguments,
        "object stores",
    ),
    "rollback": Command(
        commands.run_rollback, "make an earlier snapshot the current one", _rollback_arguments, "object stores", True
    ),
    "gc": Command(
        commands.run_gc, "remove old snapshots and the files of runs that died", _gc_arguments, "object stores", True
    ),
}

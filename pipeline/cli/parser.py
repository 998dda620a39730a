"""The strict parser of `audioclip`: a token of the command line that no command uses is a usage error."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ..flags import head_of, store_once, underscore_flags
from ..terminal import did_you_mean
from .command_table import COMMANDS, Command

PROGRAM = "audioclip"


class UsageError(ValueError):
    """A command line that cannot be parsed; `command` is the one whose help explains it, or empty."""

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command


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

    Besides the command's arguments the namespace has `command`, `run` and `writes` (as in Command), `argv`, the flags
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
                parser.parse_known_args(tokens)  # a wrong value of a known flag is an error before the server is asked
                _add_server_options(
                    beam, [token for token in tokens if token not in flags or token in parser.flags], parser
                )
                parser = command_parser(name, beam)
        for flag in flags:
            _check_flag(flag, name, parser)
    namespace, rest = parser.parse_known_args(tokens)
    if rest:
        _refuse_rest(rest[0], tokens, parser)
    namespace.command, namespace.run, namespace.writes = name, COMMANDS[name].run, COMMANDS[name].writes
    namespace.argv, namespace.beam = tokens, _given_values(beam, namespace)
    if name in ("embed", "plan") and namespace.head is None:
        try:
            namespace.head = head_of(namespace.input or [])
        except ValueError as error:
            raise UsageError(str(error), name) from None
    return namespace


def _add_server_options(beam: argparse.ArgumentParser, tokens: Sequence[str], parser: StrictParser) -> None:
    """Add the flags that a job server describes.

    Args:
        beam: The parser that gets them.
        tokens: The command line; without the endpoint of a job server nothing is added.
        parser: The parser of the command, whose own flags are left out.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    from ..run.check_runner import job_server_options

    for option in job_server_options(PipelineOptions(list(tokens))):
        settings: dict[str, Any] = {"action": "store"}
        if option.kind == "switch":
            settings["action"] = "store_false" if option.default == "true" else "store_true"
        elif option.kind == "list":
            settings["action"] = "append"
        elif option.kind == "number":
            settings["type"] = int
        if f"--{option.name}" not in parser.flags:
            beam.add_argument(f"--{option.name}", help=argparse.SUPPRESS, **settings)


def command_parser(name: str, beam: argparse.ArgumentParser | None = None) -> StrictParser:
    """Return the parser of one command, which also knows the flags of `beam`."""
    command = COMMANDS[name]
    parser = StrictParser(f"{PROGRAM} {name}", description=command.help, command=name, parents=[beam] if beam else [])
    _fill(parser, command)
    return parser


def build_parser() -> StrictParser:
    """Return the parser of all commands, whose help lists them."""
    parser = StrictParser(PROGRAM, description="Embed corpora with AudioCLIP.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version('audioclip-beam')}")
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
        raise UsageError(f"{command} has no flag {flag}: it is a flag of {', '.join(others)}", command)
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

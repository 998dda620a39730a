"""Print docs/commands.md: the help of every command. python scripts/help.py > docs/commands.md"""

from __future__ import annotations

import os

os.environ["COLUMNS"] = "110"  # before argparse looks for a terminal

from audioclip_beam.pipeline.cli.parser import build_parser


def page() -> str:
    """Return the page, in Markdown."""
    parser = build_parser()
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    assert isinstance(commands.choices, dict)
    parts = [
        "# Commands",
        "The help of every command, as `audioclip COMMAND --help` prints it; `python scripts/help.py` makes this page.",
        "Exit status: 0 done, 1 failed, 2 usage error, 141 the reader of standard output ended, as in `| head`, "
        "128 + n ended by signal n (130 SIGINT, 143 SIGTERM, 129 SIGHUP).",
        f"```text\n{parser.format_help()}```",
    ]
    for name, command in commands.choices.items():
        parts += [f"## {name}", f"```text\n{command.format_help()}```"]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page())

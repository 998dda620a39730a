"""docs/decisions.md lists what this project uses of Beam's internals: what to check when Beam is upgraded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module

from tests.support.pages import read_page, sections
from tests.support.paths import ROOT

# Modules that are for Beam's own use, or that its documentation for users does not describe.
INTERNAL = re.compile(
    r"apache_beam\.(internal|portability|runners|utils|typehints|io\.(aws|filesystemio|gcp)|options\.value_provider"
    r"|transforms\.(core|userstate))\b"
)
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
OTHERS = {"_actions", "_add_action", "_asdict", "_exit", "_option_string_actions"}  # of argparse, named tuples and os


def private_names(nodes: list[ast.AST], imported: dict[str, str]) -> Iterator[str]:
    """Yield Beam's private methods that classes override, and private attributes that no class or function here defines."""
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)} | OTHERS
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            attributes = [inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute)]
            defined |= {inner.attr for inner in attributes if isinstance(inner.ctx, ast.Store)}
            bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in imported]
            for base in [getattr(import_module(imported[name]), name) for name in bases]:
                methods = [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)]
                yield from (name for name in methods if PRIVATE.fullmatch(name) and hasattr(base, name))
    for node in nodes:
        name = node.attr if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            name = str(ast.literal_eval(node.args[1])) if isinstance(node.args[1], ast.Constant) else ""
        if PRIVATE.fullmatch(name) and name not in defined:
            yield name


def names_in_use() -> set[tuple[str, str]]:
    """Return (name, file) of everything internal that the pipeline uses, and that tests import."""
    found = set()
    for path in [path for folder in ("pipeline", "tests") for path in (ROOT / folder).rglob("*.py")]:
        file, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text))) if "beam" in text else []
        imports = [
            node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("apache_beam")
        ]
        imported = {name.name: str(node.module) for node in imports for name in node.names}
        found |= {
            (name, file) for name in imported if INTERNAL.match(f"{imported[name]}.{name}") or PRIVATE.match(name)
        }
        if file.startswith("pipeline/"):
            found |= {(name, file) for name in private_names(nodes, imported)}
    return found


def test_the_page_lists_every_internal_name_of_beam() -> None:
    """Each row of its tables says what is used and where, and each of these files contains the name."""
    section = sections(read_page("docs/decisions.md"))["Private names of Beam"]
    listed = {
        (name, file)
        for names, files in re.findall(r"^\| (`.+?) \|.*? \| (.+?) \|", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
        for file in re.findall(r"`([\w/.]+)`", files)
    }
    missing = names_in_use() - listed
    assert not missing
    wrong = [(name, file) for name, file in listed if name not in (ROOT / file).read_text(encoding="utf-8")]
    assert not wrong

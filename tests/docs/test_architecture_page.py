"""docs/architecture.md: its package map names the modules that exist."""

from __future__ import annotations

from tests.support.pages import ROOT, blocks, read_page, sections


def modules_on_the_map() -> set[str]:
    """Return the modules that the package map names, as paths: indentation says which package one belongs to."""
    (tree,) = blocks(sections(read_page("docs/architecture.md"))["Package map"], "text")
    folders: list[str] = []
    modules = set()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        if name.endswith(".py"):
            modules.add("".join(folders))
    return modules


def test_the_package_map_names_every_module() -> None:
    """Compare the map with the modules of model/ and pipeline/, apart from those whose name starts with an underscore."""
    paths = (path for folder in ("model", "pipeline") for path in (ROOT / folder).rglob("[!_]*.py"))
    modules = {str(path.relative_to(ROOT)) for path in paths}
    named = modules_on_the_map()
    assert named == modules, (
        f"docs/architecture.md, package map: add {sorted(modules - named)}, remove {sorted(named - modules)}"
    )

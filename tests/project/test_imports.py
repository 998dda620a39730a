"""Imports run one way, from package to package; inside the project they are relative; what goes to workers pickles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import apache_beam as beam
from apache_beam.internal import cloudpickle_pickler

from audioclip_beam.pipeline import EmbedAudio, EmbedCorpus, EmbedImage, EmbedOptions, TextEmbeddingHandler

ROOT = Path(__file__).parents[2]

# Packages and top-level modules of pipeline/, bottom up: each may import what is in a layer below its own. Within a layer
# only the listed modules of the leaf layer may import each other.
LAYERS: list[set[str]] = [
    {
        "errors",
        "flags",
        "schemas",
        "content",
        "canary",
        "embedded_batch",
        "metrics",
        "terminal",
        "layout",
    },
    {"io"},
    {"remote"},
    {"options"},
    {"readers"},
    {"snapshots"},
    {"inference"},
    {"writers"},
    {"search"},
    {"dedup", "report", "validation", "browse"},
    {"changes"},
    {"prepare"},
    {"publish", "read_and_join"},
    {"embed"},
    {"run"},
    {"cli"},
    {"ml_transform", "__main__"},
    {"yaml_embed"},
]
# The modules of pipeline/ that import torch, themselves or by way of model/: when they are imported, or in functions alone.
WITH_TORCH: set[str] = set()
TORCH_IN_FUNCTIONS = {
    "cli/commands",
    "cli/embed_command",
    "inference/find_model",
    "inference/gpus",
    "inference/model_threads",
    "inference/shared_encoder",
}


def files(package: str) -> list[Path]:
    """Return the modules of a package and of the packages in it."""
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """Return a module's name in pipeline/ or model/, as in "readers/csv"."""
    return str(path.relative_to(ROOT).with_suffix("")).partition("/")[2]


def package_of(path: Path) -> str:
    """Return the package of pipeline/ that a module belongs to, or the module's name if it belongs to none."""
    return name_of(path).partition("/")[0]


def imports(path: Path) -> list[tuple[int, str, str | None]]:
    """Return (level, module, enclosing function or TYPE_CHECKING) of every import in a file."""
    found = []

    def walk(node: ast.AST, function: str | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom):
                names = [child.module] if child.module else [alias.name for alias in child.names]
                found.extend((child.level, name, function) for name in names)
            elif isinstance(child, ast.Import):
                found.extend((0, alias.name, function) for alias in child.names)
            inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                inside = "TYPE_CHECKING"
            walk(child, inside)

    walk(ast.parse(path.read_text(encoding="utf-8")), None)
    return found


def target_of(path: Path, level: int, module: str) -> tuple[str, str] | None:
    """Return (top directory, module below it) of a relative import; None for other imports."""
    if not level:
        return None
    parts = [*path.relative_to(ROOT).parts[:-level], *module.split(".")]
    return parts[0], "/".join(parts[1:])


def pipeline_imports(path: Path) -> set[str]:
    """Return what a module of pipeline/ imports from pipeline/, for types too, as "readers/csv" or "job"."""
    targets = [target_of(path, level, module) for level, module, _ in imports(path)]
    return {module for target in targets if target for top, module in [target] if top == "pipeline"}


def module_level_imports(path: Path) -> list[tuple[int, str]]:
    """Return (level, module) of the imports that are executed when a module is imported."""
    return [(level, module) for level, module, function in imports(path) if function is None]


def loads_torch(path: Path) -> bool:
    """Return whether the import of a module of model/ imports torch, itself or by way of other modules of model/."""
    found = module_level_imports(path)
    targets = [target_of(path, level, module) for level, module in found]
    others = [ROOT / "model" / f"{target[1]}.py" for target in targets if target and target[0] == "model"]
    return any(module.partition(".")[0] == "torch" for _, module in found) or any(
        loads_torch(other) for other in others if other.exists()
    )


MODULES = [path for path in files("pipeline") if path.stem != "__init__"]


def test_every_package_has_its_layer() -> None:
    """A new package or top-level module is given a place in the order, and there are few modules beside the packages."""
    assert {package_of(path) for path in MODULES} == set.union(*LAYERS)
    beside = [path for path in MODULES if path.parent == ROOT / "pipeline" and path.stem != "__main__"]
    assert len(beside) <= 14


def test_imports_go_down_the_layers() -> None:
    """A module imports from its own package and from layers below; leaf modules may import each other."""
    upward = {}
    for path in MODULES:
        layer = next(number for number, names in enumerate(LAYERS) if package_of(path) in names)
        allowed = set.union({package_of(path)}, *LAYERS[:layer], *(LAYERS[:1] if layer == 0 else []))
        if above := {module for module in pipeline_imports(path) if module.partition("/")[0] not in allowed}:
            upward[name_of(path)] = above
    assert not upward, f"modules import from their own layer or above: {upward}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Each module can be imported after those that it imports."""
    for top in ("model", "pipeline"):
        graph = {}
        for path in files(top):
            if path.stem != "__init__":
                targets = [target_of(path, level, module) for level, module, _ in imports(path)]
                graph[name_of(path)] = {target[1] for target in targets if target and target[0] == top}
        TopologicalSorter(graph).prepare()


def test_few_modules_import_torch() -> None:
    """The import takes seconds, which most commands do not need. For types alone, every module may import anything."""
    at_once, in_functions = set(), set()
    for path in MODULES:
        for level, module, function in imports(path):
            top, name = target_of(path, level, module) or ("", "")
            file = ROOT / "model" / f"{name}.py"
            with_torch = loads_torch(file) if top == "model" and file.exists() else top == "model"
            if with_torch or module.partition(".")[0] == "torch":
                (at_once if function is None else in_functions if function != "TYPE_CHECKING" else set()).add(
                    name_of(path)
                )
    assert at_once == WITH_TORCH
    assert in_functions - at_once == TORCH_IN_FUNCTIONS


def test_the_model_imports_neither_beam_nor_the_pipeline() -> None:
    """model/ can be used and tested alone."""
    wrong = {}
    for path in files("model"):
        for level, module, _ in imports(path):
            target = target_of(path, level, module)
            if module.partition(".")[0] == "apache_beam" or (target and target[0] != "model"):
                wrong[name_of(path)] = module
    assert not wrong, f"modules of model/ import from outside of it: {wrong}"


def test_imports_inside_the_project_are_relative() -> None:
    """No module contains the name under which the project is installed."""
    absolute = [
        (str(path.relative_to(ROOT)), module)
        for path in (*files("model"), *files("pipeline"))
        for level, module, _ in imports(path)
        if level == 0 and module.startswith("audioclip_beam")
    ]
    assert not absolute, f"write the imports of these modules with dots: {absolute}"


def test_exported_names_can_be_imported_and_equal_no_module() -> None:
    """Each package exports its public names lazily, and importing a module never replaces one of them."""
    for path in files("pipeline"):
        if path.stem == "__init__":
            package = ".".join(["audioclip_beam", *path.relative_to(ROOT).parts[:-1]])
            exported = import_module(package).__all__
            assert not set(exported) & {other.stem for other in path.parent.glob("*.py")}, package
            assert [name for name in exported if getattr(import_module(package), name, None) is None] == [], package


def test_documented_import_paths() -> None:
    """They are functions and classes, also after every module was imported."""
    for path in MODULES:
        if path.stem != "__main__":
            import_module(".".join(["audioclip_beam", "pipeline", *name_of(path).split("/")]))
    for module, name in (
        ("audioclip_beam.model", "TextEncoder"),
        ("audioclip_beam.pipeline", "EmbedCorpus"),
        ("audioclip_beam.pipeline.cli", "main"),
        ("audioclip_beam.pipeline.search", "search"),
        ("audioclip_beam.pipeline.yaml_embed", "EmbedText"),
        ("audioclip_beam.pipeline.ml_transform", "content_id_adapter"),
        ("audioclip_beam.pipeline.ml_transform", "image_adapter"),
    ):
        assert callable(getattr(import_module(module), name)), (module, name)


def pickled_and_unpickled(value: object) -> object:
    """Return a value as a worker gets it."""
    data = cloudpickle_pickler.dumps(value)
    assert len(data) < 100_000, f"{type(value).__name__} takes {len(data)} bytes when pickled"
    return cloudpickle_pickler.loads(data)


def test_handler_and_options_can_be_pickled(vocabulary: Path) -> None:
    """Objects that users have in their pipelines survive Beam's pickler, without weights."""
    handler = pickled_and_unpickled(
        TextEmbeddingHandler("untrained", tokenizer_path=str(vocabulary), prompt="a sound of {}")
    )
    assert isinstance(handler, TextEmbeddingHandler)
    assert handler.get_num_bytes(["abc"]) == 3
    for transform in (EmbedImage("untrained", max_pixels=100), EmbedAudio("untrained", sample_rate=8000)):
        assert type(pickled_and_unpickled(transform)) is type(transform)
    options = EmbedOptions(input=["a.txt"], output="out", keep_fields=["lang"], max_rejected="1%")
    copy = pickled_and_unpickled(options)
    assert isinstance(copy, EmbedOptions)
    assert copy.get_all_options(drop_default=True) == options.get_all_options(drop_default=True)


def test_every_step_of_a_job_can_be_pickled(vocabulary: Path, tmp_path: Path) -> None:
    """Every DoFn of EmbedCorpus survives Beam's pickler."""
    shard = tmp_path / "a.txt"
    shard.write_text("dog\ncat\n")
    options = EmbedOptions(
        input=[str(shard)], output=str(tmp_path / "out"), checkpoint="untrained", tokenizer_path=str(vocabulary)
    )
    corpus, dofns = EmbedCorpus(options), []

    class Collect(beam.pipeline.PipelineVisitor):  # type: ignore[misc]
        def visit_transform(self, node: object) -> None:
            transform = getattr(node, "transform", None)
            if isinstance(transform, beam.ParDo):
                dofns.append(transform.fn)

    pipeline = beam.Pipeline()
    try:
        _ = pipeline | corpus
        pipeline.visit(Collect())
    finally:
        corpus.close()
    modules = {type(pickled_and_unpickled(dofn)).__module__ for dofn in dofns}
    packages = {module.split(".")[2] for module in modules if module.startswith("audioclip_beam.pipeline.")}
    assert {"readers", "dedup", "writers"} <= packages

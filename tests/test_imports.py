"""Imports run one way, inside the rooms they are relative, and what goes to workers can be shipped there."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.internal import cloudpickle_pickler

from audioclip_text.pipeline import EmbedCorpus, EmbedOptions, TextEmbeddingHandler

ROOT = Path(__file__).parents[1]

# Each file of pipeline/ may import what stands in a row above its own, or in its own row.
ROWS = [
    {
        "records",
        "flags",
        "options",
        "fields",
        "metrics",
        "decompress",
        "escape",
        "findings",
        "repeats",
        "clients",
        "stores",
    },
    {
        "lines",
        "delimited",
        "ahead",
        "thrift",
        "pages",
        "parquet",
        "formats",
        "shards",
        "peek",
        "gathered",
        "plain_rows",
        "source",
        "embedding",
        "call_thread",
        "encoders",
        "handler",
        "ml_transform",
        "yaml_embed",
        "batches",
        "buckets",
        "reuse",
        "ids",
        "reading",
        "cache",
        "output_file",
        "sink",
        "pointer",
        "names",
        "run_dirs",
        "snapshot",
        "history",
        "statistics",
        "report",
        "opened",
        "same_model",
        "queries",
        "nearest",
    },
    {"job", "publish"},
    {"embed", "check_files", "check_rows"},
    {"plan", "run", "search", "validate"},
    {"cli"},
    {"__main__"},
]
# Where pipeline/ may import ..model at run time: encoders, handlers, and the commands that are the model room's own.
DOORS = {
    "encoders": None,
    "handler": None,
    "run": {"download"},
    "cli": {"_fetch", "_extract"},
    "same_model": {"fingerprint_of"},
}


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).glob("*.py"))


def imports(path: Path) -> list[tuple[int, str, str | None]]:
    """(level, module, enclosing function or TYPE_CHECKING) of every import in a file."""
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


def test_every_file_of_the_pipeline_has_its_row() -> None:
    """A new file is given a place in the order."""
    assert {path.stem for path in files("pipeline")} - {"__init__"} == set.union(*ROWS)


@pytest.mark.parametrize("path", files("pipeline"), ids=lambda path: path.stem)
def test_pipeline_imports_run_one_way(path: Path) -> None:
    """A file imports only from rows above and from its own."""
    if path.stem == "__init__":
        return
    row = next(number for number, names in enumerate(ROWS) if path.stem in names)
    allowed = set.union(*ROWS[: row + 1])
    siblings = {module.split(".")[0] for level, module, _ in imports(path) if level == 1}
    assert siblings <= allowed, f"{path.name} imports {siblings - allowed} from a row below its own"


@pytest.mark.parametrize("room", ["model", "pipeline"])
def test_no_files_import_each_other_in_a_circle(room: str) -> None:
    """Each file can be read after those it imports."""
    graph = {
        path.stem: {module.split(".")[0] for level, module, _ in imports(path) if level == 1} for path in files(room)
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", files("pipeline"), ids=lambda path: path.stem)
def test_only_the_doors_lead_to_the_model(path: Path) -> None:
    """encoders and handler import the model's room, and a few functions of the commands do; for types alone, all may."""
    uses = [function for level, module, function in imports(path) if level == 2 and module.startswith("model")]
    uses = [function for function in uses if function != "TYPE_CHECKING"]
    if path.stem not in DOORS:
        assert not uses, f"{path.name} imports ..model"
        return
    functions = DOORS[path.stem]
    assert functions is None or set(uses) <= functions, f"{path.name} imports ..model in {uses}"


@pytest.mark.parametrize("path", files("model"), ids=lambda path: path.stem)
def test_the_model_knows_no_beam_and_no_pipeline(path: Path) -> None:
    """The model's room stands alone."""
    for level, module, _ in imports(path):
        assert not module.startswith("apache_beam"), f"{path.name} imports {module}"
        assert level < 2, f"{path.name} imports from outside its room: {'.' * level}{module}"


@pytest.mark.parametrize(
    "path", [*files("model"), *files("pipeline")], ids=lambda path: f"{path.parent.name}.{path.stem}"
)
def test_rooms_import_each_other_relatively(path: Path) -> None:
    """No file in a room spells out the name that the package is installed under."""
    assert not [module for level, module, _ in imports(path) if level == 0 and module.startswith("audioclip_text")]


def test_help_waits_for_neither_beam_nor_torch() -> None:
    """The parser is built without the heavy imports."""
    code = (
        "import sys; from audioclip_text.pipeline.cli import _parser; _parser(); "
        "print([name for name in ('apache_beam', 'torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def there_and_back(value: object) -> object:
    """A value as a worker gets it."""
    data = cloudpickle_pickler.dumps(value)
    assert len(data) < 100_000, f"{type(value).__name__} takes {len(data)} bytes along"
    return cloudpickle_pickler.loads(data)


def test_handler_and_options_can_be_pickled(vocabulary: Path) -> None:
    """What people hold in their own pipelines survives Beam's pickler, without weights."""
    handler = there_and_back(TextEmbeddingHandler("untrained", tokenizer_path=str(vocabulary), prompt="a sound of {}"))
    assert isinstance(handler, TextEmbeddingHandler)
    assert handler.get_num_bytes(["abc"]) == 3
    options = EmbedOptions(input=["a.txt"], output="out", keep_fields=["lang"], max_rejected="1%")
    copy = there_and_back(options)
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
    names = {type(there_and_back(dofn)).__name__ for dofn in dofns}
    assert {"WriteFiles", "Split", "Reuse", "Publish", "_ReadShard"} <= names

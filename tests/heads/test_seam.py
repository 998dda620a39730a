"""The seam between heads and pipeline: modules of pipeline/ that are not for texts do not name texts, tokens or prompts.

What they need to know of the content is asked of the head. An entry of the lists below that nothing needs any more fails,
too: both lists can only become shorter unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest

from tests.support.paths import ROOT

WORDS = {"text", "texts", "token", "tokens", "prompt", "prompts"}

# Modules that are for texts as a whole, and why.
FOR_TEXTS = {
    "ml_transform.py": "MLTransform of columns of texts",
    "yaml_embed.py": "Beam YAML of texts",
    "inference/model_handler.py": "has TextEmbeddingHandler, for pipelines of users",
    "search/*.py": "queries are texts",
    "browse/*.py": "queries are texts",
    "readers/text.py": "a text format",
    "readers/jsonl.py": "a text format",
    "readers/csv.py": "a text format",
    "readers/csv_records.py": "a text format",
    "readers/recognize.py": "what is not text",
    "readers/notes.py": "what readers of text formats notice",
    "readers/compression.py": "the encodings of text formats",
    "readers/reader.py": "the reader of text formats",
    "readers/registry.py": "names the reader of lines of text",
    "readers/fields.py": "nested fields of texts",
    "readers/field_types.py": "Arrow's types of text",
    "readers/arrow_values.py": "Arrow's columns of text",
    "readers/exact_cast.py": "kept values as text",
    "readers/kept_types.py": "kept values as text",
    "readers/settle_types.py": "kept values as text",
    "readers/parquet.py": "columns of texts as they are",
    "readers/parquet_limits.py": "columns of texts as they are",
}

# What other modules may name, as a regular expression, and why.
NAMES = {
    "*": {
        r"\bTextIO(Wrapper)?\b": "Python's streams",
        r"\bread_text\b": "a method of pathlib",
        r"\btext=True\b": "an argument of subprocess",
        r"\btext/html\b": "a media type",
        r"\btext-align\b": "a property of CSS",
        r"\berror_text\b": "the message of an error of an object store",
        r"\bnextPageToken\b": "a field of an answer of Google Cloud Storage",
        r"\bno other host gets a token\b": "the authentication of a job service",
        r"\bwithout_texts\b": "documents whose list is empty, which only the text head reads",
    },
    "__init__.py": {r"\b(AudioCLIPText|TextEmbedding)\w+": "public classes for texts"},
    "inference/__init__.py": {r"\bTextEmbeddingHandler\b": "a public class for texts"},
    "flags.py": {r"\belse text\b": "the default of --head", r'\(found\), "text"\)': "the default of --head"},
    "cli/command_table.py": {
        r"\ba text, a sound file\b": "a query of search",
        r"\bnearest to texts, sounds, pictures or vectors\b": "search",
        r'"--text"': "a flag of search",
        r'"--prompt"': "a flag of classify",
        r"\btake every query as a text\b": "its help",
        r"\bfields label and, optionally, text\b": "labels of classify",
    },
    "cli/commands.py": {
        r"\bnearest to texts, sounds, pictures or vectors\b": "search",
        r"\btext=arguments\.text\b": "a flag of search",
        r"\bprompts=arguments\.prompt\b": "a flag of classify",
    },
    "cli/parser.py": {r"\btokens?\b": "the words of a command line"},
    "cli/embed_command.py": {
        r"\btoken\b": "the words of a command line",
        r"\bwithout texts: their list is missing\b": "documents whose list is empty, which only the text head reads",
    },
    "terminal.py": {r"\btexts?\b": "what is written to a terminal"},
    "readers/batch_builder.py": {
        r"\b(NoTexts|texts_at|_add_texts|has_texts)\b": "nested fields of texts",
        r"\bfields?\.texts?\b": "nested fields of texts",
    },
    "report/template.html.j2": {r"</?text\b|\btext-anchor\b": "an element of SVG", r"\.chart text\b": "its style"},
    "readers/read_settings.py": {r"\b(TextField|pairs\[0\]\.text)\b": "nested fields of texts"},
    "readers/infer_schema.py": {r"\btext formats\b": "formats", r"\b[fF]ields?\.texts?\b": "nested fields"},
    "publish/make_manifest.py": {r"\bfields?\.texts?\b": "nested fields of texts"},
}  # fmt: skip


def _modules() -> Iterator[tuple[str, str]]:
    """Yield the name in pipeline/ and the content of each module and template."""
    folder = ROOT / "pipeline"
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.j2")]):
        yield path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")


def _named(line: str) -> set[str]:
    """Return those of WORDS that a line names, by themselves or as parts of a name in snake case or camel case."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", line)
    return WORDS.intersection(part.lower() for part in parts)


def _names_of(module: str) -> dict[str, str]:
    return {**NAMES["*"], **NAMES.get(module, {})}


def _offences(module: str, content: str) -> list[str]:
    """Return the lines of a module that name a word and are not allowed to, each with its place."""
    if any(fnmatch(module, pattern) for pattern in FOR_TEXTS):
        return []
    allowed = re.compile("|".join(_names_of(module)))
    lines = enumerate(content.splitlines(), 1)
    return [f"{module}:{number}: {line.strip()}" for number, line in lines if _named(allowed.sub("", line))]


def test_only_modules_for_texts_name_texts() -> None:
    """A new module asks the head of the job: for the item, the unit, the columns, the limit."""
    found = [offence for module, content in _modules() for offence in _offences(module, content)]
    assert found == [], f"{len(found)} lines: ask the head, or choose another word"


@pytest.mark.parametrize("pattern", FOR_TEXTS)
def test_modules_for_texts_exist_and_name_texts(pattern: str) -> None:
    named = [content for module, content in _modules() if fnmatch(module, pattern)]
    assert any(_named(content) for content in named), "remove the entry"


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_names_that_are_allowed_are_needed(module: str, name: str) -> None:
    """Each one is in a line of a module that is not for texts."""
    contents = [
        content
        for each, content in _modules()
        if module in ("*", each) and not any(fnmatch(each, pattern) for pattern in FOR_TEXTS)
    ]
    matches = [match.group() for content in contents for match in re.finditer(name, content)]
    assert matches, "remove the entry"
    assert all(map(_named, matches)), "it allows more than names of texts"


def test_the_report_names_no_head() -> None:
    """What it shows of contents is declared by the heads."""
    for module, content in _modules():
        if module.startswith("report/"):
            assert not re.search(r"""["'](text|image|audio)["']""", content), module


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("def encode(texts):", {"texts"}),
        ("n_tokens = 3", {"tokens"}),
        ("class TextHead:", {"text"}),
        ("MAX_TEXT_BYTES = 1", {"text"}),
        ("noTextHere, HTMLText", {"text"}),
        ('raise ValueError("--prompt is wrong")', {"prompt"}),
        ("context, textual, promptly, tokenizer, Texture", set()),
    ],
)
def test_words_are_found_inside_names(line: str, words: set[str]) -> None:
    assert _named(line) == words


def test_a_new_module_that_names_texts_is_found() -> None:
    """Also in comments and strings; allowed names of other modules do not help it."""
    content = "rows = 1\n# Each token.\ntokens = NoTexts()\nhandle: TextIO\nprint('a prompt')\n"
    assert _offences("prepare/new.py", content) == [
        "prepare/new.py:2: # Each token.",
        "prepare/new.py:3: tokens = NoTexts()",
        "prepare/new.py:5: print('a prompt')",
    ]
    assert _offences("readers/text.py", content) == []

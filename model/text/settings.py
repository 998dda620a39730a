"""What a TextEncoder is loaded from, and the versions that decide its token ids. Imports no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from os import fspath
from typing import TypeVar

from ..head import EncoderSettings
from ..messages import WrongSettingError, plural
from ..paths import absolute, given_path
from ..release import VOCABULARY
from .texts import PROMPT_RULE, is_prompt

ON_LONG = ("truncate", "reject", "error")


@dataclass(frozen=True)
class TextSettings(EncoderSettings):
    """What a TextEncoder is loaded from.

    Attributes:
        tokenizer_path: The BPE vocabulary; None is the one that `audioclip fetch` writes.
        prompt: A template for each text, with {} for the text.
        on_long: "truncate", "reject" or "error", for texts longer than the context.
    """

    tokenizer_path: str | None = None
    prompt: str = "{}"
    on_long: str = "truncate"

    def __post_init__(self) -> None:
        """Resolve the paths as a person typed them. Raise ValueError if one is a wrong URL."""
        super().__post_init__()
        if self.tokenizer_path is not None:
            object.__setattr__(self, "tokenizer_path", given_path(self.tokenizer_path))

    @property
    def vocabulary_path(self) -> str:
        """Path of the vocabulary."""
        return fspath(self.tokenizer_path or VOCABULARY)

    @property
    def files(self) -> tuple[str, ...]:
        """Checkpoint and vocabulary."""
        return self.path, self.vocabulary_path

    def with_absolute_paths(self: _Settings) -> _Settings:
        """Return the settings with paths that mean the same from any current directory."""
        return replace(super().with_absolute_paths(), tokenizer_path=absolute(self.vocabulary_path))

    def check(self) -> None:
        """Raise ValueError for a value that the encoder does not know; the message names the known ones."""
        if self.on_long not in ON_LONG:
            raise WrongSettingError("on_long", self.on_long, f"choose one of {', '.join(ON_LONG)}")
        super().check()
        if not is_prompt(self.prompt):
            raise WrongSettingError("prompt", self.prompt, PROMPT_RULE)

    @property
    def forbidden(self) -> str | None:
        """With on_long "error" no text may be truncated."""
        return "truncated" if self.on_long == "error" else None

    def describe_forbidden(self, row: Mapping[str, object]) -> str:
        """Return why a run must not have this row, whose text was truncated."""
        return (
            f"{row['shard']}, row {row['row']}: the text has {row['n_tokens']} tokens, more than the model reads: "
            f"{row['text']!r:.80}; shorten it, or choose --on_long truncate or reject"
        )

    def describe_forbidden_rows(self, rows: int) -> str:
        """Return why a run must not have so many rows whose texts would be truncated."""
        return (
            f"{plural(rows, 'row has', 'rows have')} more tokens than the model reads, and --on_long error forbids that"
        )

    def fingerprint_parts(self) -> dict[str, str]:
        """Return what these settings decide of a vector, by name."""
        return {
            "prompt": self.prompt,
            "on_long": "truncate" if self.on_long == "error" else self.on_long,  # the vectors that pass are the same
            **super().fingerprint_parts(),
        }


_Settings = TypeVar("_Settings", bound=TextSettings)

# MLTransform's artifacts name this class by its module: by the public one, which does not change.
TextSettings.__module__ = __name__.removesuffix(".text.settings")


def versions() -> dict[str, str]:
    """Return the versions that decide token ids: of ftfy, of regex, and of the Unicode data in Python's str.lower."""
    return {"ftfy": version("ftfy"), "regex": version("regex"), "unicode": unicodedata.unidata_version}

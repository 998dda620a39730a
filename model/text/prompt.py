"""The check of a prompt, the template for each text. Without torch, whose import takes a second."""

from __future__ import annotations

from string import Formatter

PROMPT_RULE = "it must contain {} once, for the text, as in 'a photo of {}'"


def is_prompt(prompt: str) -> bool:
    """Return whether a string contains {} or {0} once; not with a format or conversion, which could cut or change texts."""
    try:
        fields = [field for _, *field in Formatter().parse(prompt) if field[0] is not None]  # name, format, conversion
    except (ValueError, TypeError):  # TypeError: it is not a string
        return False
    return fields in ([["", "", None]], [["0", "", None]])

"""What counts as a text, and as a prompt. Without torch, whose import takes a second."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from string import Formatter

from ..head import BadRow, ContentError, describe, is_row, type_name

PROMPT_RULE = "it must contain {} once, for the text, as in 'a photo of {}'"

BLANK = ContentError("empty text", "nothing of the text is left when it is cleaned: no word, sign or symbol")

EXCERPT = 1000  # characters of a text in a rejected row

Text = str | Sequence[str]


def list_texts(texts: Iterable[Text], name: str = "texts") -> list[Text]:
    """Return the texts of any iterable as a list: of a list, an Arrow array, a pandas Series, a numpy array.

    Args:
        texts: The texts.
        name: What messages call them.

    Raises:
        TypeError: One is neither a string nor a list of strings, or the whole is not a sequence of texts; the message says
            what to write instead.
    """
    kind = type(texts).__name__
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a list of texts, not one string: got {texts!r:.80}; write [text]")
    if is_row(texts) or hasattr(type(texts), "columns") or hasattr(type(texts), "column_names"):
        raise TypeError(f"{name} is a {kind}: give one column, as in frame['text']")
    if isinstance(texts, set | frozenset):
        raise TypeError(f"{name} is a {kind}, whose order is not defined: give a list, as in sorted({name})")
    if not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) == 0:
        raise TypeError(f"{name} is {describe(texts)}: give a list of texts, as in [text]")
    to_pylist = getattr(texts, "to_pylist", None)  # the elements of an Arrow array are not strings
    items: list[Text] = list(texts) if to_pylist is None else to_pylist()
    for position, text in enumerate(items):
        if not isinstance(text, str) and not _is_list_of_strings(text):
            raise TypeError(
                f"text {position} is {describe(text)}, not a string or a list of strings: give a text, or leave it out"
            )
    return items


def _is_list_of_strings(text: object) -> bool:
    # The order of a set differs from process to process, and so would its vector.
    if not isinstance(text, Collection) or isinstance(text, bytes | Set) or is_row(text):
        return False
    return all(isinstance(part, str) for part in text)


def is_prompt(prompt: str) -> bool:
    """Return whether a string contains {} or {0} once; not with a format or conversion, which could cut or change texts."""
    try:
        fields = [field for _, *field in Formatter().parse(prompt) if field[0] is not None]  # name, format, conversion
    except (ValueError, TypeError):  # TypeError: it is not a string
        return False
    return fields in ([["", "", None]], [["0", "", None]])


def join(text: Text) -> str:
    """Return a text as one string: a list of strings joined with ", "."""
    return text if isinstance(text, str) else ", ".join(text)


def parse_text(value: object, field: str, limit: int) -> str:
    """Return a value as text, a list of strings joined with ", ". Raise BadRow if it is not one of at most `limit` bytes."""
    if isinstance(value, list) and value and all(isinstance(part, str | bytes) for part in value):
        value = ", ".join(decode(part) for part in value)
    if isinstance(value, bytes):
        value = decode(value)
    if value is None:
        raise BadRow("null text", f"field {field!r} is null")
    if not isinstance(value, str):
        raise BadRow("wrong type", f"field {field!r} is {type_name(value)}, not text")
    if not value or value.isspace():
        raise BadRow("empty text", f"field {field!r} is blank", excerpt=value[:EXCERPT])
    if len(value) > limit or (len(value) * 4 > limit and len(value.encode("utf-8", "replace")) > limit):
        raise BadRow("too long", f"the text is over {limit:,} bytes (--max_text_bytes)", excerpt=value[:EXCERPT])
    return check_encodable(value)


def decode(value: str | bytes) -> str:
    """Return bytes as text. Raise BadRow if they are not UTF-8."""
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        start = value[:EXCERPT].decode("utf-8", "backslashreplace")
        raise BadRow("not UTF-8", f"byte {error.start} cannot be decoded", excerpt=start) from None


def check_encodable(value: str) -> str:
    """Return `value`. Raise BadRow if it contains lone surrogates, which UTF-8 cannot encode."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            start = value[:EXCERPT].encode("utf-8", "backslashreplace").decode()
            raise BadRow("not UTF-8", f"character {error.start} is a lone surrogate", excerpt=start) from None
    return value

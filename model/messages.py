"""What messages are made of: harmless names, counts with nouns, and errors that name files or settings. Imports no torch."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Return `text` as one harmless line; ordinary text stays as it is.

    Control characters (line ends, ANSI sequences), format characters (right-to-left overrides, byte order marks), lone
    surrogates and unassigned characters are written as Python escapes: "\\n", "\\x1b", "\\u202e". Spaces of every
    width stay, and so do the two joiners that Persian, Hindi and many emoji need.
    """
    return text if text.isprintable() else "".join(map(printable_character, text))


def printable_character(character: str) -> str:
    """Return a character, or its escape if it is not harmless."""
    is_harmless = character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs"
    return character if is_harmless else character.encode("unicode_escape").decode("ascii")


class OneLineError(Exception):
    """Base of errors whose messages name files or ids, which are not trusted: their messages are printable."""

    def __str__(self) -> str:
        return printable(super().__str__())


class SettingError(Exception):
    """Base of errors of one setting; the message has the name of its parameter, and `as_flag` that of its flag.

    Args:
        name: The parameter.
        value: What was given.
        advice: What is wrong with it, or what to give.
    """

    def __init__(self, name: str, value: object, advice: str) -> None:
        super().__init__(f"{name}={value!r}: {advice}")
        self.name, self.value, self.advice = name, value, advice

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.name, self.value, self.advice)

    def as_flag(self) -> str:
        """Return the message for people who gave the setting as a flag."""
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return f"--{self.name} {value}: {self.advice}"


class WrongSettingError(SettingError, ValueError):
    """A setting with a value that no machine can use."""


def plural(number: int, one: str, many: str = "") -> str:
    """Return a number with what it counts, as in "1 row" and "2 rows"; `many` is by default `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which it has at least two, as in "39 s", "12.3 minutes" and "5.4 hours"."""
    if seconds < 120:
        return f"{seconds:,.3g} s" if seconds < 100 else f"{seconds:,.0f} s"
    return f"{seconds / 60:,.1f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"

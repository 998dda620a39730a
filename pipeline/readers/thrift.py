"""Thrift's compact protocol, as far as Parquet's footers and page headers use it, read with limits.

Arrow reads the same bytes in C++ without such limits: a schema nested 50,000 deep ends the process. So they are checked
before Arrow reads them. Source: the specification "Thrift Compact protocol encoding" of Apache Thrift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Value: TypeAlias = "int | list[Value] | dict[int, Value] | None"
# The fields of a structure that are returned, by number, and which ones of the structures in them.
Selection: TypeAlias = "Mapping[int, Selection]"

START = -1  # among the fields of a structure: the place where it begins

MAX_DEPTH = 16  # Parquet's structures are six deep

_BOOLS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


class ThriftError(ValueError):
    """Bytes that are not a structure of this protocol, or one over the limits."""


class Compact:
    """Parser of the values in `data` from byte `at` on; only integers, lists and structures are returned, others as None."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def struct(self, selection: Selection, depth: int = 0) -> dict[int, Value]:
        """Return the selected fields of a structure by number, and the place where it begins as START.

        Raises ThriftError if it ends too early or nests too deep; other fields are checked, too.
        """
        if depth > MAX_DEPTH:
            raise ThriftError(f"structures are nested over {MAX_DEPTH} deep")
        data, fields, number = self.data, dict[int, Value]({START: self.at}), 0
        try:
            while head := data[self.at]:
                self.at += 1
                number = number + (head >> 4) if head >> 4 else self._integer()
                inner = selection.get(number)
                value = self._value(head & 15, inner, depth)
                if inner is None:
                    continue
                if number in fields:  # readers disagree on which one counts
                    raise ThriftError(f"field {number} occurs twice in a structure")
                fields[number] = value
        except IndexError:
            raise ThriftError("a structure ends too early") from None
        self.at += 1
        return fields

    def _value(self, kind: int, selection: Selection | None, depth: int) -> Value:
        if kind in _INTEGERS:
            return self._integer()
        if kind in _BOOLS:
            return int(kind == 1)
        if kind == _STRUCT:
            return self.struct(selection or {}, depth + 1)
        if kind in _LISTS:
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            if size > len(self.data) - self.at:  # an element takes at least a byte
                raise ThriftError(f"a list of {size:,} elements is longer than the rest of the data")
            inner = head & 15
            return [self._byte() if inner in _BOOLS else self._value(inner, selection, depth + 1) for _ in range(size)]
        if kind not in (_BYTE, _DOUBLE, _BINARY):
            raise ThriftError(f"Parquet has no values of type {kind}")
        length = self._varint() if kind == _BINARY else 1 if kind == _BYTE else 8
        if length > len(self.data) - self.at:
            raise ThriftError(f"a value of {length:,} bytes is longer than the rest of the data")
        self.at += length
        return None

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        data, at, value, shift = self.data, self.at, 0, 0
        while (byte := data[at]) > 127:
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if shift > 63:
                raise ThriftError("a number has over 64 bits")
        self.at = at + 1
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

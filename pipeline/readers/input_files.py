"""find_shards: the input files of a job, their names in ids and their formats."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from ...model.head import Head
from ...model.heads import HEADS, find_head
from ...model.messages import plural, printable
from ..io.file_io import FileIO
from ..io.paths import absolute_path, given_path, is_local, join, real_path
from ..io.retries import StoreError
from ..io.versions import FileChanged
from ..layout import PART, POINTER, SNAPSHOTS, manifest_place, parquet_name
from ..remote.worker_reports import RunReports
from .compression import SHORT_SUFFIXES, SUFFIXES
from .globs import Matches, fixed_part, glob_regex, match_local, match_remote
from .registry import FORMAT_SUFFIXES, LIST_FORMATS, READERS
from .shard import InputError, Shard
from .shard_table import SHARD_SCHEMA, ShardTable, integers, known_names, strings


def find_shards(
    patterns: Sequence[str],
    input_format: str | None = None,
    delimiter: str | None = None,
    known: Mapping[str, str] | pa.Table | None = None,
    *,
    output: str | None = None,
    quoting: str | None = None,
    escape: str | None = None,
    head: Head | None = None,
    lists: bool = False,
    notes: list[str] | None = None,
) -> ShardTable:
    """Return the shards that the globs match, by path; each once, named by the first glob that matches it.

    Args:
        patterns: The globs.
        input_format: The format of all shards; by default that of their suffixes.
        delimiter: The separator of csv.
        known: The names of the current snapshot's shards by their absolute paths, or a table with both as columns `path`
            and `name`. A shard keeps its name, so that its ids stay the same when inputs are added, reordered or widened,
            unless another shard now has that name.
        output: The directory of the snapshots that a run would write.
        quoting: As --quoting has it.
        escape: As --escape has it.
        head: The head that embeds them, whose suffixes name files that are one content each.
        lists: Whether the shards are lists or Parquet, whose records name or contain pictures or sounds.
        notes: Gets lines on links that are not followed, and on files that are left out.

    Raises:
        InputError: A glob matches no usable file, two files would have the same name in ids, or a flag of csv is given
            without a file that it is for. For a run into `output` also: a shard is a pipe or is in `output`, or a glob would
            match the files of later snapshots in it.
    """
    tables, seen, left_out = list[pa.Table](), set[str](), list[str]()
    globs, forms = [_given_glob(pattern) for pattern in patterns], _Forms(input_format, head, lists)
    others = list[str]()
    for number, pattern in enumerate(globs):
        found = _match(pattern)
        if notes is not None:
            notes += found.notes
        if output is not None:
            if found.refused:
                raise InputError(found.refused)
            _check_outside(pattern, found, output)
        doubles = [path for path in found.paths if "._" in path and _is_apple_double(path, pattern)]
        left_out += doubles
        if doubles or seen:
            skipped = set(doubles)
            found = found.where(path not in skipped and real not in seen for path, real in found.both_paths())
        if head and head.by_reference:
            known_forms = [path == pattern or forms.is_known(path) for path in found.paths]
            others += [path for path, is_known in zip(found.paths, known_forms, strict=True) if not is_known]
            found = found.where(known_forms)
        if len(globs) > 1:
            seen.update(found.real_paths)
        with _naming_heads(globs):
            tables.append(_list(number, pattern, found, forms))
        del found  # its lists take more memory than the table
    table = pa.concat_tables(tables)
    if left_out and not len(table):
        raise InputError(f"every file is metadata of macOS (._*), as {left_out[0]}: name the shards")
    if others and head:
        if not len(table):
            raise InputError(
                f"no file of --input is {_one_of(head, lists)}; the first of {plural(len(set(others)), 'file')} is "
                f"{min(others)}: correct --input or --head"
            )
        if notes is not None:
            files = plural(len(set(others)), "file was", "files were")
            items = "lists" if lists else head.items
            notes.append(f"{files} left out for lack of a suffix of {items}; the first is {min(others)}")
    if left_out and notes is not None:
        files = plural(len(set(left_out)), "file was", "files were")
        notes.append(f"{files} left out as metadata of macOS (._*), the first is {min(left_out)}")
    _check_flags([form for form, _ in forms.known], delimiter, quoting, escape)
    names = _names(table, known_names(known) if isinstance(known, Mapping) else known, globs)
    form = table["form"]
    quotings = [quoting or READERS[name].quoting if READERS[name].quoting else None for name, _ in forms.known]
    columns = {
        "name": names,
        "format": strings([name for name, _ in forms.known]).take(form),
        "compression": strings([compression for _, compression in forms.known]).take(form),
        "delimiter": strings([delimiter] * len(forms.known)).take(form),
        "quoting": strings(quotings).take(form),
        "escape": strings([escape if each else None for each in quotings]).take(form),
    }
    arrays = [columns[name] if name in columns else table[name] for name in SHARD_SCHEMA.names]
    return ShardTable(pa.Table.from_arrays(arrays, schema=SHARD_SCHEMA)).sorted()


class _UnknownForm(InputError):
    """A file whose suffixes name no format that the head reads."""


_LIST_SUFFIXES = [suffix for suffix, form in FORMAT_SUFFIXES.items() if form in LIST_FORMATS]


class _Forms:
    """The formats and compressions of files, numbered: `known` has (format, compression) for each number."""

    def __init__(self, input_format: str | None, head: Head | None, lists: bool) -> None:
        self.input_format, self.head, self.lists = input_format, head, lists
        self.known: list[tuple[str, str | None]] = []
        self._numbers: dict[tuple[str, str], int] = {}  # by suffixes

    def number_of(self, path: str) -> int:
        """Return the number of a file's format. Raises InputError if its suffixes name no known format."""
        stem, suffix = os.path.splitext(path)
        suffixes = (os.path.splitext(stem)[1], suffix) if suffix.lower() in SUFFIXES else (suffix, "")
        number = self._numbers.get(suffixes)
        if number is None:
            form = _format_of(path, self.input_format, self.head, self.lists)
            number = self._numbers[suffixes] = len(self.known)
            self.known.append(form)
        return number

    def is_known(self, path: str) -> bool:
        """Return whether a file has a known format."""
        try:
            self.number_of(path)
        except InputError:
            return False
        return True


def _one_of(head: Head, lists: bool) -> str:
    if lists:
        return f"a list by its suffix ({', '.join(_LIST_SUFFIXES)})"
    return f"{'an' if head.item[0] in 'aeiou' else 'a'} {head.item} by its suffix ({', '.join(head.types)})"


def _list(number: int, pattern: str, found: Matches, forms: _Forms) -> pa.Table:
    """Return the files that the glob of this number matches: as shards have them, and with their paths as matched."""
    given = strings(found.paths, pa.binary())
    absolute = given
    if is_local(pattern):
        folders = _AbsoluteFolders()
        paths = [f"{folders[path.rpartition('/')[:2]]}{path.rpartition('/')[2]}" for path in found.paths]
        absolute = strings(paths, pa.binary())
    columns = {
        "path": absolute,
        "name": strings(_name_all(pattern, found.paths)),
        "bytes": integers(found.sizes),
        "version": strings(found.versions),
        "form": integers(map(forms.number_of, found.paths), 32),
        "given": given,
        "glob": integers([number] * len(found.paths), 32),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


class _AbsoluteFolders(dict[tuple[str, str], str]):
    """The absolute paths of folders, with a slash at their end, by what is before a file's name: folder and slash."""

    def __missing__(self, parts: tuple[str, str]) -> str:
        """Add and return a folder's path."""
        path = absolute_path("".join(parts) or ".")
        self[parts] = path if path.endswith("/") else f"{path}/"
        return self[parts]


def _names(table: pa.Table, known: pa.Table | None, globs: Sequence[str]) -> pa.ChunkedArray:
    """Return the names of files: those that are known by their paths, and else those of the globs."""
    names = table["name"]
    if known is not None:
        earlier = known["name"].take(pc.index_in(table["path"], value_set=known["path"]))
        names = pc.if_else(pc.is_valid(earlier), earlier, names)
    if len(pc.unique(names)) == len(names):
        return names
    chosen, first = _choose_names(table["name"].to_pylist(), names.to_pylist()), dict[str, int]()
    for row, name in enumerate(chosen):
        if name in first:
            raise _same_name(
                name,
                *(
                    (globs[table["glob"][at].as_py()], os.fsdecode(table["given"][at].as_py()))
                    for at in (row, first[name])
                ),
            )
        first[name] = row
    return strings(chosen)


def _is_apple_double(path: str, pattern: str) -> bool:
    """Return whether a file that a wildcard matches is named like the metadata that macOS keeps beside files."""
    name = pattern.rpartition("/")[2]
    return path.rpartition("/")[2].startswith("._") and not name.startswith("._") and path != pattern


def _check_flags(formats: Collection[str], delimiter: str | None, quoting: str | None, escape: str | None) -> None:
    """Raise InputError if a flag of csv has no effect on any shard, or if two of them have the same character."""
    if delimiter and not any(READERS[form].has_delimiter for form in formats):
        raise InputError(f"--delimiter {delimiter!r} is for csv, and no shard is csv: leave it out")
    for flag, value in (("--quoting", quoting), ("--escape", escape)):
        if value and not any(READERS[form].quoting for form in formats):
            raise InputError(f"{flag} {value} is for csv and tsv, and no shard is either: leave it out")
    if escape and any(escape == {"csv": delimiter or ",", "tsv": "\t"}.get(form) for form in formats):
        raise InputError(f"--escape {escape!r} is also what separates fields: give another one, or leave it out")


def _choose_names(by_glob: Sequence[str], earlier: Sequence[str]) -> list[str]:
    """Return a name for each shard: the earlier one, or that of the glob if other shards have the earlier one too."""
    names = list(earlier)
    while True:  # a name of a glob may be the earlier name of yet another shard
        times = Counter(names)
        collisions = [row for row, name in enumerate(names) if times[name] > 1 and name != by_glob[row]]
        if not collisions:
            return names
        for row in collisions:
            names[row] = by_glob[row]


def _check_outside(pattern: str, found: Matches, output: str) -> None:
    """Raise InputError if a file that a glob matches is in `output`, or if it would match the files of later snapshots."""
    directory, fixed = real_path(output).rstrip("/"), fixed_part(pattern)
    below = f"{directory}/"
    for path, real in found.both_paths():
        if real == directory:
            raise InputError(f"--output {output} is also an input: give the directory of the snapshots another name")
        if real.startswith(below):
            raise InputError(
                f"{path} is in --output {output}: keep shards and snapshots apart, or narrow the glob of --input"
            )
    if pattern == fixed:
        return
    regex = glob_regex(pattern[len(fixed) :])
    folders = {fixed: real_path(fixed or ".") if is_local(pattern) else fixed, **found.folders}
    for path, real in folders.items():
        start = f"{real.rstrip('/')}/"
        for name in (POINTER, manifest_place("run"), f"{SNAPSHOTS}/run/{parquet_name(PART, '0')}"):
            place = f"{directory}/{name}"
            if place.startswith(start) and regex.match(join(path, place[len(start) :])[len(fixed) :]):
                raise InputError(
                    f"--input {pattern} also matches the snapshots in --output {output}: choose an output outside of it, "
                    f"or narrow the glob"
                )


@contextmanager
def open_shard(shard: Shard, file_io: FileIO, reports: RunReports = RunReports()) -> Iterator[IO[bytes]]:
    """Open a shard, without decompressing it, for a block.

    The shards are one version of the corpus; a file that is written or replaced during the run is not part of any. Raises
    InputError if the shard is missing or not the version that was listed; OSError with its path if it cannot be read at all:
    it is forbidden, or gives no byte for as long as `file_io` waits. The launcher of a remote job learns of a shard that is
    missing, changed or forbidden.
    """
    with reading_errors(shard.path, reports), file_io.open_version(shard.listed) as handle:
        yield handle


@contextmanager
def reading_errors(path: str, reports: RunReports) -> Iterator[None]:
    """Raise the errors of the block, which reads a listed file, as open_shard does."""
    try:
        yield
    except FileChanged as error:
        with reports.errors():
            raise _shard_changed(error) from error
    except StoreError:
        raise
    except OSError as error:
        with reports.errors():
            message = f"{printable(path)} cannot be read: {error.strerror or error}"
            raise OSError(error.errno or errno.EIO, message) from error


def _shard_changed(error: FileChanged) -> InputError:
    if error.missing:
        return InputError(f"{error}: restore it or leave it out, and run again")
    return InputError(f"{error} during the run: run again when it is complete; finished files are reused")


def _name_all(pattern: str, paths: Sequence[str]) -> list[str]:
    """Return the names of files in ids: their paths below the fixed part of the glob; what is not UTF-8 is spelled out."""
    start = len(fixed_part(pattern))
    names = [path[start:].lstrip("/") if start or path != pattern else path.rpartition("/")[2] for path in paths]
    return [name if name.isascii() else name.encode("utf-8", "backslashreplace").decode() for name in names]


def _same_name(name: str, *inputs: tuple[str, str]) -> InputError:
    (pattern, path), (first_pattern, first_path) = inputs
    pairs = zip(first_path.split("/"), path.split("/"), strict=False)
    common = [component for component, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return InputError(
        f"{first_path} (--input {first_pattern}) and {path} (--input {pattern}) would both be named {name!r} in ids: "
        f"read them by one glob, as in '{'/'.join([*common, '**', name.rpartition('/')[2]])}'"
    )


def _format_of(path: str, input_format: str | None, head: Head | None, lists: bool) -> tuple[str, str | None]:
    """Return (format, compression) of a file by its suffixes. Raises InputError if they name no known format."""
    stem, suffix = os.path.splitext(path)
    stem, suffix = os.path.splitext(f"{stem}{SHORT_SUFFIXES.get(suffix.lower(), suffix)}")
    compression = SUFFIXES.get(suffix.lower())
    if compression:
        suffix = os.path.splitext(stem)[1]
    if suffix.lower() in (".heic", ".heif") and not input_format:
        raise InputError(f"{path}: HEIC is not read: convert it to JPEG, as with heif-convert")
    is_content = head is not None and suffix.lower() in head.types
    unnamed = "a name without suffix"
    form = input_format or ("media" if is_content else FORMAT_SUFFIXES.get(suffix.lower(), ""))
    if head and head.by_reference and (form not in READERS or (form in LIST_FORMATS) != lists or form == "txt"):
        if lists or form in LIST_FORMATS:
            remedy = (
                f"leave {head.field_flag} out, which is for lists"
                if lists
                else f"name its field with {head.field_flag}"
            )
            raise InputError(
                f"{path}: {suffix or form or unnamed} is {'not ' if lists else ''}{_one_of(head, True)}: {remedy}"
            )
        raise InputError(
            f"{path}: {suffix or unnamed} is not {_one_of(head, lists)}: leave it out, or give --input_format media"
        )
    if form not in READERS:
        if other := next((name for name in HEADS if suffix.lower() in find_head(name).types), None):
            raise _UnknownForm(f"{path}: {suffix} is for --head {other}: give that head, or leave the file out")
        known = ", ".join(known for known, name in FORMAT_SUFFIXES.items() if name != "tar")
        others = " and ".join(find_head(name).items for name in HEADS if find_head(name).by_reference)
        raise _UnknownForm(
            f"{path}: {suffix or unnamed} is not a known format; known are {known}, most also compressed as "
            f"{', '.join(SUFFIXES)}, and with --head those of {others}: name it with --input_format, or leave the file out"
        )
    if form in ("tar", "media") and not (head and head.by_reference):
        what, remedy = ("a tar has", ", or unpack it") if form == "tar" else ("--input_format media is for", "")
        raise InputError(f"{path}: {what} pictures or sounds: give --head image or --head audio{remedy}")
    if compression and not READERS[form].compressible:
        raise InputError(f"{path}: {form} is compressed inside only; decompress the file, or rename it if it is not")
    return form, compression


@contextmanager
def _naming_heads(globs: Sequence[str]) -> Iterator[None]:
    """Have the error of a file of unknown form say how many files of which head the globs match, if there are several."""
    try:
        yield
    except _UnknownForm:
        if message := _several_heads(globs):
            raise InputError(message) from None
        raise


def _several_heads(globs: Sequence[str]) -> str:
    """Return how many files of which head globs match, and what to give; "" if it is one file, or no sound or picture."""
    suffixes = [os.path.splitext(path)[1].lower() for pattern in globs for path in _match(pattern).paths]
    heads = [find_head(name) for name in HEADS if find_head(name).by_reference]
    found = {head: sum(suffix in head.types for suffix in suffixes) for head in heads}
    counts = [plural(number, head.item, head.items) for head, number in found.items() if number]
    if not counts or len(suffixes) == 1:
        return ""
    if others := len(suffixes) - sum(found.values()):
        counts.append(plural(others, "other file"))
    choices = " or ".join(f"--head {head.name}" for head, number in found.items() if number)
    reason = ", and a snapshot has one head" if " or " in choices else ""
    rest = ", which leaves the other files out," if len(counts) > 1 else ","
    return (
        f"--input {' '.join(globs)} matches {', '.join(counts[:-1])}{' and ' if counts[1:] else ''}{counts[-1]}"
        f"{reason}: give {choices}{rest} or narrow the glob"
    )


def _given_glob(given: str) -> str:
    """Return the glob that --input gives, as given_path does; raise InputError if it cannot be one."""
    try:
        pattern = given_path(given)
    except ValueError as error:
        raise InputError(str(error)) from None
    return f"{pattern}*" if pattern.endswith("/") else pattern


def _match(pattern: str) -> Matches:
    """Return the files that a glob matches. Raises InputError if it matches nothing."""
    try:
        found = match_local(pattern) if is_local(pattern) else match_remote(pattern)
    except StoreError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        raise InputError(f"--input {pattern} cannot be listed: {reason}") from None
    if not found.paths:
        raise InputError("; ".join([f"--input {pattern} matches no file", _nearest_files(pattern), *found.notes]))
    for path in found.samples:
        if not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read: give read permission, or leave it out")
    return found


def _nearest_files(pattern: str) -> str:
    """Return words on the nearest files that do exist."""
    if not is_local(pattern):
        return "check the bucket and the path"
    if os.path.isdir(pattern):
        return f"it is a directory: name its files, as in '{pattern.rstrip('/')}/*'"
    folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    names = sorted(os.listdir(folder))
    near = difflib.get_close_matches(os.path.basename(pattern), names, 3) or names[:5]
    return (
        f"{folder} contains {', '.join(near)}{', ...' if len(names) > len(near) else ''}"
        if names
        else f"{folder} is empty"
    )

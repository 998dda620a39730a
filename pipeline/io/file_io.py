"""FileIO: how a job's workers open files, as one picklable object."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, BinaryIO, TypeVar, cast

from ..flags import READ_TIMEOUT
from . import beam_files
from .byte_ranges import BlockFile
from .in_order import TURNS
from .paths import is_local
from .timeout_reader import call_within, calls_within, open_to_read, open_version
from .versions import ListedFile, read_range

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class FileIO:
    """How a job opens files: on every worker with the same time limit, endpoints and credentials.

    Attributes:
        read_timeout: The time limit in seconds.
        store_options: The Beam options for object stores, by name.
        compare: What tells that a local file changed, as --compare has it.
    """

    read_timeout: float = READ_TIMEOUT
    store_options: Mapping[str, object] = field(default_factory=dict, repr=False, hash=False)  # contains secret keys
    compare: str = "version"

    @classmethod
    def from_options(
        cls, options: PipelineOptions, read_timeout: float = READ_TIMEOUT, compare: str = "version"
    ) -> FileIO:
        """Return the FileIO of a job that is started with these Beam options."""
        from apache_beam.options.pipeline_options import GoogleCloudOptions, S3Options

        names = {
            name for view in (S3Options, GoogleCloudOptions) for name in options.view_as(view)._visible_option_list()
        }
        values = options.get_all_options(drop_default=True)
        return cls(read_timeout, {name: value for name, value in values.items() if name in names}, compare)

    def open(self, path: str) -> IO[bytes]:
        """Open the file at `path`, without decompressing it; the caller closes it.

        Raises StoreError or OSError, as open_to_read does.
        """
        self.set_options(path)
        return open_to_read(path, self.read_timeout)

    def open_version(self, file: ListedFile) -> AbstractContextManager[IO[bytes]]:
        """Open the version of a file that was listed, for a block. Raises FileChanged too, as timeout_reader does."""
        self.set_options(file.path)
        return open_version(file, self.read_timeout, self.compare)

    def read_range(self, file: ListedFile, offset: int, size: int) -> bytes:
        """Return a part of a file that memory takes, as open_version reads it."""
        self.set_options(file.path)
        return call_within(file.path, self.read_timeout, lambda: read_range(file, offset, size, self.compare))

    def read_ranges(self, ranges: Sequence[tuple[ListedFile, int, int]]) -> list[bytes | Exception]:
        """Return parts of small local files, (file, offset, size), as read_range returns each, or its error."""
        return calls_within(
            [(each[0].path, functools.partial(read_range, *each, self.compare)) for each in ranges], self.read_timeout
        )

    def use_each(
        self,
        items: Sequence[_T],
        range_of: Callable[[_T], tuple[ListedFile, int, int]],
        use: Callable[[_T, bytes | Exception], _R],
    ) -> list[_R]:
        """Return use(item, content) of items whose contents are small and local, read by one call when it is its turn.

        Args:
            items: The items.
            range_of: Returns the part of a file that an item needs, as read_ranges takes it.
            use: Takes an item, and its bytes or the error of reading them.
        """
        ranges = list(map(range_of, items))
        return TURNS.run(
            len(items),
            lambda: self.read_ranges(ranges),
            lambda contents: [use(*each) for each in zip(items, contents, strict=True)],
        )

    def open_headers(self, file: ListedFile) -> BinaryIO:
        """Return a file of which a header is read: only blocks of it that are needed are, each as read_range reads it."""
        return cast(BinaryIO, BlockFile(file.size, lambda offset, size: self.read_range(file, offset, size)))

    def set_options(self, path: str) -> None:
        """Give Beam's file systems the job's options for `path`, if no one has: a runner does so in its own processes."""
        if is_local(path) or not self.store_options:
            return
        if not beam_files.has_options():
            options = beam_files.PipelineOptions.from_dictionary(dict(self.store_options))
            beam_files.FileSystems.set_options(options)

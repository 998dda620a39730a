"""The one type of all values of a kept field, in the run itself; values in shards of any number and order."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioclip_beam.model.text.head import MAX_TEXT_BYTES, TEXT
from audioclip_beam.pipeline.io.file_io import FileIO
from audioclip_beam.pipeline.readers import infer_schema, reader
from audioclip_beam.pipeline.readers.fields import Fields
from audioclip_beam.pipeline.readers.infer_schema import infer_kept_types
from audioclip_beam.pipeline.readers.input_files import find_shards
from audioclip_beam.pipeline.readers.read_settings import ReadSettings
from audioclip_beam.pipeline.readers.read_shards import ShardsRead, read_builder
from audioclip_beam.pipeline.readers.settle_types import apply_types, merge_kinds, settle_types
from audioclip_beam.pipeline.readers.shard import InputError
from tests.support.kept import kept_column

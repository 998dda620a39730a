"""The names of all files and directories below OUT, the directory that --output names.

docs/data-format.md draws them as a tree and describes them.
"""

from __future__ import annotations

POINTER = "current.json"  # {"snapshot": NAME, "manifest": PATH}: names the current snapshot
PUBLISH_LOCK = "publish.lock"  # on a local disk: the lock under which POINTER changes
SNAPSHOTS = "snapshots"  # has a directory for each run

# In the directory of a run, which is a snapshot once it has a manifest.
MANIFEST = "manifest.json"  # written when all other files are in place
REPORT = "report.html"
PART, REJECTED = "part-", "rejected-"  # begin the names of files with rows
FILE_LIST = "_files-"  # begins the name of the list of these files
SHARD_LIST = "_shards-"  # begins the name of the list of the shards
INPUTS = "_inputs.parquet"  # the shards as a run begins with them
EARLIER = "_earlier.parquet"  # the earlier part files in which it looks for known contents
CARRIED, DROPPED = (
    "_carried.parquet",
    "_dropped.parquet",
)  # files with rows that it keeps, and shards whose rows it drops
DAMAGED = "_damaged-"  # begins the name of a file that says that a run could not read a file of rows
COPY = "-copy"  # ends the names, before the suffix, of files with rows that were in the previous snapshot
LOCK = "run.lock"  # on a local disk: locked by the run's launcher
MARKER = "run.json"  # exists while a run that no lock shows may be running
CANARY = "_canary.json"  # of a run that has not published: later runs compare it with their own
# These begin the names of what workers of a remote run report.
WORKER_COUNTS, WORKER_ERROR, WORKER_END = "_worker-", "_error-", "_end-"
SPILL = "spill-"  # begins the name of a file of shuffled rows
CONTENT_SPILL = "content-"  # begins the name of a file with contents that cannot be read by themselves

DRY_RUN = ".plan-"  # begins the name of a directory in SNAPSHOTS with the listings of a dry run


def parquet_name(kind: str, digits: str) -> str:
    """Return the name of a Parquet file of a kind, PART, REJECTED, FILE_LIST or SHARD_LIST, with these digits."""
    return f"{kind}{digits}.parquet"


def is_copy(name: str) -> bool:
    """Return whether a file of that name has rows that were copied from the previous snapshot."""
    return name.endswith(f"{COPY}.parquet")


def has_rows(name: str) -> bool:
    """Return whether a file of that name contains rows, with vectors or rejected."""
    return name.startswith((PART, REJECTED)) and name.endswith(".parquet")


def manifest_place(snapshot: str) -> str:
    """Return the path of a snapshot's manifest below OUT, as POINTER contains it."""
    return f"{SNAPSHOTS}/{snapshot}/{MANIFEST}"

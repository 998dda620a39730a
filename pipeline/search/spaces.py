"""Whether vectors of two heads can be compared: whether they are from the same released file."""

from __future__ import annotations

from collections.abc import Mapping

from ...model.heads import find_head
from ...model.messages import OneLineError
from ...model.release import UNTRAINED
from ..inference.find_model import ModelNotFound, SnapshotModel, file_flags, find_model, recorded_files
from ..inference.shared_encoder import describe_model
from ..snapshots.manifest import Manifest


class OtherSpaceError(OneLineError, ValueError):
    """Error of vectors that cannot be compared, because they are from different trainings; the message names both."""


def compare_releases(name: str, released: str, other: str, other_released: str) -> str:
    """Return a warning if it is not known whether two models are from the same released file, else "".

    Args:
        name: What the first one embedded, for messages.
        released: The digest of its released file, "untrained", or "" if that is not known.
        other: What the second one embedded.
        other_released: The same of the second one.

    Raises:
        OtherSpaceError: They are from different ones.
    """
    if released == other_released and released:
        return ""
    if released and other_released:
        raise OtherSpaceError(
            f"{name} is of the training {released[:16]}, and {other} of {other_released[:16]} (sha256 of the released "
            f"file): vectors of different trainings cannot be compared; give a checkpoint of the same file"
        )
    unknown = other if released else name
    return (
        f"WARNING: it is not known from which released file the model of {unknown} is: the order means something only if "
        f"all vectors are of one training"
    )


def released_of(manifest: Manifest) -> str:
    """Return the digest of the released file that a snapshot's head is from, "untrained", or "" if it is not known."""
    return UNTRAINED if manifest["weights"] == UNTRAINED else manifest["checkpoint"].get("released_sha256", "")


def find_query_model(manifest: Manifest, head_name: str, files: Mapping[str, str | None]) -> SnapshotModel:
    """Return the model of any head for queries over a snapshot; its warning says what is not known of it.

    Args:
        manifest: The manifest of the snapshot.
        head_name: The head of the queries; that of the snapshot embeds as the snapshot's run did.
        files: Paths by the name of a flag; by default the checkpoint is that of the snapshot.

    Raises:
        ModelNotFound: The files do not exist, or lack the head.
        OtherSpaceError: The model is of another training than the snapshot.
    """
    head = find_head(head_name)
    names = {"checkpoint", *(flag.name for flag in head.flags if flag.is_file)}
    given = {name: path for name, path in files.items() if path and name in names}
    if head_name == manifest["head"]:
        return find_model(manifest, given)
    recorded = recorded_files(manifest, find_head(manifest["head"])).get("checkpoint")
    parts = manifest["fingerprint_parts"]
    options: dict[str, object] = {flag.name: flag.default for flag in head.flags}
    options |= {name: parts[name] for name in ("variant",) if name in parts and name in options}
    options |= {"checkpoint": recorded or manifest["options"].get("checkpoint", "full"), **given}
    settings = head.settings({**options, "device": "auto", "dtype": "float32", "normalize": False})
    try:
        info = describe_model(head, settings).info
    except (ValueError, OSError) as error:
        raise ModelNotFound(
            f"{manifest['snapshot']} has vectors of the {manifest['head']} head, and for {head.items} the {head_name} head "
            f"is needed, which cannot be read: {error}; or name its files with {file_flags(head)}"
        ) from None
    warning = compare_releases(
        f"the snapshot {manifest['snapshot']} ({manifest['checkpoint']['name']})",
        released_of(manifest),
        f"the model of the query ({info.name})",
        info.released,
    )
    return SnapshotModel(head, settings, warning)

"""A night of pictures whose files are linked, copied without some rows, and merged, over three nights before it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from audioclip_beam.pipeline.embed import EmbedCorpus
from audioclip_beam.pipeline.options import EmbedOptions
from audioclip_beam.pipeline.run.runner import run
from tests.support.picture_files import encoded, picture
from tests.support.shards import COMPRESS
from tests.support.slow_run import killed_at
from tests.support.stub_media import StubPictures, embed_media
from tests.support.tars import tar_of

OPTIONS: dict[str, Any] = {"max_file_rows": 20, "unique_ids": True}
NEW = [encoded(picture(n, 8, 6)) for n in (900, 901)]


def pack(folder: Path, name: str, pictures: Iterable[bytes]) -> dict[str, bytes]:
    """Write a tar whose last key is rejected; return {id: picture} of the others."""
    members = {f"{number:03}.png": data for number, data in enumerate(pictures)}
    (folder / "in").mkdir(exist_ok=True)
    suffix = name.partition(".tar")[2]
    (folder / "in" / name).write_bytes(COMPRESS[suffix](tar_of({**members, "bad.png": b"no picture"})))
    return {f"{name}#{key.removesuffix('.png')}": data for key, data in members.items()}


def prepare_media_night(folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Embed folder/in into folder/out three times, then change the corpus; return {id: picture} of before and after."""
    pictures = [encoded(picture(n, 8, 6)) for n in range(140)]

    def night() -> None:
        embed_media(folder / "in/*", folder / "out", StubPictures(), **OPTIONS)

    rows = pack(folder, "a.tar", pictures[:60]) | pack(folder, "b.tar.gz", pictures[60:62])
    night()
    rows |= pack(folder, "c.tar", pictures[70:130])
    night()
    for number, data in enumerate(pictures[130:133]):
        (folder / f"in/d{number}.png").write_bytes(data)
        rows[f"d{number}.png"] = data
    night()
    (folder / "in/b.tar.gz").unlink()
    kept = {name: data for name, data in rows.items() if not name.startswith("b")}
    (folder / "in/d0.png").rename(folder / "in/moved.png")
    kept["moved.png"] = kept.pop("d0.png")
    return rows, kept | pack(folder, "e.tar.gz", [*pictures[56:62], *NEW])


def crashing_media_run(root: str, output: str, nth: int, late: bool, effect: str) -> None:
    """Embed `root`/in into `root`/`output`; the process is killed as killed_at has it."""
    options = EmbedOptions(
        [], input=[f"{root}/in/*"], output=f"{root}/{output}", head="image", checkpoint="untrained", **OPTIONS
    )
    with killed_at(root, nth, late=late, effect=effect), closing(EmbedCorpus(options, StubPictures())) as corpus:
        run(corpus, options)

"""Shards made by hand, byte by byte."""

import io
import tarfile
from pathlib import Path

from bioclip_hc.data.sample import Sample

ROBIN = ("Animalia", "Chordata", "Aves", "", "Turdidae", "Turdus", "migratorius")
SCORPION = ("Animalia", "Arthropoda", "Arachnida", "Scorpiones", "", "", "")
JPEG = b"\xff\xd8\xff\xe0" + b"jpeg" * 20
ROBIN_TAG = (
    "a photo of kingdom Animalia phylum Chordata class Aves order  family Turdidae "
    "genus Turdus species migratorius."
)


def sample(i: int, lineage=ROBIN, common="", image=JPEG) -> Sample:
    return Sample(f"{i:06d}", image + bytes([i % 256]), lineage, common)


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def robin(key: str, **other: bytes) -> dict[str, bytes]:
    members = {"jpg": JPEG, "taxonTag.txt": ROBIN_TAG.encode()} | other
    return {f"{key}.{extension}": data for extension, data in members.items()}

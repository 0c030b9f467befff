"""Existing shards parted into training and held-out ones: by photograph, or by whole species.

Which samples go where is decided on their lineages and keys; then each shard is copied into two, member by member.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from bioclip_hc.data.lots import choose_share, draw_lot
from bioclip_hc.data.members import Member, group, scan
from bioclip_hc.data.names import epithet, normal
from bioclip_hc.data.parallel import in_order
from bioclip_hc.data.sample import IMAGE_EXTENSIONS
from bioclip_hc.data.seal import seal
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.writer import whole_or_not_at_all
from bioclip_hc.taxonomy import RANKS, Lineage

PARTS = ("train", "heldout")
COPIED = (*IMAGE_EXTENSIONS, "txt", "json")  # endings of members that are copied; others could be code
HYBRID = ("×", "x", "X")
OPEN = ("sp.", "spp.", "cf.", "aff.", "nr.", "sp", "spp", "cf", "aff", "nr")  # no species is named by these alone


# -- which samples


def by_individual(shards: ShardSet, fraction: float, seed: int = 0) -> np.ndarray:
    """(N,) bool: the samples to train on, ceil(fraction * n) of the n of every lineage.

    Raises:
        ValueError: a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    lots = (draw_lot(seed, *shards.lineages[row], shards.key(i)) for i, row in enumerate(shards.lineage_index))
    return choose_share(shards.lineage_index, np.fromiter(lots, np.uint64, len(shards)), fraction)


def by_species(shards: ShardSet, species: Iterable[str]) -> np.ndarray:
    """(N,) bool: the samples to train on, all but those of the species, which are named as `species_name` does."""
    held_out = set(species)
    kept = np.array([species_name(lineage) not in held_out for lineage in shards.lineages])
    return kept[shards.lineage_index]


def species_name(lineage: Lineage) -> str:
    """Genus and epithet, the same for a subspecies and whatever is known of the higher ranks; "" above species.

    Without a genus an epithet says nothing, so the whole lineage is the name. What is but likened to a species, or
    has a number for a name (Turdus cf. merula, Turdus sp. A), keeps all of it. Names are in NFC.
    """
    lineage = tuple(map(normal, lineage))
    *_, genus, species = lineage
    if not species:
        return ""
    if not genus:
        return " > ".join(filter(None, lineage))
    words = epithet(genus, species).split(" ")
    if words[0] not in OPEN:
        words = words[: 2 if words[0] in HYBRID else 1]
    return " ".join([genus, *words])


def species_of(shards: ShardSet) -> dict[str, Lineage]:
    """Each species of the shards and the fullest of its lineages."""
    fullest: dict[str, Lineage] = {}
    for lineage in sorted(shards.lineages, key=lambda lineage: (sum(map(bool, lineage)), lineage)):
        if name := species_name(lineage):
            fullest[name] = lineage
    return fullest


def listed_species(names: Iterable[str], known: Mapping[str, Lineage]) -> list[str]:
    """The species that a list names, one a line: genus and epithet; blank lines and those after a # are none.

    Raises:
        ValueError: names that the shards do not have.
    """
    wanted = [line for name in names if (line := normal(name.partition("#")[0]))]
    found = []
    for name in wanted:
        genus, _, species = name.partition(" ")
        found.append(name if name in known else species_name(("",) * 5 + (genus, species)))
    missing = [name for name, species in zip(wanted, found, strict=True) if species not in known]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} listed species are not in the shards, the first: {missing[0][:200]!r}"
            "; a line holds the genus and the epithet"
        )
    if not found:
        raise ValueError("the list names no species")
    return sorted(set(found))


def choose_species(known: Mapping[str, Lineage], count: int, seed: int = 0) -> list[str]:
    """Species to hold out, drawn by lot so that as many as can be keep a relative in training.

    First those are drawn that leave another species of their genus behind; when there are no more, those that
    leave one of their family, and so on upwards. A species that is the last relative of one held out stays.

    Raises:
        ValueError: a count that is not in [1, number of species).
    """
    if not 1 <= count < len(known):
        raise ValueError(f"from 1 to {len(known) - 1} of {len(known)} species can be held out, got {count}")
    left = Counter(clade for lineage in known.values() for clade in _clades(lineage))
    drawn = sorted(known, key=lambda name: (draw_lot(seed, name), name))
    needed: set[tuple[int, str, str]] = set()  # clades that must keep a species in training
    chosen: dict[str, None] = {}
    for rank in (*reversed(range(len(RANKS) - 1)), None):
        for name in drawn:
            if len(chosen) == count:
                return list(chosen)
            clades = _clades(known[name])
            shared = [clade for clade in clades if clade[0] == rank and left[clade] > 1]
            if name in chosen or (rank is not None and (not shared or _is_last(clades, left, needed))):
                continue
            chosen[name] = None
            left.subtract(clades)
            needed.update(shared)
    return list(chosen)


def kept_ranks(known: Mapping[str, Lineage], held_out: Iterable[str]) -> Counter[str]:
    """Finest rank at which a held-out species has another species in training -> how many; "" for none."""
    gone = set(held_out)
    left = {clade for name, lineage in known.items() if name not in gone for clade in _clades(lineage)}
    finest = ([RANKS[clade[0]] for clade in _clades(known[name]) if clade in left] for name in gone)
    return Counter(ranks[-1] if ranks else "" for ranks in finest)


def _clades(lineage: Lineage) -> list[tuple[int, str, str]]:
    """The known taxa above a species, with the kingdom to tell homonyms apart: ranks between are often missing."""
    return [(r, normal(lineage[0]), normal(name)) for r, name in enumerate(lineage[:-1]) if name]


def _is_last(clades: list[tuple[int, str, str]], left: Counter, needed: set) -> bool:
    return any(clade in needed and left[clade] == 1 for clade in clades)


# -- copying


@dataclass
class Split:
    """What was written.

    Attributes:
        samples, shards: of each part.
        left_behind: ending -> members that are neither pictures nor texts, and were not copied.
    """

    samples: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    shards: dict[str, list[Path]] = field(default_factory=lambda: {part: [] for part in PARTS})
    left_behind: Counter[str] = field(default_factory=Counter)


def write_split(
    shards: ShardSet,
    train: np.ndarray,
    output: Path,
    processes: int = 1,
    on_shard: Callable[[], object] = lambda: None,
) -> Split:
    """Copy every usable sample into a shard of OUTPUT/train or OUTPUT/heldout, with an index and SHA256SUMS.

    A shard becomes two of its name (numbered ones where names repeat), so that keys stay as they are and need be
    unique in their shard only. Pictures, texts and JSON keep their bytes and names; the tars' headers are new. The
    same samples and `train` give the same bytes; both parts appear at the end, together.

    Args:
        train: (N,) bool, True for the training part.

    Raises:
        ValueError: a part would be empty; a shard that changes meanwhile.
        FileExistsError: shards in OUTPUT/train or OUTPUT/heldout.
    """
    if train.all() or not train.any():
        raise ValueError(f"all {len(train)} samples would be {PARTS[not train.any()]}: choose another share")
    names = [path.name for path in shards.paths]
    if len(set(names)) < len(names):
        names = [f"shard-{number:06d}.tar" for number in range(len(names))]
    folders = [output / part for part in PARTS]
    split = Split()
    with whole_or_not_at_all(*folders) as asides:
        jobs = (
            _Job(path, tuple(aside / name for aside in asides), _parts(shards, train, number))
            for number, (path, name) in enumerate(zip(shards.paths, names, strict=True))
        )
        for name, copied in zip(names, in_order(_copy, jobs, processes), strict=True):
            split.left_behind += copied.left_behind
            for part, folder, count in zip(PARTS, folders, copied.samples, strict=True):
                split.samples[part] += count
                if count:
                    split.shards[part].append(folder / name)
            on_shard()
        for part, aside in zip(PARTS, asides, strict=True):
            list(seal([aside / path.name for path in split.shards[part]], processes))
    return split


def _parts(shards: ShardSet, train: np.ndarray, shard: int) -> dict[str, int]:
    """Key -> 0 for training, 1 for held out, of the samples of one shard."""
    return {shards.key(i): int(not train[i]) for i in shards.samples_of(shard)}


class _Job(NamedTuple):
    source: Path
    targets: tuple[Path, ...]  # in the order of PARTS
    part_of: dict[str, int]


class _Copied(NamedTuple):
    samples: tuple[int, ...]
    left_behind: Counter[str]


def _copy(job: _Job) -> _Copied:
    """Copy the samples of one shard into its two; a target without a sample is not made."""
    samples, left_behind, tars = [0] * len(PARTS), Counter[str](), dict[int, tarfile.TarFile]()
    members, _ = scan(job.source)
    rest = dict(job.part_of)
    try:
        with open(job.source, "rb") as source:
            for key, fields in group(members, []):
                part = rest.pop(key, None)  # the first of a key is the one that is used
                if part is None:
                    continue
                if part not in tars:
                    tars[part] = tarfile.open(job.targets[part], "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
                for member in fields.values():
                    ending = member.name.rpartition(".")[2].lower()
                    if ending in COPIED:
                        _add(tars[part], member, source)
                    else:
                        left_behind[ending] += 1
                samples[part] += 1
    finally:
        for tar in tars.values():
            tar.close()
    if rest:
        raise ValueError(f"{job.source} has changed: sample {next(iter(rest))!r} is not there any more")
    return _Copied(tuple(samples), left_behind)


def _add(tar: tarfile.TarFile, member: Member, source: BinaryIO) -> None:
    info = tarfile.TarInfo(member.name)
    info.size = member.size
    info.mode = 0o444
    source.seek(member.offset)
    tar.addfile(info, source)
    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header

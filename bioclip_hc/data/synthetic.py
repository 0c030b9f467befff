"""A synthetic tree of life: species that evolve down a random tree, and shards of their photographs.

# S species, G traits in a genome

`evolve` grows the tree from a seed, `photograph` takes the picture of one individual, `write_tree_of_life` packs
training individuals, held-out individuals of the same species and whole held-out species into shards.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bioclip_hc.data import creatures
from bioclip_hc.data.body_plans import PLANS_OF_KINGDOM
from bioclip_hc.data.nomenclature import KINGDOMS, common_names, name_taxa
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.writer import write_shards
from bioclip_hc.taxonomy import RANKS, Lineage

FORMAT_VERSION = 1  # raise it when the same parameters would give other pictures or names

# Taxa at a rank: 3 (S / 3)^e. "bushy" splits at every rank; "deep" splits near the root, into long lineages
# with few close relatives.
SPLITS = {
    "bushy": (0.0, 0.30, 0.43, 0.57, 0.69, 0.81, 1.0),
    "deep": (0.0, 0.40, 0.60, 0.74, 0.85, 0.93, 1.0),
}
CANDIDATES = 3  # mutants tried per taxon; the one least like its sisters lives (character displacement)

# Ranks that one clade each leaves unnamed: every taxon below a clade of the first rank lacks the second.
GAPS = (("class", "order"), ("order", "family"), ("family", "genus"))


@dataclass(frozen=True)
class TreeOfLife:
    """Species and where they stand.

    Attributes:
        seed: what the tree was grown from; with a species and an individual it determines a photograph.
        lineages: one per species, seven names, "" at an unnamed rank; all paths differ.
        common_names: one invented English name per species, all different.
        genomes: (S, G) float64, see `creatures.TRAITS`.
        nodes: (S, R) int64, the branch of each species at each rank, unnamed ranks included.
    """

    seed: int
    lineages: list[Lineage]
    common_names: list[str]
    genomes: np.ndarray = field(repr=False)
    nodes: np.ndarray = field(repr=False)


def evolve(seed: int, n_species: int = 100, *, shape: str = "bushy") -> TreeOfLife:
    """Grow a tree of life: three kingdoms, every taxon a mutant of its parent.

    Args:
        seed: not negative; the same seed and arguments give the same tree.
        n_species: number of species S, 30 to 500.
        shape: "bushy" (splits at every rank) or "deep" (splits near the root, few close relatives).

    Raises:
        ValueError: a parameter out of its range.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not 30 <= n_species <= 500:
        raise ValueError(f"n_species must be in [30, 500], got {n_species}")
    if shape not in SPLITS:
        raise ValueError(f"shape must be one of {', '.join(SPLITS)}, got {shape!r}")
    rng = np.random.default_rng([seed, 0])
    parents = _grow(n_species, SPLITS[shape], rng)
    genomes = _evolve_genomes(parents, rng)
    nodes = _ancestors(parents)
    names = name_taxa(nodes, rng)
    lineages = [tuple(names[rank][node] for rank, node in enumerate(row)) for row in nodes]
    common = common_names(genomes, nodes, rng)
    return TreeOfLife(seed, _leave_gaps(lineages, nodes, rng), common, genomes, nodes)


def photograph(tree: TreeOfLife, species: int, individual: int, size: int = 72) -> bytes:
    """The JPEG of one individual, `size` pixels square; always the same for (tree.seed, species, individual)."""
    rng = np.random.default_rng([tree.seed, 1, species, individual])
    image = Image.fromarray(creatures.render(tree.genomes[species], rng, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# -- the tree ---------------------------------------------------------------------------------------------


def _grow(n_species: int, exponents: tuple[float, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """Per rank the (taxa,) parents of its taxa at the rank above; kingdoms have the parent 0."""
    roots = len(KINGDOMS)
    parents = [np.zeros(roots, np.int64)]
    for exponent in exponents[1:]:
        above = len(parents[-1])
        count = max(round(roots * (n_species / roots) ** exponent), above)
        weights = rng.dirichlet(np.full(above, 5.0))  # some clades are rich, some poor
        if len(parents) == creatures.PHYLUM:  # but every kingdom has its share of body plans
            extra = np.arange(count - above) % above
        else:
            extra = rng.choice(above, count - above, p=weights)
        parents.append(np.sort(np.concatenate([np.arange(above), extra])))
    return parents


def _ancestors(parents: list[np.ndarray]) -> np.ndarray:
    """(S, R) int64: the taxon of each species at each rank."""
    nodes = [np.arange(len(parents[-1]))]
    for parent in parents[:0:-1]:
        nodes.insert(0, parent[nodes[0]])
    return np.stack(nodes, 1)


def _evolve_genomes(parents: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(S, G): genomes of the species, mutated rank by rank from the kingdoms down."""
    above = np.stack([creatures.kingdom_genome(kingdom, rng) for kingdom in KINGDOMS])
    plans = [list(rng.permutation(PLANS_OF_KINGDOM[kingdom])) for kingdom in KINGDOMS]
    for rank, parent in enumerate(parents[1:], start=1):
        genomes: list[np.ndarray] = []
        for child, p in enumerate(parent):
            genome = _distinct_mutant(above[p], [genomes[k] for k in range(child) if parent[k] == p], rank, rng)
            if rank == creatures.PHYLUM:  # a plan of its own for every phylum, as far as they go
                plans[p].append(plans[p].pop(0))
                genome = creatures.with_trait(genome, "plan", plans[p][-1])
            genomes.append(genome)
        above = np.stack(genomes)
    return above


def _distinct_mutant(
    parent: np.ndarray, sisters: list[np.ndarray], rank: int, rng: np.random.Generator
) -> np.ndarray:
    """(G,): of a few mutants of the parent, the one farthest from its nearest sister."""
    mutants = np.stack([creatures.mutate(parent, rank, rng) for _ in range(CANDIDATES)])
    if not sisters:
        return mutants[0]
    gaps = creatures.genome_distance(mutants[:, None], np.stack(sisters)[None]).min(1)
    return mutants[gaps.argmax()]


def _leave_gaps(lineages: list[Lineage], nodes: np.ndarray, rng: np.random.Generator) -> list[Lineage]:
    """Blank the ranks of GAPS in one clade each: clades of several species, disjoint, without the homonym."""
    named = [list(lineage) for lineage in lineages]
    owners = Counter(name for _, name in {(lineage[0], lineage[creatures.GENUS]) for lineage in lineages})
    whole = np.array([owners[lineage[creatures.GENUS]] == 1 for lineage in lineages])
    for clade_rank, lost in GAPS:
        column = nodes[:, RANKS.index(clade_rank)]
        sizes = np.bincount(column)
        fit = [c for c in range(len(sizes)) if 2 <= sizes[c] <= len(named) // 8 and whole[column == c].all()]
        if not fit:
            continue
        members = np.flatnonzero(column == rng.choice(fit))
        whole[members] = False
        for s in members:
            named[s][RANKS.index(lost)] = ""
    return [tuple(lineage) for lineage in named]


# -- shards -----------------------------------------------------------------------------------------------


class TreeFiles(NamedTuple):
    """What `write_tree_of_life` left in its folder."""

    train: list[Path]
    heldout_individuals: list[Path]
    heldout_species: list[Path]
    taxonomy: Path


@dataclass(frozen=True)
class _Parameters:
    seed: int
    n_species: int
    shape: str
    train: int
    heldout: int
    heldout_species: float
    size: int
    format: int = FORMAT_VERSION


SPLIT_NAMES = ("train", "heldout_individuals", "heldout_species")


def write_tree_of_life(
    folder: str | Path,
    *,
    seed: int = 0,
    n_species: int = 100,
    shape: str = "bushy",
    train: int = 40,
    heldout: int = 10,
    heldout_species: float = 0.12,
    size: int = 72,
) -> TreeFiles:
    """Grow a tree and write it as shards; a folder that already holds the same tree is used as it is.

    The folder gets train/, heldout_individuals/ (new individuals of the training species), heldout_species/
    (all individuals of species that training never sees), taxonomy.csv (all taxa, with common_name) and
    tree.json (the parameters). It appears complete or not at all.

    Args:
        folder: where to; must not exist, be empty, or hold the same tree.
        seed, n_species, shape: the tree, see `evolve`.
        train, heldout: individuals per species for training and for the held-out set.
        heldout_species: share of the species held out whole, in [0, 0.5]; they keep a sister in training where
            their genus has one.
        size: side of the photographs in pixels.

    Raises:
        FileExistsError: the folder holds another tree or other files.
        ValueError: a parameter out of its range.
    """
    folder = Path(folder)
    parameters = _Parameters(seed, n_species, shape, train, heldout, heldout_species, size)
    _check(parameters)
    if _holds(folder, parameters):
        return _files(folder)
    tree = evolve(seed, n_species, shape=shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _write(tree, draft, parameters)
        _publish(draft, folder, parameters)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _files(folder)


def choose_heldout_species(tree: TreeOfLife, share: float) -> np.ndarray:
    """(K,) int64, ascending: species to hold out whole. Genera that keep a species in training give first."""
    wanted = round(share * len(tree.lineages))
    order = np.random.default_rng([tree.seed, 2]).permutation(len(tree.lineages))
    genus = tree.nodes[:, creatures.GENUS]
    left = np.bincount(genus)
    chosen: list[int] = []
    for s in order:
        if len(chosen) < wanted and left[genus[s]] > 1:
            left[genus[s]] -= 1
            chosen.append(int(s))
    chosen += [int(s) for s in order if s not in chosen][: wanted - len(chosen)]
    return np.array(sorted(chosen), np.int64)


def _check(p: _Parameters) -> None:
    if p.train < 1 or p.heldout < 1:
        raise ValueError(f"train and heldout must be at least 1 individual, got {p.train} and {p.heldout}")
    if not 0 <= p.heldout_species <= 0.5:
        raise ValueError(f"heldout_species must be a share in [0, 0.5], got {p.heldout_species}")
    if p.size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {p.size}")


def _holds(folder: Path, parameters: _Parameters) -> bool:
    """Whether the folder holds exactly this tree; False if there is nothing, an error if there is another thing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "tree.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(
            f"{folder} exists and is no tree of life (no readable tree.json); choose another folder or remove it"
        ) from None
    wanted = asdict(parameters)
    if found != wanted:
        differing = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
        raise FileExistsError(
            f"{folder} holds another tree of life (different {', '.join(differing)}); choose another folder or "
            "remove it"
        )
    return True


def _files(folder: Path) -> TreeFiles:
    train, individuals, species = (sorted((folder / name).glob("*.tar")) for name in SPLIT_NAMES)
    return TreeFiles(train, individuals, species, folder / "taxonomy.csv")


def _write(tree: TreeOfLife, folder: Path, p: _Parameters) -> None:
    unseen = choose_heldout_species(tree, p.heldout_species)
    seen = np.setdiff1d(np.arange(len(tree.lineages)), unseen)
    individuals = np.arange(p.train + p.heldout)
    splits = ((seen, individuals[: p.train]), (seen, individuals[p.train :]), (unseen, individuals))
    rng = np.random.default_rng([tree.seed, 3])
    for name, (species, members) in zip(SPLIT_NAMES, splits, strict=True):
        pairs = np.stack(np.meshgrid(species, members, indexing="ij"), -1).reshape(-1, 2)
        if len(pairs):
            write_shards(_samples(tree, rng.permutation(pairs), p.size), folder / name, samples_per_shard=1000)
    _write_taxonomy(tree, folder / "taxonomy.csv")
    (folder / "tree.json").write_text(json.dumps(asdict(p), indent=2) + "\n", encoding="utf-8")


def _samples(tree: TreeOfLife, pairs: np.ndarray, size: int) -> Iterator[Sample]:
    for s, individual in pairs.tolist():
        image = photograph(tree, s, individual, size)
        yield Sample(f"{s:04d}_{individual:04d}", image, tree.lineages[s], tree.common_names[s])


def _write_taxonomy(tree: TreeOfLife, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*RANKS, "common_name"])
        writer.writerows([*lineage, name] for lineage, name in zip(tree.lineages, tree.common_names, strict=True))


def _publish(draft: Path, folder: Path, parameters: _Parameters) -> None:
    """Rename the finished draft; should another process have been faster with the same tree, keep that one."""
    try:
        draft.rename(folder)
    except OSError:
        if not _holds(folder, parameters):
            raise


# -- for human eyes ---------------------------------------------------------------------------------------


SIDE, CAPTION, GAP, HEADING = 72, 250, 6, 22  # pixels of a sheet: photograph, name beside it, margin, family


def contact_sheet(tree: TreeOfLife, path: str | Path, *, individuals: int = 6, columns: int = 3) -> None:
    """Write a PNG field guide: species in rows under their families, photographs and names beside."""
    from matplotlib.font_manager import findfont  # its font has the letters that Latin names need

    font = ImageFont.truetype(findfont("DejaVu Sans"), 11)
    families = _families(tree)
    height = sum(HEADING + SIDE * len(members) for members in families)
    width = individuals * SIDE + CAPTION + 3 * GAP
    tallest = max(len(members) for members in families) * SIDE + HEADING
    sheet = Image.new("RGB", (width * columns, height // columns + tallest + 2 * GAP), PAPER)
    column, y, bottom = 0, GAP, 0
    for members in families:
        if y + SIDE * len(members) / 2 > height / columns and column < columns - 1:
            column, y = column + 1, GAP
        y = _draw_family(sheet, tree, members, individuals, column * width + GAP, y, font)
        bottom = max(bottom, y)
    sheet.crop((0, 0, sheet.width, bottom + GAP)).save(path)


PAPER, BROWN, GREY = (250, 249, 245), (110, 60, 20), (40, 40, 40)


def _families(tree: TreeOfLife) -> list[np.ndarray]:
    """The species of each family, in order of the tree."""
    starts = np.flatnonzero(np.diff(tree.nodes[:, creatures.FAMILY])) + 1
    return np.split(np.arange(len(tree.lineages)), starts)


def _draw_family(
    sheet: Image.Image,
    tree: TreeOfLife,
    members: np.ndarray,
    individuals: int,
    x: int,
    y: int,
    font: ImageFont.FreeTypeFont,
) -> int:
    """Draw one family with its corner at (x, y); returns the y below it."""
    draw = ImageDraw.Draw(sheet)
    title = " > ".join(filter(None, tree.lineages[members[0]][: creatures.GENUS]))
    draw.text((x, y + 4), title, fill=BROWN, font=font)
    y += HEADING
    for s in members.tolist():
        for k in range(individuals):
            sheet.paste(Image.open(io.BytesIO(photograph(tree, s, k, SIDE))), (x + k * SIDE, y))
        latin = " ".join(filter(None, tree.lineages[s][creatures.GENUS :]))
        name = f"{tree.common_names[s]}\n{latin}"
        draw.multiline_text((x + individuals * SIDE + GAP, y + 18), name, fill=GREY, font=font)
        y += SIDE
    return y

"""The synthetic tree of life: its laws, its pictures, its folder."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bioclip_hc.data import creatures
from bioclip_hc.data.body_plans import BODY_PLANS, PLANS_OF_KINGDOM
from bioclip_hc.data.creatures import GENUS, genome_distance, render, with_trait
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.synthetic import (
    SPLIT_NAMES,
    TreeFiles,
    TreeOfLife,
    choose_heldout_species,
    contact_sheet,
    evolve,
    photograph,
    write_tree_of_life,
)
from bioclip_hc.taxonomy import RANKS, Taxonomy, as_lineage

SMALL: dict[str, Any] = {"n_species": 30, "train": 3, "heldout": 2, "size": 32}
SEEDS = range(5)


@pytest.fixture(scope="module")
def trees() -> list[TreeOfLife]:
    return [evolve(seed, 60) for seed in SEEDS]


def pairs(tree: TreeOfLife) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of species and how many ranks they share."""
    i, j = np.triu_indices(len(tree.lineages), 1)
    return i, j, (tree.nodes[i] == tree.nodes[j]).sum(1)


# -- the tree


@pytest.mark.parametrize("shape", ["bushy", "deep"])
@pytest.mark.parametrize("n_species", [30, 60, 100, 150, 500])
def test_tree_has_the_wanted_species_with_distinct_paths_and_names(n_species: int, shape: str) -> None:
    for seed in range(4):
        tree = evolve(seed, n_species, shape=shape)
        assert len(tree.lineages) == len(set(tree.lineages)) == n_species
        assert len(tree.common_names) == len(set(tree.common_names)) == n_species
        assert tree.genomes.shape == (n_species, len(creatures.TRAITS))
        assert all(lineage == as_lineage(lineage) for lineage in tree.lineages)
        assert {lineage[0] for lineage in tree.lineages} == set(PLANS_OF_KINGDOM)
        assert not any(np.isnan(tree.genomes).ravel())


def test_named_taxa_are_the_branches_of_the_tree(trees: list[TreeOfLife]) -> None:
    # Two species share a named taxon exactly where they share the branch.
    for tree in trees:
        taxonomy = Taxonomy.from_lineages(tree.lineages)
        ids = taxonomy.encode_many(tree.lineages)
        for rank in range(len(RANKS)):
            known = ids[:, rank] >= 0
            by_name = ids[known, rank][:, None] == ids[known, rank]
            by_branch = tree.nodes[known, rank][:, None] == tree.nodes[known, rank]
            np.testing.assert_array_equal(by_name, by_branch)


def test_gaps_homonym_and_unusual_names_occur_in_every_tree() -> None:
    for seed in range(10):
        tree = evolve(seed)
        taxonomy = Taxonomy.from_lineages(tree.lineages)
        assert all(taxonomy.report.missing[rank] >= 2 for rank in ("order", "family", "genus"))
        kingdoms: dict[str, set[str]] = {}
        for lineage in tree.lineages:
            kingdoms.setdefault(lineage[GENUS], set()).add(lineage[0])
        assert [len(k) for name, k in kingdoms.items() if name and len(k) > 1] == [2]
        epithets = [lineage[-1] for lineage in tree.lineages]
        assert all(lineage[-1] for lineage in tree.lineages)
        assert Counter(epithets).most_common(1)[0][1] > 1  # epithets repeat, as in life
        assert any(e.startswith("×") for e in epithets)
        assert sum(not e.isascii() for e in epithets) == 3


def test_shape_moves_the_splits() -> None:
    genera = {shape: len(set(evolve(0, shape=shape).nodes[:, GENUS])) for shape in ("bushy", "deep")}
    assert genera["bushy"] == 51
    assert genera["deep"] == 78


def test_same_seed_same_tree_other_seed_other_tree() -> None:
    one, same, other = evolve(3, 40), evolve(3, 40), evolve(4, 40)
    assert one.lineages == same.lineages
    assert one.common_names == same.common_names
    np.testing.assert_array_equal(one.genomes, same.genomes)
    assert one.lineages != other.lineages


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"seed": 0, "n_species": 29}, r"n_species must be in \[30, 500\], got 29"),
        ({"seed": 0, "shape": "tall"}, "shape must be one of bushy, deep, got 'tall'"),
    ],
)
def test_bad_tree_parameters_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evolve(**kwargs)


# -- evolution


def test_nearer_relatives_have_nearer_genomes(trees: list[TreeOfLife]) -> None:
    total, count = np.zeros(len(RANKS)), np.zeros(len(RANKS))
    for tree in trees:
        i, j, shared = pairs(tree)
        np.add.at(total, shared, genome_distance(tree.genomes[i], tree.genomes[j]))
        np.add.at(count, shared, 1)
    mean = total / count
    assert (np.diff(mean) < 0).all(), mean.round(3)


def test_nearer_relatives_look_more_alike(trees: list[TreeOfLife]) -> None:
    # Mean squared pixel distance between species' average pictures. Two disjoint halves of the individuals give
    # an estimate free of the bias of averages over few. Neighbouring depths are pooled, for pictures are noisy.
    depth_of = np.array([0, 1, 1, 2, 2, 2, 3])  # kingdoms apart; classes; families; within a genus
    total, count = np.zeros(4), np.zeros(4)
    for tree in trees:
        halves = np.zeros((2, len(tree.lineages), 32, 32, 3))
        for s, genome in enumerate(tree.genomes):
            for k in range(16):
                halves[k % 2, s] += render(genome, np.random.default_rng([tree.seed, s, k]), 32) / 8.0
        i, j, shared = pairs(tree)
        one, other = halves[:, i] - halves[:, j]
        np.add.at(total, depth_of[shared], (one * other).mean((1, 2, 3)))
        np.add.at(count, depth_of[shared], 1)
    mean = total / count
    assert (np.diff(mean) < 0).all(), mean.round(1)
    assert mean[3] > 0  # sisters do differ


def test_phyla_of_a_kingdom_have_plans_of_their_own() -> None:
    tree = evolve(0)
    plans = tree.genomes[:, creatures.NAMES.index("plan")].astype(int)
    seen = {(int(node), int(plan)) for node, plan in zip(tree.nodes[:, creatures.PHYLUM], plans, strict=True)}
    assert len(seen) == len({phylum for phylum, _ in seen}) == len({plan for _, plan in seen}) == 9
    for lineage, plan in zip(tree.lineages, plans, strict=True):
        assert plan in PLANS_OF_KINGDOM[lineage[0]]


def test_traits_stay_in_range_and_plans_are_not_mutated() -> None:
    rng = np.random.default_rng(0)
    choices = np.array([trait.choices for trait in creatures.TRAITS])
    genome = with_trait(creatures.kingdom_genome("Fungi", rng), "plan", 11)
    for step in range(300):
        genome = creatures.mutate(genome, step % 7, rng)
        assert genome[0] == 11
        continuous, states = genome[choices == 0], genome[choices > 0]
        assert ((continuous >= 0) & (continuous <= 1)).all()
        assert ((states >= 0) & (states < choices[choices > 0]) & (states % 1 == 0)).all()


def test_genome_distance_wraps_hue_and_counts_categories() -> None:
    genome = creatures.kingdom_genome("Plantae", np.random.default_rng(0))
    near = genome_distance(with_trait(genome, "hue", 0.98), with_trait(genome, "hue", 0.02))
    assert near == pytest.approx(0.04 / np.sqrt(len(genome)))
    apart = genome_distance(with_trait(genome, "pattern", 0), with_trait(genome, "pattern", 5))
    assert apart == pytest.approx(1 / np.sqrt(len(genome)))


# -- pictures


@pytest.mark.parametrize("plan", range(len(BODY_PLANS)), ids=[plan.name for plan in BODY_PLANS])
def test_every_plan_draws_extreme_genomes_inside_the_picture(plan: int) -> None:
    for value in (0.0, 0.5, 1.0):
        for state in range(4):
            genome = np.array([state if trait.choices else value for trait in creatures.TRAITS], float)
            parts = BODY_PLANS[plan].draw(dict(zip(creatures.NAMES, genome, strict=True)), np.random.default_rng(0))
            points = np.concatenate([points for _, points in parts])
            assert np.isfinite(points).all()
            assert np.abs(points).max() < 2.2
            image = render(with_trait(genome, "plan", plan), np.random.default_rng(0), 48)
            assert image.shape == (48, 48, 3)
            assert image.dtype == np.uint8
            assert image.std() > 5


def test_photographs_depend_on_seed_species_and_individual_only() -> None:
    tree = evolve(1, 30)
    first = photograph(tree, 2, 5)
    assert first == photograph(evolve(1, 30), 2, 5)
    assert len({first, photograph(tree, 2, 6), photograph(tree, 3, 5), photograph(evolve(2, 30), 2, 5)}) == 4
    image = Image.open(io.BytesIO(first))
    assert (image.format, image.size, image.mode) == ("JPEG", (72, 72), "RGB")


def test_rendering_is_fast() -> None:
    tree = evolve(0, 60)
    start = time.process_time()
    for species in range(60):
        photograph(tree, species, 0)
    assert 60 / (time.process_time() - start) > 150  # about 500 a second on one core


def test_contact_sheet_is_a_picture_of_all_species(tmp_path: Path) -> None:
    contact_sheet(evolve(0, 30), tmp_path / "sheet.png", individuals=2, columns=2)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height > 30 * 72 / 2
    assert sheet.width > 2 * 2 * 72


# -- the folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TreeFiles]:
    folder = tmp_path_factory.mktemp("tree") / "life"
    return folder, write_tree_of_life(folder, **SMALL)


def contents(files: TreeFiles) -> list[bytes]:
    shards = [*files.train, *files.heldout_individuals, *files.heldout_species]
    return [path.read_bytes() for path in [*shards, files.taxonomy]]


def test_folder_holds_three_disjoint_splits(written: tuple[Path, TreeFiles]) -> None:
    folder, files = written
    assert sorted(p.name for p in folder.iterdir()) == sorted([*SPLIT_NAMES, "taxonomy.csv", "tree.json"])
    assert [p.name for p in folder.parent.iterdir()] == ["life"]  # no draft left behind
    sets = [ShardSet(paths) for paths in files[:3]]
    unseen = round(0.12 * 30)
    assert [len(s) for s in sets] == [(30 - unseen) * 3, (30 - unseen) * 2, unseen * 5]
    keys = [{s.key(i) for i in range(len(s))} for s in sets]
    assert len(set.union(*keys)) == sum(map(len, keys)) == 30 * 5
    species = [set(s.lineages) for s in sets]
    assert species[0] == species[1]
    assert not species[0] & species[2]
    assert species[0] | species[2] == set(evolve(0, 30).lineages)


def test_samples_read_back_as_photographs(written: tuple[Path, TreeFiles]) -> None:
    tree, train = evolve(0, 30), ShardSet(written[1].train)
    for i in (0, 11, len(train) - 1):
        sample = train.read(i)
        species, individual = map(int, sample.key.split("_"))
        assert sample.image == photograph(tree, species, individual, 32)
        assert sample.lineage == tree.lineages[species]
        assert sample.common_name == tree.common_names[species]


def test_taxonomy_lists_every_species_with_its_common_name(written: tuple[Path, TreeFiles]) -> None:
    tree = evolve(0, 30)
    with written[1].taxonomy.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [as_lineage({rank: row[rank] for rank in RANKS}) for row in rows] == tree.lineages
    taxonomy = Taxonomy.from_csv(written[1].taxonomy)
    leaves = [int(ids[-1]) for ids in taxonomy.encode_many(tree.lineages)]
    assert [taxonomy.extra["common_name"][t] for t in leaves] == tree.common_names


def test_same_parameters_same_bytes_and_reuse(written: tuple[Path, TreeFiles], tmp_path: Path) -> None:
    folder, files = written
    again = write_tree_of_life(tmp_path / "a" / "b", **SMALL)
    assert contents(again) == contents(files)
    before = [path.stat().st_mtime_ns for path in files.train]
    assert write_tree_of_life(folder, **SMALL) == files
    assert [path.stat().st_mtime_ns for path in files.train] == before


def test_another_tree_in_the_folder_is_kept(written: tuple[Path, TreeFiles]) -> None:
    folder, files = written
    before = contents(files)
    with pytest.raises(FileExistsError, match=r"another tree of life \(different seed\); choose another"):
        write_tree_of_life(folder, seed=1, **SMALL)
    assert contents(files) == before


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"seed": 0})])
def test_other_files_are_never_overwritten(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    if content is not None:
        (tmp_path / "tree.json").write_text(content)
    with pytest.raises(FileExistsError, match="choose another folder or remove it"):
        write_tree_of_life(tmp_path, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    files = write_tree_of_life(tmp_path, **SMALL | {"heldout_species": 0.0})
    assert files.train
    assert not files.heldout_species


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("bioclip_hc.data.synthetic.photograph", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tree_of_life(tmp_path / "life", **SMALL)
    assert not list(tmp_path.iterdir())


def test_heldout_species_keep_a_sister_in_training() -> None:
    for seed in range(5):
        tree = evolve(seed)
        unseen = choose_heldout_species(tree, 0.12)
        assert len(unseen) == 12
        seen = np.setdiff1d(np.arange(100), unseen)
        assert np.isin(tree.nodes[unseen, GENUS], tree.nodes[seen, GENUS]).all()
    assert len(choose_heldout_species(evolve(0, shape="deep"), 0.5)) == 50  # more than can keep a sister


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"train": 0}, "at least 1 individual, got 0 and 10"),
        ({"heldout_species": 0.9}, r"a share in \[0, 0.5\], got 0.9"),
        ({"size": 8}, "size must be at least 16 pixels, got 8"),
    ],
)
def test_bad_folder_parameters_are_named(tmp_path: Path, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_tree_of_life(tmp_path / "life", **kwargs)
    assert not (tmp_path / "life").exists()

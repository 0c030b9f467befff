"""Shards parted: nothing lost, nothing twice, every byte as it was; and species whose relatives stay."""

import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards_by_hand import JPEG, ROBIN_TAG, write_tar
from small_run import LINEAGES

from bioclip_hc.data import split as module
from bioclip_hc.data.build import split_by_individual
from bioclip_hc.data.checksums import read_sums
from bioclip_hc.data.sample import Sample
from bioclip_hc.data.seal import seal
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.split import (
    by_individual,
    by_species,
    choose_species,
    kept_ranks,
    listed_species,
    species_name,
    species_of,
    write_split,
)
from bioclip_hc.data.writer import write_shards
from bioclip_hc.taxonomy import RANKS

MERULA, MIGRATORIUS, CORAX, VULPES, CANINA, FAGALES = LINEAGES


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """60 samples of six lineages in three shards, each with bytes of its own; some have common names."""
    names = ("", "robin", "", "fox", "", "")
    samples = [Sample(f"p{i:03d}", JPEG + bytes([i]), LINEAGES[i % 6], names[i % 6]) for i in range(60)]
    return ShardSet(write_shards(samples, tmp_path_factory.mktemp("whole"), samples_per_shard=20))


def contents(folder):
    """Key -> (image, lineage, common name) of a folder of shards, each key once."""
    found = ShardSet(folder)
    samples = {found.key(i): found.read(i)[1:] for i in range(len(found))}
    assert len(samples) == len(found)
    assert found.bad == []
    return samples


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("by", ["individual", "species"])
def test_the_parts_are_disjoint_and_together_whole(shards, tmp_path, by, processes):
    train = (
        by_individual(shards, 0.5) if by == "individual" else by_species(shards, ["Turdus merula", "Rosa canina"])
    )
    outcome = write_split(shards, train, tmp_path, processes)
    kept, held_out = contents(tmp_path / "train"), contents(tmp_path / "heldout")
    assert not kept.keys() & held_out.keys()
    assert kept | held_out == {shards.key(i): shards.read(i)[1:] for i in range(60)}
    assert kept.keys() == {shards.key(i) for i in np.flatnonzero(train)}
    assert outcome.samples == {"train": len(kept), "heldout": len(held_out)}
    if by == "species":
        assert {sample[1] for sample in held_out.values()} == {MERULA, CANINA}
        assert not {MERULA, CANINA} & {sample[1] for sample in kept.values()}
    for part in ("train", "heldout"):
        assert outcome.shards[part] == sorted((tmp_path / part).glob("*.tar"))
        assert list(seal(outcome.shards[part], check=True)) == []
        assert len(read_sums(tmp_path / part)) == 3


def test_by_individual_is_the_split_of_a_build(shards):
    samples = [shards.read(i) for i in range(60)]
    for fraction, seed in ((0.5, 0), (0.3, 1), (0.99, 2)):
        train = by_individual(shards, fraction, seed)
        kept, _ = split_by_individual(samples, fraction, seed)
        assert [samples[i] for i in np.flatnonzero(train)] == kept
        assert all(train[shards.lineage_index == row].any() for row in range(6))
    assert (by_individual(shards, 0.5, 0) != by_individual(shards, 0.5, 1)).any()


def test_the_same_arguments_give_the_same_bytes(shards, tmp_path):
    for name in "ab":
        write_split(shards, by_individual(shards, 0.5), tmp_path / name, 1 + (name == "b"))
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.tar"))]
    assert len(files) == 6
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_every_text_of_a_sample_is_copied_and_nothing_that_could_be_code(tmp_path):
    tag = ROBIN_TAG.encode()
    written = {
        "birds/1.jpg": JPEG,
        "birds/1.taxonTag.txt": tag,
        "birds/1.taxonTag_com.txt": tag.replace(b".", b" with common name r\xc3\xb6bin."),
        "birds/1.sci.txt": b"  as it is \n",
        "birds/1.meta.JSON": json.dumps({"licence": "CC0"}).encode(),
        "birds/1.vector.pkl": b"cos\nsystem",
        "birds/1.cls": b"7",
        "2.jpg": JPEG,
        "2.taxonTag.txt": tag,
        "2.com.txt": b"a photo of robin.",
        "3.jpg": JPEG,  # no caption: not usable
        "4.PNG": b"\x89PNG\r\n\x1a\n", "4.taxonTag.txt": tag,
        "2.jpeg": JPEG, "2.taxonTag.TXT": tag,  # the key again: not usable
    }  # fmt: skip
    shards = ShardSet(write_tar(tmp_path / "s.tar", written))
    assert {bad.key for bad in shards.bad} == {"3", "2"}
    outcome = write_split(shards, np.array([True, False, False]), tmp_path / "out")
    first, second = (members(tmp_path / "out" / part / "s.tar") for part in ("train", "heldout"))
    names = [name for name in written if name[:2] not in ("3.", "2.", "4.") and not name.endswith(("pkl", "cls"))]
    assert first == {name: written[name] for name in names}
    assert second == {
        name: written[name] for name in ("2.jpg", "2.taxonTag.txt", "2.com.txt", "4.PNG", "4.taxonTag.txt")
    }
    assert outcome.left_behind == {"pkl": 1, "cls": 1}


def test_keys_may_repeat_between_shards_and_names_of_shards_too(tmp_path):
    for number, folder in enumerate("ab"):
        samples = [Sample(f"{i}", JPEG + bytes([number, i]), MERULA) for i in range(4)]
        write_shards(samples, tmp_path / folder)
    shards = ShardSet([tmp_path / "a", tmp_path / "b"])
    train = np.array([1, 1, 0, 0, 0, 1, 1, 1], bool)
    outcome = write_split(shards, train, tmp_path / "out")
    assert outcome.samples == {"train": 5, "heldout": 3}
    found = [ShardSet(tmp_path / "out" / part) for part in ("train", "heldout")]
    images = [[each.read(i).image for i in range(len(each))] for each in found]
    assert sorted(images[0] + images[1]) == sorted(shards.read(i).image for i in range(8))
    assert [image[-2:] for image in images[1]] == [b"\0\2", b"\0\3", b"\1\0"]


def test_what_fails_leaves_no_shard(shards, tmp_path, monkeypatch):
    calls = []

    def fail(job):
        calls.append(job)
        if len(calls) == 3:
            raise OSError("disk full")
        return copy(job)

    copy = module._copy
    monkeypatch.setattr(module, "_copy", fail)
    with pytest.raises(OSError, match="disk full"):
        write_split(shards, by_individual(shards, 0.5), tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.tar")) == []
    assert not list((tmp_path / "out").rglob(".building*"))


@pytest.mark.parametrize("part", [0, 1])
def test_an_empty_part_is_refused(shards, tmp_path, part):
    with pytest.raises(ValueError, match=f"all 60 samples would be {('heldout', 'train')[part]}"):
        write_split(shards, np.full(60, bool(part)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_shards_that_changed_meanwhile_are_told(tmp_path):
    (path,) = write_shards([Sample(f"{i}", JPEG, MERULA) for i in range(4)], tmp_path)
    shards = ShardSet(path)
    path.unlink()
    write_shards([Sample(f"{i}", JPEG, MERULA) for i in range(3)], tmp_path)
    with pytest.raises(ValueError, match=r"has changed: sample '3' is not there any more"):
        write_split(shards, np.array([True, False, False, False]), tmp_path / "out")


# -- species


@pytest.mark.parametrize(
    ("lineage", "name"),
    [
        (MERULA, "Turdus merula"),
        ((*MERULA[:3], "", "", "Turdus", "merula"), "Turdus merula"),  # less known of it
        ((*MERULA[:6], "merula azorensis"), "Turdus merula"),
        ((*MERULA[:6], "× fuliginosa alba"), "Turdus × fuliginosa"),
        ((*MERULA[:6], "Turdus merula"), "Turdus merula"),  # the genus again
        ((*MERULA[:6], "Turdus merula azorensis"), "Turdus merula"),
        ((*MERULA[:6], "cf. merula"), "Turdus cf. merula"),
        ((*MERULA[:6], "Turdus sp. A"), "Turdus sp. A"),
        ((*MERULA[:6], "gu\u0308ntheri"), "Turdus g\u00fcntheri"),
        (("Animalia", "", "", "", "Turdidae", "", "merula"), "Animalia > Turdidae > merula"),
        (FAGALES, ""),
    ],
)
def test_a_species_is_one_under_all_its_names(lineage, name):
    assert species_name(lineage) == name


def test_a_listed_species_takes_its_subspecies_with_it(tmp_path):
    subspecies = (*MERULA[:3], "", *MERULA[4:6], "merula azorensis")
    samples = [Sample(f"{i}", JPEG, lineage) for i, lineage in enumerate((MERULA, subspecies, CORAX, FAGALES))]
    shards = ShardSet(write_shards(samples, tmp_path))
    known = species_of(shards)
    assert known == {"Turdus merula": MERULA, "Corvus corax": CORAX}  # the fuller lineage
    chosen = listed_species(["# blackbird", "", " Turdus  merula  # Amsel", "Turdus merula azorensis"], known)
    assert chosen == ["Turdus merula"]
    assert by_species(shards, chosen).tolist() == [False, False, True, True]


def test_both_spellings_of_a_letter_are_held_out_together(tmp_path):
    composed, apart = (*MERULA[:5], "B\u00e9nus", "g\u00fcntheri"), (*MERULA[:5], "Be\u0301nus", "gu\u0308ntheri")
    sister = (*MERULA[:5], "Be\u0301nus", "alba")
    samples = [Sample(f"{i}", JPEG, lineage) for i, lineage in enumerate((composed, apart, sister))]
    shards = ShardSet(write_shards(samples, tmp_path))
    known = species_of(shards)
    chosen = listed_species(["Be\u0301nus gu\u0308ntheri"], known)
    assert by_species(shards, chosen).tolist() == [False, False, True]
    known = {name: composed if name in chosen else sister for name in known}
    assert kept_ranks(known, chosen) == {"genus": 1}


LINEAGE = st.tuples(
    *map(st.sampled_from, (["A", "B"], ["", "p"], ["", "c", "d"], ["o"], ["f", "g", ""], "ghij", "stuvwx"))
)


@given(st.sets(LINEAGE, min_size=2, max_size=40), st.data())
def test_as_many_species_as_can_be_keep_their_genus(lineages, data):
    known = {species_name(lineage): lineage for lineage in sorted(lineages)}
    if len(known) < 2:
        return
    count = data.draw(st.integers(1, len(known) - 1))
    seed = data.draw(st.integers(0, 5))
    chosen = choose_species(known, count, seed)
    assert len(set(chosen)) == count
    assert set(chosen) <= known.keys()
    assert choose_species(dict(sorted(known.items(), reverse=True)), count, seed) == chosen
    genera = {}
    for name, lineage in known.items():
        genera.setdefault((lineage[0], lineage[5]), []).append(name)
    spare = sum(len(species) - 1 for species in genera.values())  # one of each genus must stay
    assert sum(kept_ranks(known, chosen).values()) == count
    if count <= spare:
        assert kept_ranks(known, chosen) == {"genus": count}


def test_the_next_relative_is_kept_where_a_genus_has_one_species():
    family = [("K", "P", "C", "O", "F", f"G{i}", "s") for i in range(3)]
    order = [("K", "P", "C", "O", f"F{i}", f"H{i}", "s") for i in range(2)]
    known = {species_name(lineage): lineage for lineage in family + order}
    for seed in range(5):
        assert kept_ranks(known, choose_species(known, 2, seed)) == {"family": 2}
        assert kept_ranks(known, choose_species(known, 3, seed)) == {"family": 2, "order": 1}
    alone = {species_name(lineage): lineage for lineage in [("K", *[""] * 4, "G", "s"), ("L", *[""] * 4, "H", "s")]}
    assert kept_ranks(alone, choose_species(alone, 1)) == {"": 1}


def test_the_draw_depends_on_the_seed():
    known = {f"G{i} s": ("K", "P", "C", "O", "F", f"G{i % 5}", f"s{i}") for i in range(30)}
    assert len({tuple(sorted(choose_species(known, 5, seed))) for seed in range(10)}) > 8
    assert RANKS[5] == "genus"

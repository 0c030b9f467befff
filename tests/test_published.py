"""published.toml: the figures agree with each other, and what cannot be meant is refused."""

import copy
import subprocess
import sys
import tomllib
from importlib import resources

import pytest

from bioclip_hc.data.prompts import PRESETS
from bioclip_hc.evaluation.published import all_published, published, published_on, read_published, recipes
from bioclip_hc.taxonomy import RANKS

KEYS = ["openclip-vit-b-16", "bioclip", "rcme", "bioclip-hc-euclidean", "bioclip-hc-hyperbolic", "bioclip-2"]


@pytest.fixture
def content():
    text = (resources.files("bioclip_hc.evaluation") / "published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def test_every_system_is_obtained_and_asked_in_a_known_way():
    assert list(recipes()) == KEYS
    for recipe in recipes().values():
        assert recipe.prompts in PRESETS
    assert {r.key for r in recipes().values() if not r.revision} == {
        "rcme", "bioclip-hc-euclidean", "bioclip-hc-hyperbolic",
    }  # fmt: skip  # of which no commit is known; the loader says so


def test_averages_are_the_means_of_their_rows():
    """Each printed figure is within half of its last digit of what it stands for."""
    rows = all_published()
    assert len(rows) == 20
    for row in rows:
        mean = sum(row.accuracy.values()) / len(row.accuracy)
        if row.protocol == "top-down":  # where nLCA is that mean, as a share
            assert row.average is None
            assert row.nlca == pytest.approx(mean / 100, abs=0.005 + 0.00005), row
        else:
            assert row.nlca is None
            assert row.average == pytest.approx(mean, abs=0.005 + 0.005), row


def test_protocols_coincide_at_the_first_rank_but_where_the_table_contradicts_itself():
    contradictions = set()
    for row in all_published():
        other = published(row.system, row.benchmark, "coarse-to-fine")
        first = next(iter(row.accuracy))
        if abs(row.accuracy[first] - other.accuracy[first]) > 0.011:
            contradictions.add((row.system, row.benchmark, first))
    assert contradictions == {("bioclip", "inat21", "kingdom")}
    assert {(r.system, r.benchmark, r.protocol) for r in all_published() if r.sic} == {
        ("bioclip", "inat21", "top-down")
    }
    assert "86.28" in published("bioclip", "inat21", "top-down").sic


def test_the_claims_of_the_abstract_and_the_project_page():
    ours = [published(f"bioclip-hc-{g}", "inat21", "coarse-to-fine").average for g in ("euclidean", "hyperbolic")]
    assert max(ours) == 78.96
    assert max(ours) - published("bioclip", "inat21", "coarse-to-fine").average == pytest.approx(30.47)
    nlca = {key: published(key, "inat21", "top-down").nlca for key in KEYS[:5]}
    assert (nlca["bioclip-hc-hyperbolic"], nlca["rcme"], nlca["bioclip"]) == (0.71, 0.43, 0.32)


def test_what_was_not_published_is_none():
    assert published("bioclip-2", "inat21", "coarse-to-fine") is None
    assert published("bioclip", "rare-species", "top-down") is None
    assert published("bioclip", "treeoflife", "coarse-to-fine") is None


def test_figures_by_protocol_as_a_report_sets_them_beside_its_own():
    both = published_on("rcme", "inat21")
    assert list(both) == ["coarse-to-fine", "top-down"]
    assert list(both["coarse-to-fine"]) == [*RANKS, "average"]
    assert list(both["top-down"]) == [*RANKS, "nlca"]
    assert (both["coarse-to-fine"]["average"], both["top-down"]["nlca"]) == (63.0, 0.43)
    cryptic = published_on("bioclip", "crypticbio")["coarse-to-fine"]
    assert cryptic == {"order": 81.34, "family": 39.29, "genus": 37.71, "species": 36.72, "average": 48.77}
    assert published_on("bioclip-2", "inat21") == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["systems"]["rcme"].update(colour="red"), "systems.rcme: unknown key 'colour'"),
        (lambda c: c["systems"]["rcme"].pop("hub"), "systems.rcme: hub is missing"),
        (lambda c: c["systems"]["rcme"].update(hub="rcme"), "hub must be owner/repo, got 'rcme'"),
        (lambda c: c["systems"]["rcme"].update(revision="main"), "40 hex digits, got 'main'"),
        (lambda c: c["systems"]["rcme"].update(geometry="flat"), "got 'flat'"),
        (lambda c: c["systems"]["rcme"].update(note=3), "note must be a text, got 3"),
        (lambda c: c["systems"].pop("rcme"), "rcme is no system of this file"),
        (lambda c: c["tables"][0].update(protocol="sideways"), "protocol must be one of"),
        (lambda c: c["tables"][0]["ranks"].reverse(), "coarse to fine"),
        (lambda c: c["tables"][0]["ranks"].pop(), "7 accuracies for 6 ranks"),
        (lambda c: c["tables"][0]["rows"]["rcme"].update(average=163.0), "163.0 is not between 0 and 100"),
        (lambda c: c["tables"][1]["rows"]["rcme"].update(nlca=43), "43 is not between 0 and 1"),
        (lambda c: c["tables"][0]["rows"]["rcme"].update(accuracy=["x"] * 7), "'x' is not between"),
        (lambda c: c["tables"].append(copy.deepcopy(c["tables"][0])), "or is there twice"),
    ],
)
def test_a_file_that_cannot_be_meant(content, change, message):
    read_published(content)
    change(content)
    with pytest.raises(ValueError, match=message):
        read_published(content)


def test_ranks_are_ranks():
    assert all(set(row.accuracy) <= set(RANKS) for row in all_published())


def test_reading_needs_no_torch():
    code = "import sys, bioclip_hc.evaluation.published as p; p.recipes(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

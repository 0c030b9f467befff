"""The report in its three forms, and the geometry of its figures."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bioclip_hc.evaluation import Embedding, Report, Row, chance, disk, plots, score, theme
from bioclip_hc.evaluation.document import POLICY
from bioclip_hc.taxonomy import RANKS, Taxonomy

matplotlib = pytest.importorskip("matplotlib")

R = len(RANKS)
HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2$ _under'
VOID = {"meta", "br", "link"}


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    rows = [[f"{rank}{i >> max(0, 4 - r)}" for r, rank in enumerate(RANKS)] for i in range(16)]
    return Taxonomy.from_lineages([*rows, ("kingdom0", "<b>p", "", "", "", "", "s")])


def tangents(taxonomy: Taxonomy, size: float = 1.0) -> np.ndarray:
    v = np.random.default_rng(0).normal(size=(taxonomy.size, 5))
    return size * (1 + taxonomy.rank[:, None]) / R * v / np.linalg.norm(v, axis=1, keepdims=True)


def training_log(hierarchical: bool) -> list[dict]:
    log: list[dict] = [{"event": "start"}]
    for step in range(1, 30):
        per_rank = [2.0 / step + r for r in range(R)]
        per_rank[2] = None if step % 3 else math.nan
        log.append(
            {"step": step, "loss": 3.0 / step, "lr": 1e-3 * step, "per_rank": per_rank if hierarchical else None}
        )
    return log


@pytest.fixture(scope="module")
def report(taxonomy: Taxonomy) -> Report:
    truth = taxonomy.lineages[taxonomy.at_rank(R - 1)]
    shifted = np.where(truth >= 0, np.roll(truth, 1, axis=0), -1)
    rows = [
        Row("chance", "", "individuals", chance(truth, taxonomy)),
        Row(HOSTILE, "coarse-to-fine", "individuals", score(shifted, truth, taxonomy), {HOSTILE: HOSTILE}),
        Row("perfect", "coarse-to-fine", "individuals", score(truth, truth, taxonomy), {"images seen": 12}),
        Row("perfect", "top-down", "individuals", score(truth, truth, taxonomy)),
        Row("perfect", "top-down", "nothing labelled", score(truth, np.full_like(truth, -1), taxonomy)),
    ]
    curves = {"perfect": training_log(True), HOSTILE: training_log(False), "never started": [{"event": "start"}]}
    return Report(HOSTILE, rows, curves, [Embedding(HOSTILE, tangents(taxonomy, 3.0), 1.0, taxonomy)])


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.to_html(path)
    return path.read_text(encoding="utf-8")


# -- terminal and JSON ------------------------------------------------------------------------------------


def test_table_ranks_systems_then_baselines_within_120_columns(report: Report) -> None:
    first, second, third = report.table().split("\n\n")
    lines = first.splitlines()
    assert lines[0].startswith("individuals, coarse-to-fine")
    assert [line.split()[0] for line in lines[1:]] == ["system", "perfect", HOSTILE[:27] + "…", "chance"]
    assert len({len(line) for line in lines[1:]}) == 1
    assert all(len(line) <= 120 for line in report.table().splitlines())
    assert lines[2].split()[1:] == ["100.0"] * 8 + ["1.000", "100.0"]
    assert [line.split()[0] for line in second.splitlines()[2:]] == ["perfect", "chance"]
    assert third.splitlines()[-1].split() == ["perfect", *["–"] * 9, "100.0"]


def test_the_widest_table_fits_and_control_characters_stay_out(report: Report) -> None:
    row = Row("\x1b[31m" + "x" * 200, "top-down", "s", report.rows[2].score)
    lines = Report("t", [row]).table().splitlines()
    assert max(map(len, lines)) <= 120
    assert "\x1b" not in lines[2]


def test_json_holds_every_row(report: Report, tmp_path: Path) -> None:
    report.to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content == report.to_dict()
    assert [row["name"] for row in content["rows"]] == [row.name for row in report.rows]
    assert content["rows"][2]["score"]["accuracy"] == [1.0] * R


# -- page -------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Collects what the tests ask of a page and checks that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag]


def test_page_asks_nothing_of_the_network_and_runs_nothing(page: str) -> None:
    outline = Outline(page)
    assert not {tag for tag, _ in outline.seen} & {"script", "link", "img", "iframe", "image", "base"}
    for tag, attrs in outline.seen:
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", page))
    assert "@import" not in page
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in outline.all("meta")
    assert POLICY.startswith("default-src 'none'")
    assert "script-src" not in POLICY


def test_hostile_names_are_shown_as_they_are(page: str) -> None:
    outline = Outline(page)
    assert HOSTILE in outline.text
    svg_text = "".join(re.findall(r"<text[^>]*>(.*?)</text>", page))
    assert "$\\frac{1}{2$" in svg_text  # in legends too, not as mathematics


def test_figures_have_alternatives_captions_and_their_own_ids(page: str) -> None:
    outline = Outline(page)
    figures = outline.all("svg")
    # two figures for each group with images, two runs and their rates, a disk and its distances
    assert len(figures) == len(outline.all("figcaption")) == len(outline.all("figure")) == 4 + 3 + 2
    assert all(svg["role"] == "img" and svg["aria-label"] and "width" not in svg for svg in figures)
    ids = [attrs["id"] for _, attrs in outline.seen if "id" in attrs]
    repeated = {i for i in ids if ids.count(i) > 1}
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert used <= set(ids)
    assert not used & repeated


def test_colours_are_the_pages_and_follow_its_scheme(page: str) -> None:
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    assert not [colour for colour in theme.PLACEHOLDER.values() if colour in page]
    assert "var(--ink," in page
    assert all(page.count(f"--{name}:") == 2 for name in theme.THEME)


@pytest.mark.parametrize("page_color", [0, 1])
def test_series_and_text_stand_out_from_both_pages(page_color: int) -> None:
    """WCAG contrast: 4.5 for text, 3 for graphics; ranks are ordered and outlined or labelled, and have 1.9."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    paper = luminance(theme.THEME["paper"][page_color])
    for name, pair in theme.THEME.items():
        needed = {"ink": 4.5, "muted": 4.5, "series": 3.0, "rank": 1.9}.get(name.split("-")[0], 1.0)
        bright, dark = sorted([paper, luminance(pair[page_color])], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= needed, name


def test_the_same_report_gives_the_same_bytes(report: Report, page: str, tmp_path: Path) -> None:
    report.to_html(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_sections_without_content_are_left_out(report: Report, tmp_path: Path) -> None:
    Report("bare", report.rows).to_html(tmp_path / "bare.html")
    page = (tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "<h2>Results</h2>" in page
    assert "<h2>Training</h2>" not in page
    assert "<h2>Embedding</h2>" not in page


def test_an_embedding_near_the_middle_is_also_shown_enlarged(taxonomy: Taxonomy, tmp_path: Path) -> None:
    Report("t", [], embeddings=[Embedding("m", tangents(taxonomy, 0.3), 1.0, taxonomy)]).to_html(
        tmp_path / "r.html"
    )
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(Outline(page).all("svg")) == 3
    assert "m: enlarged" in page


def test_a_flat_model_is_drawn_in_a_plane(taxonomy: Taxonomy, tmp_path: Path) -> None:
    flat = Embedding("m", tangents(taxonomy), 0.0, taxonomy)
    Report("t", [], embeddings=[flat]).to_html(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(Outline(page).all("svg")) == 1
    assert "Poincare" not in page
    v = np.asarray(flat.tangent)
    _, _, axes = np.linalg.svd(v - v.mean(axis=0))
    expected = (v - v.mean(axis=0)) @ axes[:2].T
    expected /= np.linalg.norm(expected, axis=1).max()
    np.testing.assert_allclose(np.abs(disk.plane_coordinates(v)), np.abs(expected), atol=1e-9)
    assert np.isfinite(disk.plane_coordinates(np.ones((3, 4)))).all()
    with pytest.raises(ValueError, match="vectors must be a finite"):
        disk.plane_coordinates(np.ones((3, 1)))


def test_per_rank_losses_may_be_keyed_by_name(report: Report, tmp_path: Path) -> None:
    log = [{"step": s, "loss": 1.0, "lr": 0.1, "per_rank": {"class": 1.0 / s}} for s in range(1, 5)]
    Report("t", [], {"run": log}).to_html(tmp_path / "r.html")
    outline = Outline((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "class" in outline.text
    assert "phylum" not in outline.text


def test_drawing_leaves_matplotlib_as_it_was(report: Report, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    report.to_html(tmp_path / "r.html")
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_page_says_what_to_install(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=re.escape("pip install bioclip_hc[report]")):
        report.to_html(tmp_path / "r.html")
    assert report.table()


def test_evaluation_and_report_import_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, bioclip_hc.evaluation as e; e.score; e.Report; "
        "assert 'coarse_to_fine' in dir(e); sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# -- figures ----------------------------------------------------------------------------------------------


def ball_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of two points of the Poincare disk of curvature -1."""
    gap = ((a - b) ** 2).sum(-1)
    return np.arccosh(1 + 2 * gap / ((1 - (a**2).sum(-1)) * (1 - (b**2).sum(-1))))


@pytest.mark.parametrize("curv", [0.1, 1.0, 4.0])
def test_radius_in_the_disk_is_exact(curv: float) -> None:
    v = np.random.default_rng(1).normal(size=(50, 7))
    v[0] = 0.0
    xy = disk.poincare_coordinates(v, curv)
    length = np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(np.linalg.norm(xy, axis=1), np.tanh(math.sqrt(curv) * length / 2), atol=1e-12)
    np.testing.assert_allclose(ball_distance(xy, np.zeros(2)) / math.sqrt(curv), length, atol=1e-9)


def test_points_of_a_plane_keep_their_angles() -> None:
    """Directions in a plane of a 9-dimensional space: angles between neighbours survive, up to a reflection."""
    angle = np.arange(12) * 2 * np.pi / 12
    plane = np.linalg.qr(np.random.default_rng(2).normal(size=(9, 2)))[0]
    v = np.stack([np.cos(angle), np.sin(angle)], 1) @ plane.T * np.linspace(0.5, 2, 12)[:, None]
    xy = disk.poincare_coordinates(v)
    found = np.arctan2(*xy.T[::-1])
    steps = np.angle(np.exp(1j * np.diff(found)))
    np.testing.assert_allclose(np.abs(steps), np.pi / 6, atol=1e-9)
    assert len(set(np.sign(steps))) == 1


def test_embeddings_far_out_stay_in_the_disk(taxonomy: Taxonomy) -> None:
    xy = disk.poincare_coordinates(tangents(taxonomy, 1e4))
    assert np.isfinite(xy).all()
    assert np.linalg.norm(xy, axis=1).max() <= 1 + 1e-12
    arcs = disk.geodesics(xy[:-1], xy[1:])
    assert np.isfinite(arcs).all()
    assert np.linalg.norm(arcs, axis=-1).max() <= 1


def test_geodesics_join_their_ends_by_the_shortest_way_at_even_steps() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.uniform(-0.65, 0.65, size=(2, 40, 2))
    b[0] = a[0]
    arcs = disk.geodesics(a, b, points=9)
    np.testing.assert_allclose(arcs[:, 0], a, atol=1e-12)
    np.testing.assert_allclose(arcs[:, -1], b, atol=1e-9)
    steps = ball_distance(arcs[1:, :-1], arcs[1:, 1:])
    np.testing.assert_allclose(steps, np.repeat(ball_distance(a, b)[1:, None] / 8, 8, 1), rtol=1e-6)


@pytest.mark.parametrize("tangent", [np.ones(3), np.ones((3, 1)), np.full((3, 2), np.nan)])
def test_what_is_no_embedding_is_refused(tangent: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tangent must be a finite"):
        disk.poincare_coordinates(tangent)


def test_large_trees_are_drawn_down_to_the_rank_that_fits(
    taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk.drawn_taxa(taxonomy).all()
    monkeypatch.setattr(disk, "MAX_DRAWN", 10)
    shown = disk.drawn_taxa(taxonomy)
    assert 0 < shown.sum() <= 10
    assert taxonomy.rank[shown].max() < taxonomy.rank[~shown].min()
    monkeypatch.setattr(disk, "MAX_DRAWN", 0)
    np.testing.assert_array_equal(disk.drawn_taxa(taxonomy), taxonomy.rank == 0)


def test_binned_means_keep_the_mean_and_leave_gaps_out() -> None:
    step, value = np.arange(1000.0), np.random.default_rng(4).normal(size=1000)
    x, y = plots.binned_means(step, value, bins=100)
    assert len(x) == len(y) == 100
    assert y.mean() == pytest.approx(value.mean())
    np.testing.assert_allclose(x, np.arange(100) * 10 + 4.5)
    x, y = plots.binned_means([1, 2, 3], [0.5, math.nan, 1.5])
    assert (x.tolist(), y.tolist()) == ([1, 3], [0.5, 1.5])


def test_systems_keep_a_look_of_their_own() -> None:
    look = plots.styles([f"s{i}" for i in range(6)], ["chance", "probe"])
    assert len({(s.color, s.marker) for s in look.values()}) == 8
    assert look["s0"].dash == "-"
    assert {look["chance"].dash, look["probe"].dash}.isdisjoint({"-"})

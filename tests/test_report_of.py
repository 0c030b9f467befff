"""Whole reports, from what systems predicted to the page, the Markdown and the JSON."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bioclip_hc.data.photographs import PhotographFiles
from bioclip_hc.evaluation import Report, Row, Run, chance, report_of, theme
from bioclip_hc.evaluation.abstention import risk_coverage
from bioclip_hc.evaluation.flow import flow
from bioclip_hc.evaluation.outcome import Outcome
from bioclip_hc.evaluation.study import PICTURE_BYTES
from bioclip_hc.evaluation.tables import MINUS, UNKNOWN, main_table, percent, share, signed
from bioclip_hc.evaluation.thumbnails import LEAST_SIDE, small_jpeg
from bioclip_hc.taxonomy import RANKS, Taxonomy

pytest.importorskip("matplotlib")

R = len(RANKS)
PROTOCOLS = ("coarse-to-fine", "top-down", "full-path")
HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2$ _under|pipe` @all [l](http://x.y) \u202e\x1b[31m\n## h'
PUBLISHED = {"top-down": {"phylum": 99.53, "species": 0.25, "nlca": 0.71}, "coarse-to-fine": {"average": 50.0}}


def tree_of(prefix: str = "") -> Taxonomy:
    rows = [[f"{prefix}{rank}{i >> max(0, 4 - r)}" for r, rank in enumerate(RANKS)] for i in range(16)]
    return Taxonomy.from_lineages(rows)


def outcome_of(taxonomy: Taxonomy, images: int = 80, seed: int = 0, unknown: tuple[int, ...] = ()) -> Outcome:
    """Predictions that follow other leaves' paths, most of them near the true one."""
    rng = np.random.default_rng(seed)
    leaves = taxonomy.at_rank(R - 1)
    at = rng.integers(0, len(leaves), images)
    truth = taxonomy.lineages[leaves[at]].copy()
    truth[:, list(unknown)] = -1
    wander = [np.where(rng.random(images) < 0.4, at ^ rng.integers(0, len(leaves), images), at) for _ in PROTOCOLS]
    predictions = {p: taxonomy.lineages[leaves[i]] for p, i in zip(PROTOCOLS, wander, strict=True)}
    probability = {p: np.sort(rng.random(truth.shape), axis=1)[:, ::-1] for p in PROTOCOLS}
    answers = {"coarse-to-fine": np.stack([predictions[p] for p in PROTOCOLS], axis=2)}
    return Outcome(
        np.arange(images), truth, predictions, taxonomy, probability, answers, probability["full-path"], None
    )


def photographs(folder: Path, outcome: Outcome, broken: int | None = None) -> PhotographFiles:
    """Noise, which no JPEG makes small; one of them is no picture."""
    rng = np.random.default_rng(1)
    files = []
    for i in outcome.indices.tolist():
        files.append(folder / f"{i}.jpg")
        Image.fromarray(rng.integers(0, 256, (300, 420, 3), dtype=np.uint8)).save(files[-1], quality=90)
    if broken is not None:
        files[broken].write_bytes(b"no picture")
    names = [outcome.taxonomy.lineage_names(int(t)) for t in outcome.truth.max(axis=1)]
    return PhotographFiles(files, names)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    taxonomy = tree_of(HOSTILE)
    first, second = outcome_of(taxonomy, unknown=(0,)), outcome_of(taxonomy, seed=1, unknown=(0,))
    pictures = photographs(tmp_path_factory.mktemp("pictures"), first)
    counts = np.arange(taxonomy.size) % 3 * 15
    runs = [
        Run(HOSTILE, "a benchmark", first, pictures, counts, PUBLISHED, extra={HOSTILE: HOSTILE}),
        Run("plain", "a benchmark", second, pictures, published=PUBLISHED),
    ]
    return report_of(
        HOSTILE,
        runs,
        baselines=[Row("chance", "", "a benchmark", chance(first.truth, taxonomy))],
        clades=[taxonomy.name(int(taxonomy.at_rank(2)[0]))],
    )


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(report, tmp_path_factory.mktemp("report"))


def written(report: Report, folder: Path) -> str:
    report.to_html(folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


class Tables(HTMLParser):
    """The texts of the tables' cells, line by line, the interval of a cell apart from its value."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[list[str]]]] = []
        self.captions: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self._into: list[str] | None = None
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._into = ["", ""]
            self.tables[-1][-1].append(self._into)
        elif tag == "caption":
            self._into = ["", ""]
        elif tag == "small" and self._into is not None:
            self._into[:] = [self._into[0], " "]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "caption" and self._into:
            self.captions.append(self._into[0])
        if tag in ("td", "th", "caption"):
            self._into = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._into is not None:
            self._into[bool(self._into[1])] += data


# -- numbers ----------------------------------------------------------------------------------------------


def test_the_page_shows_the_scores_and_their_intervals(report: Report, page: str) -> None:
    found = Tables(page)
    for protocol in PROTOCOLS:
        lines = found.tables[found.captions.index(f"a benchmark, {protocol} (80 images)")]
        heads = [value for value, _ in lines[0]]
        assert heads == ["system", *RANKS[1:], "average", "nLCA", "full path", "consistent"]  # no kingdom is known
        scores = {row.name: row.score for row in report.rows if row.protocol in (protocol, "")}
        shown = {line[0][0]: line[1:] for line in lines}
        assert len([name for name in shown if name in scores or "alert" in name]) == 3
        for name in ("plain", "chance"):
            score = scores[name]
            values = [percent(a) for a in score.accuracy[1:]]
            values += [
                percent(score.average),
                share(score.nlca),
                percent(score.full_path),
                percent(score.consistency),
            ]
            assert [value for value, _ in shown[name]] == values
        measures = next(
            r for r in report.rows if r.name == "plain" and r.protocol == protocol
        ).details.intervals.measures
        low, high = measures["accuracy"][1]
        assert shown["plain"][0][1].strip() == f"{percent(low)}–{percent(high)}"
        low, high = measures["nlca"]
        assert shown["plain"][7][1].strip() == f"{share(low)}–{share(high)}"


def test_published_figures_stand_below_the_measured_with_the_difference(report: Report) -> None:
    group = next(group for group in report.groups() if group.protocol == "top-down")
    table = main_table(group)
    at = next(i for i, line in enumerate(table.lines) if line.head == "plain")
    assert [line.kind for line in table.lines[at : at + 3]] == ["system", "published", "difference"]
    score = next(row.score for row in group.rows if row.name == "plain")
    texts = [
        dict(zip(table.columns, (c.text for c in line.cells), strict=True)) for line in table.lines[at : at + 3]
    ]
    assert texts[1]["phylum"], texts[1]["nLCA"] == ("99.53", "0.71")
    assert texts[2]["phylum"] == signed(100 * score.accuracy[1] - 99.53, 1)
    assert texts[2]["phylum"].startswith(MINUS)
    assert texts[2]["species"] == signed(100 * score.accuracy[6] - 0.25, 1)
    assert texts[2]["species"].startswith("+")
    assert texts[2]["nLCA"] == signed(score.nlca - 0.71, 3)
    assert texts[1]["average"] == texts[2]["average"] == texts[2]["class"] == UNKNOWN
    assert sum(line.kind == "published" for line in table.lines) == 2  # not below chance


def test_a_difference_that_rounds_to_nothing_has_no_sign() -> None:
    assert [signed(x, 1) for x in (-0.04, 0.04, -0.06, 12.25)] == ["0.0", "0.0", "−0.1", "+12.2"]


def test_only_the_best_system_is_bold_and_less_error_is_better(report: Report, page: str) -> None:
    group = next(group for group in report.groups() if group.protocol == "coarse-to-fine")
    for column, values in enumerate(zip(*(line.cells for line in main_table(group).lines), strict=True)):
        bold = [line for line, cell in zip(main_table(group).lines, values, strict=True) if cell.best]
        assert all(line.kind == "system" for line in bold)
        assert bold or values[0].text == UNKNOWN, column
    lines = Tables(page).tables[1]
    assert lines[0][0][0] == "system"
    systems = {row.name: row.details for row in group.systems}
    heights = {name: details.lca_height for name, details in systems.items()}
    if len(set(heights.values())) == 2:
        best = min(heights, key=heights.__getitem__)
        assert f"<b>{heights[best]:.2f}</b>" in page
        assert f"<b>{max(heights.values()):.2f}</b>" not in page


def test_a_baseline_is_never_bold(report: Report) -> None:
    best = next(row for row in report.rows if row.protocol == "top-down")
    group = next(Report("t", [best, Row("as good", "", best.split, best.score)]).groups())
    lines = [line for line in main_table(group).lines if line.kind in ("system", "baseline")]
    assert [any(cell.best for cell in line.cells) for line in lines] == [True, False]


def test_strata_stand_in_a_table_of_their_own(report: Report, page: str) -> None:
    found = Tables(page)
    details = next(row.details for row in report.rows if row.protocol == "full-path" and row.details.strata)
    strata = [lines for lines in found.tables if lines and lines[0][0][0] == "system: images of"]
    assert len(strata) == len(PROTOCOLS)
    for line, (name, score) in zip(strata[-1][1:], details.strata.items(), strict=True):
        assert line[0][0].endswith(f": {name}")
        assert line[1][0] == str(score.images)
        assert line[2][0] == percent(score.accuracy[1])


def test_risk_and_coverage_are_those_of_the_confidence(report: Report) -> None:
    found = report.findings[1]
    outcome = outcome_of(tree_of(HOSTILE), seed=1, unknown=(0,))
    right = outcome.predictions["full-path"] == outcome.truth
    assert [curve.rank for curve in found.curves] == list(RANKS[1:])
    for r, curve in enumerate(found.curves, start=1):
        exact = risk_coverage(outcome.confidence[:, r], right[:, r])
        assert curve.area == pytest.approx(exact.area)
        assert curve.coverage[-1] == 1.0
        assert curve.risk[-1] == pytest.approx(1 - right[:, r].mean())
        assert set(zip(curve.coverage, curve.risk, strict=True)) <= set(
            zip(exact.coverage, exact.risk, strict=True)
        )
    marks = [mark for mark in found.marks if mark.rank == "species"]
    assert [mark.threshold for mark in marks] == [0.5, 0.9]
    for mark in marks:
        taken = outcome.confidence[:, -1] >= mark.threshold
        assert mark.coverage == taken.mean()
        assert mark.risk == (pytest.approx(1 - right[taken, -1].mean()) if taken.any() else None)


def test_the_stream_loses_what_goes_wrong() -> None:
    svg = flow([10, 0, 0, 5, 0, 0, 0, 85], [100, 100, 0, 90, 0, 0, 0])
    labels = re.findall(r"<text[^>]*>([^<]*)", svg)
    assert labels == [
        *("100 images", "kingdom: 10.0 % (10)", "phylum: 0.0 % (0)", "order: 5.0 % (5)"),
        "right at every known rank: 85.0 % (85)",
    ]
    widths = [float(w) for w in re.findall(r'd="M12 [\d.]+H([\d.]+)V', svg)]
    assert widths == pytest.approx([12 + 120 * 0.9, 12 + 120 * 0.9, 12 + 120 * 0.85])
    assert flow([0] * 8, [0] * 7) == ""
    assert "nan" not in flow([1, *[0] * 7], [1] * 7)


# -- safety -----------------------------------------------------------------------------------------------


def test_nothing_of_the_data_becomes_markup_and_nothing_is_fetched(page: str) -> None:
    found = Tables(page)
    assert '<script>alert("x")</script>' in found.text
    assert not {tag for tag, _ in found.attributes} & {
        "script",
        "link",
        "iframe",
        "object",
        "base",
        "form",
        "a:href",
    }
    for tag, attributes in found.attributes:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                start = "data:image/jpeg;base64," if tag == "img" else "#"
                assert (attributes[name] or "").startswith(start)
    assert "\x1b" not in page
    assert "\u202e" not in page
    policy = next(a["content"] for t, a in found.attributes if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert policy.endswith("img-src data:")
    anchors = {a["id"] for _, a in found.attributes if "id" in a}
    assert {a["href"][1:] for t, a in found.attributes if t == "a"} <= anchors


def test_every_table_has_its_heads_and_every_picture_its_words(page: str) -> None:
    found = Tables(page)
    assert len(found.captions) == len(found.tables) > 10
    assert all(a.get("scope") in ("row", "col") for tag, a in found.attributes if tag == "th")
    for lines in found.tables:
        assert len({len(line) for line in lines}) == 1
        assert len(lines) > 1
    pictures = [a for tag, a in found.attributes if tag == "img"]
    assert len(pictures) == 24
    assert all((a["alt"] or "").startswith("Photograph of ") for a in pictures)
    assert all(a["aria-label"] for tag, a in found.attributes if tag == "svg")


def test_markdown_keeps_its_tables_whatever_the_names(report: Report, tmp_path: Path) -> None:
    report.to_markdown(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert "\u202e" not in text
    plain = re.sub(r"\\.", "", text)
    assert "<script" not in plain
    assert "http" not in re.findall(r"\]\((.*?)\)", plain)
    assert "@" not in plain
    assert set(re.findall(r"<(\w+)>", plain)) <= {"br", "sub"}
    tables = [block.splitlines() for block in plain.split("\n\n") if block.startswith("|")]
    assert len(tables) > 10
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    group = next(iter(report.groups()))
    row = next(row for row in group.rows if row.name == "plain")
    line = next(line for line in text.splitlines() if line.startswith("| plain |"))
    assert percent(row.score.accuracy[1]) in line
    assert line.count("<sub>") >= 8
    after = text.splitlines()[text.splitlines().index(line) + 1]
    assert after.startswith("| &emsp;*published* |")
    assert "50.00" in after


def test_json_has_it_all_and_reads_back(report: Report, tmp_path: Path) -> None:
    report.to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["format"] == 1
    assert content == json.loads(json.dumps(report.to_dict()))
    found = content["findings"][0]
    assert set(found) == {
        *("name", "protocol", "split", "losses", "confusions", "risk_coverage", "abstention", "mistakes"),
    }
    assert len(found["mistakes"]) == 12
    assert not Path(found["mistakes"][0]["file"]).is_absolute()
    assert content["rows"][1]["published"] == {"average": 50.0}
    assert sum(map(sum, found["confusions"][0]["counts"])) == found["confusions"][0]["images"]


def test_the_same_runs_give_the_same_bytes(report: Report, page: str, tmp_path: Path) -> None:
    assert written(report, tmp_path) == page


# -- bounds -----------------------------------------------------------------------------------------------


def test_pictures_are_bounded_in_number_and_size(report: Report, page: str) -> None:
    jpegs = [picture.jpeg for found in report.findings for picture in found.pictures]
    assert len(jpegs) == 24
    assert 0 < max(map(len, jpegs)) <= PICTURE_BYTES
    assert len(page) < 24 * PICTURE_BYTES * 4 / 3 + 700_000
    with Image.open(io.BytesIO(jpegs[0])) as image:
        assert image.size[0] / image.size[1] == pytest.approx(420 / 300, abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (3000, 30), (30, 3000), (400, 400)])
def test_a_small_copy_is_small_whatever_the_picture(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    assert len(small_jpeg(image, 280, 4000)) <= 4000
    with Image.open(io.BytesIO(small_jpeg(image, 280, 1))) as least:
        assert max(least.size) <= LEAST_SIDE
    assert image.size == size  # the picture itself stays as it was


def test_an_unreadable_picture_is_said_to_be_one(tmp_path: Path) -> None:
    outcome = outcome_of(tree_of(), images=8, seed=3)
    whole = report_of("t", [Run("m", "s", outcome, photographs(tmp_path, outcome))])
    first = whole.findings[0].pictures[0].mistake.photograph
    broken = report_of("t", [Run("m", "s", outcome, photographs(tmp_path, outcome, broken=first))])
    assert broken.findings[0].pictures[0].jpeg == b""
    page = written(broken, tmp_path)
    assert page.count("cannot be shown: ") == 1
    assert page.count("<img") == len(whole.findings[0].pictures) - 1
    (tmp_path / f"{first}.jpg").unlink()
    gone = report_of("t", [Run("m", "s", outcome, photographs_again(tmp_path, outcome))]).findings[0].pictures[0]
    assert "is not there" in gone.problem
    assert str(tmp_path) not in gone.problem  # the page may travel


def test_names_that_are_not_utf8_are_written_all_the_same(tmp_path: Path) -> None:
    outcome = outcome_of(tree_of(), images=8, seed=3)
    names = [outcome.taxonomy.lineage_names(int(t)) for t in outcome.truth.max(axis=1)]
    files = PhotographFiles([f"nowhere/\udcff{i}.jpg" for i in range(8)], names)
    report = report_of("\udcff", [Run("m\udcff", "s\udcff", outcome, files, extra={"\udcff": "\udcff"})])
    assert "\ufffd" in written(report, tmp_path)
    report.to_markdown(tmp_path / "report.md")
    report.to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["rows"][0]["name"] == "m\udcff"
    assert content["findings"][0]["mistakes"][0]["file"].startswith("nowhere/\udcff")
    print(report.table())


def photographs_again(folder: Path, outcome: Outcome) -> PhotographFiles:
    names = [outcome.taxonomy.lineage_names(int(t)) for t in outcome.truth.max(axis=1)]
    return PhotographFiles([folder / f"{i}.jpg" for i in outcome.indices.tolist()], names)


def test_without_photographs_the_page_asks_for_no_pictures(tmp_path: Path) -> None:
    outcome = outcome_of(tree_of(), images=8, seed=3)
    page = written(report_of("t", [Run("m", "s", outcome)]), tmp_path)
    assert "Worst mistakes" in page
    assert "<img" not in page
    assert "img-src" not in page


@pytest.mark.parametrize("images", [1, 2])
def test_a_report_of_hardly_anything(images: int, tmp_path: Path) -> None:
    outcome = outcome_of(tree_of(), images=images, unknown=(0, 1, 2, 3, 4))
    report = report_of("few", [Run("m", "s", outcome)])
    page = written(report, tmp_path)
    assert "nan" not in Tables(page).text
    report.to_markdown(tmp_path / "r.md")
    report.to_json(tmp_path / "r.json")
    assert report.table()


def test_unknown_clades_and_repeated_runs_are_errors() -> None:
    outcome = outcome_of(tree_of())
    with pytest.raises(ValueError, match="no taxon 'clas0' in the taxonomy; did you mean 'class0'"):
        report_of("t", [Run("m", "s", outcome)], clades=["clas0"])
    with pytest.raises(ValueError, match="two runs of 'm' on 's'"):
        report_of("t", [Run("m", "s", outcome), Run("m", "s", outcome)])
    other = outcome_of(tree_of("other "))
    found = report_of("t", [Run("m", "s", outcome), Run("m", "u", other)], clades=["class0"]).findings
    assert "class0" in [c.title for c in found[0].confusions]
    assert "class0" not in [c.title for c in found[1].confusions]


@pytest.mark.parametrize("scheme", [0, 1])
def test_figures_in_the_shaded_cells_can_be_read(scheme: int) -> None:
    """WCAG: 4.5 for text; cells are mixed of at most 45% hue (`style.CSS`); muted text stands on soft ground."""

    def channels(name: str) -> np.ndarray:
        colour = theme.THEME[name][scheme]
        return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])

    def contrast(a: np.ndarray, b: np.ndarray) -> float:
        light = [
            float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
            for c in (a, b)
        ]
        return (max(light) + 0.05) / (min(light) + 0.05)

    for hue in ("series-1", "series-2"):
        for part in (0, 0.2, 0.45):
            ground = part * channels(hue) + (1 - part) * channels("soft")
            assert contrast(channels("ink"), ground) >= 4.5
    assert contrast(channels("muted"), channels("soft")) >= 4.5
    assert contrast(channels("series-0"), channels("paper")) >= 4.5  # links
    assert math.isclose(contrast(np.zeros(3), np.ones(3)), 21)


def test_reliability_is_of_one_rank_for_all_systems(tmp_path: Path) -> None:
    """The deepest at which all name something, though one goes on; a system without probabilities has no line."""
    taxonomy = tree_of()
    early, late = outcome_of(taxonomy), outcome_of(taxonomy, seed=1)
    stops = {protocol: taxa.copy() for protocol, taxa in early.predictions.items()}
    for taxa in stops.values():
        taxa[:, R - 2 :] = -1
    runs = [Run("late", "set", late), Run("early", "set", replace(early, predictions=stops))]
    page = written(report_of("t", runs), tmp_path)
    r = R - 3
    (said,) = set(re.findall(r"Reliability, (\w+): set, full-path", page))
    assert said == RANKS[r]
    errors = [
        percent(row.score.calibration.error[r]) for row in report_of("t", runs).rows if row.protocol == "full-path"
    ]
    assert f"late {errors[0]} %, early {errors[1]} %" in page or f"early {errors[1]} %, late {errors[0]} %" in page


def test_titles_of_figures_end_where_they_differ(tmp_path: Path) -> None:
    """Protocols of one split, whose names are long, are told apart by what is not cut off."""
    found = outcome_of(tree_of())
    split = "a_table_with_a_long_name_of_its_own_labels.csv, test half"
    rule = "stopping so that at most 10% are wrong"
    renamed = {rule: found.predictions["full-path"], "full-path": found.predictions["full-path"]}
    found = replace(found, predictions=renamed, probability=dict.fromkeys(renamed, found.confidence), answers={})
    page = written(report_of("t", [Run("s", split, found)]), tmp_path)
    for protocol in renamed:
        assert f"<h4><bdi>Reliability, species: {split}, {protocol}</bdi></h4>" in page


def test_the_columns_of_the_terminal_keep_apart() -> None:
    """In the narrowest column, that of nLCA, a difference has six characters."""
    found = outcome_of(tree_of())
    wrong = {p: np.full_like(taxa, -1) for p, taxa in found.predictions.items()}
    run = Run(
        "s", "set", replace(found, predictions=wrong), published={"top-down": {"kingdom": 80.0, "nlca": 0.71}}
    )
    (line,) = [line for line in report_of("t", [run]).table().splitlines() if "difference" in line]
    assert line.split() == ["difference", f"{MINUS}80.0", *[UNKNOWN] * 7, f"{MINUS}0.710", UNKNOWN]

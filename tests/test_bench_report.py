"""What benchmark figures go through, by made-up data: keeping, merging, tables, the check, fits and the model."""

import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
check, compare, documents, records, recording, scaling = map(
    importlib.import_module, ("check", "compare", "documents", "records", "recording", "scaling")
)
OURS = records.OURS

CARD = {
    "cpu": "Made-Up(R) Processor 9 @ 2.0GHz",
    "threads": 2,
    "cores": 2,
    "capability": "AVX512",
    "gpus": [],
    "system": "Linux 6",
    "versions": {"python": "3.11", "torch": "2.14"},
    "rates": {"product_gflops": 200.0, "product_bf16_gflops": 400.0, "memory_gb_s": 30.0, "special_g_s": 2.0},
    "date": "2026-01-01",
    "commit": "abc",
}
EAGER = "torch eager"


def loss_row(way, seconds, n=8192, title="CLIP", mode="dense", steps="forward + backward", peak=10.0, **figures):
    base = way == (EAGER if mode == "dense" else "torch by rank")
    group = f"{title} {mode}, N = {n}, {steps}"
    return records.Row(
        "loss", group, way, base, seconds * 0.9, seconds, 3, peak, {"floor_s": n * n / 4e7, **figures}
    )


def made_up():
    """Ours takes 1.2 floors and grows as N^2, its memory as N; eager takes twice as long, and N^2 memory."""
    rows = []
    for n in (1024, 2048, 4096, 8192, 32768):
        floor = n * n / 4e7
        rows.append(loss_row(OURS, 1.2 * floor, n, peak=n / 512, repeatable=True))
        rows.append(loss_row(EAGER, 2.4 * floor, n, peak=n * n / 2**16))
        rows.append(loss_row(OURS, 0.3 * floor, n, mode="sorted", peak=2.0, repeatable=True))
    missing = [records.Missing("loss", rows[0].group, "inf-cl", "needs a | GPU")]
    return records.Record(CARD, rows, missing)


# -- from pytest's file to ours


def pytest_file(**extra):
    benchmark = {
        "suite": "bench_loss",
        "group": "CLIP dense, N = 1024, forward",
        "fullname": "benchmarks/bench_loss.py::test_loss",
        "extra_info": {"way": OURS, "peak_mib": 1.5, "floor_s": 0.123456789, "repeatable": True},
        "stats": {"min": 0.2000001, "median": 0.25, "rounds": 3, "data": [0.2] * 1000},
    }
    info = {
        "cpu": {"brand_raw": "Intel(R) Xeon(R) CPU @ 2.60GHz", "flags": ["avx"] * 100},
        "torch_threads": 2, "cores": 2, "cpu_capability": "AVX512", "gpus": [], "system": "Linux", "release": "6.1",
        "python_version": "3.11.7", "versions": {"torch": "2.14"}, "rates": {"special_g_s": 1.23456789},
        "date": "2026-01-01",
    }  # fmt: skip
    missing = [{"suite": "bench_topk", "group": "g", "way": "w", "reason": "too slow"}]
    content = {
        "benchmarks": [benchmark],
        "machine_info": info,
        "not_measured": missing,
        "commit_info": {"id": "a" * 40},
    }
    return content | extra


def test_a_run_is_kept_without_raw_timings_and_reads_back(tmp_path):
    record = records.from_pytest(pytest_file())
    (row,) = record.rows
    assert (row.suite, row.way, row.base, row.least, row.peak_mib) == ("loss", OURS, False, 0.2, 1.5)
    assert row.floor == 0.12346
    assert record.missing == [records.Missing("topk", "g", "w", "too slow")]
    path = tmp_path / "deep" / "file.json"
    records.write(path, record)
    assert records.read(path) == record
    assert len(path.read_text()) < 1500
    assert records.results_path(record.card).name == "cpu-intel-xeon-2t.json"
    assert records.results_path(CARD).name == "cpu-made-up-9-2t.json"


def test_a_benchmark_must_say_what_it_measures_once():
    content = pytest_file()
    with pytest.raises(ValueError, match="measured once"):
        records.from_pytest(content | {"benchmarks": content["benchmarks"] * 2})
    content["benchmarks"][0]["extra_info"].pop("way")
    with pytest.raises(ValueError, match="must set"):
        records.from_pytest(content)


SUITE = """
import pytest, torch
from recording import name, record

def test_measured(benchmark):
    name(benchmark, "g", "bioclip_hc", base=True)
    first, last = record(benchmark, lambda: (torch.ones(1 << 23),), 2)
    assert torch.equal(first[0], last[0])

def test_once(benchmark):
    name(benchmark, "g", "once")
    first, last = record(benchmark, lambda: (torch.ones(2),), 0)
    assert first is last

def test_skipped(benchmark):
    name(benchmark, "g", "slow")
    pytest.skip("too slow")

def test_failed(benchmark):
    name(benchmark, "g", "broken")
    record(benchmark, lambda: (), 1)
    assert False, "wrong"

def in_check(x):
    return x == 2

@pytest.mark.parametrize("x", [1, 2])
def test_named(benchmark, x):
    name(benchmark, f"x = {x}", "bioclip_hc")
    record(benchmark, lambda: (), 1)
"""


def run_suite(folder, *options):
    """A run of that suite under the benchmarks' own conftest, without the probe; what is kept of it."""
    (folder / "conftest.py").write_text((BENCHMARKS / "conftest.py").read_text())
    (folder / "bench_try.py").write_text(SUITE)
    arguments = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", "bench_try.py", *options]
    arguments += ["--benchmark-json", "run.json"]
    code = f"import sys, probe, pytest; probe.rates = lambda: {{}}; sys.exit(pytest.main({arguments}))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}  # it would not measure
    environment["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert (folder / "run.json").exists(), run.stdout + run.stderr
    return records.from_pytest(json.loads((folder / "run.json").read_text()))


def test_a_run_says_what_it_measured_and_what_not(tmp_path):
    record = run_suite(tmp_path)
    group = record.group(("try", "g"))
    assert {row.way: (row.base, row.rounds) for row in group.values()} == {OURS: (True, 2), "once": (False, 1)}
    assert record.missing_of(("try", "g")) == {"slow": "too slow", "broken": "failed: AssertionError: wrong"}
    assert check.failures(record, record) == ["FAILED: try: g: broken: failed: AssertionError: wrong"]
    assert group[OURS].peak_mib < 24  # the result itself, 32 MiB, does not count


def test_the_check_measures_what_a_suite_names(tmp_path):
    assert run_suite(tmp_path, "--in-check").problems() == [("try", "x = 2")]


# -- merging


def part(record, n):
    return replace(record, rows=[row for row in record.rows if f"N = {n}," in row.group], missing=[])


def slower(record, factor, way=OURS):
    rows = [
        replace(row, median=row.median * factor, least=row.least * factor) if row.way == way else row
        for row in record.rows
    ]
    return replace(record, rows=rows)


def test_a_partial_run_updates_whole_groups_only():
    before = made_up()
    run = slower(part(before, 4096), 3)
    lacking = replace(run, rows=[row for row in run.rows if row.way != EAGER])
    merged, notes = records.merge(before, run)
    assert merged.problems() == before.problems()
    assert not notes
    changed = {row.group for row, old in zip(merged.rows, before.rows, strict=True) if row != old}
    assert changed == {row.group for row in run.rows}
    assert merged.missing == before.missing
    merged, notes = records.merge(before, lacking)
    assert notes == [f"loss: CLIP dense, N = 4096, forward + backward: kept as it was, the run lacks {EAGER}"]
    assert [row.group for row, old in zip(merged.rows, before.rows, strict=True) if row != old] == [
        "CLIP sorted, N = 4096, forward + backward"
    ]


def test_rates_stay_those_of_the_run_that_measured_the_loss():
    before = made_up()
    card = CARD | {"rates": {"special_g_s": 9.0}, "date": "2026-02-02"}
    merged, _ = records.merge(before, replace(part(before, 4096), card=card))
    assert merged.card == card | {"rates": CARD["rates"]}
    merged, _ = records.merge(before, replace(before, card=card))
    assert merged.card == card


def test_a_row_says_when_it_was_measured_and_of_which_commit():
    content = pytest_file(commit_info={"id": "a" * 40, "dirty": True})
    (row,) = records.from_pytest(content).rows
    assert (row.date, row.commit) == ("2026-01-01", "a" * 12 + "-dirty")
    both = records.Record(CARD, [row, replace(row, date="2026-02-02")], [])
    assert compare.card_line(both).endswith("; 2026-01-01 to 2026-02-02")
    assert compare.card_line(made_up()).endswith("; 2026-01-01")


def test_a_partial_run_under_other_versions_is_refused():
    before = made_up()
    other = CARD | {"versions": {"torch": "3"}}
    with pytest.raises(ValueError, match="part of the 10 groups, under another versions"):
        records.merge(before, replace(part(before, 4096), card=other))
    merged, _ = records.merge(before, replace(slower(before, 2), card=other))  # a full one takes its place
    assert merged.card == other
    assert merged.rows == slower(before, 2).rows


def test_the_command_keeps_results_and_refuses_half_of_them(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    run = tmp_path / "run.json"
    content = pytest_file()
    run.write_text(json.dumps(content))
    compare.main([str(run), "--no-documents"])
    kept = tmp_path / "cpu-intel-xeon-2t.json"
    first = kept.read_text()
    content["benchmarks"][0] |= {"group": "CLIP dense, N = 2048, forward"}
    content["machine_info"]["versions"] = {"torch": "3"}
    run.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="--replace"):
        compare.main([str(run), "--no-documents"])
    assert kept.read_text() == first
    compare.main([str(run), "--no-documents", "--replace"])
    assert [row.group for row in records.read(kept).rows] == ["CLIP dense, N = 2048, forward"]


# -- the report


def test_the_readme_table_shows_ratios():
    lines = compare.headlines(made_up()).splitlines()
    line = next(line for line in lines if line.startswith("| CLIP dense, N = 8192"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "CLIP dense, N = 8192, forward + backward", "2.01 s", "0.50 torch eager", "0.50 torch eager", "1.20", "16",
        "1024",
    ]  # fmt: skip
    assert sum(line.startswith("| CLIP") for line in lines) == 4  # 8192 and 32,768, dense and sorted


def test_the_report_shows_every_way_and_why_one_is_missing():
    text = compare.report(made_up(), ["a/time.png"])
    assert "| CLIP dense, N = 1024, forward + backward | inf-cl |  |  |  |  |  | needs a / GPU |" in text
    assert f"| **{OURS}** |" in text
    assert "repeatable yes" in text
    assert "![time](a/time.png)" in text
    assert CARD["cpu"] in text
    rows = [line for line in text.splitlines() if line.startswith("| CLIP ")]
    assert len(rows) == len(made_up().rows) + 1


def test_targets_are_judged_by_what_was_measured():
    found = {t.name: (t.shown, t.verdict) for t in compare.targets(made_up())}
    assert found["CLIP: time over the floor"] == ("1.20", "missed")
    assert found["CLIP: over torch eager"] == ("0.50", "met")
    assert found["CLIP: spread over seven ranks, over dense"] == ("0.25", "missed")
    assert found["CLIP: peak memory, dense"] == ("16 MiB", "met")
    assert found["Lorentz: time over the floor"] == ("", "not measured")
    assert found["runs bitwise equal to the one before"] == ("100%", "met")
    assert found["largest difference of one thread to two"] == ("", "not measured")
    rows = [*made_up().rows, loss_row("x", 1.0, 64, thread_difference=1e-3, repeatable=False)]
    found = {t.name: t.verdict for t in compare.targets(replace(made_up(), rows=rows))}
    assert found["largest difference of one thread to two"] == "missed"


@pytest.mark.parametrize(
    ("value", "words"),
    [(2.013, "2.01 s"), (150.0, "150 s"), (0.01234, "12.3 ms"), (4e-6, "4 µs"), (5e-7, "0.5 µs")],
)
def test_times_are_shown_in_their_unit(value, words):
    assert compare.seconds(value) == words


def test_everything_is_published(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    readme, document = tmp_path / "README.md", tmp_path / "benchmarks.md"
    readme.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    monkeypatch.setattr(compare, "README", readme)
    monkeypatch.setattr(compare, "DOCUMENT", document)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(scaling, "DOCUMENT", tmp_path / "scaling.md")
    scaling.DOCUMENT.write_text((BENCHMARKS.parent / "docs" / "scaling.md").read_text())
    path = tmp_path / "results" / "cpu-made-up-2t.json"
    records.write(path, made_up())
    compare.publish(path)
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:begin -->\n")
    assert text.endswith("<!-- bench:end -->\nafter\n")
    assert "old" not in text
    assert "CLIP dense, N = 8192" in text
    assert "(../results/cpu-made-up-2t-time.png)" in document.read_text()
    assert CARD["cpu"] in scaling.DOCUMENT.read_text()
    for name in ("time", "memory"):
        drawn = path.with_name(f"cpu-made-up-2t-{name}.png").read_bytes()
        assert drawn.startswith(b"\x89PNG")
        assert len(drawn) < 200 << 10


def test_a_readme_without_markers_stops_before_anything_is_written(monkeypatch, tmp_path):
    readme, run = tmp_path / "README.md", tmp_path / "run.json"
    readme.write_text("no markers")
    run.write_text(json.dumps(pytest_file()))
    monkeypatch.setattr(compare, "README", readme)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=r"README.md must hold"):
        compare.main([str(run)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "run.json"]


def test_plots_carry_the_fitted_exponent():
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("plot")
    figure = plot.draw_against_n(made_up(), *plot.CPU_FIGURES["memory"])
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert set(drawn) == {f"{OURS}: N^1.00", f"{EAGER}: N^2.00"}
    assert drawn[f"{OURS}: N^1.00"][0] == [1024, 2]


def test_a_document_without_its_markers_is_refused():
    text = "a <!-- x --> b <!-- end --> c"
    assert documents.replace_between(text, "<!-- x -->", "<!-- end -->", "new", "f") == (
        "a <!-- x -->\n\nnew\n\n<!-- end --> c"
    )
    for broken in ("a", text + text, "<!-- end --> <!-- x -->"):
        with pytest.raises(ValueError, match=r"README.md must hold <!-- x -->"):
            documents.replace_between(broken, "<!-- x -->", "<!-- end -->", "new", "README.md")


# -- the check


def test_nothing_is_worse_than_itself():
    findings = check.compare(made_up(), made_up())
    assert findings
    assert not any(f.worse for f in findings)


def test_a_slower_machine_is_no_regression():
    run = made_up()
    rows = [
        replace(row, least=row.least * 3, median=row.median * 3, figures=row.figures | {"floor_s": row.floor * 3})
        for row in run.rows
    ]
    assert not any(f.worse for f in check.compare(run, replace(run, rows=rows)))


@pytest.mark.parametrize(("factor", "worse"), [(1.2, False), (1.5, True)])
def test_a_slower_way_of_ours_is_named(factor, worse):
    found = [f for f in check.compare(made_up(), slower(part(made_up(), 4096), factor)) if f.worse]
    expected = [
        f"loss: CLIP dense, N = 4096, forward + backward: {OURS}: time over {EAGER}",
        f"loss: CLIP dense, N = 4096, forward + backward: {OURS}: time over its floor",
        f"loss: CLIP sorted, N = 4096, forward + backward: {OURS}: time over its floor",
    ]
    assert [f.name for f in found] == (expected if worse else [])


def test_a_slower_peer_is_no_regression():
    assert not any(f.worse for f in check.compare(made_up(), slower(made_up(), 2, EAGER)))


@pytest.mark.parametrize(("more", "worse"), [(8.0, False), (12.0, True)])
def test_more_memory_is_named(more, worse):
    run = made_up()
    rows = [replace(row, peak_mib=row.peak_mib + more) if row.own else row for row in part(run, 1024).rows]
    found = check.compare(run, replace(run, rows=rows))
    assert {f.name.rsplit(": ", 1)[1] for f in found if f.worse} == ({"peak MiB"} if worse else set())


def test_runs_that_no_longer_repeat_are_named():
    run = made_up()
    rows = [replace(row, figures=row.figures | {"repeatable": False}) for row in part(run, 1024).rows]
    found = [f for f in check.compare(run, replace(run, rows=rows)) if f.worse]
    assert {f.name.rsplit(": ", 1)[1] for f in found} == {"runs that differ"}


def as_pytest_wrote_it(record):
    benchmarks = [
        {
            "suite": f"bench_{row.suite}",
            "group": row.group,
            "fullname": row.group,
            "extra_info": {"way": row.way, "base": row.base, "peak_mib": row.peak_mib, **row.figures},
            "stats": {"min": row.least, "median": row.median, "rounds": row.rounds},
        }
        for row in record.rows
    ]
    return json.dumps(pytest_file(benchmarks=benchmarks, not_measured=[]))


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.5, 1)])
def test_the_command_fails_by_name(tmp_path, capsys, factor, status):
    baseline, run = tmp_path / "baseline.json", tmp_path / "run.json"
    records.write(baseline, made_up())
    run.write_text(as_pytest_wrote_it(slower(part(made_up(), 4096), factor)))
    assert check.main([str(run), "--baseline", str(baseline)]) == status
    said = capsys.readouterr().out
    assert ("WORSE: loss: CLIP dense, N = 4096" in said) == bool(status)


def test_a_check_that_compares_nothing_fails(tmp_path, capsys, monkeypatch):
    baseline, run = tmp_path / "baseline.json", tmp_path / "run.json"
    records.write(baseline, part(made_up(), 1024))
    run.write_text(as_pytest_wrote_it(part(made_up(), 4096)))
    assert check.main([str(run), "--baseline", str(baseline)]) == 1
    assert "nothing to compare" in capsys.readouterr().out
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="no results of this CPU"):
        check.main([str(run)])


def test_what_is_worse_is_measured_once_more(tmp_path, monkeypatch, capsys):
    baseline = tmp_path / "baseline.json"
    records.write(baseline, made_up())
    bad = slower(part(made_up(), 4096), 2)
    for second, status in ((part(made_up(), 4096), 0), (bad, 1)):
        runs = [bad, second]
        monkeypatch.setattr(check, "measure", lambda runs=runs: runs.pop(0))
        assert check.main(["--baseline", str(baseline)]) == status
        assert not runs
    capsys.readouterr()


def test_what_no_measurement_gives_is_a_failure():
    for figures in (
        {"least": math.nan},
        {"median": 0.0},
        {"peak_mib": math.inf},
        {"figures": {"floor_s": math.nan}},
    ):
        rows = part(made_up(), 4096).rows
        run = records.from_pytest(
            json.loads(as_pytest_wrote_it(records.Record(CARD, [replace(rows[0], **figures), *rows[1:]], [])))
        )
        assert [(r.group, r.way) for r in run.rows] == [(r.group, r.way) for r in rows[1:]]
        said = check.failures(made_up(), run)
        assert any(f"FAILED: loss: {rows[0].group}: {OURS}: failed: " in words for words in said), said
        assert any(words.startswith("NOT MEASURED") for words in said)
    assert check.Finding("x", 1.0, math.nan, 2.0).worse


def test_what_was_lost_since_the_baseline_fails():
    baseline, run = made_up(), part(made_up(), 4096)
    assert check.failures(baseline, run) == []
    where = "loss: CLIP dense, N = 4096, forward + backward"
    without = {
        f"NOT MEASURED: {where}: {OURS}": [r for r in run.rows if (r.way, r.group) != (OURS, where[6:])],
        f"LOST: {where}: {OURS}: base": [r for r in run.rows if r.way != EAGER],
        f"LOST: {where}: {OURS}: floor": [
            replace(r, figures={}) if (r.way, r.group) == (OURS, where[6:]) else r for r in run.rows
        ],
    }
    for words, rows in without.items():
        assert check.failures(baseline, replace(run, rows=rows)) == [words]
    both = replace(baseline, rows=[*baseline.rows, replace(run.rows[0], suite="topk")])
    assert check.failures(both, run) == ["ABSENT: topk: the run has nothing of this suite"]


def test_the_suites_that_are_checked_are_those_that_name_something():
    naming = {
        path.stem.removeprefix("bench_")
        for path in BENCHMARKS.glob("bench_*.py")
        if "def in_check" in path.read_text()
    }
    assert naming == set(check.CHECKED)


def test_runs_that_differ_once_differ_and_failures_of_the_second_run_count(tmp_path, monkeypatch, capsys):
    good = part(made_up(), 4096)
    differ = replace(good, rows=[replace(r, figures=r.figures | {"repeatable": False}) for r in good.rows])
    broken = replace(good, missing=[records.Missing("loss", good.rows[0].group, "x", "failed: wrong")])
    baseline = tmp_path / "baseline.json"
    records.write(baseline, made_up())
    for runs in ([differ, good], [slower(good, 2), differ], [slower(good, 2), broken]):
        monkeypatch.setattr(check, "measure", lambda runs=runs: runs.pop(0))
        assert check.main(["--baseline", str(baseline)]) == 1
    said = capsys.readouterr().out
    assert f"WORSE: loss: CLIP dense, N = 4096, forward + backward: {OURS}: runs that differ" in said
    assert "FAILED: loss: CLIP dense, N = 4096, forward + backward: x: failed: wrong" in said


def test_other_versions_are_a_warning():
    other = replace(made_up(), card=CARD | {"cores": 8})
    assert check.changes(made_up(), other) == ["WARNING: cores is 8, was 2"]


# -- recording


def test_differences_are_relative_to_the_largest_value():
    x = torch.tensor([1.0, 100.0])
    assert recording.difference([x], [x + torch.tensor([1.0, 0.0])]) == pytest.approx(0.01)
    assert recording.equal([x], [x.clone()])
    assert not recording.equal([x], [x + 1e-5])


def test_threads_are_put_back():
    before = torch.get_num_threads()
    seen = []

    def call():
        seen.append(torch.get_num_threads())
        return (torch.full((1,), float(len(seen))),)

    assert recording.thread_difference(call) == 0.5
    assert seen == [1, 2]
    assert torch.get_num_threads() == before


# -- fits, and the model held against a CPU


def test_a_fit_finds_the_exponent():
    points = [(n, 3e-9 * n**1.7) for n in (1024, 2048, 4096, 8192)]
    points[0] = (1024, 1.0)  # fixed costs, left out
    found = scaling.fit(points)
    assert found.exponent == pytest.approx(1.7)
    assert found.factor == pytest.approx(3e-9)
    assert found.worst == pytest.approx(1)
    assert found.points == 3
    assert scaling.fit(points[:3]) is None
    off = scaling.fit([(2048, 1.0), (4096, 8.0), (8192, 16.0)])
    assert off.exponent == pytest.approx(2)
    assert off.worst == pytest.approx(2 ** (2 / 3))


def test_the_table_of_fits():
    text = scaling.fit_table(made_up())
    line = f"| CLIP dense, forward + backward | {OURS} | 2.00 | 0% | 1.00 | 0% | 32768 |"
    assert line in text.splitlines()
    assert f"| CLIP dense, forward + backward | {EAGER} | 2.00 | 0% | 2.00 | 0% | 32768 |" in text.splitlines()


def test_the_cpu_is_predicted_from_its_own_rates():
    text = scaling.cpu_table(made_up())
    line = next(line for line in text.splitlines() if line.startswith("| CLIP dense, forward + backward | 8192 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    products = 4 * 2 * 8192**2 * 512 / 200e9
    rest = 8192**2 * (4 / 2e9 + 24 / 100e9 + 28 / 30e9)
    assert float(cells[2]) == pytest.approx(products * 1e3, rel=0.01)
    assert float(cells[4]) == pytest.approx((products + rest) * 1e3, rel=0.01)
    assert float(cells[6]) == pytest.approx((products + rest) / (1.2 * 8192**2 / 4e7), abs=0.01)
    assert math.isclose(float(cells[5]), 2013, rel_tol=0.01)


def test_the_scaling_document_is_written_with_and_without_results(monkeypatch, tmp_path):
    document = tmp_path / "scaling.md"
    document.write_text(scaling.DOCUMENT.read_text())
    monkeypatch.setattr(scaling, "DOCUMENT", document)
    for found in (scaling.tables(None), scaling.tables(made_up())):
        for name, body in found.items():
            documents.update(document, f"<!-- {name} -->", f"<!-- end of {name} -->", body)
            assert body in document.read_text()
    assert "Not measured yet" not in document.read_text()

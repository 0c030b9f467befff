"""A few cases of `make faults`, and what its runner makes of what it finds.

Signals, single resumes, failing saves and lost processes have tests of their own beside the modules they are about.
"""

import json

import pytest

from faults import damage, kills, lab, nonfinite, order, run, samples, specimens
from faults.lab import Case, Laboratory, Lane, Missed, Outcome, Skip

ONE_EACH = [
    (kills, "kills, at a file operation of saving, 20"),
    (kills, "kills, while saving, two processes, 0"),
    (order, "order, loaders, changed in mid-epoch, 2 x 1 to step 5 then 4 x 4 to step 12"),
    (order.Epochs, "epochs, W - 1 shards, 4 x 1, pad"),
    (damage, "damage, positions 0 to 49"),
    (samples, "samples, cut 48 to 59"),
    (samples, "samples, EXIF rotations 1 to 8"),
    (samples, "samples, a header overwritten with zeros"),
    (samples, "samples, training, JPEG cut in its header"),
    (samples, "samples, limit, met by two processes"),
    (nonfinite, "nonfinite, nan in gradient, stop, 2 processes"),
]


@pytest.fixture(scope="module")
def lane(tmp_path_factory):
    return Lane(Laboratory(tmp_path_factory.mktemp("faults") / "work"), "test")


@pytest.mark.parametrize(("row", "name"), ONE_EACH, ids=[name for _, name in ONE_EACH])
def test_it_is_survived(lane, row, name):
    (case,) = (case for case in row.cases() if case.name == name)
    outcome = row.run(case, lane)
    assert outcome.injected == outcome.survived >= 1, outcome.note


def test_a_run_of_other_numbers_is_told_apart_by_its_bits(lane):
    """What all rows rest on: a comparison that finds differences."""
    reference = lane.laboratory.reference(lane)
    output = lane.folder("another seed") / "run"
    assert lab.World(lane, output, "--run.seed", "1").wait() == [0]
    bits = lab.differing_bits(reference, output)
    assert bits["log"] > 1000
    assert bits["model/open_clip_model.safetensors"] > 1_000_000
    assert sum(bits[name] for name in bits if name.endswith("optim_states.pt")) > 1_000_000
    assert bits["checkpoints/step-00000012/random-0.pt"] > 1000
    with pytest.raises(Missed, match="bits differ"):
        lab.need_equal(reference, output)


def test_a_run_that_begins_anew_is_a_miss(lane):
    """Its checkpoints vanish behind its back: what comes out is right, how it came about is not."""
    output = lane.folder("anew") / "run"
    assert lab.World(lane, output, "--run.stop-after", "4").wait() == [0]
    noted = lab.Resumption(output)
    (output / "checkpoints").rename(output.parent / "checkpoints")
    assert lab.World(lane, output, "--resume").wait() == [0]
    with pytest.raises(Missed, match="the newest whole checkpoint was 4"):
        noted.check()


def test_counts_of_a_full_run():
    """At least what the table has to show."""
    count = {row.NAME: len(row.cases()) for row in run.ROWS}
    assert count["kills"] >= 200
    assert count["exactness"] >= 20
    assert sum(case.facts.get("positions", 0) for case in damage.cases()) >= 1000
    assert run.soak.cases()[0].facts["steps"] >= 5000
    kinds = [case.facts["specimen"] for case in samples.cases() if "specimen" in case.facts]
    assert len(set(kinds)) == len(kinds) >= 180
    assert sum(case.kind == "cuts of a tar" for case in samples.cases()) * samples.CUTS >= 100
    for row in run.ROWS:
        names = [case.name for case in row.cases()]
        assert len(names) == len(set(names))


class Row:
    """A row without faults."""

    NAME, FAULT, PROMISE = "row", "a fault", "a promise"

    @staticmethod
    def run(case, lane):
        raise case.facts["error"]

    @staticmethod
    def summary(outcomes):
        return "seen"


def test_misses_and_what_cannot_be_tried_are_told_and_kept(lane, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    errors = {"missed": Missed("lost a step"), "broken": ZeroDivisionError("x"), "skipped": Skip("no privilege")}
    cases = [Case(f"row, {name}", name, {"error": error}) for name, error in errors.items()]
    results = run.Results(tmp_path / "results.jsonl")
    for case in cases:
        results.add(Row, case, *run.attempt(Row, case, lane))
    fine = Case("row, fine", "fine")
    results.add(Row, fine, Outcome(3, 3), 1.0)
    wanted = {"row": [*cases, fine, Case("row, never", "never")]}
    line = run.table([Row], results, wanted).splitlines()[-1]
    assert "| 5 | **3** | seen; 2 cases not tried |" in line
    text = run.details([Row], results, wanted)
    assert "| row | skipped | 0 | 0 | no privilege |" in text
    assert "- row, missed: lost a step" in text
    assert "ZeroDivisionError" in text


def test_a_run_cut_off_goes_on_and_other_sources_start_over(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    run.Results(path).add(Row, Case("a", "kind"), Outcome(), 1.0)
    with path.open("a") as file:
        file.write('{"row": "row", "ca')
    again = run.Results(path)
    assert "a" in again
    again.add(Row, Case("b", "kind"), Outcome(2, 1, "why"), 1.0)
    assert run.Results(path).of([Case("b", "kind")]) == [Outcome(2, 1, "why")]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert "a" not in run.Results(path, fresh=[Row])
    run.Results(path).add(Row, Case("a", "kind"), Outcome(), 1.0)
    monkeypatch.setattr(run, "sources", lambda: "others")
    assert "a" not in run.Results(path)


@pytest.mark.parametrize("marked", [True, False])
def test_the_table_goes_where_the_markers_are(tmp_path, monkeypatch, marked):
    results = run.Results(tmp_path / "results.jsonl")
    case = Case("row, a", "kind")
    results.add(Row, case, Outcome(2, 1, "lost"), 1.0)
    wanted = {"row": [case]}
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    markers = f"{run.BEGIN}\nold\n{run.END}\nafter"
    (tmp_path / "docs" / "faults.md").write_text(markers)
    (tmp_path / "README.md").write_text(markers if marked else "before")
    run.write_documents(run.table([Row], results, wanted), [Row], results, wanted)
    page, readme = ((tmp_path / name).read_text() for name in ("docs/faults.md", "README.md"))
    assert "| a fault | a promise | 2 | **1** | seen | `python tests/faults/run.py --only row` |" in page
    assert "- row, a: lost" in page
    assert page.endswith("after")
    assert "old" not in page
    assert readme == "before" or "| a fault | a promise | 2 | **1** | seen |\n" in readme


def test_every_odd_sample_is_listed():
    page = " ".join((run.ROOT / "docs" / "faults.md").read_text(encoding="utf-8").split())
    assert [each.name for each in specimens.all_of_them() if " ".join(each.name.split()) not in page] == []

"""A run goes on at another number of processes: same steps, no sample lost or counted twice, nothing left over."""

import json

import pytest
from safetensors.torch import load_file
from small_run import finish, finish_together, write_pictures, write_setup

from journal import read_log

BROKEN = range(7, 10)  # three of 48 pictures, met once in each of the three epochs
LEARNED = ("open_clip_model.safetensors", "hyperbolic.safetensors")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = write_setup(tmp_path_factory.mktemp("elsewhere"))
    write_pictures(folder / "damaged", broken=BROKEN)
    return folder


@pytest.fixture(scope="module")
def alone(setup):
    """A run of one process, uninterrupted."""
    finish(setup, setup / "alone", "--data.train", str(setup / "damaged"))
    return setup / "alone"


def quarantined(run):
    files = [p for p in run.glob("quarantine-*.jsonl") if p.stem != "quarantine-index"]
    return {p.name: [json.loads(line)["key"] for line in p.read_text().splitlines()] for p in files}


@pytest.mark.parametrize(("stage", "worlds"), [("1", {3: 3, 6: 1, 0: 2}), ("3", {5: 2, 0: 1})])
def test_it_goes_on_at_any_number_of_processes(setup, alone, tmp_path, stage, worlds):
    """`worlds`: where it stops -> how many processes come so far."""
    run = tmp_path / "run"
    more = ("--data.train", str(setup / "damaged"), "--run.zero-stage", stage, "--run.save-every", "0")
    for stop, count in worlds.items():
        resume = ["--resume"] if run.exists() else []
        finish_together(setup, run, count, *more, *resume, "--run.stop-after", str(stop))
        last = read_log(run / "log.jsonl")[-1]
        lines = [key for keys in quarantined(run).values() for key in keys]
        assert last["step"] == (stop or 12)
        assert last["quarantined"] == len(lines)
        assert last["used"] + last["quarantined"] == 12 * last["step"]
        assert not [p.name for p in (run / "checkpoints").iterdir() if not p.name.startswith("step-")]
    assert sorted(lines) == sorted(3 * [f"photo{i:04d}" for i in BROKEN])
    assert quarantined(run).keys() == {f"quarantine-{r}.jsonl" for r in range(max(worlds.values()))}
    for ours, theirs in zip(read_log(run / "log.jsonl"), read_log(alone / "log.jsonl"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3)  # sums in another order
        assert ours["lr"] == theirs["lr"]
        assert ours["order"] == theirs["order"]
        assert (ours["used"], ours["quarantined"]) == (theirs["used"], theirs["quarantined"])
    for file in LEARNED:
        tensors = load_file(run / "model" / file)
        for name, tensor in load_file(alone / "model" / file).items():
            assert (tensor - tensors[name]).abs().max() < 2e-3, name  # a tenth of what twelve steps can move


def test_the_record_of_quarantined_samples_goes_back_with_the_checkpoint(setup, tmp_path):
    """Lines after the checkpoint belong to steps that come again, also in files of other processes."""
    run = tmp_path / "run"
    more = ("--data.train", str(setup / "damaged"), "--run.save-every", "0", "--optim.epochs", "2")
    finish_together(setup, run, 2, *more, "--run.stop-after", "4")
    before = quarantined(run)
    kept = (run / "checkpoints" / "step-00000004").rename(tmp_path / "kept")
    finish_together(setup, run, 2, *more, "--resume", "--run.stop-after", "7")  # from step 0
    kept.rename(run / "checkpoints" / "step-00000004")
    (run / "checkpoints" / "step-00000007" / "manifest.json").unlink()
    (run / "quarantine-5.jsonl").write_text(next(iter(run.glob("quarantine-*.jsonl"))).read_text())
    finish(setup, run, *more, "--resume", "--run.stop-after", "5")
    after = quarantined(run)
    assert "quarantine-5.jsonl" not in after
    for name, keys in before.items():
        assert after[name][: len(keys)] == keys
    last = read_log(run / "log.jsonl")[-1]  # of step 7: read_log keeps the newest of each step
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    fifth = [record for record in log if record.get("step") == 5 and "loss" in record][-1]
    assert fifth["quarantined"] == sum(map(len, after.values()))
    assert fifth["used"] + fifth["quarantined"] == 60
    assert last["step"] == 7

"""DeepSpeed's stages, precisions and offloads: what is saved comes back, at any number of processes; traps."""

import subprocess
import sys

import pytest
import torch
from small_run import ROOT, environment

sys.path.insert(0, str(ROOT / "benchmarks"))
import matrix
from matrix import Case, differences

CASES = [Case(1), Case(3), Case(0, "bf16"), Case(2, "bf16", "optimizer")]
FOUR = [Case(1)]
JOB = """
import sys, torch, matrix
from pathlib import Path
from matrix import Case
folder = Path(sys.argv[1])
torch.save(matrix.run(folder, eval(sys.argv[2]), eval(sys.argv[3])), folder / "all.pt")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """In a process of its own: forks of one that has run torch's threads may hang."""
    folder = tmp_path_factory.mktemp("matrix")
    command = [sys.executable, "-c", JOB, str(folder), repr(CASES), repr(FOUR)]
    env = environment()
    env["PYTHONPATH"] = f"{ROOT / 'benchmarks'}:{env['PYTHONPATH']}"
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "all.pt", weights_only=False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resuming_brings_everything_back_and_goes_on_bit_for_bit(found, case):
    x = found[2][f"resume {case}"]
    assert differences(x["saved"], x["loaded"]) == {}
    assert differences(x["gone on"], x["gone on again"]) == {}
    assert differences(x["saved"]["parameters"], x["gone on"]["parameters"])  # it trains
    assert x["saved"]["steps"] == [matrix.SAVED]
    assert [group["weight_decay"] for group in x["saved"]["groups"]] == [0.1, 0.0]
    assert (
        float(x["saved"]["parameters"]["manifold.curvature.log"]["now"]) == matrix.CURVATURE
    )  # frozen, not at its start


@pytest.mark.parametrize(("count", "case"), [(1, c) for c in CASES] + [(4, c) for c in FOUR], ids=str)
def test_another_number_of_processes_begins_with_the_same_state(found, count, case):
    x = found[count][f"resume {case}"]
    assert differences(found[2][f"resume {case}"]["saved"], x["loaded"]) == {}
    assert x["gone on"]["steps"] == [matrix.GONE_ON]  # each parameter group counts its own steps
    if case.precision == "bf16":  # without BatchNorm, whose statistics are of a process' own images
        drift = differences(found[2][f"resume {case}"]["gone on"]["parameters"], x["gone on"]["parameters"])
        assert max(drift.values()) < 0.02  # two steps of 1e-2, in 16 bit


def test_sgd_moves_alike_at_every_stage_and_number_of_processes(found):
    """A gather without gradient gives half of it, which Adam would hide."""
    start = found[1]["sgd fp32 stage 0"]
    runs = [(count, name) for count in found for name in found[count] if name.startswith("sgd")]
    assert len(runs) == 12
    for count, name in runs:
        assert max(differences(start, found[count][name]).values(), default=0.0) < 2e-5, (count, name)


@pytest.mark.parametrize("stage", range(4))
def test_gradients_are_clipped_at_the_length_that_is_asked_for(found, stage):
    """DeepSpeed clips at 1 where it is told nothing."""
    lengths = found[2][f"clip {Case(stage)}"]
    assert lengths["0.0"] > 10
    assert lengths["0.125"] == pytest.approx(0.125, rel=1e-4)

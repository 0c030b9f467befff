"""The report at the start of a run: estimates against torch's storage, limits against files, lines for people."""

import dataclasses
import gc
import json
import os
import time

import numpy as np
import pytest
import torch
from small_run import finish, start, write_setup

from bioclip_hc.data.decode import decoder
from bioclip_hc.data.preprocess import build_transform
from bioclip_hc.data.quarantine import BadSample
from bioclip_hc.data.samplers import BatchPlan, unique_texts

import environment
from config import Config, Data, Optim, Run

CASES = [("fp32", 0, 1), ("fp32", 1, 1), ("fp32", 3, 1), ("bf16", 0, 1), ("bf16", 1, 2)]
EMBEDDING = 49408 * 32  # elements of the largest parameter


def storage() -> int:
    """Bytes of all tensors of this process, each storage once; of the bucket what can have been touched."""
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.layout == torch.strided:
            kept = thing.untyped_storage()
            found[kept.data_ptr()] = kept.nbytes() if kept.nbytes() < environment.BUCKET else 0
    return sum(found.values())


def print_storage() -> None:
    """Called in the process of a run: say what its tensors take before DeepSpeed, and when gradients are there."""
    import train

    go, begin = train.Training.go, train.start_engine

    def started(model, *rest):
        parameters = sum(p.untyped_storage().nbytes() for p in model.parameters())
        train.before = storage() - parameters
        return begin(model, *rest)

    def going(run):
        step, engine = run.engine.step, run.engine

        def held(*a, **k):
            gc.collect()
            print(f"held {storage() - train.before}", flush=True)
            return step(*a, **k)

        engine.step = held
        return go(run)

    train.Training.go, train.start_engine = going, started


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("setup"))


def begun(output):
    return json.loads((output / "log.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(("precision", "stage", "processes"), CASES)
def test_states_are_what_torch_holds(setup, tmp_path, precision, stage, processes):
    output = tmp_path / "run"
    more = ["--run.precision", precision, "--run.zero-stage", str(stage), "--optim.epochs", "0.5"]
    port = 20000 + os.getpid() % 10000
    place = {"WORLD_SIZE": str(processes), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    runs = [
        start(setup, output, *more, RANK=str(rank), BEFORE_TRAINING="test_environment:print_storage", **place)
        for rank in range(processes)
    ]
    assert [run.wait() for run in runs] == [0] * processes, runs[0].printed
    held = int(runs[0].printed.split("held ")[2].split()[0])  # at the second step the moments are there
    facts = begun(output)
    assert facts["parameters"] == 1_634_916  # under stage 3 too, which leaves a parameter none of its elements
    b = facts["estimated_bytes"]
    expected = b["parameters"] + b["gradients"] + b["optimizer"]
    across = EMBEDDING if processes > 1 else 0  # its whole gradient stays where its parts are shared
    assert 0.95 * expected < held < 1.08 * expected + across


def test_the_report_says_what_the_run_is(setup, tmp_path):
    printed = finish(setup, tmp_path / "run", "--optim.epochs", "0.5", "--run.micro-batch", "4")
    facts = begun(tmp_path / "run")
    assert (facts["world_size"], facts["device"], facts["threads"]) == (1, "cpu", 1)
    assert (facts["global_batch"], facts["local_batch"], facts["micro_batch"]) == (12, 12, 4)
    assert (facts["steps"], facts["steps_per_epoch"], facts["samples"]) == (2, 4, 48)
    assert facts["backend"] in ("cpu", "tiled")
    assert facts["hosts"][0]["processes"] == 1
    assert facts["decoder"] == decoder()
    assert facts["estimated_bytes"]["loader"] == 12 * 3 * 32 * 32
    assert {"python", "torch", "deepspeed", "open_clip", "bioclip_hc"} <= facts["versions"].keys()
    assert facts["texts_a_step"] == pytest.approx(23, abs=3)  # all taxa of the six lineages, or nearly
    for line in environment.lines(facts):
        assert line in printed.splitlines()


def test_what_becomes_of_the_remainder_is_said():
    assert environment.rest(0, "drop") == environment.rest(0, "pad") == ""
    assert environment.rest(1, "drop") == ", which leaves out 1 sample"
    assert environment.rest(1200, "pad") == ", which ends with a batch of 1,200"


def test_the_published_recipe_on_a_gpu():
    config = Config(Data(workers=12), optim=Optim(), run=Run(precision="fp16", zero_stage=1))
    P = 150_000_000
    states = environment.model_states(P, P, config, 8)
    assert states == {"parameters": 2 * P, "gradients": 2 * P // 8, "optimizer": 12 * P // 8, "bucket": 10**9}
    third = dataclasses.replace(config, run=Run(precision="fp16", zero_stage=3))
    assert environment.model_states(P, P, third, 8)["parameters"] == 2 * P // 8
    image = environment.image_bytes(build_transform({"size": 224}))
    assert image == 3 * 224 * 224
    assert environment.loader_bytes(4096, image, 12) == 25 * 4096 * image  # 14 GiB


FACTS = {
    "hosts": [
        {"host": "a", "processes": 4, "cores": 64, "memory": 200 << 30, "shared_memory": 400 << 30, "gpus": []},
        {"host": "b", "processes": 4, "cores": 64, "memory": 400 << 30, "shared_memory": 100 << 30, "gpus": []},
        {"host": "c", "processes": 1, "cores": 64, "memory": 400 << 30, "shared_memory": 0, "gpus": []},
    ],
    "estimated_bytes": {
        "loader": 57 << 30, "parameters": 9 << 30, "gradients": 0, "bucket": 0, "optimizer": 0, "texts": 0
    },
}  # fmt: skip


def test_what_will_not_fit_is_said():
    first, second = environment.warnings(FACTS)
    assert first == (
        "the loaders of a may hold 228.0 GiB of images, it has 200.0 GiB of memory; lower data.workers"
    )
    assert second.startswith("the loaders of b may hold 228.0 GiB of images, it has 100.0 GiB of /dev/shm")
    gpu = {"name": "A100", "memory": 8 << 30}
    facts = {**FACTS, "hosts": [{**FACTS["hosts"][2], "gpus": [gpu, gpu]}]}
    (only,) = environment.warnings(facts)
    assert only.startswith("a process needs 9.0 GiB before any activation, A100 has 8.0 GiB; raise run.zero_stage")


def test_memory_is_what_the_job_may_have(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal:       1048576 kB\nMemFree: 1 kB\n")
    write("proc/self/cgroup", "0::/slurm/job_7/step_0\n")
    assert environment.memory_limit(tmp_path) == 1 << 30
    write("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n")
    write("sys/fs/cgroup/slurm/job_7/memory.max", f"{1 << 29}\n")
    assert environment.memory_limit(tmp_path) == 1 << 29
    write("proc/self/cgroup", "5:memory:/job_7\n3:cpu:/job_7\n")
    write("sys/fs/cgroup/memory/job_7/memory.limit_in_bytes", f"{1 << 28}\n")
    assert environment.memory_limit(tmp_path) == 1 << 28


class Batches:
    """Ten million samples of 400,000 lineages."""

    def __init__(self, n=10_000_000):
        self.plan, self.mode = BatchPlan(n, 32768, 0), "all"
        self.table = np.random.default_rng(0).integers(0, 400_000, (400_000, 7))

    def taxa_of(self, indices):
        return self.table[indices % len(self.table)]


def test_counting_texts_costs_no_time():
    batches = Batches()
    begin = time.process_time()
    environment.texts_a_step(batches)
    assert time.process_time() - begin < 0.8


def test_texts_are_as_many_as_in_the_runs_own_batches():
    batches = Batches(300_000)
    own = [len(unique_texts(batches.taxa_of(batches.plan.indices(step)))[0]) for step in range(3)]
    assert environment.texts_a_step(batches) == pytest.approx(np.mean(own), rel=0.01)


def test_hosts_are_lines_for_each_kind():
    gpu = {"name": "A100", "memory": 80 << 30}
    host = {"processes": 4, "cores": 64, "memory": 512 << 30, "gpus": [gpu] * 4}
    two = environment.host_lines([host, host], 8)
    assert two == ["2 x (4 processes of 8 threads, 4 x A100 of 80.0 GiB, 64 cores, 512.0 GiB)"]
    alone = environment.host_lines([{**host, "processes": 1, "cores": 1, "gpus": []}], 1)
    assert alone == ["1 process of 1 thread, no GPU, 1 core, 512.0 GiB"]


def test_unusable_samples_are_told_by_cause():
    """A line for each cause however many samples it has, and at most so many causes."""
    damage = [BadSample("a.tar", "", "damaged tar after byte 512 of 9000: cut off")]
    names = [BadSample("b.tar", f"{i}", f"name 'Name {i}' is not in the taxonomy") for i in range(3000)]
    homonyms = [BadSample("b.tar", f"h{i}", f"name 'H{i}' is ambiguous: A > H{i} | B > H{i}") for i in range(20)]
    said = environment.unusable([*names, *damage, *homonyms])
    assert said == [
        "3021 unusable places in the shards (quarantine-index.jsonl); 1 damaged shard, read around the damage; "
        "the first: a.tar: damaged tar after byte 512 of 9000: cut off",
        "3,000 unusable: name '...' is not in the taxonomy; the first: b.tar, '0': name 'Name 0' is not in the "
        "taxonomy",
        "20 unusable: name '...' is ambiguous; the first: b.tar, 'h0': name 'H0' is ambiguous: A > H0 | B > H0",
        "1 unusable: damaged tar after byte N of N: cut off; the first: a.tar: damaged tar after byte 512 of 9000: "
        "cut off",
    ]
    assert environment.unusable([]) == []
    assert len(environment.unusable(names)) == 1
    many = [BadSample("a.tar", "k", f"{chr(97 + i)} strange reason") for i in range(20)]
    assert environment.unusable(many)[-1] == "8 unusable for 8 other reasons"

"""Training through train.py: exact resumption, signals, precisions and ZeRO stages, mistakes that lose nothing."""

import json
import math
import os
import signal
import subprocess
import sys

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from shards_by_hand import write_tar
from small_run import (
    ARCHITECTURES,
    LINEAGES,
    ROOT,
    arguments,
    environment,
    finish,
    finish_together,
    picture,
    start,
    wait_for_step,
    write_pictures,
    write_setup,
)

from bioclip_hc.data.shards import ShardSet
from bioclip_hc.evaluation.counts import counts_of_model
from bioclip_hc.model import create_model, load
from bioclip_hc.taxonomy import Taxonomy

import train
from config import Config, Data, Loss, Model, Optim, Run
from engine import check_precision, deepspeed_config, lr_share, parameter_groups
from journal import read_log
from parts import build_loss

TIMES = ("samples_per_second", "waiting", "eta")
STEPS = 12
DROPOUT = ("--model.architecture", "tiny_dropout.json")  # its forward pass draws, so random states matter


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture(scope="module")
def dropout(setup):
    """An architecture is looked for beside the configuration, on the command line as in the file."""
    return DROPOUT


@pytest.fixture(scope="module")
def whole(setup, dropout):
    """The folder of an uninterrupted run, started as users start it."""
    output = setup / "whole"
    command = [sys.executable, str(ROOT / "train" / "train.py"), *arguments(setup, output, *dropout)]
    done = subprocess.run(command, env=environment(), cwd=setup, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"step {STEPS}/{STEPS}" in done.stderr
    return output


def events(output, kind):
    lines = (output / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if f'"event": "{kind}"' in line]


def tensors(output):
    return {f: load_file(output / "model" / f) for f in ("open_clip_model.safetensors", "hyperbolic.safetensors")}


def assert_identical(a, b, where=""):
    """Nested containers equal bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}/{i}")
    else:
        assert type(a) is type(b), where
        assert a == b or getattr(a, "__dict__", a) == getattr(b, "__dict__", b), where


def assert_same_run(a, b):
    """Two runs that came to the same end: exported model, last checkpoint with its random states, log."""
    assert_identical(tensors(a), tensors(b))
    last = f"checkpoints/step-{STEPS:08d}"
    files = sorted(p.name for p in (a / last).glob("*.pt"))
    assert len(files) == 3  # parameters, optimizer, random states
    for name in files:
        states = [torch.load(run / last / name, weights_only=False) for run in (a, b)]
        assert_identical(*states, name)
    logs = [[{k: v for k, v in r.items() if k not in TIMES} for r in read_log(run / "log.jsonl")] for run in (a, b)]
    assert logs[0] == logs[1]


# -- going on ---------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(whole):
    assert sorted(p.name for p in whole.iterdir()) == [
        "checkpoints",
        "config.json",
        "inputs.json",
        "log.jsonl",
        "model",
    ]
    log = read_log(whole / "log.jsonl")
    assert [r["step"] for r in log] == list(range(1, STEPS + 1))
    assert [r["used"] for r in log] == [12 * s for s in range(1, STEPS + 1)]
    assert log[-1]["epoch"] == 3.0
    assert log[-1]["loss"] < log[0]["loss"]
    for record in log:
        known = [v for v in record["per_rank"].values() if v is not None]
        assert record["loss"] == pytest.approx(sum(known) / len(known), abs=1e-5)
        assert all(f <= v for f, v in zip(record["floor"].values(), record["per_rank"].values(), strict=True))
    assert [r["lr"] for r in log] == [1e-3 * lr_share(s, 3, STEPS) for s in range(STEPS)]  # as each step used it
    kept = sorted(p.name for p in (whole / "checkpoints").glob("step-*"))
    assert kept == ["step-00000004", "step-00000008", "step-00000012"]
    assert events(whole, "start")[0]["steps"] == STEPS


@pytest.mark.parametrize("stops", [(5,), (4, 9)], ids=["between checkpoints", "twice, once at a checkpoint"])
def test_a_resumed_run_equals_the_uninterrupted_one(setup, dropout, whole, tmp_path, stops):
    output = tmp_path / "lr[3] *"  # a name that is a pattern too
    for i, stop in enumerate((*stops, 0)):
        finish(setup, output, *dropout, "--run.stop-after", str(stop), *(["--resume"] if i else []))
        assert (output / "model").exists() == (stop == 0)
    assert [r["step"] for r in events(output, "resume")] == list(stops)
    assert_same_run(whole, output)


def test_a_run_does_not_go_on_with_other_data(setup, tmp_path):
    shards, output = write_pictures(tmp_path / "shards"), tmp_path / "run"
    finish(setup, output, "--data.train", str(shards), "--run.stop-after", "4")
    (shards / "shard-000002.tar").rename(tmp_path / "elsewhere.tar")
    printed = finish(setup, output, "--data.train", str(shards), "--resume", code=2)
    assert "shards changed since the run in" in printed
    (tmp_path / "elsewhere.tar").rename(shards / "shard-000002.tar")
    finish(setup, output, "--data.train", str(shards), "--resume")


def flat_shards(folder, captions):
    """Shards in the form of open_clip: a picture and a text."""
    members = [
        (f"{i:04d}.{extension}", data)
        for i, caption in enumerate(captions)
        for extension, data in (("jpg", picture(i)), ("txt", caption.encode()))
    ]
    folder.mkdir()
    return write_tar(folder / "flat.tar", members)


def test_names_are_looked_up_in_the_taxonomy_and_the_synonyms_of_a_run(setup, tmp_path):
    table, synonyms = tmp_path / "taxa.csv", tmp_path / "synonyms.csv"
    table.write_text(
        "kingdom,phylum,class,order,family,genus,species\n"
        "Animalia,Chordata,Aves,,Turdidae,Turdus,migratorius\n"
        "Plantae,Tracheophyta,,,Rosaceae,Rosa,canina\nAnimalia,Chordata,Aves,,Muscicapidae,Oenanthe,\n"
        "Plantae,Tracheophyta,,,Apiaceae,Oenanthe,\n"
    )
    synonyms.write_text("synonym,accepted\nMerula migratoria,Turdus migratorius\n")
    captions = ["a photo of Rosa canina.", "Merula migratoria", "Plantae Tracheophyta Rosaceae Rosa canina"] * 14
    flat = flat_shards(tmp_path / "shards", [*captions, "Oenanthe", "Oenanthe", "a photo of a cat."])
    output, data = tmp_path / "run", ("--data.train", str(flat), "--data.taxonomy", str(table))
    more = (*data, "--data.synonyms", str(synonyms))
    said = finish(setup, output, *more, "--run.stop-after", "2")
    assert "names      taxa of 42 samples: 14 by path, 14 by name, 14 by synonym" in said
    assert "2 unusable: name '...' is ambiguous; the first: " in said
    assert "1 unusable: name '...' is not in the taxonomy; the first: " in said
    records = [json.loads(line) for line in (output / "quarantine-index.jsonl").read_text().splitlines()]
    assert [r["key"] for r in records] == ["0042", "0043", "0044"]
    assert records[0]["reason"].startswith(
        "name 'Oenanthe' is ambiguous: Animalia > Chordata > Aves > Muscicapidae > "
    )

    moved = synonyms.rename(tmp_path / "elsewhere.csv")
    moved.write_text("synonym,accepted\nMerula migratoria,Rosa canina\n")
    printed = finish(setup, output, *data, "--data.synonyms", str(moved), "--resume", code=2)
    assert "shards changed since the run in" in printed
    assert "data.synonyms" in printed
    moved.write_text("synonym,accepted,source\nMerula migratoria,Turdus,\nMerula migratoria,Turdus migratorius,\n")
    printed = finish(setup, output, *data, "--data.synonyms", str(moved), "--resume", code=2)
    assert "data.quarantine_limit" in printed
    moved.write_text("synonym,accepted\nFelis catus,Rosa\nMerula migratoria,Turdus migratorius\n")
    finish(setup, output, *data, "--data.synonyms", str(moved), "--resume", "--run.stop-after", "3")


def test_fp16_without_fp16_is_refused_by_name(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this CPU has fp16")
    printed = finish(setup, tmp_path / "run", "--run.precision", "fp16", code=2)
    assert_one_line(printed, ["run.precision = 'fp16' needs a GPU or a CPU with fp16; use bf16 or fp32 here"])
    for precision in ("fp32", "bf16"):
        check_precision(precision)
    with pytest.raises(ValueError, match="needs a GPU"):
        check_precision("fp16")


def test_batch_norm_in_16_bit_is_refused_and_claims_nothing(setup, tmp_path):
    output = tmp_path / "run"
    more = ("--model.architecture", str(setup / "tiny_resnet.json"), "--run.precision", "bf16")
    printed = finish(setup, output, *more, code=2)
    assert "does not work with BatchNorm" in printed
    assert not list(output.iterdir())


def test_a_run_killed_without_warning_goes_on_from_its_last_checkpoint(setup, dropout, whole, tmp_path):
    output = tmp_path / "run"
    run = start(setup, output, *dropout)
    wait_for_step(output, 6)
    run.kill(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    with (output / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # as a kill within a write leaves it
    finish(setup, output, *dropout, "--resume")
    assert events(output, "resume")[0]["step"] in (4, 8)
    assert_same_run(whole, output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_exits_143(setup, dropout, whole, tmp_path, number):
    output = tmp_path / "run"
    run = start(setup, output, *dropout, "--run.save-every", "0", "--data.workers", "1")
    wait_for_step(output, 2)
    run.kill(number)
    assert run.wait() == 143
    step = read_log(output / "log.jsonl")[-1]["step"]
    assert [p.name for p in (output / "checkpoints").glob("step-*")] == [f"step-{step:08d}"]
    assert 2 <= step < STEPS
    assert not (output / "model").exists()
    assert f"stopped    by a signal at step {step} of {STEPS}; go on with --resume\n" in run.printed
    printed = finish(setup, output, *dropout, "--resume")
    assert f"resumed    step-{step:08d}, saved by 1 process\n" in printed
    assert [r["step"] for r in events(output, "resume")] == [step]  # no step lost
    assert_same_run(whole, output)


def signal_while_building():
    """In a training process: SIGUSR1 arrives before the model is there."""
    build = train.build_model

    def disturbed(config):
        signal.raise_signal(signal.SIGUSR1)
        return build(config)

    train.build_model = disturbed


def test_a_signal_before_the_first_step_exits_143_too(setup, dropout, whole, tmp_path):
    output, early = tmp_path / "run", {"BEFORE_TRAINING": "test_train:signal_while_building"}
    finish(setup, output, *dropout, code=143, **early)
    finish_together(setup, tmp_path / "two", 2, *dropout, code=143, **early)
    finish(setup, output, *dropout, "--resume", "--run.stop-after", "5")
    finish(setup, output, *dropout, "--resume", code=143, **early)
    finish(setup, output, *dropout, "--resume")
    assert_same_run(whole, output)


def signal_to_the_second_while_building():
    """In a training process: the signal comes to process 1 alone, and process 0 finds it gone."""
    if os.environ["RANK"] == "1":
        signal_while_building()


def test_one_process_told_to_stop_before_the_first_step_stops_all_with_143(setup, dropout, tmp_path):
    early = {"BEFORE_TRAINING": "test_train:signal_to_the_second_while_building"}
    first, _ = finish_together(setup, tmp_path / "run", 2, *dropout, code=143, **early)
    assert "process 1 (host " in first
    assert "was told to stop at step 0, starting; process 0 ends with code 143" in first
    assert "go on with --resume" in first


def interrupted_at_a_step():
    """In a training process: Ctrl-C in the third step."""
    advance = train.Training.advance

    def disturbed(run, batch):
        if run.step == 2:
            raise KeyboardInterrupt
        return advance(run, batch)

    train.Training.advance = disturbed


def test_ctrl_c_is_one_line(setup, tmp_path):
    output, early = tmp_path / "run", {"BEFORE_TRAINING": "test_train:interrupted_at_a_step"}
    printed = finish(setup, output, "--data.workers", "1", "--run.save-every", "1", code=130, **early)
    assert printed.splitlines()[-1] == "train.py: interrupted; --resume goes on from step-00000002"
    assert "Traceback" not in printed
    printed = finish(setup, tmp_path / "unsaved", "--run.save-every", "0", code=130, **early)
    assert printed.splitlines()[-1] == "train.py: interrupted; no checkpoint was saved yet"
    finish(setup, output, "--resume", "--run.stop-after", "3")
    assert [r["step"] for r in events(output, "resume")] == [2]


def test_nothing_to_resume_is_said(setup, tmp_path):
    printed = finish(setup, tmp_path / "run", "--resume", "--run.stop-after", "1")
    assert f"nothing to resume in {tmp_path / 'run'}; the run begins\n" in printed


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json is damaged (Expecting property name"),
        (
            "config.json",
            '{"hidden_size": 768}',
            "config.json is not of a run; give run.output a new or empty folder",
        ),
        ("inputs.json", "[]", "inputs.json is not of a run; restore it"),
    ],
)
def test_what_a_run_began_with_is_unreadable(setup, tmp_path, name, content, said):
    output = tmp_path / "run"
    finish(setup, output, "--run.stop-after", "1")
    (output / name).write_text(content)
    assert_one_line(finish(setup, output, "--resume", code=2), [said])


def test_resuming_a_finished_run_exports_the_same_model(setup, dropout, whole):
    before = tensors(whole)
    finish(setup, whole, *dropout, "--resume")
    assert_identical(before, tensors(whole))


def test_workers_change_nothing(setup, dropout, whole, tmp_path):
    finish(setup, tmp_path / "run", *dropout, "--data.workers", "2")
    assert_same_run(whole, tmp_path / "run")


def test_a_seed_makes_another_run(setup, tmp_path, whole, dropout):
    finish(setup, tmp_path / "run", *dropout, "--run.seed", "1", "--optim.epochs", "0.25")
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["loss"] != read_log(whole / "log.jsonl")[0]["loss"]


# -- the exported model -----------------------------------------------------------------------------------


def test_stock_open_clip_loads_the_model_and_gives_the_same_features(whole):
    stock, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{whole / 'model'}")
    model, our_preprocess, tokenizer = load(whole / "model")
    assert str(preprocess) == str(our_preprocess)
    images, tokens = torch.rand(2, 3, 32, 32), tokenizer(["an image of Animalia", "an image of Plantae"])
    with torch.no_grad():
        torch.testing.assert_close(
            stock.eval().encode_image(images), model.encode_image(images), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(stock.encode_text(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-6)


def test_the_model_says_what_it_was_made_from(setup, whole):
    metadata = json.loads((whole / "model" / "hyperbolic.json").read_text())["metadata"]
    shards = ShardSet(setup / "shards")
    assert metadata["shards"] == shards.fingerprints()
    assert metadata["config"]["optim"] == json.loads((whole / "config.json").read_text())["optim"]
    assert str(setup) not in json.dumps(metadata)  # no folder of this machine travels with a model
    own = Taxonomy.load(whole / "model" / "taxonomy.json")
    images = counts_of_model(whole / "model", own, own)
    assert images[own.rank == 0].tolist() == [32, 16]  # two thirds of 48 are animals
    assert metadata["taxonomy_sha256"] in (whole / "model" / "README.md").read_text()
    assert (metadata["steps"], metadata["samples_used"]) == (STEPS, 12 * STEPS)
    assert (metadata["samples_quarantined"], metadata["samples_unusable"]) == (0, 0)
    assert metadata["text"]["template"] == "an image of {}"
    assert {"torch", "deepspeed", "open_clip", "bioclip_hc"} <= metadata["versions"].keys()


# -- precision, stages, architectures ---------------------------------------------------------------------

VARIANTS = {
    "stage 0": ["--run.zero-stage", "0"],
    "stage 1": ["--run.zero-stage", "1"],
    "stage 2": ["--run.zero-stage", "2"],
    "stage 3": ["--run.zero-stage", "3"],
    "bf16 stage 0": ["--run.precision", "bf16", "--run.zero-stage", "0"],
    "bf16 stage 1": ["--run.precision", "bf16"],
    "bf16 stage 3": ["--run.precision", "bf16", "--run.zero-stage", "3"],
    "resnet": ["--model.architecture", "tiny_resnet.json"],
    "learnable curvature": ["--model.learnable-curv", "--model.curv", "0.5"],
    "clip": ["--model.geometry", "euclidean", "--loss.name", "clip", "--data.sampler", "uniform"],
}


@pytest.fixture(scope="module")
def variants(setup):
    """Losses and model folder of two steps of each variant, run when first asked for."""
    done = {}

    def variant(name):
        if name not in done:
            output = setup / name.replace(" ", "-")
            finish(setup, output, *VARIANTS[name], "--optim.epochs", "0.5")
            done[name] = [r["loss"] for r in read_log(output / "log.jsonl")], output / "model"
        return done[name]

    return variant


@pytest.mark.parametrize("name", VARIANTS)
def test_it_trains_and_exports(variants, name):
    losses, folder = variants(name)
    assert len(losses) == 2
    model, _, tokenizer = load(folder)
    start_of = create_model(model_json(folder, name), geometry=model.geometry)
    out = model(torch.rand(2, 3, 32, 32), tokenizer(["a", "b"]))
    assert torch.isfinite(out.image).all()
    assert out.image.dtype == torch.float32
    assert {p.shape for p in model.parameters()} == {p.shape for p in start_of.parameters()}
    assert not any("log" in name and p.ndim != 1 for name, p in model.named_parameters())


def model_json(folder, name):
    return folder.parents[1] / ("tiny_resnet.json" if name == "resnet" else "tiny.json")


def test_the_stages_compute_the_same(variants):
    first, folder = variants("stage 0")
    for stage in (1, 2, 3):
        losses, other = variants(f"stage {stage}")
        assert losses == pytest.approx(first, abs=2e-5)
        for name, tensor in load_file(folder / "open_clip_model.safetensors").items():
            moved = load_file(other / "open_clip_model.safetensors")[name]
            # sums in another order; Adam makes a full step of a gradient that is rounding noise
            torch.testing.assert_close(moved, tensor, rtol=0, atol=1e-4)


def test_bf16_stays_near_fp32(variants):
    assert variants("bf16 stage 1")[0] == pytest.approx(variants("stage 1")[0], rel=0.05)
    assert variants("bf16 stage 3")[0] == pytest.approx(variants("bf16 stage 1")[0], rel=5e-3)


def test_bf16_needs_no_stage(variants):
    """DeepSpeed's optimizer of stage 0 begins with a step of its own, and keeps its masters elsewhere."""
    ours, sharded = variants("bf16 stage 0"), variants("bf16 stage 1")
    assert ours[0] == sharded[0]
    for file in ("open_clip_model.safetensors", "hyperbolic.safetensors"):
        assert_identical(load_file(ours[1] / file), load_file(sharded[1] / file))


def test_every_parameter_moves(setup, variants):
    """A gradient that does not flow, or a stage that does not step, leaves parameters where they began."""
    torch.manual_seed(0)
    begun = dict(create_model(setup / "tiny.json").named_parameters())
    for name in ("stage 0", "stage 3", "bf16 stage 1"):
        for key, p in load(variants(name)[1])[0].named_parameters():
            moved = not torch.equal(p, begun[key].bfloat16().float() if "bf16" in name else begun[key])
            frozen = not begun[key].requires_grad  # the curvature, fixed by default
            assert moved or frozen, (name, key)  # bf16 exports the fp32 masters, where small steps show


# -- broken images ----------------------------------------------------------------------------------------


def test_broken_images_are_set_aside_and_counted(setup, tmp_path):
    shards = write_pictures(tmp_path / "shards", broken=range(7, 10))
    output, data = tmp_path / "run", ("--data.train", str(tmp_path / "shards"))
    for stop, resume in ((5, []), (0, ["--resume"])):
        finish(setup, output, *data, "--run.stop-after", str(stop), *resume)
        records = [json.loads(line) for line in (output / "quarantine-0.jsonl").read_text().splitlines()]
        log = read_log(output / "log.jsonl")[-1]
        assert log["quarantined"] == len(records)
        assert log["used"] + log["quarantined"] == 12 * log["step"]
    # three whole epochs of all 48 pictures
    assert sorted(r["key"] for r in records) == sorted(3 * [f"photo{i:04d}" for i in range(7, 10)])
    assert {r["shard"] for r in records} == {str(shards / "shard-000000.tar")}
    assert all(r["reason"] for r in records)
    assert json.loads((output / "model" / "hyperbolic.json").read_text())["metadata"]["samples_quarantined"] == 9


@pytest.mark.parametrize("loss", ["level", "level, per process", "clip"])
def test_a_padded_epoch_trains_on_every_sample_and_counts_it_once(setup, tmp_path, loss):
    """48 pictures, two of them broken, in batches of 40: of the last one a second process holds no sample."""
    write_pictures(tmp_path / "shards", broken=range(7, 9))
    more = ["--data.train", str(tmp_path / "shards"), "--data.remainder", "pad", "--optim.global-batch", "40"]
    if loss == "clip":
        more += ["--loss.name", "clip", "--model.geometry", "euclidean", "--data.sampler", "balanced"]
    elif loss == "level, per process":
        more += ["--loss.per-process"]
    printed = finish(setup, tmp_path / "one", *more)
    assert "6 steps, 2 an epoch, which ends with a batch of 8; 48 samples" in printed
    if loss == "level":
        more += ["--run.micro-batch", "9"]
    finish_together(setup, tmp_path / "two", 2, *more, "--data.workers", "1")
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    for log in logs:
        assert [r["used"] + r["quarantined"] for r in log] == [40, 48, 88, 96, 136, 144]
        assert log[-1]["quarantined"] == 6
        assert log[1]["eta"] > 0 == log[-1]["eta"]
        assert all(math.isfinite(r["loss"]) for r in log)
    assert [r["order"] for r in logs[0]] == [r["order"] for r in logs[1]]
    if loss != "level, per process":  # whose log has the loss of the first process' images
        assert [r["loss"] for r in logs[1]] == pytest.approx([r["loss"] for r in logs[0]], abs=1e-4)
        one, two = (load_file(tmp_path / name / "model" / "open_clip_model.safetensors") for name in ("one", "two"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-3, msg=name)


def test_a_run_of_fewer_samples_than_a_batch(setup, tmp_path):
    """Refused where the remainder is dropped, with what else can be done; padded, a step is an epoch."""
    more = ("--optim.global-batch", "64")
    printed = finish(setup, tmp_path / "run", *more, code=2)
    assert_one_line(printed, ["48 samples do not fill one global batch of 64", "(data.remainder = 'pad')"])
    more += ("--data.remainder", "pad")
    assert "nothing was written" in finish(setup, tmp_path / "run", *more, "--dry-run")
    finish(setup, tmp_path / "run", *more, "--run.stop-after", "2")
    finish(setup, tmp_path / "run", *more, "--resume")
    assert [r["used"] for r in read_log(tmp_path / "run" / "log.jsonl")] == [48, 96, 144]


def test_too_many_broken_images_stop_the_run(setup, tmp_path):
    write_pictures(tmp_path / "shards", broken=range(10))
    output = tmp_path / "run"
    printed = finish(setup, output, "--data.train", str(tmp_path / "shards"), "--optim.epochs", "9", code=2)
    assert "samples were quarantined, more than the limit of 10%; the last: " in printed
    log = read_log(output / "log.jsonl")
    assert 8 <= log[-1]["step"] <= 10  # from the hundredth sample on a share means something
    assert log[-1]["used"] + log[-1]["quarantined"] == 12 * log[-1]["step"]


def test_shards_that_cannot_be_read_any_more_stop_the_run(setup, tmp_path):
    """Whatever the limit: of a long run's samples they would be a small share for long."""
    write_pictures(tmp_path / "shards", broken=range(48))
    more = ("--data.train", str(tmp_path / "shards"), "--optim.epochs", "9", "--data.quarantine-limit", "1")
    printed = finish(setup, tmp_path / "run", *more, "--data.workers", "1", code=2)
    assert_one_line(printed, ["none of the last 108 samples could be read; the last: ", ": OSError: "])
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 8


def test_what_the_index_finds_is_recorded_apart(setup, tmp_path):
    """A few broken records among many are no reason to stop, though at first nothing else has been seen."""
    folder = cut_shards(tmp_path)
    output = tmp_path / "run"
    said = finish(setup, output, "--data.train", str(folder), "--optim.epochs", "0.25")
    assert "(quarantine-index.jsonl); 1 damaged shard, read around the damage; the first: " in said
    records = [json.loads(line) for line in (output / "quarantine-index.jsonl").read_text().splitlines()]
    assert {r["shard"] for r in records} == {str(folder / "shard-000001.tar")}
    assert any(r["reason"].startswith("damaged tar after byte") for r in records)
    assert read_log(output / "log.jsonl")[-1]["quarantined"] == 0
    assert events(output, "start")[0]["unusable"] == len(records)
    printed = finish(
        setup, tmp_path / "strict", "--data.train", str(folder), "--data.quarantine-limit", "0.001", code=2
    )
    assert "unusable, more than data.quarantine_limit = 0.001; the first: " in printed


def cut_shards(tmp_path):
    folder = write_pictures(tmp_path / "shards")
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-12000])
    return folder


# -- mistakes ---------------------------------------------------------------------------------------------


def no_captions(setup, folder):
    import tarfile

    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in ("cat.jpg", "cat.txt"):
            tar.add(setup / "run.toml", name)
    return folder


MISTAKES = {
    "no such folder": (lambda s, t: ["--data.train", t / "nowhere"], ["nowhere", "there is no"]),
    "no shards in the folder": (lambda s, t: ["--data.train", t], ["no *.tar in this folder; build shards there"]),
    "no shards named": (lambda s, t: ["--data.train", ""], ["data.train is empty; name the shards"]),
    "a pipe": (lambda s, t: ["--data.train", "pipe:cat x.tar"], ["--allow-pipe"]),
    "no captions": (
        lambda s, t: ["--data.train", no_captions(s, t / "tars")],
        ["none of its samples has the tagged caption 'taxonTag.txt' (members found: jpg, txt)", "--data.taxonomy"],
    ),
    "unknown rank": (lambda s, t: ["--data.ranks", "genuss"], ["'genuss'", "genus"]),
    "batch below ranks": (lambda s, t: ["--optim.global-batch", "6"], ["= 6 is smaller than the number of ranks"]),
    "fp16 stage 0": (
        lambda s, t: ["--run.precision", "fp16", "--run.zero-stage", "0"],
        ["use zero_stage 1, 2 or 3, or precision bf16"],
    ),
    "more than the data": (lambda s, t: ["--optim.global-batch", "49"], ["48 samples do not fill one"]),
    "another tree": (
        lambda s, t: ["--data.taxonomy", other_table(t)],
        ["no sample of", "has a taxon at the ranks", "is it the taxonomy of these shards?"],
    ),
    "no such table": (lambda s, t: ["--data.taxonomy", t / "no.csv"], ["no.csv"]),
    "unknown architecture": (
        lambda s, t: ["--model.architecture", "ViT-B-61"],
        ["open_clip knows no architecture 'ViT-B-61'"],
    ),
    "weights that do not fit": (
        lambda s, t: ["--model.pretrained", other_weights(s, t)],
        ["do not fit architecture", "size mismatch"],
    ),
}  # fmt: skip


def other_table(folder):
    path = folder / "taxa.csv"
    path.write_text("kingdom,phylum,class,order,family,genus,species\nFungi,Ascomycota,,,,,\n")
    return path


def other_weights(setup, folder):
    """Weights of a wider vision tower."""
    cfg = ARCHITECTURES["tiny"] | {"vision_cfg": ARCHITECTURES["tiny"]["vision_cfg"] | {"width": 64}}
    (folder / "wide.json").write_text(json.dumps(cfg))
    create_model(folder / "wide.json").save_pretrained(folder / "wide")
    return folder / "wide" / "open_clip_model.safetensors"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(setup, tmp_path, name):
    make, parts = MISTAKES[name]
    output = tmp_path / "run"
    printed = finish(setup, output, *make(setup, tmp_path), code=2)
    assert_one_line(printed, parts)
    assert not output.exists() or not any(output.iterdir())  # the corrected command works at once


def assert_one_line(printed, parts):
    lines = [line for line in printed.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1, printed
    assert "Traceback" not in printed
    for part in parts:
        assert part in lines[0], printed


def test_a_misspelt_key_in_the_file_and_on_the_command_line(setup, tmp_path):
    printed = finish(setup, tmp_path / "run", "--optim.warmpu", "3", code=2)
    assert "Unrecognized options: --optim.warmpu" in printed
    assert "--optim.warmup" in printed
    text = (setup / "run.toml").read_text().replace("warmup", "warmpu")
    (tmp_path / "run.toml").write_text(text)
    shutil_copy_architecture = (setup / "tiny.json").read_text()
    (tmp_path / "tiny.json").write_text(shutil_copy_architecture)
    printed = finish(tmp_path, tmp_path / "run", code=2)
    assert_one_line(printed, ["[optim] has no key 'warmpu'; did you mean 'warmup'?"])


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_output_folder_with_other_files_is_left_alone(setup, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    printed = finish(setup, tmp_path / "run", code=2)
    assert_one_line(printed, ["holds other files; give run.output a new or empty folder"])
    assert contents(tmp_path / "run") == {(p := next(iter(contents(tmp_path / "run")))): b"mine"}
    assert str(p) == "thesis.tex"
    (tmp_path / "file").touch()
    assert_one_line(finish(setup, tmp_path / "file", code=2), ["file is a file; give run.output a folder"])


def test_a_run_is_not_overwritten_nor_mixed_with_another(setup, whole, dropout):
    before = contents(whole)
    printed = finish(setup, whole, *dropout, code=2)
    assert_one_line(printed, ["holds a run; add --resume to continue it, or give run.output another folder"])
    printed = finish(setup, whole, *dropout, "--resume", "--optim.lr", "0.5", "--run.log-every", "7", code=2)
    assert_one_line(printed, ["holds a run of another configuration (optim.lr: 0.001 -> 0.5); restore these keys"])
    assert contents(whole) == before


@pytest.mark.parametrize("stage", ["1", "3"])
def test_a_checkpoint_of_another_architecture(setup, tmp_path, stage):
    work = tmp_path / "setup"
    work.mkdir()
    for name in ("run.toml", "tiny.json"):
        (work / name).write_bytes((setup / name).read_bytes())
    more = ("--data.train", str(setup / "shards"), "--run.zero-stage", stage)
    finish(work, work / "run", *more, "--run.stop-after", "1")
    wider = ARCHITECTURES["tiny"] | {"embed_dim": 24}
    (work / "tiny.json").write_text(json.dumps(wider))
    checkpoints = contents(work / "run" / "checkpoints")
    printed = finish(work, work / "run", *more, "--resume", code=2)
    assert_one_line(printed, ["architecture changed since the run in"])
    (work / "run" / "inputs.json").unlink()  # a run of before this was recorded: the weights tell
    printed = finish(work, work / "run", *more, "--resume", code=2)
    assert_one_line(printed, ["step-00000001 is a checkpoint of another architecture: "])
    assert contents(work / "run" / "checkpoints") == checkpoints


def test_without_a_configuration_it_explains_itself(setup):
    command = [sys.executable, "-c", "import train, sys; sys.exit(train.main(sys.argv[1:]))"]
    env = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'train'}")
    for words, code in (([], 2), (["--help"], 0)):
        done = subprocess.run([*command, *words], env=env, capture_output=True, text=True)
        assert done.returncode == code
        assert "python train/train.py CONFIG.toml [--resume]" in done.stdout


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(setup, tmp_path):
    output = tmp_path / "run"
    more = ("--optim.lr", "1e30", "--optim.warmup", "0", "--run.log-every", "5", "--run.save-every", "3")
    printed = finish(setup, output, *more, code=2)
    assert_one_line(printed, ["train.py: not finite at step ", ": process 0: ", "lower optim.lr"])
    assert not list((output / "checkpoints").glob("step-*"))


# -- pieces -----------------------------------------------------------------------------------------------


def test_lr_warms_up_linearly_and_falls_along_a_cosine():
    shares = [lr_share(step, 4, 24) for step in range(25)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4] == 1.0
    assert shares[14] == pytest.approx(0.5)
    assert shares[9] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert shares[24] == pytest.approx(0.0, abs=1e-12)
    assert sorted(shares[4:], reverse=True) == shares[4:]
    assert lr_share(0, 0, 10) == 1.0
    assert lr_share(30, 4, 24) == 0.0
    assert lr_share(3, 4, 3) == 1.0  # more warm-up than steps


def test_scalars_biases_and_norms_do_not_decay(setup):
    model = create_model(setup / "tiny.json", learnable_curv=True)
    decayed, free = parameter_groups(model, 0.2)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.2, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    free_names = {names[id(p)] for p in free["params"]}
    assert {"logit_scale.log", "image_alpha.log", "text_alpha.log", "manifold.curvature.log"} <= free_names
    assert all(n.endswith(("log", "bias", "class_embedding")) or "ln_" in n for n in free_names)
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert "clip.text_projection" in decayed_names
    assert not any("ln_" in n or n.endswith("bias") for n in decayed_names)
    assert len(free_names) + len(decayed_names) == len(list(model.parameters()))
    assert all(p.shape == (1,) for n, p in model.named_parameters() if n.endswith(".log"))  # 0-d crash DeepSpeed


def test_frozen_parameters_are_not_optimized(setup):
    model = create_model(setup / "tiny.json")  # curvature fixed
    groups = parameter_groups(model, 0.2)
    assert not any(p is model.manifold.curvature.log for g in groups for p in g["params"])


@pytest.mark.parametrize(("precision", "stage", "clip"), [("fp16", 2, 0.0), ("bf16", 1, 1.0), ("fp32", 0, 0.0)])
def test_deepspeed_is_told_everything_it_would_guess(precision, stage, clip):
    config = Config(optim=Optim(global_batch=64, grad_clip=clip), run=Run(precision=precision, zero_stage=stage))
    told = deepspeed_config(config)
    assert told["gradient_clipping"] == clip  # its default is 1.0, not off
    assert told["gradient_accumulation_steps"] == 1
    assert told["train_batch_size"] == 64
    assert told["zero_optimization"]["stage"] == stage
    assert (told["fp16"]["enabled"], told["bf16"]["enabled"]) == (precision == "fp16", precision == "bf16")


OFFLOADED = {"optimizer": {"offload_optimizer"}, "parameters": {"offload_optimizer", "offload_param"}}


@pytest.mark.parametrize("offload", OFFLOADED)
def test_deepspeed_is_told_what_to_offload(offload):
    told = deepspeed_config(Config(run=Run(zero_stage=3, offload=offload)))["zero_optimization"]
    assert told.keys() - {"stage"} == OFFLOADED[offload]
    assert {told[name]["device"] for name in OFFLOADED[offload]} == {"cpu"}


def test_the_loss_follows_the_configuration():
    loss = build_loss(Config(loss=Loss(rank_reduction="sum", direction_weight=0.5, per_process=True)))
    assert (loss.rank_reduction, loss.direction_weight, loss.per_process) == ("sum", 0.5, True)
    assert (loss.geometry, loss.targets, loss.restrict) == ("lorentz", "multi_positive", True)
    clip = build_loss(Config(Data(sampler="uniform"), Model(geometry="euclidean"), Loss(name="clip")))
    assert clip.geometry == "euclidean"
    assert not clip.restrict


def test_ranks_limit_what_supervises(setup, tmp_path):
    output = tmp_path / "run"
    finish(setup, output, "--data.ranks", "genus", "species", "--optim.epochs", "0.25")
    per_rank = read_log(output / "log.jsonl")[0]["per_rank"]
    assert [name for name, value in per_rank.items() if value is not None] == ["genus", "species"]
    assert len(LINEAGES[0]) == len(per_rank)

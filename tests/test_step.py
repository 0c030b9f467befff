"""Gradient caching equals the whole batch; a number that is not finite moves no parameter, at any stage."""

import contextlib
import itertools

import pytest
import torch
import torch.distributed as dist
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file
from small_run import finish, finish_together, write_setup

from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.samplers import order_digest
from bioclip_hc.model import HierarchicalCLIP, create_model
from bioclip_hc.packing import pack

from checkpoint import newest
from config import Config, Data, Model, Optim, Run
from guard import Statistics, still_statistics
from journal import read_log
from parts import build_batches, build_loss
from step import Step, TrainingStopped

LOSSES = {
    "all ranks": (Data(sampler="all"), "lorentz"),
    "one rank an image": (Data(sampler="balanced"), "lorentz"),
    "euclidean": (Data(sampler="all"), "euclidean"),
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return write_setup(tmp_path_factory.mktemp("step"))


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """A world of one."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("world") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class PlainEngine:
    """What Step asks of DeepSpeed's engine, by plain torch in double precision."""

    device = "cpu"
    applies = True

    def __init__(self, model):
        self.module = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.calls = []

    def __call__(self, images, tokens):
        self.calls.append((len(images), len(tokens), torch.is_grad_enabled()))
        return self.module(images.double(), tokens)

    def backward(self, loss):
        loss.backward()

    def set_gradient_accumulation_boundary(self, last):
        self.last = last

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.moved = True

    def was_step_applied(self):
        return self.applies


def make_step(setup, name="all ranks", architecture="tiny", **run):
    data, geometry = LOSSES[name]
    config = Config(
        data=Data(train=str(setup / "shards"), sampler=data.sampler),
        model=Model(architecture=str(setup / f"{architecture}.json"), geometry=geometry, learnable_curv=True),
        optim=Optim(global_batch=12),
        run=Run(zero_stage=0, **run),
    )
    torch.manual_seed(0)
    model = create_model(config.model.architecture, geometry=geometry, learnable_curv=True).double()
    engine = PlainEngine(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, lambda step: 1.0)
    return Step(engine, schedule, model, build_loss(config), config), build_batches(config, model, 0, 1)


def gradients(step, batch):
    for parameter in step.model.parameters():
        parameter.grad = None
    output = step(batch)
    return output, {name: p.grad.clone() for name, p in step.model.named_parameters() if p.grad is not None}


# -- gradient caching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("micro_batch", [1, 5, 12, 100])
def test_caching_gives_the_gradient_of_the_whole_batch(setup, name, micro_batch):
    whole, batches = make_step(setup, name)
    cached, _ = make_step(setup, name, micro_batch=micro_batch)
    for batch in (batches[0], batches[3]):
        expected, expected_gradients = gradients(whole, batch)
        found, found_gradients = gradients(cached, batch)
        torch.testing.assert_close(found, expected, equal_nan=True)
        assert found_gradients.keys() == expected_gradients.keys()
        assert expected_gradients["logit_scale.log"].abs().sum() > 0
        for key, gradient in expected_gradients.items():
            torch.testing.assert_close(found_gradients[key], gradient, msg=lambda m, key=key: f"{key}: {m}")


def test_each_micro_batch_is_encoded_twice_and_is_no_larger_than_asked(setup):
    step, batches = make_step(setup, micro_batch=5)
    step(batches[0])
    calls = step.engine.calls
    assert [c[0] for c in calls] == [4, 4, 4] * 2
    assert [c[2] for c in calls] == [False] * 3 + [True] * 3
    assert sum(c[1] for c in calls[:3]) == len(batches[0].text_rank)
    assert step.engine.last


def test_what_the_towers_draw_is_drawn_again(setup):
    """Patch dropout: both passes over a micro-batch must drop the same patches, or the gradient is another's."""
    step, batches = make_step(setup, architecture="tiny_dropout", micro_batch=4)
    seen = []
    whole = step.engine.module.forward

    def once(*parts):
        out = whole(*parts)
        seen.append(out.image.detach().clone())
        return out

    step.engine.module.forward = once
    step(batches[0])
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[1])


def test_running_statistics_move_once(setup):
    step, batches = make_step(setup, architecture="tiny_resnet", micro_batch=12)
    whole, _ = make_step(setup, architecture="tiny_resnet")
    step(batches[0])
    whole(batches[0])
    counted = 0
    for (name, found), expected in zip(step.model.named_buffers(), whole.model.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
        counted += "running_mean" in name
    assert counted


def test_packed_texts_split_into_shares_that_hold_all_of_them():
    texts = [[1, 2, i, j] for i in range(1, 6) for j in range(1, 5)]
    packed = pack(texts, width=12)
    for parts in (1, 2, 3, len(packed.tokens), len(packed.tokens) + 2):
        shares = packed.split(parts)
        assert len(shares) == parts
        assert sorted(i for _, index in shares for i in index.tolist()) == list(range(len(texts)))
        for share, index in shares:
            assert [row[row > 0].tolist() for row in share.padded()] == [texts[i] for i in index]


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_run_in_micro_batches_is_the_run(setup, stage):
    """Through DeepSpeed, whose stages keep gradients in ways of their own between micro-batches."""
    runs = [setup / f"{kind}-{stage}" for kind in ("whole", "cached")]
    for run, micro_batch in zip(runs, ("0", "5"), strict=True):
        finish(setup, run, "--run.zero-stage", stage, "--run.micro-batch", micro_batch, "--optim.epochs", "1")
    logs = [read_log(run / "log.jsonl") for run in runs]
    assert [r["loss"] for r in logs[1]] == pytest.approx([r["loss"] for r in logs[0]], abs=1e-5)
    whole, cached = (load_file(run / "model" / "open_clip_model.safetensors") for run in runs)
    for name, tensor in whole.items():
        torch.testing.assert_close(cached[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("stage", ["1", "3"])
def test_two_processes_in_micro_batches_are_one_at_once(setup, tmp_path, stage):
    """Each has texts of its own, in sequences of its own number; every micro-batch is a collective at stage 3."""
    more = ("--run.zero-stage", stage, "--optim.epochs", "0.5")
    finish(setup, tmp_path / "one", *more)
    finish_together(setup, tmp_path / "two", 2, *more, "--run.micro-batch", "2")
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [r["loss"] for r in logs[1]] == pytest.approx([r["loss"] for r in logs[0]], abs=1e-5)
    one, two = (load_file(tmp_path / name / "model" / "open_clip_model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("micro_batch", ["0", "5"])
def test_checkpointed_activations_change_nothing(setup, tmp_path, micro_batch):
    """Layers computed again in the backward pass, what they draw included: the same run bit for bit."""
    models = []
    for checkpointed in (False, True):
        output = tmp_path / str(checkpointed)
        flag = "--model.grad-checkpointing" if checkpointed else "--model.no-grad-checkpointing"
        more = (
            "--model.architecture",
            "tiny_dropout.json",
            "--optim.epochs",
            "0.5",
            "--run.micro-batch",
            micro_batch,
        )
        finish(setup, output, *more, flag)
        models.append(load_file(output / "model" / "open_clip_model.safetensors"))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# -- pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [0, 5])
def test_bytes_give_what_open_clips_preprocessing_gives(setup, micro_batch):
    """ToTensor and Normalize, as its own transform applies them, before the step instead of in it."""
    step, batches = make_step(setup, micro_batch=micro_batch)
    batch = batches[0]
    assert batch.images.dtype == torch.uint8
    last = image_transform_v2(PreprocessCfg(**step.model.preprocess_cfg), is_train=True).transforms[-2:]
    pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in batch.images]
    ready = torch.stack([last[1](last[0](picture)) for picture in pictures])
    expected, expected_gradients = gradients(step, batch._replace(images=ready))
    found, found_gradients = gradients(step, batch)
    assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(found_gradients[name], gradient) for name, gradient in expected_gradients.items())


# -- numbers that are not finite --------------------------------------------------------------------------


def floats(step, batch):
    """The same batch with pixels that can be something else than numbers."""
    return batch._replace(images=step.normalize(batch.images))


def poison_gradient(layer, value):
    layer.register_full_backward_pre_hook(lambda _, gradients: tuple(torch.full_like(g, value) for g in gradients))


SITES = {
    "pixels": lambda step, batch, value: batch.images[3].fill_(value),
    "image tower": lambda step, batch, value: step.model.clip.visual.proj.data[0].fill_(value),
    "text tower": lambda step, batch, value: step.model.clip.text_projection.data[0].fill_(value),
    "logit scale": lambda step, batch, value: step.model.logit_scale.log.data.fill_(value),
    "curvature": lambda step, batch, value: step.model.manifold.curvature.log.data.fill_(value),
    "a gradient": lambda step, batch, value: poison_gradient(step.model.clip.visual.ln_post, value),
}
NAMED = {
    "pixels": "image features", "image tower": "image features", "text tower": "text features",
    "logit scale": "logit scale", "curvature": "curvature", "a gradient": "gradient of clip.visual.",
}  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("micro_batch", [0, 5])
@pytest.mark.parametrize("site", SITES)
def test_what_is_not_finite_is_named_and_no_step_is_made(setup, site, micro_batch, value):
    if value > 0 and site in ("logit scale", "curvature"):
        pytest.skip("their bounds turn infinity into their largest value")
    step, batches = make_step(setup, micro_batch=micro_batch)
    batch = floats(step, batches[0])
    SITES[site](step, batch, value)
    with pytest.raises(TrainingStopped, match=f"^process 0: {NAMED[site]}"):
        step(batch)
    assert not hasattr(step.engine, "moved")


def test_too_many_skipped_steps_in_a_row_stop_the_run(setup):
    step, batches = make_step(setup, on_nonfinite="skip")
    bad = floats(step, batches[0])
    bad.images[0, 0, 0, 0] = float("nan")
    for turn in range(2):
        for _ in range(Step.MOST_SKIPPED - 1):
            step(bad)
            assert step.skipped.startswith("process 0: image features and ")
        if turn == 0:
            step(batches[1])
            assert step.skipped == ""
    with pytest.raises(TrainingStopped):
        step(bad)


def test_a_step_that_deepspeed_leaves_out_has_had_its_learning_rate(setup):
    """In fp16 it skips steps while it looks for a loss scale, and the schedule's with them."""
    step, batches = make_step(setup)
    step.engine.applies = False
    step(batches[0])
    assert step.schedule.last_epoch == 1


def spoiled(batch):
    images = batch.images.float()
    images[0].fill_(float("nan"))
    return batch._replace(images=images)


def poisoned_from(first=3):
    """In a training process: no step from there on is finite."""
    whole = TrainingBatches.__getitem__

    def broken(self, step):
        batch = whole(self, step)
        if step >= first:
            return spoiled(batch)
        return batch

    TrainingBatches.__getitem__ = broken


def test_skipped_steps_in_a_row_are_counted_over_a_resumption(setup, tmp_path):
    """Else a run that is preempted often would go on for ever with nothing learned."""
    more = ("--run.on-nonfinite", "skip", "--optim.epochs", "4", "--run.save-every", "0")
    broken = {"BEFORE_TRAINING": "test_step:poisoned_from"}
    finish(setup, tmp_path / "run", *more, "--run.stop-after", "8", **broken)
    printed = finish(setup, tmp_path / "run", *more, "--resume", code=2, **broken)
    assert "train.py: not finite at step 13: process 0: " in printed


def test_running_statistics_survive_a_skipped_step(setup):
    step, batches = make_step(setup, architecture="tiny_resnet", on_nonfinite="skip")
    before = Statistics(step.model)._kept
    bad = floats(step, batches[0])
    bad.images[0, 0, 0, 0] = float("nan")
    step(bad)
    assert step.skipped
    assert len(before) > 3
    assert all(torch.equal(buffer, value) for buffer, value in before)
    with still_statistics(step.model), contextlib.suppress(TrainingStopped):
        step.model(floats(step, batches[1]).images.double(), batches[1].tokens)
    assert all(torch.equal(buffer, value) for buffer, value in before)


def poisoned_batch(bad=1):
    """In a training process: some pixels of a step are not numbers."""
    whole = TrainingBatches.__getitem__

    def broken(self, step):
        batch = whole(self, step)
        if step == bad:
            return spoiled(batch)
        return batch

    TrainingBatches.__getitem__ = broken


def poisoned_gradient(bad=1):
    """In a training process: a gradient of a step is infinite, and its loss is not."""
    whole = HierarchicalCLIP.__init__
    steps = itertools.count()

    def broken(self, *arguments, **options):
        whole(self, *arguments, **options)
        proj = self.get_parameter("clip.visual.proj")
        proj.register_hook(lambda g: torch.full_like(g, float("inf")) if next(steps) == bad else g)

    HierarchicalCLIP.__init__ = broken


def poisoned_twice():
    poisoned_batch(1)
    poisoned_gradient(2)


def without_two_steps():
    """In a training process: steps 2 and 3 are not made at all."""
    whole, steps, outputs = Step.__call__, itertools.count(), []

    def leave_out(self, batch):
        if next(steps) in (1, 2):
            self.schedule.step()
            self.skipped = "left out"
        else:
            outputs.append(whole(self, batch))
        return outputs[-1]

    Step.__call__ = leave_out


STAGES = [("fp32", "0"), ("fp32", "1"), ("fp32", "2"), ("fp32", "3"), ("bf16", "0"), ("bf16", "1"), ("bf16", "3")]


@pytest.mark.parametrize(("precision", "stage"), STAGES)
def test_skipped_steps_leave_no_trace(setup, tmp_path, precision, stage):
    """Parameters and optimizer end bit for bit as if the steps had not been there."""
    options = ("--run.precision", precision, "--run.zero-stage", stage, "--optim.epochs", "1")
    states = []
    for before in ("without_two_steps", "poisoned_twice"):
        output = tmp_path / before
        skip = ("--run.on-nonfinite", "skip")
        finish(setup, output, *options, *skip, BEFORE_TRAINING=f"test_step:{before}")
        assert [r["skipped"] for r in read_log(output / "log.jsonl")] == [0, 1, 2, 2]
        files = sorted(newest(output / "checkpoints")[0].glob("*_states.pt"))
        states.append([x for path in files for x in tensors_in(torch.load(path, weights_only=False))])
    assert len(states[0]) == len(states[1]) > 40  # parameters and their moments
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def tensors_in(content):
    """All tensors of nested containers."""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from tensors_in(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from tensors_in(value)


@pytest.mark.parametrize("before", ["poisoned_batch", "poisoned_gradient"])
def test_a_stopped_run_saves_nothing_of_the_step(setup, tmp_path, before):
    printed = finish(
        setup, tmp_path / "run", "--run.save-every", "1", code=2, BEFORE_TRAINING=f"test_step:{before}"
    )
    assert "train.py: not finite at step 2: process 0: " in printed
    assert newest(tmp_path / "run" / "checkpoints")[0].name == "step-00000001"
    finish(setup, tmp_path / "run", "--resume")


# -- the order of samples ---------------------------------------------------------------------------------


def test_the_digest_of_an_order_is_the_sum_of_its_parts_and_of_no_other_order():
    whole = torch.randperm(100).numpy()
    digest = order_digest(7, whole)
    assert digest == (order_digest(7, whole[:30]) + order_digest(37, whole[30:])) % 2**64
    assert 0 < digest < 2**64
    swapped = whole.copy()
    swapped[[4, 60]] = swapped[[60, 4]]
    others = {order_digest(7, swapped), order_digest(8, whole), order_digest(7, whole[:99]), digest}
    assert len(others) == 4


def test_the_log_holds_the_digest_of_what_was_read(setup, tmp_path):
    finish(setup, tmp_path / "run", "--run.stop-after", "5")
    finish(setup, tmp_path / "run", "--resume")
    config = Config(
        data=Data(train=str(setup / "shards")), model=Model(str(setup / "tiny.json")), optim=Optim(global_batch=12)
    )
    batches = build_batches(config, create_model(config.model.architecture), 0, 1)
    expected = 0
    for record in read_log(tmp_path / "run" / "log.jsonl"):
        step = record["step"] - 1
        expected = (expected + order_digest(12 * step, batches.plan.indices(step))) % 2**64
        assert record["order"] == f"{expected:016x}"

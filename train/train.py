"""Train a hierarchical CLIP model with DeepSpeed.

    python train/train.py CONFIG.toml [--resume] [--optim.lr 1e-3 ...]        one process
    torchrun --nproc-per-node 8 train/train.py CONFIG.toml ...                one machine
    srun python train/train.py CONFIG.toml ...                                the tasks of a Slurm job
    deepspeed --hostfile hosts train/train.py CONFIG.toml ...                 several machines
    any of these with --dry-run: two steps; memory, time and disk of the run; run.output is left alone
    any of these with --allow-pipe: shards may be written pipe:COMMAND, and the command is run

A run owns the folder run.output: config.json, log.jsonl, quarantine-*.jsonl, checkpoints/, model/. SIGTERM and
SIGUSR1 finish the step, save a checkpoint, and exit with 143; run again with --resume to go on. Ctrl-C ends at
once, without saving. A process, a data worker or a host that is lost is named by all others, which exit with 75
(run.silence); --resume goes on as well.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bioclip_hc.data.loader import Batch
from bioclip_hc.data.quarantine import Quarantine, TooManyBadSamples
from bioclip_hc.data.samplers import local_slice, order_digest
from bioclip_hc.evaluation.counts import counts_of_shards, save_counts
from bioclip_hc.losses import LossOutput
from bioclip_hc.taxonomy import RANKS

import checkpoint
import environment
from agreement import from_first, need_alike, on_all
from card import model_card, provenance
from clock import SETTLED, Clock, advice
from config import Config, common_keys, read_config
from dry_run import elsewhere, rehearse
from durable import replace_json
from engine import check_precision, full_state, gathered_parameters, start_engine
from folder import claimed, inputs, record_unusable, restore_quarantine, same_inputs, settle
from journal import Journal, finite_or_none
from parts import build_batches, build_loss, build_model
from step import Step, TrainingStopped
from watchdog import READING, Watch
from world import world

EXIT_PREEMPTED = 143  # 128 + SIGTERM, what schedulers expect of a job that heeded them
EXIT_INTERRUPTED = 130  # 128 + SIGINT


def main(arguments: list[str]) -> int:
    """Run from the command line; returns the exit code. Errors of the user's end in one line."""
    words = [word for word in arguments if not word.startswith("--local_rank")]  # deepspeed's launcher adds it
    resume = "--resume" in words
    dry = "--dry-run" in words
    allow_pipe = "--allow-pipe" in words
    words = [word for word in words if word not in ("--resume", "--dry-run", "--allow-pipe")]
    if not words or words[0].startswith("-"):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(words) else 2
    try:
        config = read_config(words[0], words[1:])
        check_precision(config.run.precision)
        if not dry:
            return train(config, resume, Training.go, allow_pipe)
        with TemporaryDirectory(prefix="bioclip_hc-") as folder:
            output = Path(config.run.output)
            return train(elsewhere(config, folder), False, lambda run: rehearse(run, output), allow_pipe)
    except (ValueError, OSError, TooManyBadSamples, TrainingStopped) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"train.py: interrupted{'' if dry else resumable(words)}", file=sys.stderr)
        return EXIT_INTERRUPTED


def resumable(words: list[str]) -> str:
    """What an interrupted run has saved; "" while its configuration cannot be told."""
    try:
        saved = checkpoint.complete(Path(read_config(words[0], words[1:]).run.output) / "checkpoints")
    except (ValueError, OSError):
        return ""
    return f"; --resume goes on from {saved[-1].name}" if saved else "; no checkpoint was saved yet"


def train(config: Config, resume: bool, through: Callable[[Training], int], allow_pipe: bool = False) -> int:
    """Set everything up, go `through` the run, clean up; returns the exit code."""
    output = Path(config.run.output)
    with world(config.run.threads), Watch(config.run.silence) as watch, claimed(output, config, resume) as found:
        run = Training(config, *found, watch, allow_pipe)
        try:
            if resume and found[0] is None and run.journal:
                run.journal.say(f"nothing to resume in {output}; the run begins")
            return through(run)
        finally:
            run.close()


def on_signals(handler: Callable[[int, Any], None]) -> None:
    """What to do from now on when a scheduler asks this process to stop."""
    for kind in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(kind, handler)


def leave(number: int, frame: Any) -> None:
    """Heed a signal at once."""
    sys.exit(EXIT_PREEMPTED)


class Training:
    """Everything one process holds during a run."""

    def __init__(
        self, config: Config, saved: Path | None, skipped: list[str], watch: Watch, allow_pipe: bool = False
    ) -> None:
        self.config, self.watch = config, watch
        self.world_rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        self.output = Path(config.run.output)
        self.stop_signal = 0
        on_signals(leave)  # nothing is there to save yet, and building it all may take minutes
        local_slice(config.optim.global_batch, self.world_rank, self.world_size)  # refuses what does not divide
        seed_everything(config.run.seed)
        self.model = build_model(config)
        watch.at(0, "bringing shards")
        self.batches = build_batches(config, self.model, self.world_rank, self.world_size, allow_pipe)
        watch.at(0, "starting")
        self.inputs = inputs(self.model, self.batches)
        need_alike({**common_keys(config), **self.inputs})
        same_inputs(self.output / "inputs.json", self.inputs)
        self.steps = max(1, round(config.optim.epochs * self.batches.plan.steps_per_epoch))
        reshard = checkpoint.must_reshard(saved, config.run.zero_stage)
        self.engine, schedule = start_engine(self.model, config, self.steps, reshard)
        self.train_step = Step(self.engine, schedule, self.model, build_loss(config), config)
        self.step = 0
        self.order, self.skipped = 0, 0  # of this process: digest of its samples' order; of all: steps left out
        self.unread = 0  # samples of this process since the last batch of which one could be read
        quarantine = self.output / f"quarantine-{self.world_rank}.jsonl"
        self.quarantine = Quarantine(quarantine, config.data.quarantine_limit)
        hosts = environment.find_hosts()
        self.host = hosts[0]  # of process 0
        self.journal = None
        self.stream: Generator[Batch, None, None] | None = None
        watch.batches = self.batches
        if self.world_rank == 0:
            replace_json(self.output / "config.json", config.to_dict())  # which marks the folder as this run's
            replace_json(self.output / "inputs.json", self.inputs)
            record_unusable(self.output / "quarantine-index.jsonl", self.batches.shards.bad)
            self.journal = Journal(self.output, config.to_dict(), config.run.trackers, self.steps)
            watch.log = self.output / "log.jsonl"
            facts = environment.report(config, self.model, self.batches, self.steps, hosts)
            self.journal.event("start", **facts)
            for line in environment.lines(facts):
                self.journal.say(line)
            for problem in environment.warnings(facts):
                self.journal.warn_once(problem, problem)
            if self.batches.shards.resolution.flat:
                for line in self.batches.shards.resolution.lines():
                    self.journal.say(f"names      {line}")
            for problem in environment.unusable(self.batches.shards.bad):
                self.journal.warn_once(problem, problem)
            if unresolved := self.batches.shards.unresolved(self.batches.taxonomy):
                self.journal.warn_once("unresolved", unresolved)
            for problem in skipped:
                self.journal.warn_once(problem, f"damaged checkpoint left aside: {problem}")
        samples: list[list[int]] = []  # used and quarantined, by process
        if saved is not None:
            facts = checkpoint.load(self.engine, saved)
            self.step, self.skipped, samples = facts["step"], facts["skipped"], facts["samples"]
            self.train_step.in_a_row = facts["skipped_in_a_row"]
            self.order = facts["order"] if self.world_rank == 0 else 0
            if self.journal:
                writers = facts["world_size"]
                self.journal.event("resume", step=self.step, checkpoint=saved.name, written_by=writers)
                self.journal.say(
                    f"resumed    {saved.name}, saved by {environment.counted(writers, 'process', 'es')}"
                )
        for problem in from_first(lambda: restore_quarantine(self.output, samples)):
            if self.journal:
                self.journal.warn_once(problem, problem)
        if self.world_rank < len(samples):
            self.quarantine.used, self.quarantine.quarantined = samples[self.world_rank]
        self.retired = samples[self.world_size :]  # of processes that there are no more

    def go(self) -> int:
        """Train to the end, to run.stop_after or to a signal."""
        stop = min(self.steps, self.config.run.stop_after or self.steps)
        on_signals(self.heed)
        clock = Clock()
        saved = self.step
        plan = self.batches.plan
        self.stream = self.batches.load(self.step, stop, self.config.data.workers)
        while self.step < stop:
            self.watch.at(self.step + 1, READING)
            with clock.waiting():
                batch = next(self.stream)
            self.watch.at(self.step + 1, "training")
            output = self.advance(batch)
            clock.samples += plan.samples(self.step) - plan.samples(self.step - 1)
            if self.step % self.config.run.log_every == 0 or self.step in (1, stop):
                self.log(output, clock)
            if self.stopped():
                self.say_waiting(clock)
                self.save()
                self.say_stopped("by a signal")
                return EXIT_PREEMPTED
            if self.config.run.save_every and self.step % self.config.run.save_every == 0:
                self.save()
                saved = self.step
        self.say_waiting(clock)
        if saved != self.step:
            self.save()
        if self.step == self.steps:
            self.export()
        else:
            self.say_stopped("by run.stop_after")
        return 0

    def advance(self, batch: Batch) -> LossOutput:
        """One step, its samples counted."""
        self.quarantine.use(batch.samples - len(batch.bad))
        for sample in batch.bad:
            self.quarantine.record(*sample)
        self.unread = self.unread + len(batch.bad) if len(batch.bad) == batch.samples else 0
        if self.unread >= Quarantine.ENOUGH:  # after a long run the share alone would tell too late
            shard, key, reason = batch.bad[-1]
            raise TooManyBadSamples(
                f"none of the last {self.unread} samples could be read; the last: {shard}, {key!r}: {reason}"
            )
        place = self.step * self.config.optim.global_batch + len(batch.indices) * self.world_rank
        self.order = (self.order + order_digest(place, batch.indices.numpy())) % 2**64
        try:
            output = self.train_step(batch)
        except TrainingStopped as error:
            raise TrainingStopped(
                f"not finite at step {self.step + 1}: {error}. No parameter has moved, and saved checkpoints are "
                f"intact; lower optim.lr, clip gradients (optim.grad_clip), use precision bf16, or leave such "
                f"steps out by run.on_nonfinite = 'skip'"
            ) from None
        self.step += 1
        if self.train_step.skipped:
            self.skipped += 1
            if self.journal:
                self.journal.say(f"warning: step {self.step} left out, not finite: {self.train_step.skipped}")
                self.journal.event("skipped", step=self.step, reason=self.train_step.skipped)
        return output

    def log(self, output: LossOutput, clock: Clock) -> None:
        """One record; all processes call it."""
        used, quarantined = np.sum(self.counts(), axis=0).tolist()
        self.judge(used, quarantined)
        order = self.global_order()
        scalars, at_bounds = self.scalars()
        speed, waiting = clock.lap()
        if self.journal is None:
            return
        plan = self.batches.plan
        left = (plan.samples(self.steps) - plan.samples(self.step)) / speed
        record = {
            "step": self.step,
            "epoch": round(self.step / self.batches.plan.steps_per_epoch, 4),
            "loss": finite_or_none(output.loss.item()),
            "per_rank": dict(zip(RANKS, map(finite_or_none, output.per_rank.tolist()), strict=True)),
            "floor": dict(zip(RANKS, map(finite_or_none, output.floor.tolist()), strict=True)),
            "lr": self.train_step.lr,
            "samples_per_second": round(speed, 2),
            "waiting": round(waiting, 4),
            "eta": round(left),
            "scalars": {name: round(value, 6) for name, value in scalars.items()},
            "used": used,
            "quarantined": quarantined,
            "skipped": self.skipped + getattr(self.engine, "skipped_steps", 0),
            "order": f"{order:016x}",
        }
        self.journal.step(record)
        for name in at_bounds:
            self.journal.warn_once(name, f"{name} sits on its bound since step {self.step} or before")
        if clock.laps >= SETTLED and (tip := self.advice(waiting)):
            self.journal.warn_once("waiting", f"{waiting:.0%} of the time is spent waiting for data; {tip}")

    def advice(self, waiting: float) -> str:
        """What to do about a share of waiting for data, if anything."""
        return advice(waiting, self.config.data.workers, self.host["processes"], self.host["cores"])

    def say_waiting(self, clock: Clock) -> None:
        """The share of the time spent waiting for data, over this part of the run."""
        if self.journal and clock.laps:
            tip = self.advice(clock.share)
            self.journal.event("waiting", share=round(clock.share, 4), seconds=round(clock.seconds, 3))
            self.journal.say(f"waited     {clock.share:.0%} of the time for data{f'; {tip}' if tip else ''}")

    def judge(self, used: int, quarantined: int) -> None:
        """End the run on all processes where too many of all their samples are unusable; all call it."""
        if problem := self.quarantine.over_limit(used, quarantined):
            lasts: list[Any] = [None] * self.world_size
            dist.all_gather_object(lasts, self.quarantine.last)
            last = next((f"; the last: {bad[0]}, {bad[1]!r}: {bad[2]}" for bad in lasts if bad), "")
            raise TooManyBadSamples(f"{problem}{last}; see {self.output / 'quarantine-*.jsonl'}")

    def counts(self) -> list[Any]:
        """Samples used and quarantined so far by each process that there is or was; all call it."""
        counts: list[Any] = [None] * self.world_size
        dist.all_gather_object(counts, (self.quarantine.used, self.quarantine.quarantined))
        return counts + self.retired

    def global_order(self) -> int:
        """Digest of the order in which all processes took the samples so far; all call it."""
        orders: list[Any] = [None] * self.world_size
        dist.all_gather_object(orders, self.order)
        return sum(orders) % 2**64

    def scalars(self) -> tuple[dict[str, float], list[str]]:
        """Logit scale, curvature and feature scales, and which of them sit on a bound; all processes call it."""
        own = [p for name, p in self.model.named_parameters() if not name.startswith("clip.")]
        with gathered_parameters(own, self.config.run.zero_stage):
            return self.model.scalars(), self.model.scalars_at_bounds()

    def save(self) -> None:
        """A sealed checkpoint of the state after `self.step` steps."""
        self.watch.at(self.step, "saving")
        on_all("the quarantined samples cannot be recorded", lambda: settle(self.quarantine))
        facts = {
            "samples": self.counts(),
            "order": self.global_order(),
            "skipped": self.skipped,
            "skipped_in_a_row": self.train_step.in_a_row,
        }
        path = checkpoint.save(self.engine, self.output / "checkpoints", self.step, facts, self.config.run.keep)
        if self.journal:
            self.journal.event("checkpoint", step=self.step, path=path.name)

    def export(self) -> None:
        """The trained model as an open_clip folder, with its taxonomy beside it."""
        self.watch.at(self.step, "exporting")
        used, quarantined = np.sum(self.counts(), axis=0).tolist()
        state = full_state(self.engine, self.config.run.precision, self.config.run.zero_stage)
        if self.world_rank == 0:
            model = build_model(self.config)  # a plain one: DeepSpeed's hooks would shard this one again at a call
            model.load_state_dict(state)
            facts = provenance(self.config, self.batches, self.inputs, used, quarantined, self.step)
            model.metadata.update(facts)
            folder = model.save_pretrained(self.output / "model")
            self.batches.taxonomy.save(folder / "taxonomy.json")
            save_counts(counts_of_shards(self.batches.shards, self.batches.taxonomy), self.batches.taxonomy, folder)
            (folder / "README.md").write_text(model_card(model), encoding="utf-8")
        dist.barrier()
        if self.journal:
            self.journal.event("end", step=self.step, model="model")
            self.journal.say(f"model: {self.output / 'model'}")

    def heed(self, number: int, frame: Any) -> None:
        """Remember the signal; the loop acts on it after the step."""
        self.stop_signal = number

    def stopped(self) -> bool:
        """Whether any process was told to stop, agreed by all."""
        if self.world_size == 1:
            return bool(self.stop_signal)
        flag = torch.tensor([self.stop_signal])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def say_stopped(self, why: str) -> None:
        """That there is more to do, all done so far being saved."""
        if self.journal:
            self.journal.say(f"stopped    {why} at step {self.step} of {self.steps}; go on with --resume")

    def close(self) -> None:
        """Release files; the process may end."""
        if self.stream:
            self.stream.close()
        self.batches.shards.close()
        if self.journal:
            self.journal.close()


def seed_everything(seed: int) -> None:
    """The same initial weights on every process; drawing inside the towers (patch dropout) follows."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One step of training: forward, loss, backward, update. What a run repeats.

# B local images, U texts of this process, D embed, K micro-batches

Gradient caching (Gao, Zhang, Han, Callan: Scaling deep contrastive learning batch size under memory limited setup,
2021) trains with a batch of any size in the memory of one micro-batch: encode the micro-batches without a graph,
take the loss of all features and its gradient in them, then encode each micro-batch again, with a graph, and send
the cached gradient through it. The parameters' gradient is that of the whole batch, whatever the micro-batch: no
negative is lost, as it would be by summing the losses of smaller batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bioclip_hc.data.loader import Batch
from bioclip_hc.data.preprocess import Normalize
from bioclip_hc.losses import LevelContrastiveLoss, LossOutput
from bioclip_hc.model import HierarchicalCLIP, ModelOutput
from bioclip_hc.packing import PackedTexts

from config import Config
from guard import Guard, Statistics, discard_gradients, still_statistics


class TrainingStopped(RuntimeError):
    """Training cannot go on, for a reason that its message gives."""


class Part(NamedTuple):
    """One micro-batch: images (b, 3, H, W), packed texts, and which of the process' texts (u,) they are."""

    images: Tensor
    tokens: PackedTexts
    texts: Tensor


class Step:
    """Batch -> LossOutput, with the parameters moved, or left alone where a number was not finite.

    Attributes:
        skipped: reasons of the last step, if it was skipped, "" if it was made.
        in_a_row: steps skipped since the last one that was made.
    """

    MOST_SKIPPED = 10  # in a row: beyond it nothing is learned, and something is broken

    def __init__(
        self, engine: Any, schedule: Any, model: HierarchicalCLIP, loss: LevelContrastiveLoss, config: Config
    ) -> None:
        self.engine, self.schedule, self.model, self.loss = engine, schedule, model, loss
        self.run = config.run
        self.device = torch.device(engine.device)
        self.normalize = Normalize(model.preprocess_cfg, self.device)
        self.guard = Guard(model, self.device, gradients=config.run.precision != "fp16")
        self.lr = 0.0
        self.skipped = ""
        self.in_a_row = 0

    def __call__(self, batch: Batch) -> LossOutput:
        """Raises TrainingStopped where a number is not finite; no parameter has moved then."""
        before = Statistics(self.model) if self.run.on_nonfinite == "skip" else None
        self.lr = self.schedule.get_last_lr()[0]
        labels = [
            x.to(self.device, non_blocking=True) for x in (batch.image_taxa, batch.text_rank, batch.text_taxon)
        ]
        output = self._cached(batch, labels) if self.run.micro_batch else self._whole(batch, labels)
        found = self.guard.verdict()
        if not found:
            self.engine.step()
            if not self.engine.was_step_applied():  # fp16 looks for its loss scale
                self.schedule.step()  # the learning rate belongs to the step, made or not
            self.skipped, self.in_a_row = "", 0
            return output
        self.in_a_row += 1
        reason = "; ".join(f"process {p}: {_listed(names)}" for p, names in found.items())
        if before is None or self.in_a_row >= self.MOST_SKIPPED:
            raise TrainingStopped(reason)
        self.skipped = reason
        before.restore()
        discard_gradients(self.engine, self.run.zero_stage)
        self.schedule.step()
        return output

    def _whole(self, batch: Batch, labels: list[Tensor]) -> LossOutput:
        out = self._encode(Part(batch.images, batch.tokens, torch.empty(0)))
        output = self._loss(out, labels)
        self.engine.backward(output.loss)
        return output

    def _cached(self, batch: Batch, labels: list[Tensor]) -> LossOutput:
        parts = list(self._parts(batch))
        drawn = _random_state(self.device)
        with torch.no_grad(), still_statistics(self.model):
            outs = [self._encode(part) for part in parts]
        out = ModelOutput(
            torch.cat([o.image for o in outs]), _in_order(outs, parts), outs[0].logit_scale, outs[0].curv
        )
        learned = [x.requires_grad_() for x in out[:3]]
        if any(p.requires_grad for p in self.model.manifold.parameters()):
            learned.append(out.curv.requires_grad_())
        output = self._loss(out, labels)
        loss_scale = getattr(self.engine.optimizer, "loss_scale", 1.0)  # fp16 features need it too
        gradients = torch.autograd.grad(output.loss * loss_scale, learned)
        by_part = zip(parts, gradients[0].split([len(part.images) for part in parts]), strict=True)
        _set_random_state(drawn, self.device)  # what the towers draw must be drawn again
        for k, (part, image_gradient) in enumerate(by_part):
            self.engine.set_gradient_accumulation_boundary(k == len(parts) - 1)
            again = self._encode(part)
            pulled = _dot(again.image, image_gradient) + _dot(again.text, gradients[1][part.texts])
            for scalar, gradient in zip(again[2:], gradients[2:], strict=False):
                pulled = pulled + _dot(scalar, gradient) / len(parts)  # in every part: no process waits for one
            self.engine.backward(pulled / loss_scale)  # DeepSpeed multiplies by it
        return output

    def _encode(self, part: Part) -> ModelOutput:
        images = self.normalize(part.images.to(self.device, non_blocking=True))
        out: ModelOutput = self.engine(images, part.tokens.to(self.device, non_blocking=True))
        return out

    def _loss(self, out: ModelOutput, labels: list[Tensor]) -> LossOutput:
        guard = self.guard
        guard.look("image features", out.image)
        guard.look("text features", out.text)
        scale, curv = guard.positive("logit scale", out.logit_scale), guard.positive("curvature", out.curv)
        with torch.autocast(self.device.type, enabled=False):
            output = self.loss(out.image, out.text, *labels, scale, curv)
        guard.look("loss", output.loss)
        return output

    def _parts(self, batch: Batch) -> Iterator[Part]:
        """Micro-batches of images and texts, as many on every process, since each is a collective of its own."""
        most = self.run.micro_batch
        count = torch.tensor([max(-(-len(batch.images) // most), -(-len(batch.tokens.tokens) // most))])
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        K = min(int(count), len(batch.images))
        for images, (tokens, texts) in zip(batch.images.tensor_split(K), batch.tokens.split(K), strict=True):
            yield Part(images, tokens, texts)


def _in_order(outs: list[ModelOutput], parts: list[Part]) -> Tensor:
    """(U, D) text features in the order of the batch."""
    features = torch.cat([out.text for out in outs])
    place = torch.cat([part.texts for part in parts]).to(features.device)
    return torch.empty_like(features).index_copy_(0, place, features)


def _dot(x: Tensor, gradient: Tensor) -> Tensor:
    """Its gradient in x is `gradient`; summed in fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) * gradient.to(wide)).sum()


def _listed(names: list[str]) -> str:
    """The first is nearest to the cause: names come in the order of the computation."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)

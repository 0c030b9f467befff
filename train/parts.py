"""What a run is made of, built from its configuration: model, batches, objective."""

from __future__ import annotations

import dataclasses

from bioclip_hc.data.loader import TrainingBatches
from bioclip_hc.data.names import NameTable
from bioclip_hc.data.preprocess import build_transform
from bioclip_hc.data.samplers import BatchPlan
from bioclip_hc.data.shards import ShardSet
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.losses import LevelContrastiveLoss, MixedRankClipLoss
from bioclip_hc.model import HierarchicalCLIP, create_model, get_tokenizer
from bioclip_hc.taxonomy import Taxonomy

from config import Config
from fetch import bring
from guard import batch_norms


def build_model(config: Config) -> HierarchicalCLIP:
    """The model, with what evaluation must know of its training in its metadata."""
    m = config.model
    model = create_model(
        m.architecture,
        m.pretrained or None,
        geometry=m.geometry,
        curv=m.curv,
        learnable_curv=m.learnable_curv,
        logit_scale=m.logit_scale or None,
    )
    norms = list(batch_norms(model))
    if norms and config.run.precision != "fp32":
        raise ValueError(
            f"run.precision = {config.run.precision!r} does not work with BatchNorm, which {m.architecture} has "
            f"({norms[0]}, ...); use fp32, or an architecture without it such as a ViT"
        )
    model.clip.set_grad_checkpointing(m.grad_checkpointing)
    model.metadata["text"] = TextForm(config.data.template, config.data.form).to_dict()
    return model


def build_batches(
    config: Config, model: HierarchicalCLIP, world_rank: int, world_size: int, allow_pipe: bool = False
) -> TrainingBatches:
    """Shards (for `allow_pipe` see `bring`), taxonomy, texts and the plan of the batches; all processes call it."""
    d = config.data
    table = NameTable(Taxonomy.read(d.taxonomy), d.synonyms or None) if d.taxonomy else None
    shards = ShardSet(bring(d, allow_pipe), table)
    taxonomy = table.taxonomy if table else shards.taxonomy()
    batches = TrainingBatches(
        shards,
        taxonomy,
        TaxonTokens(taxonomy, TextForm(d.template, d.form), get_tokenizer(config.model.architecture)),
        build_transform(model.preprocess_cfg, d.augmentation),
        BatchPlan(len(shards), config.optim.global_batch, config.run.seed, d.remainder),
        d.sampler,
        d.ranks,
        world_rank,
        world_size,
        config.loss.per_process,
    )
    bad = len(shards.bad) + shards.lost
    seen = bad + len(shards)
    if bad > d.quarantine_limit * seen:
        raise ValueError(
            f"{bad} of {seen} samples of {d.shown()} are unusable, more than data.quarantine_limit = "
            f"{d.quarantine_limit}; the first: {shards.bad[0].shard}, {shards.bad[0].key!r}: {shards.bad[0].reason}"
        )
    if not (batches.lineage_taxa >= 0).any():
        raise ValueError(
            f"no sample of {d.shown()} has a taxon at the ranks {', '.join(d.ranks)} in "
            f"{d.taxonomy or 'its lineages'}; is it the taxonomy of these shards?"
        )
    return batches


def build_loss(config: Config) -> LevelContrastiveLoss:
    """The objective."""
    options = dataclasses.asdict(config.loss)
    name = options.pop("name")
    return (
        MixedRankClipLoss() if name == "clip" else LevelContrastiveLoss(geometry=config.model.geometry, **options)
    )

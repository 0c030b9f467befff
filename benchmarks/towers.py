"""The step that bench_step.py measures: one batch, and the ways to train both towers on it.

# B images, R ranks, U distinct taxa of the batch over all ranks, L tokens of a text, D embed, K texts of one rank

Every way has the same towers, images and lineages, and the same words for a taxon. They differ in which texts are
encoded, at what length, and in the loss. Lineages are complete (seven names), since the authors' code leaves out
images of others, and a way must not be cheaper for having seen less. Tokens are ready when a step begins, as
loaders make them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from peers import OURS, meru_distance, meru_exp_map0
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from bioclip_hc import LevelContrastiveLoss
from bioclip_hc.data.samplers import unique_texts
from bioclip_hc.data.synthetic import evolve
from bioclip_hc.data.text import TaxonTokens, TextForm
from bioclip_hc.model import HierarchicalCLIP, create_model, get_tokenizer
from bioclip_hc.taxonomy import Taxonomy

FORM = TextForm()
TAXONOMY = "taxonomies/inat_big_subset.csv.gz"


class Forward(NamedTuple):
    """loss (); image (B, D) and text (n, D), as the loss took them."""

    loss: Tensor
    image: Tensor
    text: Tensor


def read_taxonomy() -> tuple[Taxonomy, str]:
    """iNaturalist's taxa of the folder $BIOCLIP_HC_DATA, else a synthetic tree of life; and which it is."""
    folder = os.environ.get("BIOCLIP_HC_DATA")
    if folder and (path := Path(folder) / TAXONOMY).is_file():
        return Taxonomy.from_csv(path), f"iNaturalist, {path.name}"
    return Taxonomy.from_lineages(evolve(0, 500).lineages), "synthetic, 500 species"


def draw_lineages(taxonomy: Taxonomy, images: int, seed: int = 0) -> np.ndarray:
    """(B, R) taxa of images whose species follow Zipf's law of exponent 1, as those of TreeOfLife-10M nearly do.

    Which species are the common ones is random. Species with an unnamed rank take no part.
    """
    complete = taxonomy.lineages[(taxonomy.lineages >= 0).all(1)]
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, len(complete) + 1)
    rows = rng.choice(len(complete), images, p=weight / weight.sum())
    return complete[rng.permutation(len(complete))[rows]]


@dataclass(eq=False)
class StepProblem:
    """One batch, the weights of both towers, and the models that hold them.

    Attributes:
        architecture: open_clip's name.
        taxonomy: what the taxa are called; source: where it is from.
        image_taxa: (B, R) int64, no rank missing.
        device: where the step runs.
    """

    architecture: str
    taxonomy: Taxonomy
    source: str
    image_taxa: np.ndarray
    device: torch.device

    def __post_init__(self) -> None:
        self.tokenizer = get_tokenizer(self.architecture)
        rank, taxon, self.species = unique_texts(
            self.image_taxa
        )  # species (B,): each image's text at its lowest rank
        self.text_taxa = taxon
        ids = (self.image_taxa, rank, taxon)
        self.labels = tuple(torch.from_numpy(x).to(self.device) for x in ids)
        config = open_clip.get_model_config(self.architecture)
        self.embed_dim = config["embed_dim"]
        size = config["vision_cfg"]["image_size"]
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(len(self.image_taxa), 3, size, size, generator=generator).to(self.device)

    @cached_property
    def stock(self) -> nn.Module:
        """open_clip's own model; its weights are everyone's."""
        torch.manual_seed(0)
        return open_clip.create_model(self.architecture).to(self.device).train()

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """A copy of both towers' weights, against which every way's are held."""
        return {name: x.clone() for name, x in tower_state(self.stock).items()}

    @cached_property
    def lorentz(self) -> HierarchicalCLIP:
        """This package's hyperbolic model."""
        return self._ours("lorentz")

    @cached_property
    def euclidean(self) -> HierarchicalCLIP:
        """This package's Euclidean model."""
        return self._ours("euclidean")

    def _ours(self, geometry: str) -> HierarchicalCLIP:
        model = create_model(self.architecture, geometry=geometry)
        model.clip.load_state_dict(self.weights)
        return model.to(self.device).train()

    @cached_property
    def padded(self) -> Tensor:
        """(U, 77) tokens of the distinct taxa as open_clip's tokenizer gives them."""
        return self.tokenizer([FORM.text(self.taxonomy, t) for t in self.text_taxa.tolist()]).to(self.device)

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Unit features of the images (B, D) and of the distinct taxa (U, D): open_clip's, at full length."""
        with torch.no_grad():
            image, text, _ = self.stock(self.images, self.padded)
        return image, text


def tower_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of both towers under open_clip's names."""
    clip = model.clip if isinstance(model, HierarchicalCLIP) else model
    return {name: x for name, x in clip.state_dict().items() if name != "logit_scale"}


# -- the ways ---------------------------------------------------------------------------------------------


class Way:
    """One way to train on a batch.

    Attributes:
        model: whose parameters are trained.
        tokens: what goes through the text tower, sequences times their length.
        rows: (n,) the texts among the distinct taxa of the batch.
    """

    model: nn.Module
    tokens: Tensor
    rows: np.ndarray

    def __init__(self, problem: StepProblem) -> None:
        self.problem = problem

    def step(self) -> Forward:
        """Both towers and the loss."""
        raise NotImplementedError

    def text(self) -> Tensor:
        """(n, D) the text tower alone."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Texts encoded, and the sequences, their length and the tokens that go through the tower for them."""
        sequences, length = self.tokens.shape
        return {"texts": len(self.rows), "sequences": sequences, "length": length, "tokens": self.tokens.numel()}


class Ours(Way):
    """All ranks, each distinct taxon once, beginnings that texts share read once, as the training loop does it."""

    geometry = "lorentz"

    def __init__(self, problem: StepProblem) -> None:
        super().__init__(problem)
        self.model = getattr(problem, self.geometry)
        tokens = TaxonTokens(problem.taxonomy, FORM, problem.tokenizer)
        self.texts = tokens.packed(problem.text_taxa).to(problem.device)
        self.tokens = self.texts.tokens
        self.rows = np.arange(len(problem.text_taxa))
        self.objective = LevelContrastiveLoss(geometry=self.geometry)

    def step(self) -> Forward:
        out = self.model(self.problem.images, self.texts)
        result = self.objective(out.image, out.text, *self.problem.labels, out.logit_scale, out.curv)
        return Forward(result.loss, out.image, out.text)

    def text(self) -> Tensor:
        return self.model.encode_text(self.texts)


class OursEuclidean(Ours):
    """The same with cosines."""

    geometry = "euclidean"


class OpenClip(Way):
    """One text per image, that of its species, padded to the context length; open_clip's model and loss."""

    def __init__(self, problem: StepProblem) -> None:
        super().__init__(problem)
        self.model = problem.stock
        self.rows = problem.species
        self.tokens = problem.padded[self.rows]
        self.loss = open_clip.ClipLoss()

    def step(self) -> Forward:
        image, text, scale = self.model(self.problem.images, self.tokens)
        return Forward(self.loss(image, text, scale), image, text)

    def text(self) -> Tensor:
        return self.model.encode_text(self.tokens, normalize=True)


class OpenClipCut(OpenClip):
    """The same at the length of the batch's longest text: positions and attention mask cut to it."""

    def __init__(self, problem: StepProblem) -> None:
        super().__init__(problem)
        length = int((self.tokens != 0).sum(1).max())
        self.tokens = self.tokens[:, :length].contiguous()

    def step(self) -> Forward:
        image, text, scale = self._call(self.problem.images, self.tokens)
        return Forward(self.loss(image, text, scale), image, text)

    def text(self) -> Tensor:
        return self._call(None, self.tokens)[1]

    def _call(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """open_clip's forward pass, on the first L of its positions."""
        length = self.tokens.shape[1]
        cut = {
            "positional_embedding": self.model.positional_embedding[:length],
            "attn_mask": self.model.attn_mask[:length, :length],
        }
        return torch.func.functional_call(self.model, cut, inputs)


class Authors(Way):
    """All ranks, the process' distinct texts, each padded to the context length; the loss rank by rank."""

    def __init__(self, problem: StepProblem) -> None:
        super().__init__(problem)
        self.model = problem.lorentz
        self.tokens = problem.padded
        self.rows = np.arange(len(problem.text_taxa))
        image_taxa, self.text_rank, taxon = problem.labels
        # ids are rank-major, so the texts' taxa ascend over all ranks
        self.own = torch.searchsorted(taxon, image_taxa.contiguous())

    def step(self) -> Forward:
        image, text = self.model.encode_image(self.problem.images), self.text()
        scale, curv = self.model.logit_scale(), self.model.manifold.curv
        return Forward(authors_loss(image, text, self.own, self.text_rank, scale, curv), image, text)

    def text(self) -> Tensor:
        features = self.model.clip.encode_text(self.tokens)
        return features * self.model.text_alpha().to(features.dtype)


def authors_loss(
    image: Tensor, text: Tensor, own: Tensor, text_rank: Tensor, scale: Tensor, curv: Tensor
) -> Tensor:
    """The objective as the authors of BioCLIP-HC train it: half of both directions, summed over ranks.

    Per rank (arXiv 2606.21838, equations 1 and 2), with logits -scale times the Lorentz distance: the cross
    entropy of the images over the rank's texts, and of the texts over the images, where a text averages over the
    images that carry it.

    Args:
        image: (B, D), text: (U, D) tangent vectors; texts of one rank stand together.
        own: (B, R) int64 the text of each image at each rank.
        text_rank: (U,) int64, sorted. scale, curv: one element each.
    """
    x, y = meru_exp_map0(image, curv), meru_exp_map0(text, curv)
    loss = scale.new_zeros(())
    for r in range(own.shape[1]):
        texts = (text_rank == r).nonzero().flatten()
        target = own[:, r] - texts[0]
        logits = -scale * meru_distance(x, y[texts], curv)  # (B, K)
        nll = -logits.log_softmax(0).gather(1, target[:, None])[:, 0]  # (B,) of the own text, over the images
        images = torch.zeros_like(logits[0]).index_add(0, target, torch.ones_like(nll))
        per_text = torch.zeros_like(logits[0]).index_add(0, target, nll) / images
        loss = loss + (cross_entropy(logits, target) + per_text.mean()) / 2
    return loss


WAYS: dict[str, type[Way]] = {
    "open_clip": OpenClip,
    "open_clip, cut length": OpenClipCut,
    OURS: Ours,
    f"{OURS}, euclidean": OursEuclidean,
    "authors' way": Authors,
}


# -- what is measured, and that it is the same --------------------------------------------------------------


def trained(way: Way) -> list[nn.Parameter]:
    """The parameters that a step differentiates by."""
    return [p for p in way.model.parameters() if p.requires_grad]


def gradients(way: Way, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    """Gradients of what `loss` returns, by every parameter that takes part."""
    return tuple(g for g in torch.autograd.grad(loss(), trained(way), allow_unused=True) if g is not None)


def check_towers(way: Way) -> None:
    """Raises AssertionError unless the towers' weights are the problem's, parameter by parameter."""
    found, weights = tower_state(way.model), way.problem.weights
    assert found.keys() == weights.keys()
    different = [name for name in weights if not torch.equal(found[name], weights[name])]
    assert not different, f"the towers differ in {different}"


def check_features(way: Way, found: Forward) -> float:
    """The largest difference of unit features to open_clip's own at full length.

    Raises:
        AssertionError: it is more than rounding.
    """
    image, text = way.problem.expected
    rows = torch.from_numpy(way.rows).to(text.device)
    pairs = ((found.image, image), (found.text, text[rows]))
    worst = max(float((normalize(x.detach(), dim=1) - y).abs().max()) for x, y in pairs)
    assert worst < 1e-5, f"features differ by {worst:.1e} from open_clip's at full length"
    return worst

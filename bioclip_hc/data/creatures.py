"""Synthetic organisms: a genome, how it mutates, and how it is photographed.

# G traits in a genome, S side of the image in pixels

A genome is a (G,) float64 vector of the traits in TRAITS: continuous ones in [0, 1], categorical ones whole
numbers. A body plan turns it into polygons; `render` poses and colours them and puts them in a scene with light
and clutter. Strong nuisances, small differences between sister species: learnable, not trivial.
"""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bioclip_hc.data.body_plans import ACCENT, BODY, BODY_PLANS, PLANS_OF_KINGDOM, BodyPlan, Parts, Traits, lerp

KINGDOM, PHYLUM, CLASS, ORDER, FAMILY, GENUS, SPECIES = range(7)


class Trait(NamedTuple):
    """A heritable property; it changes most on the branch to a taxon of rank `peak`."""

    name: str
    peak: int
    amount: float
    """Standard deviation of the change at the peak; for a categorical trait the chance of one."""
    choices: int = 0
    """Number of states of a categorical trait, 0 for a continuous one."""
    circular: bool = False


TRAITS = (
    Trait("plan", PHYLUM, 0.0, choices=13),  # given by the phylum, see BODY_PLANS
    Trait("aspect", CLASS, 0.36),
    Trait("count", CLASS, 0.45),
    Trait("ornament", CLASS, 0.85, choices=4),
    Trait("limb_length", ORDER, 0.32),
    Trait("limb_width", ORDER, 0.32),
    Trait("curve", ORDER, 0.30),
    Trait("head", FAMILY, 0.32),
    Trait("tail", FAMILY, 0.32),
    Trait("pattern", FAMILY, 0.85, choices=6),
    Trait("hue", ORDER, 0.11, circular=True),
    Trait("eye", FAMILY, 0.25),
    Trait("limb_tone", GENUS, 0.30),
    Trait("saturation", ORDER, 0.24),
    Trait("lightness", FAMILY, 0.24),
    Trait("accent", GENUS, 0.18, circular=True),
    Trait("contrast", SPECIES, 0.25),
    Trait("pattern_scale", SPECIES, 0.26),
    Trait("pattern_share", SPECIES, 0.25),
    Trait("mark", SPECIES, 0.40, choices=4),
)
NAMES = tuple(trait.name for trait in TRAITS)
DECAY = 0.42  # a trait's change shrinks by this factor per rank away from its peak
INDIVIDUAL = 0.07  # within-species standard deviation of continuous traits

_CHOICES = np.array([trait.choices for trait in TRAITS])
_CIRCULAR = np.array([trait.circular for trait in TRAITS])
_CATEGORICAL = _CHOICES > 0
_AMOUNT = np.array([[t.amount * DECAY ** abs(rank - t.peak) for t in TRAITS] for rank in range(SPECIES + 1)])

ANCESTRAL_HUE = {"Animalia": 0.58, "Plantae": 0.30, "Fungi": 0.04}  # blue, green, russet


def kingdom_genome(kingdom: str, rng: np.random.Generator) -> np.ndarray:
    """(G,) the first ancestor of a kingdom: moderate in every trait, coloured after its kind."""
    middling = rng.uniform(0.3, 0.7, len(TRAITS))
    genome = np.where(_CATEGORICAL, rng.integers(0, np.maximum(_CHOICES, 1)), middling)
    genome = with_trait(genome, "hue", ANCESTRAL_HUE[kingdom])
    return with_trait(genome, "plan", PLANS_OF_KINGDOM[kingdom][0])


def with_trait(genome: np.ndarray, name: str, value: float) -> np.ndarray:
    """A copy of the genome with one trait set."""
    changed = genome.astype(np.float64, copy=True)
    changed[NAMES.index(name)] = value
    return changed


def mutate(genome: np.ndarray, rank: int, rng: np.random.Generator) -> np.ndarray:
    """(G,) the genome after the branch that leads to a taxon of this rank (0 kingdom to 6 species)."""
    amount = _AMOUNT[rank]
    moved = _into_range(genome + rng.normal(size=len(TRAITS)) * amount)
    redrawn = np.where(rng.random(len(TRAITS)) < amount, rng.integers(0, np.maximum(_CHOICES, 1)), genome)
    return np.where(_CATEGORICAL, redrawn, moved)


def vary(genome: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G,) one individual of the species: continuous traits scatter, categorical ones stay."""
    scatter = rng.normal(scale=INDIVIDUAL, size=len(TRAITS))
    scatter[_CIRCULAR] *= 0.5
    return np.where(_CATEGORICAL, genome, _into_range(genome + scatter))


def genome_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root-mean-square difference of genomes (..., G), broadcast; differing categories count one."""
    gap = np.abs(a - b)
    gap = np.where(_CIRCULAR, np.minimum(gap, 1 - gap), gap)
    gap = np.where(_CATEGORICAL, gap > 0, gap)
    return np.sqrt((gap**2).mean(-1))


def _into_range(values: np.ndarray) -> np.ndarray:
    """Wrap circular traits, reflect the others at 0 and 1."""
    return np.where(_CIRCULAR, values % 1.0, 1 - np.abs(1 - values % 2.0))


# The photograph: pose, pattern, scene, light.

SUPERSAMPLE = 2  # _downsample averages blocks of this side
PALE, INK = np.array([(0.95, 0.93, 0.85), (0.10, 0.07, 0.08)], np.float32)  # what patterns are drawn with


def render(genome: np.ndarray, rng: np.random.Generator, size: int = 72) -> np.ndarray:
    """(S, S, 3) uint8: one individual of the genome, photographed somewhere.

    Every individual has its own shape, pose, place, weather and camera; all of it comes from `rng`.
    """
    genome = vary(genome, rng)
    traits = dict(zip(NAMES, genome.tolist(), strict=True))
    plan = BODY_PLANS[int(traits["plan"])]
    to_image, centre = _pose(plan, rng, size)
    labels = _draw_labels(plan.draw(traits, rng), to_image, centre, size)
    colours = _paint(labels, plan, traits, to_image, centre, rng)
    alpha = (labels > 0).astype(np.float32)
    creature = _downsample(colours * alpha[..., None])  # premultiplied
    alpha = _downsample(alpha[..., None])[..., 0]
    return _expose(creature, alpha, rng, size)


def _pose(plan: BodyPlan, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (2, 2) and offset (2,) from body coordinates to pixels of the supersampled image."""
    angle = rng.normal(0, plan.turn)
    scale = rng.uniform(0.29, 0.44) * size * SUPERSAMPLE
    mirror = rng.choice((-1.0, 1.0))
    c, s = math.cos(angle), math.sin(angle)
    stretch = rng.normal(1, 0.06)
    matrix = np.array([[mirror * c * stretch, mirror * s], [-s, c]]) * scale
    centre = size * SUPERSAMPLE * (0.5 + rng.uniform(-0.12, 0.12, 2))
    return matrix, centre


def _draw_labels(parts: Parts, matrix: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """(2S, 2S) uint8: which kind of part each fine pixel shows, 0 for none."""
    image = Image.new("L", (size * SUPERSAMPLE, size * SUPERSAMPLE))
    draw = ImageDraw.Draw(image)
    for label, points in parts:
        draw.polygon((points @ matrix + centre).ravel().tolist(), fill=label)
    return np.asarray(image)


def _palette(traits: Traits) -> np.ndarray:
    """(8, 3) float32: the colour of each kind of part."""
    hue, saturation = traits["hue"], lerp(0.25, 0.95, traits["saturation"])
    value = lerp(0.35, 0.95, traits["lightness"])
    accent_hue = hue + 0.2 + 0.6 * traits["accent"]
    tone = lerp(0.45, 1.25, traits["limb_tone"])
    plant = int(traits["plan"]) in PLANS_OF_KINGDOM["Plantae"]
    stem = (0.28, 0.55, 0.5) if plant else (0.11, 0.2, 0.8)
    rows = [
        (0, 0, 0),
        (hue, saturation, value),
        (hue + 0.03, saturation, min(value * tone, 1.0)),
        (hue, saturation * 0.8, min(value * 1.1, 1.0)),
        (accent_hue, 0.65, 0.88),
        stem,
        (0.15, 0.05, 0.97),
        (0.1, 0.3, 0.08),
    ]
    return np.array([colorsys.hsv_to_rgb(h % 1.0, s, v) for h, s, v in rows], np.float32)


def _paint(
    labels: np.ndarray,
    plan: BodyPlan,
    traits: Traits,
    matrix: np.ndarray,
    centre: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(2S, 2S, 3) float32 in [0, 1]: flat colours by part, with the pattern and the mark on the body."""
    palette = _palette(traits)
    image = palette[labels]
    rows, columns = np.nonzero(labels == BODY)
    inverse = np.linalg.inv(matrix)
    points = (np.stack([columns, rows], 1) - centre) @ inverse
    x, y = points[:, 0].astype(np.float32), points[:, 1].astype(np.float32)
    base = palette[BODY]
    strength = lerp(0.4, 1.0, traits["contrast"])
    second = base + strength * ((PALE if base.mean() < 0.45 else INK) - base)
    pattern = _pattern(int(traits["pattern"]), traits, x, y, rng)[:, None]
    colour = base + pattern * (second - base)
    mark = _mark(int(traits["mark"]), x, y, plan.upright)[:, None]
    colour += mark * (palette[ACCENT] - colour)
    image[rows, columns] = colour
    return image


def _pattern(kind: int, traits: Traits, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of the second colour at body points (x, y), in [0, 1].

    Kinds: plain, bands across, stripes along, spots, rings, blotches.
    """
    frequency = lerp(22.0, 7.0, traits["pattern_scale"])
    phase = rng.uniform(0, 2 * np.pi, 2)
    if kind == 0:
        wave = np.full_like(x, -2.0)
    elif kind == 1:
        wave = np.sin(frequency * x + phase[0] + 1.2 * np.sin(2 * y))
    elif kind == 2:
        wave = np.sin(frequency * y + phase[0] + 0.8 * np.sin(2 * x))
    elif kind == 3:
        wave = 1.6 * np.sin(frequency * x + phase[0]) * np.sin(frequency * y + phase[1]) - 0.2
    elif kind == 4:
        wave = np.sin(frequency * np.hypot(x, y) + phase[0])
    else:
        f = 0.45 * frequency
        wave = np.sin(f * (x + 0.7 * y) + phase[0] + 1.5 * np.sin(f * y)) + np.sin(f * (y - 0.6 * x) + phase[1])
    return np.clip(0.5 + 3.0 * (wave + lerp(-0.6, 0.5, traits["pattern_share"])), 0, 1)


def _mark(kind: int, x: np.ndarray, y: np.ndarray, upright: bool) -> np.ndarray:
    """1 where the species' mark lies: none, a belt, a saddle above, a patch below."""
    if kind == 1:
        return (np.abs((y if upright else x) - 0.1) < 0.11).astype(np.float32)
    if kind == 2:
        return (x**2 + (y + 0.25) ** 2 < 0.05).astype(np.float32)
    if kind == 3:
        return (y > 0.12).astype(np.float32) * 0.7
    return np.zeros_like(x)


def _downsample(image: np.ndarray) -> np.ndarray:
    """(2S, 2S, C) -> (S, S, C), the mean of each block."""
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) * 0.25


HABITATS = np.array(  # colour above, colour below
    [
        [(0.62, 0.78, 0.93), (0.30, 0.48, 0.18)],  # meadow under the sky
        [(0.85, 0.80, 0.66), (0.62, 0.50, 0.32)],  # sand
        [(0.25, 0.50, 0.62), (0.06, 0.20, 0.34)],  # water
        [(0.20, 0.32, 0.16), (0.10, 0.15, 0.07)],  # forest
        [(0.74, 0.72, 0.70), (0.42, 0.41, 0.42)],  # rock
        [(0.90, 0.55, 0.38), (0.30, 0.20, 0.30)],  # dusk
        [(0.93, 0.95, 0.97), (0.72, 0.78, 0.86)],  # snow
        [(0.42, 0.30, 0.20), (0.22, 0.15, 0.10)],  # leaf litter
    ],
    np.float32,
)


def _expose(creature: np.ndarray, alpha: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Put the creature (premultiplied) into a scene: shading, shadow, foreground, light, camera."""
    scene = _background(rng, size)
    soft = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(size / 18))
    inner = np.asarray(soft, np.float32) / 255
    shift = rng.integers(-size // 16, size // 16 + 1, 2)
    shadow = np.roll(inner, tuple(shift), (0, 1))
    scene *= (1 - rng.uniform(0.1, 0.5) * shadow)[..., None]
    slope = rng.normal(0, 0.35, 2)
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + slope[0] * grid[:, None] + slope[1] * grid
    volume = 0.55 + 0.5 * inner
    scene = scene * (1 - alpha[..., None]) + creature * (volume * np.clip(light, 0.4, 1.6))[..., None]
    scene = _foreground(scene, rng, size)
    white_balance = np.exp(rng.normal(0, 0.09, 3)) * np.exp(rng.normal(0, 0.16))
    scene = scene * white_balance.astype(np.float32) + rng.normal(0, 0.03)
    scene += rng.standard_normal((size, size, 1), np.float32) * rng.uniform(0.005, 0.04)
    return (np.clip(scene, 0, 1) * 255).astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(S, S, 3) float32: a habitat's gradient, mottled, with stalks and stones."""
    above, below = HABITATS[rng.integers(len(HABITATS))] * _tint(rng, 2)
    horizon = rng.uniform(0.2, 0.9)
    ramp = np.clip((np.linspace(0, 1, size, dtype=np.float32) - horizon) * rng.uniform(1, 9) + 0.5, 0, 1)
    scene = np.repeat((above + ramp[:, None] * (below - above))[:, None], size, 1)
    cells = int(rng.integers(3, 14))
    grain = Image.fromarray(rng.integers(0, 256, (cells, cells), np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    scene += ((np.asarray(grain, np.float32) - 128) * (rng.uniform(0.05, 0.5) / 256))[..., None]
    image = Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8))
    _clutter(ImageDraw.Draw(image), rng, size, strokes=int(rng.integers(0, 26)), stones=int(rng.integers(0, 6)))
    return np.asarray(image, np.float32) / 255


def _tint(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) float32 factors: a brightness, and a little of its own for each channel."""
    return (rng.uniform(0.7, 1.15, (count, 1)) * rng.uniform(0.9, 1.1, (count, 3))).astype(np.float32)


def _foreground(scene: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Now and then blades and leaves in front of the lens."""
    if rng.random() < 0.5:
        return scene
    image = Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8))
    _clutter(ImageDraw.Draw(image), rng, size, strokes=int(rng.integers(1, 6)), stones=int(rng.integers(0, 2)))
    return np.asarray(image, np.float32) / 255


def _clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: int, strokes: int, stones: int) -> None:
    """Paint blades of grass and round blobs in colours of a random habitat."""
    tint = HABITATS[rng.integers(len(HABITATS)), 1]
    tones = (np.clip(tint * rng.uniform(0.5, 1.6, (strokes + stones, 1)), 0, 1) * 255).astype(int).tolist()
    feet = rng.uniform(0, size, (strokes, 2))
    tips = feet + rng.normal(0, 1, (strokes, 2)) * (size / 12, size / 8) - (0, size / 6)
    for tone, foot, tip in zip(tones[:strokes], feet.tolist(), tips.tolist(), strict=True):
        draw.line((*foot, *tip), fill=tuple(tone), width=max(1, size // 48))
    for tone, (x, y, rx, ry) in zip(tones[strokes:], rng.uniform(0, 1, (stones, 4)).tolist(), strict=True):
        rx, ry = size * (0.03 + 0.1 * rx), size * (0.03 + 0.07 * ry)
        draw.ellipse((x * size - rx, y * size - ry, x * size + rx, y * size + ry), fill=tuple(tone))

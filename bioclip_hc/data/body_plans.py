"""Body plans of the synthetic tree of life: traits in, polygons out.

Body coordinates: x forward, y down, about one unit from the centre. Animals face x; plants and fungi grow up.
Continuous traits in [0, 1] set proportions, `count` the number of legs, arms, petals or caps, `ornament` (0 to 3)
horns, spines, wings or blooms. `rng` moves what differs between two individuals: the stride, a bent stalk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BODY, LIMB, HEAD, ACCENT, STEM, WHITE, DARK = range(1, 8)

Parts = list[tuple[int, np.ndarray]]
"""(kind of part, (n, 2) polygon), in the order of painting: each covers those before it."""

Traits = dict[str, float]
"""A genome by the names of its traits, see `creatures.TRAITS`."""

_CIRCLE = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 20, endpoint=False)), np.sin(a)], 1)
_DOME = np.stack([np.cos(a := np.linspace(np.pi, 2 * np.pi, 14)), np.sin(a)], 1)


def lerp(low: float, high: float, share: float) -> float:
    """low at share 0, high at share 1."""
    return low + (high - low) * share


def _count(traits: Traits, low: int, high: int) -> int:
    return low + min(int(traits["count"] * (high - low + 1)), high - low)


def _ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return _CIRCLE @ np.array([[rx * c, rx * s], [-ry * s, ry * c]]) + (x, y)


def _dome(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return _DOME * (rx, ry) + (x, y)


def _limb(x: float, y: float, angle: float, length: float, base: float, tip: float) -> np.ndarray:
    """A tapering limb from (x, y), half as wide as `base` and `tip` on either side, with a blunt end."""
    c, s = math.cos(angle), math.sin(angle)
    along = np.array([0, length, length + 0.7 * tip, length, 0])
    across = np.array([base, tip, 0, -tip, -base])
    return np.stack([x + along * c - across * s, y + along * s + across * c], 1)


def _tip(x: float, y: float, angle: float, length: float) -> tuple[float, float]:
    return x + length * math.cos(angle), y + length * math.sin(angle)


def _eye(x: float, y: float, traits: Traits, scale: float = 1.0) -> Parts:
    radius = scale * lerp(0.05, 0.12, traits["eye"])
    return [(WHITE, _ellipse(x, y, radius, radius)), (DARK, _ellipse(x + 0.02, y, radius * 0.55, radius * 0.55))]


def _beast(t: Traits, rng: np.random.Generator) -> Parts:
    """A walker in profile: trunk, legs in a row, neck and head, tail."""
    height = lerp(0.20, 0.42, t["aspect"])
    legs = _count(t, 2, 6)
    length, width = lerp(0.2, 0.6, t["limb_length"]), lerp(0.04, 0.1, t["limb_width"])
    hip, neck = 0.55, lerp(0.05, 0.45, t["curve"])
    parts: Parts = [
        (LIMB, _limb(x, height * 0.5, np.pi / 2 + rng.normal(0, 0.2), length + height * 0.4, width, width * 0.7))
        for x in np.linspace(-hip * 0.8, hip * 0.8, legs)
    ]
    parts.append((BODY, _limb(-hip, -0.05, np.pi + rng.normal(0.2, 0.3), lerp(0.05, 0.6, t["tail"]), 0.1, 0.03)))
    parts += _back_ornament(t, height, hip)
    parts.append((BODY, _ellipse(0, 0, 0.65, height)))
    head, x, y = lerp(0.15, 0.32, t["head"]), 0.72, -neck
    parts.append((BODY, _limb(0.4, -0.05, math.atan2(y, x - 0.4), 0.35, height * 0.6, head * 0.6)))
    if int(t["ornament"]) == 1:
        parts += [(ACCENT, _limb(x, y - head * 0.5, a, 0.38, 0.07, 0.02)) for a in (-1.9, -1.2)]
    if int(t["ornament"]) == 2:
        parts += [(LIMB, _ellipse(x - 0.05 + dx, y - head, 0.09, 0.2, dx)) for dx in (-0.1, 0.12)]
    parts.append((HEAD, _ellipse(x, y, head * 1.15, head)))
    parts.append((LIMB, _ellipse(x + head, y + head * 0.3, head * 0.4, head * 0.35)))
    return parts + _eye(x + 0.05, y - 0.05, t)


def _back_ornament(t: Traits, height: float, reach: float) -> Parts:
    """Spines along the back for the third ornament."""
    if int(t["ornament"]) != 3:
        return []
    return [
        (ACCENT, _limb(x, -height * 0.7, -np.pi / 2 - 0.2, height * 0.45 + 0.18, 0.09, 0.01))
        for x in np.linspace(-reach * 0.8, reach * 0.6, 5)
    ]


def _fish(t: Traits, rng: np.random.Generator) -> Parts:
    """A swimmer in profile: tail fin, dorsal and belly fins, body."""
    height, sway = lerp(0.2, 0.52, t["aspect"]), rng.normal(0, 0.12)
    fins = _count(t, 1, 4)
    length, width = lerp(0.1, 0.45, t["limb_length"]), lerp(0.06, 0.16, t["limb_width"])
    spread, reach = lerp(0.15, 0.5, t["tail"]), lerp(0.2, 0.45, t["tail"])
    notch = lerp(0.0, 0.3, t["curve"])
    tail = np.array(
        [(-0.5, 0), (-0.6 - reach, -spread + sway), (-0.6 - reach + notch, sway), (-0.6 - reach, spread + sway)]
    )
    parts: Parts = [(LIMB, tail)]
    for x in np.linspace(-0.3, 0.3, fins) if fins > 1 else (0.0,):
        parts.append((ACCENT, _limb(x, -height * 0.7, -np.pi / 2 - 0.5, height * 0.3 + length, width, 0.02)))
        parts.append((LIMB, _limb(x, height * 0.7, np.pi / 2 + 0.5, height * 0.3 + length * 0.7, width, 0.02)))
    if int(t["ornament"]) == 1:
        parts.append((ACCENT, _limb(0.7, 0.0, 0.1, 0.4, 0.06, 0.01)))
    parts += _back_ornament(t, height, 0.5)
    parts.append((BODY, _ellipse(0, 0, 0.75, height)))
    head = lerp(0.15, 0.34, t["head"])
    parts.append((HEAD, _ellipse(0.72 - head, 0, head, min(head, height * 0.85))))
    if int(t["ornament"]) == 2:
        parts += [(ACCENT, _limb(0.62, 0.08, a, 0.4, 0.025, 0.015)) for a in (0.7, 1.2)]
    parts.append(
        (LIMB, _limb(0.25, height * 0.2, 2.4 + rng.normal(0, 0.2), length * 0.9 + 0.1, width * 0.5, width))
    )
    return parts + _eye(0.75 - head * 0.7, -height * 0.2, t)


def _insect(t: Traits, rng: np.random.Generator) -> Parts:
    """A crawler from above: legs in pairs, wings or none, three body sections, feelers."""
    pairs = _count(t, 2, 5)
    length, width = lerp(0.4, 0.85, t["limb_length"]), lerp(0.025, 0.06, t["limb_width"])
    breadth = lerp(0.16, 0.4, t["aspect"])
    parts: Parts = []
    for x in np.linspace(-0.35, 0.4, pairs):
        for side in (-1, 1):
            angle = side * (np.pi / 2 - 0.7 * x + rng.normal(0, 0.12))
            knee = _tip(x, 0, angle, length * 0.55)
            parts.append((LIMB, _limb(x, 0, angle, length * 0.55, width * 1.3, width)))
            parts.append(
                (LIMB, _limb(*knee, angle + side * lerp(-0.6, 1.0, t["curve"]), length * 0.5, width, width * 0.5))
            )
    abdomen = lerp(0.3, 0.55, t["tail"])
    head = lerp(0.13, 0.28, t["head"])
    feelers = [(LIMB, _limb(0.6, 0, s * 0.5 + rng.normal(0, 0.1), 0.45, 0.025, 0.015)) for s in (-1, 1)]
    body = [(BODY, _ellipse(-0.35, 0, abdomen, breadth)), (HEAD, _ellipse(0.2, 0, 0.25, breadth * 0.75))]
    wings = []
    for side in (-1, 1):
        if int(t["ornament"]) in (1, 2):
            wings.append((ACCENT, _ellipse(-0.05, side * 0.42, 0.2, 0.45, side * -0.35)))
        if int(t["ornament"]) == 2:
            wings.append((ACCENT, _ellipse(-0.45, side * 0.36, 0.16, 0.36, side * 0.45)))
        if int(t["ornament"]) == 3:
            wings.append((ACCENT, _limb(0.6, side * 0.08, side * 0.35, 0.35, 0.07, 0.02)))
    parts += wings + feelers + body + [(HEAD, _ellipse(0.52, 0, head, head))]
    for side in (-1, 1):
        parts += _eye(0.55, side * head * 0.7, t, 0.8)
    return parts


def _star(t: Traits, rng: np.random.Generator) -> Parts:
    """A radial animal from above: arms around a disc."""
    arms, disc = _count(t, 4, 9), lerp(0.2, 0.45, t["head"])
    length = lerp(0.55, 0.95, t["limb_length"])
    base, tip = lerp(0.1, 0.24, t["limb_width"]), lerp(0.01, 0.16, t["tail"])
    parts: Parts = []
    for k in range(arms):
        angle = 2 * np.pi * k / arms + rng.normal(0, 0.08)
        bend = lerp(-0.5, 0.5, t["curve"])
        elbow = _tip(0, 0, angle, length * 0.55)
        middle = (base + tip) / 2
        if int(t["ornament"]) in (1, 3):
            parts += [(ACCENT, _limb(*elbow, angle + s * 1.3, 0.24, 0.05, 0.01)) for s in (-1, 1)]
        parts.append((LIMB, _limb(*elbow, angle + bend, length * 0.45, middle, tip)))
        parts.append((BODY, _limb(0, 0, angle, length * 0.58, base, middle)))
    parts.append((BODY, _ellipse(0, 0, disc, disc * lerp(0.75, 1.0, t["aspect"]))))
    if int(t["ornament"]) >= 2:
        parts.append((ACCENT, _ellipse(0, 0, disc * 0.5, disc * 0.5)))
    eye = lerp(0.02, 0.07, t["eye"])
    return [*parts, (DARK, _ellipse(0, 0, eye, eye))]


def _jelly(t: Traits, rng: np.random.Generator) -> Parts:
    """A bell with tentacles below."""
    wide, tall = lerp(0.45, 0.75, t["head"]), lerp(0.35, 0.75, t["aspect"])
    length, width = lerp(0.35, 0.9, t["limb_length"]), lerp(0.02, 0.07, t["limb_width"])
    parts: Parts = []
    for x in np.linspace(-wide * 0.75, wide * 0.75, _count(t, 3, 8)):
        lean = np.pi / 2 + rng.normal(0, 0.15) - x * lerp(-0.6, 0.8, t["curve"])
        knee = _tip(x, -0.05, lean, length * 0.5)
        parts.append((LIMB, _limb(x, -0.05, lean, length * 0.5, width, width)))
        parts.append((LIMB, _limb(*knee, lean + rng.normal(0, 0.4), length * 0.55, width, width * 0.6)))
        if int(t["ornament"]) == 1:
            parts.append((ACCENT, _ellipse(*knee, 0.07, 0.07)))
    if int(t["ornament"]) == 2:
        parts += [(ACCENT, _ellipse(x, 0.15, 0.14, 0.3)) for x in (-0.15, 0.15)]
    parts.append((BODY, _dome(0, 0, wide, tall)))
    parts.append((HEAD, _ellipse(0, 0, wide, lerp(0.05, 0.16, t["tail"]))))
    if int(t["ornament"]) == 3:
        parts += [(ACCENT, _limb(x, -tall * 0.85, -np.pi / 2 + x, 0.3, 0.06, 0.03)) for x in (-0.25, 0, 0.25)]
    for side in (-1, 1):
        parts += _eye(side * wide * 0.4, -0.12, t, 0.8)
    return parts


def _snail(t: Traits, rng: np.random.Generator) -> Parts:
    """A shell on a foot, with stalked eyes."""
    shell, height = lerp(0.35, 0.62, t["head"]), lerp(0.65, 1.25, t["aspect"])
    foot, tail = lerp(0.08, 0.2, t["limb_width"]), lerp(0.4, 0.95, t["tail"])
    parts: Parts = [
        (LIMB, _limb(0.1, 0.45, np.pi, tail, foot, 0.03)),
        (LIMB, _limb(-0.3, 0.45, 0, 0.95, foot, foot * 0.8)),
    ]
    stalk = lerp(0.2, 0.55, t["limb_length"])
    for angle in (-1.7, -1.1):
        angle += rng.normal(0, 0.15)
        parts.append((LIMB, _limb(0.65, 0.4, angle, stalk, 0.05, 0.035)))
        parts += _eye(*_tip(0.65, 0.4, angle, stalk), t, 0.8)
    if int(t["ornament"]) in (1, 3):
        fan = np.linspace(-2.6, -0.6, _count(t, 3, 8))
        parts += [(ACCENT, _limb(-0.15, 0, a, shell * height + 0.2, 0.11, 0.01)) for a in fan]
    parts.append((BODY, _ellipse(-0.15, 0.0, shell, shell * height, lerp(-0.5, 0.3, t["curve"]))))
    if int(t["ornament"]) >= 2:
        parts += [(HEAD, _ellipse(-0.1, 0.02, r, r * height)) for r in (shell * 0.5,)]
        parts += [(ACCENT, _ellipse(-0.07, 0.03, r, r * height)) for r in (shell * 0.25,)]
    return parts


def _flower(t: Traits, rng: np.random.Generator) -> Parts:
    """A stem with leaves and one flower."""
    petals, disc = _count(t, 4, 9), lerp(0.12, 0.28, t["head"])
    length = lerp(0.25, 0.45, t["limb_length"])
    width = lerp(0.09, 0.22, t["limb_width"])
    stem = lerp(0.6, 0.95, t["tail"])
    parts: Parts = [(STEM, _limb(0, -0.35, np.pi / 2 + rng.normal(0, 0.08), stem + 0.35, 0.04, 0.05))]
    for side in (-1, 1):
        leaf = lerp(0.2, 0.42, t["aspect"])
        lean = side * lerp(0.1, 0.9, t["curve"])
        parts.append((STEM, _ellipse(side * leaf, stem * 0.55, leaf, 0.11, -lean + rng.normal(0, 0.15))))
    layers = ((1.0, 0.0), (0.65, 0.5)) if int(t["ornament"]) == 1 else ((1.0, 0.0),)
    for scale, shift in layers:
        for k in range(petals):
            angle = 2 * np.pi * (k + shift) / petals + rng.normal(0, 0.06)
            x, y = _tip(0, -0.4, angle, (disc * 0.6 + length * 0.8) * scale)
            parts.append((BODY if shift == 0 else HEAD, _ellipse(x, y, length * scale, width * scale, angle)))
            if int(t["ornament"]) == 2:
                parts.append((ACCENT, _ellipse(*_tip(x, y, angle, length * 0.75), 0.07, 0.07)))
    if int(t["ornament"]) == 3:
        parts += [(ACCENT, _limb(0, -0.4, a, disc + 0.22, 0.03, 0.05)) for a in np.arange(0, 6.2, 0.9)]
    parts.append((ACCENT, _ellipse(0, -0.4, disc, disc)))
    core = disc * lerp(0.2, 0.65, t["eye"])
    return [*parts, (DARK, _ellipse(0, -0.4, core, core))]


def _frond(t: Traits, rng: np.random.Generator) -> Parts:
    """A fern: leaflets in pairs along a bent stalk."""
    pairs, bend = _count(t, 4, 8), lerp(-0.7, 0.7, t["curve"]) + rng.normal(0, 0.1)
    length, width = lerp(0.25, 0.6, t["limb_length"]), lerp(0.05, 0.13, t["limb_width"])
    heights = np.linspace(0.7, -0.75, pairs)
    parts: Parts = []
    points = [(bend * 0.4 * (0.9 - y) ** 2 * 0.5, float(y)) for y in [1.0, *heights, -0.95]]
    for (x, y), (x2, y2) in pairwise(points):
        step = math.hypot(x2 - x, y2 - y)
        parts.append((STEM, _limb(x, y, math.atan2(y2 - y, x2 - x), step, 0.045, 0.04)))
    for k, (x, y) in enumerate(points[1:-1]):
        reach = length * (1 - (k / pairs) ** lerp(0.7, 3.0, t["tail"]) * 0.85)
        for side in (-1, 1):
            angle = -np.pi / 2 + side * (lerp(0.7, 1.5, t["aspect"]) + rng.normal(0, 0.06))
            parts.append((BODY, _ellipse(*_tip(x, y, angle, reach), reach, width, angle)))
            if int(t["ornament"]) == 1:
                parts.append((ACCENT, _ellipse(*_tip(x, y, angle, reach * 1.8), 0.06, 0.06)))
    if int(t["ornament"]) >= 2:
        knob = lerp(0.08, 0.2, t["head"])
        parts.append((ACCENT if int(t["ornament"]) == 2 else HEAD, _ellipse(*points[-1], knob, knob)))
    return parts


def _conifer(t: Traits, rng: np.random.Generator) -> Parts:
    """A tree of stacked tiers."""
    tiers, wide = _count(t, 2, 6), lerp(0.35, 0.75, t["limb_length"])
    trunk, droop = lerp(0.05, 0.13, t["limb_width"]), lerp(-0.15, 0.2, t["curve"])
    foot = lerp(0.35, 0.7, t["tail"])
    parts: Parts = [(LIMB, _limb(0, 0, np.pi / 2, 1.0, trunk, trunk * 1.2))]
    levels = np.linspace(foot, -0.7, tiers)
    depth = 1.5 / tiers + 0.1
    for k, y in enumerate(levels):
        half = wide * (1 - 0.75 * k / tiers * lerp(0.5, 1.1, t["aspect"])) * rng.normal(1, 0.05)
        crown = max(y - depth, -1.05)
        parts.append(
            (BODY, np.array([(-half, y + droop), (0, y), (half, y + droop), (0.04, crown), (-0.04, crown)]))
        )
        if int(t["ornament"]) in (1, 2):
            ball = lerp(0.05, 0.1, t["head"])
            parts += [(ACCENT, _ellipse(s * half * 0.8, y + droop, ball, ball * 1.5)) for s in (-1, 1)]
    if int(t["ornament"]) >= 2:
        parts.append((ACCENT, _limb(0, -0.85, -np.pi / 2, 0.25, 0.08, 0.03)))
    return parts


def _cactus(t: Traits, rng: np.random.Generator) -> Parts:
    """A column with arms, spines and a flower on top."""
    wide, tall = lerp(0.16, 0.4, t["aspect"]), lerp(0.4, 0.75, t["tail"])
    arm, length = lerp(0.07, 0.16, t["limb_width"]), lerp(0.2, 0.6, t["limb_length"])
    parts: Parts = []
    for k in range(_count(t, 0, 4)):
        side, y = (-1) ** k, 0.35 - 0.27 * k + rng.normal(0, 0.04)
        elbow = side * (wide + lerp(0.12, 0.3, t["curve"]))
        parts.append((HEAD, _limb(0, y, 0 if side > 0 else np.pi, abs(elbow), arm, arm)))
        parts.append((BODY, _limb(elbow, y + arm, -np.pi / 2, length, arm, arm * 0.8)))
    if int(t["ornament"]) in (1, 2):
        for y in np.linspace(-tall * 0.8, 0.6, 6):
            parts += [(WHITE, _limb(s * wide * 0.8, y, -np.pi / 2 + s * 1.3, 0.24, 0.035, 0.01)) for s in (-1, 1)]
    parts.append((BODY, np.concatenate([_dome(0, -tall + wide, wide, wide), _dome(0, 0.75, -wide, -0.1)])))
    if int(t["ornament"]) >= 2:
        bloom = lerp(0.1, 0.22, t["head"])
        parts += [
            (ACCENT, _limb(0, -tall + 0.1, a, bloom + 0.12, 0.03, bloom * 0.5)) for a in (-2.4, -1.9, -1.2, -0.7)
        ]
    return parts


def _mushroom(t: Traits, rng: np.random.Generator) -> Parts:
    """One to three caps on stalks."""
    parts: Parts = []
    caps = _count(t, 1, 3)
    for k in sorted(range(caps), reverse=True):
        x, scale = (0.0, -0.5, 0.5)[k], (1.0, 0.6, 0.5)[k]
        foot, top = 0.85, 0.85 - scale * lerp(0.5, 1.2, t["tail"])
        lean = rng.normal(0, 0.08)
        stalk = scale * lerp(0.07, 0.2, t["limb_width"])
        parts.append(
            (
                STEM,
                np.array(
                    [
                        (x - stalk * 1.3, foot),
                        (x + lean - stalk, top),
                        (x + lean + stalk, top),
                        (x + stalk * 1.3, foot),
                    ]
                ),
            )
        )
        if int(t["ornament"]) in (1, 3):
            parts.append((ACCENT, _ellipse(x + lean * 0.6, (top * 2 + foot) / 3, stalk * 1.8, 0.06 * scale)))
        if int(t["ornament"]) >= 2:
            parts.append((ACCENT, _ellipse(x, foot, stalk * 2.2, 0.14 * scale)))
        wide, tall = scale * lerp(0.35, 0.8, t["head"]), scale * lerp(0.2, 0.7, t["aspect"])
        parts.append((LIMB, _ellipse(x + lean, top, wide, scale * lerp(0.03, 0.16, t["limb_length"]))))
        parts.append((BODY, _dome(x + lean, top + 0.02, wide, tall)))
    return parts


def _coral(t: Traits, rng: np.random.Generator) -> Parts:
    """A fungus that branches like coral."""
    parts: Parts = []
    spread, thick = lerp(0.25, 0.6, t["curve"]), lerp(0.05, 0.13, t["limb_width"])

    def grow(x: float, y: float, angle: float, length: float, width: float, depth: int) -> None:
        angle += rng.normal(0, 0.1)
        x2, y2 = _tip(x, y, angle, length)
        parts.append((BODY, _limb(x, y, angle, length, width, width * 0.8)))
        if depth == 0:
            knob = lerp(0.03, 0.1, t["head"])
            tip = (BODY, ACCENT, HEAD, ACCENT)[int(t["ornament"])]
            parts.append((tip, _ellipse(x2, y2, knob, knob * (1.8 if int(t["ornament"]) == 3 else 1))))
            return
        for side in (-1, 1):
            grow(x2, y2, angle + side * spread, length * lerp(0.6, 0.95, t["tail"]), width * 0.75, depth - 1)

    stems = _count(t, 1, 4)
    for k in range(stems):
        fan = (k - (stems - 1) / 2) * lerp(0.3, 0.6, t["aspect"])
        grow(
            0.12 * (k - (stems - 1) / 2),
            0.85,
            -np.pi / 2 + fan,
            lerp(0.35, 0.6, t["limb_length"]),
            thick,
            2 if stems < 3 else 1,
        )
    parts.append((STEM, _ellipse(0, 0.85, 0.14 + 0.08 * stems, 0.12)))
    return parts


def _puffball(t: Traits, rng: np.random.Generator) -> Parts:
    """Round fruit bodies in a cluster, with warts or spines."""
    parts: Parts = []
    balls = _count(t, 1, 4)
    for k in sorted(range(balls), reverse=True):
        x, y, scale = ((0, 0.1, 1.0), (-0.55, 0.45, 0.55), (0.55, 0.5, 0.5), (0.35, -0.45, 0.4))[k]
        radius = scale * lerp(0.38, 0.65, t["head"]) * rng.normal(1, 0.04)
        tall = radius * lerp(0.7, 1.2, t["aspect"])
        stalk = scale * lerp(0.1, 0.3, t["limb_width"])
        parts.append((STEM, _limb(x, y, np.pi / 2, tall + scale * lerp(0.05, 0.4, t["tail"]), stalk, stalk * 1.2)))
        if int(t["ornament"]) in (1, 3):
            spines = np.linspace(-3.0, -0.14, 9) + rng.normal(0, 0.1)
            reach = tall + scale * lerp(0.12, 0.35, t["limb_length"])
            parts += [(ACCENT, _limb(x, y, a, reach, 0.07 * scale, 0.015)) for a in spines]
        parts.append((BODY, _ellipse(x, y, radius, tall)))
        if int(t["ornament"]) >= 2:
            mouth = radius * lerp(0.2, 0.5, t["curve"])
            parts.append((DARK, _ellipse(x, y - tall * 0.6, mouth, mouth * 0.5)))
    return parts


class BodyPlan(NamedTuple):
    """How a phylum is built."""

    name: str
    draw: Callable[[Traits, np.random.Generator], Parts]
    turn: float
    """Standard deviation of the rotation in the image, radians."""
    upright: bool = False
    """Grows along y rather than x."""


BODY_PLANS = (
    BodyPlan("beast", _beast, 0.3),
    BodyPlan("fish", _fish, 0.4),
    BodyPlan("insect", _insect, 1.0),
    BodyPlan("star", _star, 1.0),
    BodyPlan("jelly", _jelly, 0.35, upright=True),
    BodyPlan("snail", _snail, 0.25),
    BodyPlan("flower", _flower, 0.25, upright=True),
    BodyPlan("frond", _frond, 0.3, upright=True),
    BodyPlan("conifer", _conifer, 0.12, upright=True),
    BodyPlan("cactus", _cactus, 0.15, upright=True),
    BodyPlan("mushroom", _mushroom, 0.2, upright=True),
    BodyPlan("coral", _coral, 0.25, upright=True),
    BodyPlan("puffball", _puffball, 0.2, upright=True),
)
PLANS_OF_KINGDOM = {"Animalia": range(6), "Plantae": range(6, 10), "Fungi": range(10, 13)}

"""Training's pixels: open_clip's, as functions of the bytes and the seed, in bytes until they are on the device."""

import io
import json
import random
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from bioclip_hc.data import decode, preprocess
from bioclip_hc.data.decode import DecodeError, Photograph, decode_image
from bioclip_hc.data.preprocess import Augmentation, Normalize, RandomCrop, build_transform, random_box

from folder import inputs, same_inputs

PREPROCESS = {"size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.26, 0.27)}
STRONG = {
    "scale": (0.2, 1.0),
    "color_jitter": (0.4, 0.4, 0.4, 0.1),
    "color_jitter_prob": 0.8,
    "gray_scale_prob": 0.5,
}
TIMM = {"use_timm": True, "scale": (0.5, 1.0), "ratio": (0.9, 1.1), "color_jitter": 0.4}
ERASING = {**TIMM, "re_prob": 1.0}


def photograph(height, width, fmt="JPEG", **options):
    """A smooth picture with some noise."""
    rng = np.random.default_rng(height + width)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = (pixels + rng.integers(-9, 10, pixels.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, fmt, **options)
    return file.getvalue()


SMALL = photograph(60, 80)


def stock(augmentation=None):
    """open_clip's own."""
    return image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=True, aug_cfg=dict(augmentation or {}))


@pytest.mark.filterwarnings("ignore:Unused augmentation cfg items")
@pytest.mark.parametrize("augmentation", [None, {"scale": (0.2, 1.0)}, STRONG, TIMM, ERASING])
def test_pixels_depend_on_the_seed_alone(augmentation):
    transform = build_transform(PREPROCESS, augmentation)
    forward = [transform(SMALL, seed) for seed in range(20)]
    torch.manual_seed(99)
    random.seed(99)
    backward = [transform(SMALL, seed) for seed in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert len({pixels.numpy().tobytes() for pixels in forward}) > 10
    assert {pixels.shape for pixels in forward} == {transform.shape}
    assert {pixels.dtype for pixels in forward} == {transform.blank.dtype}


@pytest.mark.filterwarnings("ignore:Unused augmentation cfg items")
@pytest.mark.parametrize("augmentation", [None, STRONG])
def test_the_generators_are_left_as_they_were(augmentation):
    def states() -> list:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    before = states()
    build_transform(PREPROCESS, augmentation)(SMALL, 3)
    assert states() == before

    def fails(image):
        torch.rand(1), random.random(), np.random.random()
        raise RuntimeError("in the transform")

    with pytest.raises(RuntimeError, match="in the transform"):
        Augmentation(PreprocessCfg(**PREPROCESS), fails, torch.uint8)(SMALL, 3)
    assert states() == before


# -- the plain crop ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Unused augmentation cfg items")
def test_open_clips_default_is_the_plain_crop():
    plain = build_transform(PREPROCESS)
    assert isinstance(plain, RandomCrop)
    assert (plain.scale, plain.ratio, plain.mode) == ((0.9, 1.0), (3 / 4, 4 / 3), "bicubic")
    assert build_transform(PREPROCESS, {"scale": [0.6, 1.0]}).scale == [0.6, 1.0]
    assert not isinstance(build_transform(PREPROCESS, STRONG), RandomCrop)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (300, 300, (0.9, 1.0), (3 / 4, 4 / 3)),
        (400, 640, (0.2, 0.8), (3 / 4, 4 / 3)),
        (500, 100, (0.9, 1.0), (3 / 4, 4 / 3)),  # no attempt can succeed
        (100, 500, (0.9, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_as_torchvision_draws_them(height, width, scale, ratio):
    torch.manual_seed(0)
    image = Image.new("L", (width, height))
    theirs = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(1500)]
    ours = [random_box(height, width, scale, ratio, seed) for seed in range(1500)]
    for top, left, h, w in ours:
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        spread = statistics.pstdev(other)
        assert statistics.mean(mine) == pytest.approx(statistics.mean(other), abs=0.15 * spread + 1e-9)
        assert statistics.pstdev(mine) == pytest.approx(spread, rel=0.15)
    largest = (min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3)))  # where no attempt succeeds
    middles = [sum(tuple(box[2:]) == largest for box in boxes) for boxes in (ours, theirs)]
    assert middles[0] == pytest.approx(middles[1], abs=110)


def test_a_crop_can_lie_at_every_place():
    found = {random_box(4, 4, (9 / 16, 9 / 16), (1, 1), seed) for seed in range(60)}
    assert found == {(top, left, 3, 3) for top in (0, 1) for left in (0, 1)}


@pytest.mark.parametrize("size", [(60, 80), (33, 33), (20, 25), (200, 90)])
@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_pixels_are_pillows_but_for_rounding(size, fmt):
    """The same crop by open_clip's own steps, before it normalises: cut, then resized by Pillow."""
    data = photograph(*size, fmt)
    transform = build_transform({**PREPROCESS, "size": (32, 24)}, {"scale": (0.3, 1.0)})
    differences = []
    for seed in range(10):
        top, left, height, width = random_box(*size, (0.3, 1.0), (3 / 4, 4 / 3), seed)
        cut = decode_image(data).crop((left, top, left + width, top + height))
        expected = np.asarray(cut.resize((24, 32), Image.Resampling.BICUBIC)).astype(int)
        found = transform(data, seed).permute(1, 2, 0).numpy()
        differences.append(np.abs(found - expected))
    assert np.max(differences) <= 2
    assert np.mean(differences) < 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (3, 2)])
def test_the_smallest_pictures_can_be_cut(size):
    assert build_transform(PREPROCESS)(photograph(*size, "PNG"), 0).shape == (3, 32, 32)


def on_grid(box, by):
    """The box whose edges are the nearest multiples."""
    top, left, height, width = box
    edges = [(edge + by // 2) // by * by for edge in (top, left, top + height, left + width)]
    return edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]


def test_a_large_photograph_is_decoded_small(monkeypatch):
    asked, pixels = [], Photograph.pixels
    monkeypatch.setattr(Photograph, "pixels", lambda self, by: asked.append(by) or pixels(self, by))
    transform = build_transform(PREPROCESS, {"scale": (0.9, 1.0)})
    for side, expected in ((120, {1}), (160, {2}), (320, {4}), (640, {8}), (2000, {8})):
        data = photograph(side, side)
        found = [transform(data, seed) for seed in range(4)]
        assert set(asked) == expected
        asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(RandomCrop, "_reduction", lambda *_: 1)
            (by,) = expected
            patch.setattr(preprocess, "random_box", lambda *a, by=by: on_grid(random_box(*a), by))
            whole = [transform(data, seed) for seed in range(4)]
        assert set(asked) == {1}
        asked.clear()
        close = torch.stack(found).int() - torch.stack(whole).int()
        assert close.abs().float().mean() < 1.5  # of 255
    data = photograph(640, 640, "PNG")
    transform(data, 0)
    assert asked == [1]


@pytest.mark.parametrize("size", [(643, 645), (651, 659), (1001, 767)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_edges_of_a_crop_lie_on_the_nearest_lines_of_the_coarser_grid(size, orientation, monkeypatch):
    """Where a decoder gives every pixel its own place, in eighths, no edge is more than half a pixel away."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photograph(*size, exif=exif.tobytes())
    transform = build_transform(PREPROCESS, {"scale": (0.3, 1.0)})
    seen = []
    places = np.stack([*np.mgrid[:400, :400], np.zeros((400, 400), int)], 2)

    def resize(pixels, *_, **__):
        seen.append(pixels)
        return torch.zeros(1, *transform.shape)

    asked = []
    monkeypatch.setattr(Photograph, "pixels", lambda self, by: asked.append(by) or places)
    monkeypatch.setattr(preprocess, "interpolate", resize)
    upright = Photograph(data).size
    for seed in range(20):
        transform(data, seed)
        top, left, height, width = random_box(*upright, (0.3, 1.0), (3 / 4, 4 / 3), seed)
        by, found = asked[-1], seen[-1][0]
        for axis, (start, extent) in enumerate(((top, height), (left, width))):
            edges = found[axis].min() * by, (found[axis].max() + 1) * by
            assert abs(edges[0] - start) <= by / 2
            assert abs(edges[1] - start - extent) <= by / 2
    assert set(asked) >= {4, 8}


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_crop_of_a_photograph_decoded_small_is_near_that_of_the_whole(orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photograph(331, 347, exif=exif.tobytes())
    transform = build_transform(PREPROCESS)
    small = torch.stack([transform(data, seed) for seed in range(8)]).float()
    monkeypatch.setattr(RandomCrop, "_reduction", lambda *_: 1)
    whole = torch.stack([transform(data, seed) for seed in range(8)]).float()
    assert 0 < (small - whole).abs().mean() < 3  # of 255


def test_a_damaged_photograph_is_refused():
    for data in (b"", SMALL[:-40], b"<html>"):
        with pytest.raises(DecodeError):
            build_transform(PREPROCESS)(data, 0)
        with pytest.raises(DecodeError):
            build_transform(PREPROCESS, TIMM)(data, 0)


# -- open_clip's other transforms -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Unused augmentation cfg items")
@pytest.mark.parametrize(
    ("augmentation", "dtype"), [(STRONG, torch.uint8), (TIMM, torch.uint8), (ERASING, torch.float32)]
)
def test_what_a_model_reads_is_open_clips_bit_for_bit(augmentation, dtype):
    transform, theirs = build_transform(PREPROCESS, augmentation), stock(augmentation)
    assert transform.blank.dtype == dtype  # what is erased after it was normalised has no bytes
    for seed in range(8):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        expected = theirs(decode_image(SMALL))
        assert torch.equal(Normalize(PREPROCESS)(transform(SMALL, seed)), expected)


def test_a_blank_is_the_mean_colour():
    assert build_transform(PREPROCESS).blank.flatten().tolist() == [128, 102, 76]
    normalize = Normalize(PREPROCESS)
    assert normalize(build_transform(PREPROCESS).blank[None]).abs().max() < 0.01
    assert not normalize(build_transform(PREPROCESS, ERASING).blank).any()


def test_numbers_for_all_channels():
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert Normalize({"mean": 0.5, "std": 0.25})(pixels).unique().tolist() == [2.0]


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"preprocess has no field 'sise' \(fields: size, mode"):
        build_transform({"sise": 16})
    with pytest.raises(ValueError, match="augmentation has no field 'hflip'"):
        build_transform(PREPROCESS, {"hflip": 0.5})


# -- what a run began with --------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [None, TIMM])
def test_the_digest_tells_other_pixels_not_other_decoders(monkeypatch, augmentation):
    transform = build_transform(PREPROCESS, augmentation)
    digest = transform.digest()
    assert transform.digest() == digest
    with monkeypatch.context() as patch:
        patch.setattr(decode, "simplejpeg", None)
        assert transform.digest() == digest
    with monkeypatch.context() as patch:
        pixels = Photograph.pixels
        patch.setattr(Photograph, "pixels", lambda self, by=1: pixels(self, by) ^ (by == 2))
        assert transform.digest() != digest
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "interpolate", lambda *a, **k: interpolate(*a, **{**k, "antialias": False}))
        assert (transform.digest() != digest) == (augmentation is None)


def test_a_resume_where_pixels_differ_is_refused(tmp_path, monkeypatch):
    model = SimpleNamespace(model_cfg={})
    batches = SimpleNamespace(
        transform=build_transform(PREPROCESS),
        shards=SimpleNamespace(fingerprints=dict),
        taxonomy=SimpleNamespace(sha256=""),
    )
    (tmp_path / "inputs.json").write_text(json.dumps(inputs(model, batches)))
    monkeypatch.setattr(decode, "simplejpeg", None)
    same_inputs(tmp_path / "inputs.json", inputs(model, batches))
    pixels = Photograph.pixels
    monkeypatch.setattr(Photograph, "pixels", lambda self, by=1: pixels(self, by) ^ 1)
    with pytest.raises(ValueError, match=r"^decoded pixels changed since the run"):
        same_inputs(tmp_path / "inputs.json", inputs(model, batches))

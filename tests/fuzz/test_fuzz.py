"""A few thousand cases of `make fuzz`, without its coverage: seeds, what once broke a reader, and mutations."""

import random
import shutil
from pathlib import Path

import pytest

from fuzz.targets import TARGETS, place

FOUND = Path(__file__).with_name("found")
CASES = 400  # of each target


@pytest.fixture
def home():
    folder = place()
    yield folder
    shutil.rmtree(folder)


def attempt(name: str, data: bytes, home: Path) -> object:
    folder = home / "case"
    folder.mkdir()
    try:
        return TARGETS[name].read(data, folder)
    finally:
        shutil.rmtree(folder)


def noise(draw: random.Random):
    """A mutation that knows no form."""

    def mutate(data: bytes, most: int) -> bytes:
        changed = bytearray(data or b"\0")
        for _ in range(draw.choice((1, 2, 8))):
            at = draw.randrange(len(changed))
            kind = draw.randrange(3)
            if kind == 0:
                changed[at] = draw.randrange(256)
            elif kind == 1:
                changed[at:at] = changed[at : at + draw.randrange(9)] or b"\xff"
            else:
                del changed[at : at + draw.randrange(9)]
                changed = changed or bytearray(1)
        return bytes(changed[:most])

    return mutate


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_mutations_raise_nothing_undeclared(name, home):
    draw = random.Random(name)
    seeds = TARGETS[name].seeds()
    for seed in seeds:
        attempt(name, seed, home)
    for _ in range(CASES):
        data = draw.choice(seeds)
        for _ in range(draw.choice((1, 2, 4))):
            data = TARGETS[name].mutate(data, 1 << 16, draw, noise(draw))
        attempt(name, data, home)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_broke_a_reader_does_not_any_more(path, home):
    attempt(path.parent.name, path.read_bytes(), home)

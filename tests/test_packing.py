"""Packed texts: every text is there, nothing is there twice, and nothing sees what is not its own beginning."""

import pickle
import time

import numpy as np
import pytest
import torch

from bioclip_hc.packing import pack, pack_rows


def random_texts(seed, n=40):
    """Texts over few letters, so that many begin alike; 9 ends each."""
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(2, 4, rng.integers(0, 7)).tolist(), 9] for _ in range(n)]


def unpacked(texts):
    """The texts again: what each end node sees, in order of position."""
    sees, length = texts.sees(), texts.tokens.shape[1]
    found = []
    for path in texts.node.tolist():
        s, place = divmod(path[path.index(-1) - 1] if -1 in path else path[-1], length)
        nodes = sees[s, place].nonzero().flatten()
        assert texts.position[s, nodes].tolist() == list(range(len(nodes)))
        found.append(texts.tokens[s, nodes].tolist())
    return found


def beginnings(texts):
    return {tuple(text[: i + 1]) for text in texts for i in range(len(text))}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [1, 8, 20, 1000])
def test_every_text_is_read_back(seed, width):
    texts = random_texts(seed)
    packed = pack(texts, width)
    assert unpacked(packed) == texts
    assert packed.tokens.shape[1] <= max(width, *map(len, texts))
    assert [[t for t in row if t] for row in packed.padded().tolist()] == texts


@pytest.mark.parametrize("seed", range(5))
def test_a_beginning_is_there_once_in_a_sequence(seed):
    texts = random_texts(seed)
    assert int((pack(texts, 1000).tokens > 0).sum()) == len(beginnings(texts))
    packed = pack(texts, 20)
    assert len(packed.tokens) > 1
    for tokens, position, sees in zip(packed.tokens, packed.position, packed.sees(), strict=True):
        nodes = (tokens > 0).nonzero().flatten().tolist()
        paths = {tuple(tokens[sees[i]].tolist()) for i in nodes}
        assert len(paths) == len(nodes)
        assert [len(tokens[sees[i]]) - 1 for i in nodes] == position[nodes].tolist()


def test_padding_sees_itself_and_is_not_seen():
    packed = pack([[1, 2, 9], [1, 3, 4, 5, 9]], 5)
    sees, padding = packed.sees(), packed.tokens == 0
    assert packed.tokens.tolist() == [[1, 2, 9, 0, 0], [1, 3, 4, 5, 9]]
    assert sees[padding].sum(1).tolist() == [1, 1]
    assert not sees[0, :3, 3:].any()
    assert not sees[0, 4, 3]


def test_sequences_depend_on_the_set_of_texts_only():
    texts = random_texts(0)
    one, two = pack(texts, 20), pack(texts[::-1], 20)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.node, two.node.flip(0))


def test_no_texts():
    packed = pack([])
    assert len(packed) == 0
    assert packed.tokens.tolist() == [[0]]
    assert packed.padded().shape == (0, 1)


def test_packed_texts_travel():
    packed = pack(random_texts(0))
    for copy in (packed.to("cpu", non_blocking=True), pickle.loads(pickle.dumps(packed))):
        assert unpacked(copy) == unpacked(packed)
        assert torch.equal(copy.padded(), packed.padded())


def test_a_text_without_tokens_is_named():
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        pack([[1, 2], []])


def test_rows_are_packed_up_to_their_lengths():
    """What stands behind does not count, zeros before it do."""
    rows, length = np.array([[1, 0, 9, 5], [1, 0, 3, 9], [1, 7, 7, 7]]), np.array([3, 4, 1])
    packed, expected = pack_rows(rows, length), pack([[1, 0, 9], [1, 0, 3, 9], [1]])
    assert packed.tokens.tolist() == expected.tokens.tolist() == [[1, 0, 3, 9, 9]]
    assert packed.node.tolist() == expected.node.tolist() == [[0, 1, 4, -1], [0, 1, 2, 3], [0, -1, -1, -1]]
    assert packed.stop.tolist() == expected.stop.tolist() == [[5, 5, 4, 4, 5]]


def test_packing_is_no_burden_to_the_loader():
    """5,000 texts: a hundredth of a second on an idle core."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(1, 50, (5000, 30)), axis=1)
    start = time.process_time()
    packed = pack_rows(rows, rng.integers(5, 31, 5000))
    assert time.process_time() - start < 0.5
    assert len(packed) == 5000

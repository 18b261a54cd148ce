"""Batches: every row once, little padding, and the same batches for the same (seed, epoch)."""

import numpy as np

from tunewright.batches import LengthGroupedSampler, padded_to_real, sorted_batches


def test_sorted_batches_put_the_longest_rows_first_and_keep_ties_in_order():
    assert sorted_batches([3, 9, 3, 5, 9], batch_size=2) == [[1, 4], [3, 0], [2]]


def test_padding_by_hand():
    # Batches of lengths (2, 4) and (3,): 4 + 4 + 3 computed for 9 real tokens.
    assert padded_to_real([2, 4, 3], [[0, 1], [2]]) == 11 / 9


def sampler(rows: int = 1003, batch_size: int = 8, seed: int = 1) -> LengthGroupedSampler:
    lengths = np.random.default_rng(0).integers(3, 80, size=rows).tolist()
    return LengthGroupedSampler(lengths, batch_size, seed)


def test_an_epoch_holds_every_row_once_and_the_batch_that_is_not_full_comes_last():
    batches = sampler().batches()
    assert sorted(row for batch in batches for row in batch) == list(range(1003))
    assert [len(batch) for batch in batches] == [8] * 125 + [3]


def test_the_longest_batch_comes_first_so_that_memory_fails_at_once():
    found = sampler()
    longest = max(found.lengths)
    assert max(found.lengths[row] for row in found.batches()[0]) == longest


def test_rows_of_like_length_share_a_batch():
    found = sampler(rows=4000, batch_size=32)
    shuffled = np.random.default_rng(2).permutation(4000).reshape(-1, 32).tolist()
    assert padded_to_real(found.lengths, found.batches()) < 1.1 < 1.5 < padded_to_real(found.lengths, shuffled)


def test_any_epoch_can_be_asked_for_at_any_time():
    walked, jumped = sampler(), sampler()
    epochs = []
    for epoch in range(3):
        walked.set_epoch(epoch)
        epochs.append(list(walked))
    jumped.set_epoch(2)
    assert list(jumped) == epochs[2]
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(sampler(seed=2)) != epochs[0]

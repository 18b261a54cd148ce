"""Batches: every row once, little padding, and the same batches for the same (seed, epoch)."""

import numpy as np
import pytest

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


def budgeted(seed: int = 1, max_tokens: int = 400, **more: int) -> LengthGroupedSampler:
    lengths = np.random.default_rng(0).integers(3, 80, size=1003).tolist()
    return LengthGroupedSampler(lengths, 8, seed, max_tokens=max_tokens, **more)


def test_a_budget_by_hand():
    # 10 · 2 fits into 24, then 6 · 4 does; of the three rows of 2 that are left, all.
    assert sorted_batches([2, 6, 10, 2, 6, 9, 6, 6, 2], batch_size=99, max_tokens=24) == [
        [2, 5],
        [1, 4, 6, 7],
        [0, 3, 8],
    ]
    # A row longer than the budget stands alone.
    assert sorted_batches([30, 2], batch_size=99, max_tokens=24) == [[0], [1]]


def test_a_budget_holds_for_every_batch_and_every_epoch_has_all_rows_in_as_many_batches():
    found = budgeted()
    for epoch in range(6):
        found.set_epoch(epoch)
        batches = found.batches()
        assert sorted(row for batch in batches for row in batch) == list(range(1003))
        assert max(max(found.lengths[row] for row in batch) * len(batch) for batch in batches) <= 400
        assert len(batches) == len(found)
    assert padded_to_real(found.lengths, found.batches()) < 1.15


def test_an_epoch_that_the_budget_cuts_otherwise_is_made_as_long_as_the_first():
    # Without that, the epochs differ in length: a training could not tell its steps.
    found = budgeted(max_tokens=160)
    free = []
    for epoch in range(6):
        order = np.random.default_rng([1, epoch]).permutation(1003)
        free.append(len(found._grouped(order, found._megabatch)))
    assert len(set(free)) > 1 and free[0] == len(found)
    assert min(free) < free[0] or max(free) > free[0]


def test_any_epoch_of_a_budget_can_be_asked_for_at_any_time():
    walked, jumped = budgeted(), budgeted()
    epochs = []
    for epoch in range(3):
        walked.set_epoch(epoch)
        epochs.append(list(walked))
    jumped.set_epoch(2)
    assert list(jumped) == epochs[2] != epochs[1]


@pytest.mark.parametrize("max_tokens", [None, 200])
def test_processes_share_the_rows_of_every_batch(max_tokens):
    lengths = np.random.default_rng(0).integers(3, 80, size=1003).tolist()
    parts = [LengthGroupedSampler(lengths, 8, 1, max_tokens=max_tokens, processes=2, rank=rank) for rank in (0, 1)]
    whole = parts[0].batches()
    first, second = (list(part) for part in parts)
    assert len(first) == len(second) == len(parts[0]) == len(whole)
    for together, one, other in zip(whole, first, second, strict=True):
        assert sorted(one + other) == sorted(together) or (len(together) == 1 and one == other == together)
        assert 0 <= len(one) - len(other) <= 1
        if max_tokens:
            assert max(lengths[row] for row in one) * len(one) <= max_tokens


def test_two_processes_with_half_the_rows_each_have_the_batches_of_one():
    lengths = np.random.default_rng(0).integers(3, 80, size=1003).tolist()
    alone = LengthGroupedSampler(lengths, 16, 1)
    assert LengthGroupedSampler(lengths, 8, 1, processes=2).batches() == alone.batches()

"""The order of windows: everything once per epoch, few shards at a time, random access equal to reading in order."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sparse_model.data.order import GROUP_SHARDS, WindowOrder

SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=3 * GROUP_SHARDS).filter(any)


def order_of(sizes: list[int], seed: int = 0) -> WindowOrder:
    return WindowOrder(np.array(sizes, dtype=np.int64), seed)


def epochs(order: WindowOrder, count: int) -> list[list[tuple[int, int]]]:
    pairs = [tuple(pair) for pair in order.at(np.arange(count * order.total)).tolist()]
    return [pairs[i * order.total : (i + 1) * order.total] for i in range(count)]


@given(SIZES, st.integers(0, 2**40))
def test_an_epoch_has_every_window_once(sizes: list[int], seed: int) -> None:
    everything = [(shard, window) for shard, size in enumerate(sizes) for window in range(size)]
    for epoch in epochs(order_of(sizes, seed), 3):
        assert sorted(epoch) == everything


@given(SIZES)
def test_few_shards_are_needed_at_a_time_and_are_announced(sizes: list[int]) -> None:
    order = order_of(sizes)
    pairs = order.at(np.arange(2 * order.total))
    needed: dict[tuple[int, int], set[int]] = {}
    for sample, (shard, _) in enumerate(pairs.tolist()):
        needed.setdefault(order.group_of(sample), set()).add(shard)
    assert list(needed) == sorted(needed), "a group was left and entered again"
    for epoch, group in needed:
        here, following = order.shards_from(epoch, group)
        assert len(here) <= GROUP_SHARDS
        assert needed[epoch, group] == {shard for shard in here if sizes[shard]}
        after = (epoch, group + 1) if (epoch, group + 1) in needed else (epoch + 1, 0)
        assert needed.get(after, set()) <= set(following) or not any(sizes[shard] for shard in following)


@given(SIZES, st.lists(st.integers(0, 300), min_size=1), st.integers(0, 5))
def test_any_sample_is_found_without_those_before_it(sizes: list[int], samples: list[int], seed: int) -> None:
    whole = order_of(sizes, seed).at(np.arange(301))
    assert np.array_equal(order_of(sizes, seed).at(np.array(samples)), whole[samples])


def test_epochs_and_seeds_differ_and_the_shards_of_a_group_are_mixed() -> None:
    sizes = [50] * (2 * GROUP_SHARDS)
    order = order_of(sizes)
    first, second = epochs(order, 2)
    assert first != second
    assert first != epochs(order_of(sizes, 1), 1)[0]
    assert order.shards_from(0, 0)[0] != order.shards_from(1, 0)[0]
    assert len({shard for shard, _ in first[:100]}) == GROUP_SHARDS


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (5, 0), (5, 3)])
def test_a_small_split_is_one_permutation(seed: int, epoch: int) -> None:
    """Frozen: another order would silently change what is learned from every dataset of up to GROUP_SHARDS shards."""
    sizes = [7, 0, 11, 2]
    windows = [(shard, window) for shard, size in enumerate(sizes) for window in range(size)]
    expected = [windows[i] for i in np.random.default_rng([seed, epoch]).permutation(20)]
    assert epochs(order_of(sizes, seed), epoch + 1)[epoch] == expected

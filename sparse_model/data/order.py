"""In which order the windows of a split are visited: a pure function of the seed and the number of the sample.

A split of up to GROUP_SHARDS shards is one random permutation of its windows per epoch. A larger one visits its shards
in an order drawn per epoch, GROUP_SHARDS of them at a time, and the windows of such a group in random order: at any
moment only a group's shards are needed, and only its permutation is in memory. Since every shard is a sample of the
whole corpus, such a group is a fair sample too.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparse_model.data.recent import Recent

GROUP_SHARDS = 16
"""About 150 million tokens: 0.3 GB of shards, and a permutation of 10 MB at windows of 128 tokens."""

WindowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Epoch:
    """The groups of an epoch: the shards of each, and the number of windows up to its end."""

    groups: list[WindowNumbers]
    ends: WindowNumbers


class WindowOrder:
    """The order of one split, whose shards have `windows` windows each."""

    def __init__(self, windows: WindowNumbers, seed: int) -> None:
        self._windows = windows
        self._seed = seed
        self._epochs = Recent[int, Epoch](2)
        self._permutations = Recent[tuple[int, int], WindowNumbers](2)  # a batch mostly needs two at the most
        self.total = int(self._windows.sum())

    def at(self, samples: WindowNumbers) -> WindowNumbers:
        """(shard, window of it) of each sample, (N, 2); sample numbers go on over the epochs."""
        found = np.empty((len(samples), 2), dtype=np.int64)
        epochs, places = np.divmod(samples, self.total)
        for epoch in np.unique(epochs):
            layout = self._epoch(int(epoch))
            groups = np.searchsorted(layout.ends, places, side="right")
            for group in np.unique(groups[epochs == epoch]):
                here = (epochs == epoch) & (groups == group)
                found[here] = self._in_group(int(epoch), int(group), places[here])
        return found

    def group_of(self, sample: int) -> tuple[int, int]:
        """Epoch of a sample, and its group in that epoch."""
        epoch, place = divmod(sample, self.total)
        return epoch, int(np.searchsorted(self._epoch(epoch).ends, place, side="right"))

    def shards_from(self, epoch: int, group: int) -> list[list[int]]:
        """Shards of a group and of the one after it."""
        groups = self._epoch(epoch).groups
        following = groups[group + 1] if group + 1 < len(groups) else self._epoch(epoch + 1).groups[0]
        return [groups[group].tolist(), following.tolist()]

    def _in_group(self, epoch: int, group: int, places: WindowNumbers) -> WindowNumbers:
        layout = self._epoch(epoch)
        shards = layout.groups[group]
        ends = np.cumsum(self._windows[shards])
        size = int(ends[-1])
        order = self._permutations.get((epoch, group), lambda: self._random(epoch, group).permutation(size))
        windows = order[places - (layout.ends[group] - size)]
        index = np.searchsorted(ends, windows, side="right")
        return np.stack([shards[index], windows - (ends - self._windows[shards])[index]], axis=1)

    def _epoch(self, epoch: int) -> Epoch:
        return self._epochs.get(epoch, lambda: self._drawn(epoch))

    def _drawn(self, epoch: int) -> Epoch:
        count = len(self._windows)
        # Streams are told apart by their third and fourth number: (group, 0) of windows, (0, 1) of shards.
        drawn = self._random(epoch, 0, 1).permutation(count)
        groups = [np.sort(group) for group in np.array_split(drawn, -(-count // GROUP_SHARDS))]
        return Epoch(groups, np.cumsum([int(self._windows[group].sum()) for group in groups]))

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *stream])

"""What a piece of a program knows: a source of chance, and the names in sight with their types."""

import random
from collections.abc import Sequence

from sparse_model.data.idioms.names import BY_KIND, SPARE, Drawn, Kind


class Draw:
    """Cheap draws from one random stream; the order of calls decides every byte of the corpus."""

    __slots__ = ("_random",)

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def pick(self, table: Sequence[Drawn]) -> Drawn:
        """One entry, each equally likely."""
        return table[int(self._random() * len(table))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def distinct(self, table: Sequence[str], count: int) -> list[str]:
        """`count` different entries of a table that holds at least as many."""
        found: list[str] = []
        while len(found) < count:
            entry = self.pick(table)
            if entry not in found:
                found.append(entry)
        return found


class Scope:
    """Names of one function or module by type. A name is bound to one type only, for as long as the scope lives."""

    __slots__ = ("_by_kind", "_taken", "in_function")

    def __init__(self, in_function: bool = False) -> None:
        self.in_function = in_function
        self._by_kind: dict[Kind, list[str]] = {}
        self._taken: set[str] = set()

    def copy(self) -> "Scope":
        """A scope that knows the same, and from now on its own."""
        other = Scope(self.in_function)
        other._by_kind = {kind: list(names) for kind, names in self._by_kind.items()}
        other._taken = set(self._taken)
        return other

    def is_free(self, name: str) -> bool:
        """Whether a name is bound to nothing and not reserved."""
        return name not in self._taken

    def bind(self, kind: Kind, name: str) -> None:
        """Makes a free name known under a type."""
        assert name not in self._taken, name
        self._taken.add(name)
        self._by_kind.setdefault(kind, []).append(name)

    def reserve(self, names: Sequence[str]) -> None:
        """Keeps names from being handed out: the caller uses them for something of its own."""
        self._taken.update(names)

    def claim(self, kind: Kind, names: Sequence[str]) -> bool:
        """Makes all these names known under a type, or none of them where one is taken for something else."""
        known = self.known(kind)
        missing = [name for name in names if name not in known]
        if not self._taken.isdisjoint(missing):
            return False
        for name in missing:
            self.bind(kind, name)
        return True

    def new(self, draw: Draw, kind: Kind) -> str:
        """Binds and returns a free name that suits the type, or a spare one where those are used up."""
        table = BY_KIND[kind]
        for _ in range(8):
            name = draw.pick(table)
            if name not in self._taken:
                break
        else:
            name = next(name for name in (*table, *SPARE) if name not in self._taken)
        self.bind(kind, name)
        return name

    def known(self, kind: Kind) -> Sequence[str]:
        """All names of a type, oldest first."""
        return self._by_kind.get(kind, ())

    def some(self, draw: Draw, kind: Kind) -> str | None:
        """A name of the type, or None where there is none."""
        names = self._by_kind.get(kind)
        return draw.pick(names) if names else None

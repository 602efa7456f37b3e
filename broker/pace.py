"""How long tasks take: which of them are quick enough to be started ahead."""

from __future__ import annotations

__all__ = ["QUICK", "Pace"]

#: A task that is over within this many seconds, slow runs of late included, is quick: what is started ahead of a free process
#: then runs before anybody can see that it does not. For slower ones a round trip more does not count.
QUICK = 0.02
_MOST_QUICK = 50  # tasks; their names travel with every claim


class Pace:
    """How long tasks take. A slow run is remembered for long: after one of a minute it takes some eighty quick ones."""

    def __init__(self) -> None:
        self._slowest: dict[str, float] = {}
        #: Names of quick tasks.
        self.quick: set[str] = set()

    @property
    def slowest(self) -> float:
        """Seconds that a run of a quick task may take, by what is known of all of them; more than nothing."""
        return max([1e-6, *(self._slowest[name] for name in self.quick)])

    def note(self, name: str, seconds: float) -> None:
        """A run of the task took this long."""
        slowest = self._slowest[name] = max(seconds, 0.9 * self._slowest.get(name, 0.0))
        if slowest >= QUICK:
            self.quick.discard(name)
        elif len(self.quick) < _MOST_QUICK:
            self.quick.add(name)

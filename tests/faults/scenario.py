"""What a scenario is, and what it is found to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.arena import Arena

#: Every scenario, by name, in the order of its definition.
SCENARIOS: dict[str, Scenario] = {}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault, repeated.

    item: its number in the list of promises (docs/faults.md). jobs, small: how many in `make faults` and in `make test`; small=0:
    another test proves it there. own_server: it harms the database server and gets one of its own. needs: a program it cannot do
    without.
    """

    name: str
    item: int
    promise: str
    run: Callable[[Arena], None]
    jobs: int
    small: int
    own_server: bool = False
    needs: str | None = None


@dataclass(slots=True)
class Verdict:
    """What became of the jobs of one scenario. Times in seconds."""

    scenario: str
    seed: int
    jobs: int = 0
    ended: int = 0
    lost: int = 0
    restarted: int = 0
    twice: int = 0
    stuck: int = 0
    recovery: float | None = None
    took: float = 0.0
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scenario(*, item: int, jobs: int = 2000, small: int = 40, own_server: bool = False,
             needs: str | None = None) -> Callable[[Callable[[Arena], None]], Callable[[Arena], None]]:
    """Register a function as a scenario. The first paragraph of its docstring is the promise."""

    def register(run: Callable[[Arena], None]) -> Callable[[Arena], None]:
        assert run.__doc__, "a scenario says what is promised"
        assert run.__name__ not in SCENARIOS, f"two scenarios are called {run.__name__}"
        promise = " ".join(run.__doc__.strip().split("\n\n")[0].split())
        SCENARIOS[run.__name__] = Scenario(run.__name__, item, promise, run, jobs, small, own_server, needs)
        return run

    return register

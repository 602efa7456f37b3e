"""`make fuzz FUZZ=600`: messages ⇄ rows under whatever hypothesis thinks of, for so many seconds, each round with a new seed.

A failure shows the smallest example; `make fuzz FUZZ='--seed N'` repeats its round.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from hypothesis import HealthCheck, seed, settings

from tests.support.hostile import PROPERTIES

_EXAMPLES = 500  # of each property in a round


def main(arguments: list[str]) -> None:
    """Fuzz until the time is over. Raises what a broken property raises."""
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("seconds", type=float, nargs="?", default=300.0)
    parser.add_argument("--seed", type=int, help="one round with this seed")
    options = parser.parse_args(arguments)
    until, rounds = time.monotonic() + options.seconds, 0
    while True:
        number = random.randrange(2**32) if options.seed is None else options.seed
        print(f"round {rounds + 1}, seed {number}", flush=True)
        for holds in PROPERTIES:
            seed(number)(settings(
                max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))(holds))()
        rounds += 1
        if options.seed is not None or time.monotonic() > until:
            break
    print(f"{rounds} rounds, {rounds * _EXAMPLES * len(PROPERTIES):,} examples: every property held")


if __name__ == "__main__":
    main(sys.argv[1:])

"""`make bench BENCH='drain --pool solo --rounds 3'`: see README.md beside this file."""

from __future__ import annotations

import argparse

from tests.benchmarks import drain  # noqa: F401  (registers itself)
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.running import SCENARIOS, Plan, run
from tests.benchmarks.workers import Variant


def main() -> None:
    """One scenario, as the command line says."""
    options = argparse.ArgumentParser(prog="make bench BENCH=…", description="Celery end to end, contenders in turns")
    options.add_argument("scenario", choices=SCENARIOS)
    options.add_argument("--contenders", help=f"of {','.join(CONTENDERS)}; default: all that the scenario is for")
    options.add_argument("--case", action="append", default=[], help="only these cases of the scenario")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=3.0, help="about how long one measurement lasts")
    options.add_argument("--jobs", type=int, help="how many jobs a measurement takes, instead of --seconds")
    options.add_argument("--pool", default="prefork", choices=["prefork", "threads", "solo"])
    options.add_argument("--acks", default="late", choices=["late", "early"])
    options.add_argument("--results", default="ignored", choices=["ignored", "stored"])
    options.add_argument("--concurrency", type=int, default=2)
    options.add_argument("--prefetch", type=int, default=8, help="messages that a worker may hold (Celery: 4 per process)")
    chosen = options.parse_args()
    what = SCENARIOS[chosen.scenario]
    names = chosen.contenders.split(",") if chosen.contenders else what.contenders
    if unknown := [name for name in names if name not in CONTENDERS]:
        options.error(f"no contender {unknown[0]!r}; there are {', '.join(CONTENDERS)}")
    if unknown := [case for case in chosen.case if case not in what.cases]:
        options.error(f"{what.name} has no case {unknown[0]!r}; it has {', '.join(what.cases) or 'none'}")
    variant = Variant(chosen.pool, chosen.acks, chosen.results, chosen.concurrency, chosen.prefetch)
    run(what, Plan(variant, chosen.rounds, chosen.seconds, chosen.jobs, chosen.case or what.cases), names)


if __name__ == "__main__":
    main()

"""`make bench BENCH='drain --pool solo --rounds 3'`: see README.md beside this file."""

from __future__ import annotations

import argparse
import signal
from itertools import product

from tests.benchmarks import drain, flat, idle, latency, memory, monitored, publish, report, scaling, wal
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.running import SCENARIOS, Plan, run
from tests.benchmarks.workers import Variant

#: Each registers its scenario when it is imported.
_ROOMS = (drain, flat, idle, latency, memory, monitored, publish, scaling, wal)
_CHOICES = {"pool": (["prefork", "threads", "solo"], "Celery's pool"), "acks": (["late", "early"], "when a job counts as done"),
            "results": (["ignored", "stored"], "what becomes of return values")}


def main() -> None:
    """One scenario, as the command line says."""
    options = argparse.ArgumentParser(prog="make bench BENCH=…", description="Celery end to end, contenders in turns")
    options.add_argument("scenario", choices=[*SCENARIOS, "report"])
    options.add_argument("--contenders", help=f"of {','.join(CONTENDERS)}; default: all that the scenario is for")
    options.add_argument("--case", action="append", default=[], help="only these cases of the scenario")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--size", type=int, help="rows that lie in the table, in the cases of `flat`")
    options.add_argument("--seconds", type=float, default=3.0, help="about how long one measurement lasts")
    options.add_argument("--jobs", type=int, help="how many jobs a measurement takes, instead of --seconds")
    for name, (values, help) in _CHOICES.items():
        options.add_argument(f"--{name}", default=values[0], help=f"{help}: of {','.join(values)}")
    options.add_argument("--concurrency", default="2", help="several with commas, as for all that a worker is run with")
    options.add_argument("--prefetch", default="8", help="messages that a worker may hold (Celery: 4 per process)")
    options.add_argument("--since", default="", help="of report: only what was measured then or later, as 2026-11-24")
    chosen = options.parse_args()
    if chosen.scenario == "report":
        report.write(chosen.since)
        return
    what = SCENARIOS[chosen.scenario]
    names = chosen.contenders.split(",") if chosen.contenders else what.contenders
    if unknown := [name for name in names if name not in CONTENDERS]:
        options.error(f"no contender {unknown[0]!r}; there are {', '.join(CONTENDERS)}")
    if unknown := [case for case in chosen.case if case not in what.cases]:
        options.error(f"{what.name} has no case {unknown[0]!r}; it has {', '.join(what.cases) or 'none'}")
    for name, (values, _) in _CHOICES.items():
        if unknown := [value for value in getattr(chosen, name).split(",") if value not in values]:
            options.error(f"--{name} {unknown[0]}: there are {', '.join(values)}")
    variants = [Variant(pool, acks, results, int(concurrency), int(prefetch))
                for pool, acks, results, concurrency, prefetch in product(*(getattr(chosen, name).split(",") for name in (
                    "pool", "acks", "results", "concurrency", "prefetch")))]
    signal.signal(signal.SIGTERM, _end)  # the servers and workers are stopped then too
    run(what, Plan(variants, chosen.rounds, chosen.seconds, chosen.jobs, chosen.case or what.cases,
                   chosen.size), names)


def _end(*_: object) -> None:
    raise SystemExit("terminated")


if __name__ == "__main__":
    main()

"""`python -m tests.faults`: run scenarios and print the table. See the package's docstring."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.catalogue import SCENARIOS, Scenario
from tests.faults.running import run, server
from tests.faults.scenario import Verdict


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    lines = ["| scenario | item | jobs | ended | lost | restarted | ran twice | stuck | recovery s | took s | verdict |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for v in verdicts:
        recovery = "–" if v.recovery is None else f"{v.recovery:.1f}"
        cells = (v.scenario, SCENARIOS[v.scenario].item, f"{v.jobs:,}", f"{v.ended:,}", v.lost, v.restarted, v.twice, v.stuck,
                 recovery, f"{v.took:.0f}", "**broken**" if v.broken else "kept")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def details(verdict: Verdict) -> str:
    """What the table has no room for."""
    return "".join([f"\n{verdict.scenario}: {SCENARIOS[verdict.scenario].promise}",
                    *(f"\n  {note}" for note in verdict.notes), *(f"\n  BROKEN: {promise}" for promise in verdict.broken)])


def _run(chosen: Scenario, folder: Path, seed: int, jobs: int) -> Verdict:
    home = folder / "own-server"
    print(f"{chosen.name} (item {chosen.item}): {jobs} jobs, seed {seed}", file=sys.stderr, flush=True)
    with server(home) as url:
        return run(chosen, url, folder / chosen.name, seed, jobs, home if chosen.own_server else None)


def main() -> int:
    """The command; 1 when a promise was broken."""
    options = argparse.ArgumentParser(prog="make faults", description=__doc__)
    options.add_argument("names", nargs="*", metavar="scenario", help="all when none is named")
    options.add_argument("--list", action="store_true", help="name the scenarios")
    options.add_argument("--seed", type=int, default=int(os.environ.get("FAULTS_SEED", "0")) or None, help="repeat this seed")
    options.add_argument("--jobs", type=int, help="so many jobs instead of each scenario's own number")
    options.add_argument("--small", action="store_true", help="as few jobs as in `make test`")
    options.add_argument("--repeat", type=int, default=1, help="run each so often, each time with another seed")
    options.add_argument("--pool", choices=("threads", "solo"), help="of the workers; not every scenario makes sense there")
    options.add_argument("--keep", action="store_true", help="keep logs and ledgers, and say where")
    chosen = options.parse_args()
    if unknown := set(chosen.names) - set(SCENARIOS):
        options.error(f"no scenario {', '.join(sorted(unknown))}; there are: {', '.join(SCENARIOS)}")
    if chosen.pool:
        os.environ["FAULTS_POOL"] = chosen.pool
    selected = [SCENARIOS[name] for name in chosen.names] or list(SCENARIOS.values())
    if chosen.list:
        for each in selected:
            print(f"{each.item:3} {each.name:28} {each.promise}")
        return 0
    verdicts: list[Verdict] = []
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        for number in range(chosen.repeat):
            for each in selected:
                if each.needs and shutil.which(each.needs) is None:
                    print(f"{each.name}: skipped, it needs the program {each.needs}", file=sys.stderr)
                    continue
                seed = (chosen.seed or secrets.randbelow(1_000_000)) + number
                jobs = chosen.jobs or ((each.small or 40) if chosen.small else each.jobs)
                verdicts.append(_run(each, folder / str(number), seed, jobs))
                print(table(verdicts[-1:]).splitlines()[-1] + details(verdicts[-1]), file=sys.stderr, flush=True)
    finally:
        if chosen.keep:
            print(f"logs and ledgers: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(verdicts))
    print("\nSeeds: " + ", ".join(f"{v.scenario} {v.seed}" for v in verdicts))
    for verdict in verdicts:
        print(details(verdict))
    return 1 if any(verdict.broken for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())

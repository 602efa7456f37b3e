"""What all scenarios share: choosing, taking turns, keeping what was measured, and showing it."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.contenders import Contender, contenders
from tests.benchmarks.workers import Bench, Variant
from tests.support.workers import ROOT

FOLDER = ROOT / ".local" / "benchmarks"
RESULTS = FOLDER / "results.jsonl"


@dataclass(frozen=True, slots=True)
class Measured:
    """One number: what it counts (its unit), and for which case of the scenario."""

    unit: str
    value: float
    case: str = ""


@dataclass(slots=True)
class Plan:
    """What the command line asks for. seconds: how long one measurement should last, about."""

    variant: Variant
    rounds: int = 3
    seconds: float = 3.0
    jobs: int | None = None
    cases: list[str] = field(default_factory=list)
    folder: Path = FOLDER

    def bench(self, contender: Contender, **settings: Any) -> Bench:
        return Bench(contender, self.variant, self.folder / "runs", settings)


Measure = Callable[[Plan, Contender], Iterable[Measured]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A measurement that contenders take in turns. cases: what it is divided into, each chosen with --case."""

    name: str
    measure: Measure
    contenders: list[str]
    cases: list[str]


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, contenders: str, cases: str = "") -> Callable[[Measure], Measure]:
    """Make the function a scenario of `make bench`."""
    def register(measure: Measure) -> Measure:
        SCENARIOS[name] = Scenario(name, measure, contenders.split(","), cases.split(",") if cases else [])
        return measure

    return register


def run(what: Scenario, plan: Plan, names: list[str]) -> None:
    """Measure in rounds, contender after contender, and print medians and spread."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with contenders(names, FOLDER) as found:
        database = next((contender.database for contender in found if contender.database), None)
        about = machine.describe(database)
        print("\n".join(about), f"\n{what.name}: {plan.variant}", flush=True)
        taken: dict[tuple[str, str, str], list[float]] = {}
        for number in range(plan.rounds):
            for contender in found:
                for measured in what.measure(plan, contender):
                    taken.setdefault((measured.case, measured.unit, contender.name), []).append(measured.value)
                    _keep(what, plan, contender, measured, about)
                    print(f"  round {number + 1}  {contender.name:9} {measured.case:24} {measured.value:>12,.1f} {measured.unit}",
                          flush=True)
    _show(taken)


def _keep(what: Scenario, plan: Plan, contender: Contender, measured: Measured, about: list[str]) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps({
            "scenario": what.name, "contender": contender.name, "variant": str(plan.variant), "case": measured.case,
            "unit": measured.unit, "value": measured.value, "at": time.strftime("%F %T"), "commit": _commit(),
            "machine": about}) + "\n")


def _commit() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()
    return "unknown"


def _show(taken: dict[tuple[str, str, str], list[float]]) -> None:
    print(f"\n{'case':24} {'contender':9} {'median':>12} {'least':>12} {'most':>12}  unit            ours is")
    for (case, unit, name), values in taken.items():
        median = statistics.median(values)
        mine = taken.get((case, unit, "ours"))
        ratio = f"{statistics.median(mine) / median:.2f} ×" if mine and median and name != "ours" else ""
        print(f"{case:24} {name:9} {median:>12,.1f} {min(values):>12,.1f} {max(values):>12,.1f}  {unit:15} {ratio}")

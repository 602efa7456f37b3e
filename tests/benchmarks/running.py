"""What all scenarios share: choosing, taking turns, keeping what was measured, and showing it."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
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

    variants: list[Variant]
    rounds: int = 3
    seconds: float = 3.0
    jobs: int | None = None
    cases: list[str] = field(default_factory=list)
    size: int | None = None
    folder: Path = FOLDER
    variant: Variant = field(init=False)  # the one whose turn it is

    def __post_init__(self) -> None:
        self.variant = self.variants[0]

    def bench(self, contender: Contender, **settings: Any) -> Bench:
        """The contender as this plan wants it run; settings: Celery's, besides."""
        return Bench(contender, self.variant, self.folder / "runs", settings)

    def jobs_for(self, contender: Contender) -> int:
        """How many jobs a measurement takes."""
        return self.jobs or int(contender.guess * (self.seconds + 0.5))


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
        about = machine.describe(next((contender.database for contender in found if contender.database), None))
        print("\n".join(about), flush=True)
        taken: list[dict[str, Any]] = []
        for number in range(plan.rounds):
            for variant in plan.variants:
                plan.variant = variant
                print(f"round {number + 1}: {what.name}, {plan.variant}", flush=True)
                for contender in found:
                    for measured in what.measure(plan, contender):
                        taken.append(_keep(what, plan, contender, measured, about))
                        print(f"  {contender.name:9} {measured.case:24} {measured.value:>12,.1f} {measured.unit}", flush=True)
    print("\n" + table(taken))


def _keep(what: Scenario, plan: Plan, contender: Contender, measured: Measured, about: list[str]) -> dict[str, Any]:
    entry = {"scenario": what.name, "contender": contender.name, "variant": str(plan.variant), "case": measured.case,
             "unit": measured.unit, "value": measured.value, "at": time.strftime("%F %T"), "commit": _commit(), "machine": about}
    with RESULTS.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return entry


@cache
def _commit() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()
    return "unknown"


def table(entries: Iterable[dict[str, Any]]) -> str:
    """Medians with least and most, as Markdown; a contender's ratio says how many times its value ours is."""
    grouped: dict[tuple[str, str, str, str], list[float]] = {}
    for entry in entries:
        grouped.setdefault((entry["variant"], entry["case"], entry["unit"], entry["contender"]), []).append(entry["value"])
    lines = ["| variant | case | contender | median | least – most | unit | ours is |", "|---|---|---|---:|---|---|---|"]
    for (variant, case, unit, name), values in grouped.items():
        median, mine = statistics.median(values), grouped.get((variant, case, unit, "ours"))
        ratio = f"{statistics.median(mine) / median:.2f} ×" if mine and median and name != "ours" else ""
        lines.append(f"| {variant} | {case} | {name} | {readable(median)} | {readable(min(values))} – {readable(max(values))} "
                     f"| {unit} | {ratio} |")
    return "\n".join(lines)


def readable(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

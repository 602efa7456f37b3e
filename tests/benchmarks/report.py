"""`make bench BENCH=report`: writes what was measured into docs/performance.md, between its marks, and draws the plot.

People write its words. `<!-- table: drain -->` begins a table, `<!-- /table: drain -->` ends it, `machine` likewise.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.benchmarks.running import RESULTS, readable
from tests.support.workers import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "drain.svg"
_ORDER = ("ours", "rabbitmq", "redis", "pgmq", "sqla", "null")
_BLOCK = re.compile(r"<!-- (table: [\w ]+|machine) -->\n.*?<!-- /\1 -->", re.DOTALL)
#: Numbers that only explain others; they are printed when they are measured.
_INTERNAL = re.compile(r"% of active")

Entry = dict[str, Any]


def write(since: str = "") -> None:
    """Fill the document from what was measured since then (a date or its beginning)."""
    entries = [entry for line in RESULTS.read_text().splitlines() if (entry := json.loads(line))["at"] >= since]
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8"), entries), encoding="utf-8")
    _draw([entry for entry in entries if entry["scenario"] == "drain" and entry["unit"] == "jobs/s"], PLOT)


def filled(text: str, entries: list[Entry]) -> str:
    """The document with its tables from these entries; a table of which nothing was measured stays."""
    def block(found: re.Match[str]) -> str:
        what = found[1]
        if what == "machine":
            body = _machine(entries)
        else:
            body = wide_table([entry for entry in entries if entry["scenario"] == what.removeprefix("table: ")])
        return f"<!-- {what} -->\n{body}\n<!-- /{what} -->" if body else found[0]

    return _BLOCK.sub(block, text)


def _machine(entries: list[Entry]) -> str:
    lines = dict.fromkeys(re.sub(r"; one fdatasync.*", "", line) for entry in entries for line in entry["machine"])
    syncs = [int(found[1]) for entry in entries if (found := re.search(r"8 KiB: (\d+) µs", entry["machine"][0]))]
    if not entries:
        return ""
    loads = [float(found[1]) for entry in entries if (found := re.search(r"before the run ([\d.]+)", entry["machine"][0]))]
    commits = ", ".join(dict.fromkeys(entry["commit"] for entry in entries))
    return "\n".join(f"- {line}" for line in (
        *lines, f"one fdatasync of 8 KiB before each run: {min(syncs)} to {max(syncs)} µs"
        + (f"; load average {min(loads)} to {max(loads)}" if loads else ""),
        f"measured from {min(entry['at'] for entry in entries)} to {max(entry['at'] for entry in entries)}, commits {commits}"))


def wide_table(entries: Iterable[Entry]) -> str:
    """A row per variant, case and unit, a column per contender: the median, and in brackets the least and the most."""
    entries = [entry for entry in entries if not _INTERNAL.search(entry["unit"])]
    if not entries:
        return ""
    names = [name for name in _ORDER if any(entry["contender"] == name for entry in entries)]
    several = len({entry["variant"] for entry in entries}) > 1
    heads = [*(["worker"] if several else []), "case", "unit", *names]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) - len(names)) + "---:|" * len(names)]

    def key(entry: Entry) -> tuple[str, str, str]:
        return entry["variant"], entry["case"], entry["unit"]

    seen = list(dict.fromkeys(map(key, entries)))
    for row, group in groupby(sorted(entries, key=lambda entry: seen.index(key(entry))), key):
        cells, of_row = [], list(group)
        for name in names:
            values = [entry["value"] for entry in of_row if entry["contender"] == name]
            cells.append(f"**{readable(statistics.median(values))}** ({readable(min(values))}–{readable(max(values))})"
                         if len(values) > 1 else readable(values[0]) if values else "")
        lines.append("| " + " | ".join([*row[0 if several else 1:], *cells]) + " |")
    return "\n".join(lines)


def _draw(entries: list[Entry], path: Path) -> None:
    """Bars: the drain of each contender, per pool."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "drain"  # the same picture from the same numbers
    from matplotlib import pyplot as plt

    variants = list(dict.fromkeys(entry["variant"] for entry in entries))[:6]
    names = [name for name in _ORDER if any(entry["contender"] == name for entry in entries)]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.9 * len(variants)), layout="constrained")
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        at, length, spread = [], [], []
        for place, variant in enumerate(variants):
            values = [entry["value"] for entry in entries if (entry["variant"], entry["contender"]) == (variant, name)]
            if values:
                median = statistics.median(values)
                at.append(place + number * height)
                length.append(median)
                spread.append((median - min(values), max(values) - median))
        axes.barh(at, length, height * 0.9, label=name, xerr=list(zip(*spread, strict=True)), error_kw={"lw": 0.8})
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(variants))], variants, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("no-op jobs per second, median of the rounds with least and most")
    figure.legend(loc="outside right upper", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

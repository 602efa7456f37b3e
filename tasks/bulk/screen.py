"""What the command `python -m tasks.bulk` shows to people."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from tasks.bulk.batches import Plan, Progress

__all__ = ["bar", "duration", "plan_lines", "say_again", "summary_lines"]

_BAR = 24


def plan_lines(plan: Plan) -> list[str]:
    """What would be issued, and what not and why."""
    total = sum(plan.counts.values())
    lines = [f"{plan.source}   {plan.described}   {plan.columns}", f"Event: {plan.event}", "", f"  {total:>9,} rows",
             f"  {plan.good:>9,} to issue"]
    if issued := plan.counts.get("issued"):
        lines.append(f"  {issued:>9,} issued before, skipped")
    for state, what, rows in (("duplicate", "skipped: they stand further up, or are being issued", plan.duplicates),
                              ("bad", "cannot be issued", plan.bad)):
        if count := plan.counts.get(state):
            lines.append(f"  {count:>9,} {what}")
            lines += [f"            line {line}{'  ' + name if name else ''}: {note}" for line, name, note in rows]
            if count > len(rows):
                lines.append(f"            … and {count - len(rows):,} more: --json tells all, and so does the batch's report")
    return [*lines, ""]


def bar(progress: Progress, width: int | None = None) -> str:
    """One line: how far, how many failed, how fast, how long still."""
    share = progress.done / progress.total if progress.total else 1.0
    full = int(share * _BAR)
    parts = [f"{'█' * full}{'░' * (_BAR - full)} {progress.done:,}/{progress.total:,}"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.rate:
        parts.append(f"{progress.rate:,.0f}/s" if progress.rate >= 10 else f"{progress.rate:,.1f}/s")
    if progress.done == progress.total:
        parts.append("zip and report…")
    elif progress.eta is not None:
        parts.append(f"{duration(progress.eta)} left")
    else:
        parts.append("waiting for a worker…")
    return " · ".join(parts)[:width]


def duration(seconds: float) -> str:
    """12 s, 3 m 20 s, 1 h 5 m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} m"


def summary_lines(summary: dict[str, Any], links: dict[str, str]) -> list[str]:
    """What came out."""
    rate = summary["issued"] / summary["seconds"] if summary["seconds"] else 0
    told = [f"{summary['issued']:,} issued"]
    told += [f"{summary[key]:,} {what}" for key, what in (
        ("failed", "failed"), ("issued_before", "issued before"), ("duplicates", "duplicates"), ("bad", "could not be issued"),
        ("revoked", "revoked")) if summary[key]]
    lines = [f"{', '.join(told)} in {duration(summary['seconds'])}" + (f" ({rate:,.0f}/s)" if rate >= 1 else "")]
    lines += [f"  line {row['line']}  {row['recipient_name']}: {row['error']}" for row in summary["failures"][:20]]
    if summary["failed"] > 20:
        lines.append(f"  … and {summary['failed'] - 20:,} more: see the report")
    if summary["failed"]:
        lines.append(f"  again: python -m tasks.bulk resume {summary['batch']}")
    lines += [f"{what:<8}{links[key]}" for key, what in (("zip", "Zip"), ("report", "Report")) if key in links]
    return lines


def say_again(line: str, last: Sequence[str] = ()) -> None:
    """Write over the line before on a terminal; in a pipe a line per call. last: lines that stay."""
    live = sys.stdout.isatty()
    if live:
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"\r\x1b[K{line[:width]}")
    elif line:
        sys.stdout.write(f"{line}\n")
    for stays in last:
        sys.stdout.write(f"{stays}\n")
    sys.stdout.flush()

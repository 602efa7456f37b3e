"""How jobs look to people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from celery_jobqueue.broker.commands.store import Document, Job
from celery_jobqueue.broker.commands.text import Cell, Column, age, bar, clean, cut, table, took

__all__ = ["Style", "call", "change", "job_table", "short_ids", "whole_job"]

#: (text, colour) → text; colours are click's names.
Style = Callable[..., str]

_COLOURS = {"pending": "yellow", "processing": "cyan", "completed": "green", "failed": "red"}
_SHORTEST = 8
_decoder = json.JSONDecoder()
_LONGEST = 4000  # characters of a result or an argument list that somebody may want to read
_WIDE = 150  # columns from which full ids do no harm


def short_ids(jobs: Sequence[Job], width: int | None) -> list[str]:
    """Of each job the beginning of its task id that tells it from the others here; whole where there is room."""
    counted: dict[str, int] = {}
    for job in jobs:
        counted[job.task_id] = counted.get(job.task_id, 0) + 1
    names = [job.task_id if counted[job.task_id] == 1 else job.id for job in jobs]
    if width is None or width >= _WIDE:
        return names
    order = sorted(names)
    common = {name: max((_common(name, other) for other in order[max(0, i - 1):i + 2] if other != name), default=0)
              for i, name in enumerate(order)}
    return [name[:max(_SHORTEST, common[name] + 1)].rstrip("-") for name in names]


def _common(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def call(job: Job) -> str:
    """The task with its arguments, as it would be called."""
    name, payload = job.text("task_name") or "(no task)", job.row["payload"]
    if payload is None:
        return f"{name}(?)"
    try:  # the payload may be cut off behind the arguments
        args, end = _decoder.raw_decode(payload, 1)
        kwargs, _ = _decoder.raw_decode(payload, end + len(payload[end:]) - len(payload[end:].lstrip(", ")))
        return name + arguments(args, kwargs)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{name}({payload[2:] if payload.startswith('[[') else payload}…"


def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """(1, "two", three=3)"""
    return "(" + ", ".join([_json(value) for value in args] + [f"{key}={_json(value)}" for key, value in kwargs.items()]) + ")"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- progress -----------------------------------------------------------------------------------------------------------

_DONE, _TOTAL, _PERCENT = ("done", "current", "completed", "n", "i"), ("total", "of", "count"), ("percent", "percentage")


def progress(said: Any) -> str:
    """What a task said with update_state(meta=…), with a bar where it has done and total, or percent."""
    if not isinstance(said, dict):
        return "" if said is None else clean(said if isinstance(said, str) else _json(said))
    done, total, percent = (_number(said, names) for names in (_DONE, _TOTAL, _PERCENT))
    if done is not None and total:
        shown, share = f"{done:g}/{total:g}", done / total
    elif percent is not None:
        shown, share = f"{percent:g} %", percent / 100
    else:
        return clean(_json(said))
    words = [str(value) for value in said.values() if isinstance(value, str) and value]
    return " ".join([bar(share), shown, *map(clean, words)])


def _number(said: Mapping[str, Any], names: Sequence[str]) -> float | None:
    return next((value for name in names if type(value := said.get(name)) in (int, float)), None)


# -- one line per job ---------------------------------------------------------------------------------------------------


def note(job: Job) -> str:
    """What there is to say of it now."""
    error = job.text("error_message")
    if job.status == "processing":
        said = progress(job.progress)
        so_far = took(job.since("started_at"))
        return f"{said} · {so_far}" if said else f"{so_far} on {job.text('worker')}"
    if job.status == "completed":
        return f"took {took(job.between('started_at', 'finished_at'))}" if job.row["started_at"] else "done"
    if job.status == "failed":
        return error or "failed"
    wait = -(job.since("run_at") or 0)
    when = "claimed" if job.row["claimed"] else f"due in {took(wait)}" if wait > 0 else "waiting" if not error else "again"
    return f"{when} after {error}" if error else when


_COLUMNS = (Column("id"), Column("status"), Column("pr", right=True), Column("queue", least=5), Column("task", least=14),
            Column("user", least=4), Column("try", right=True), Column("age", right=True), Column("note", least=10))


def job_table(jobs: Sequence[Job], width: int | None, style: Style) -> list[str]:
    """The jobs under headings. Queue and user are left out where the screen is narrow and they tell nothing."""
    narrow = width is not None and width < 110
    one_queue = narrow and len({job.row["queue"] for job in jobs}) == 1
    rows: list[list[str | Cell]] = [
        [id, Cell(job.status, coloured(job.status, style)), str(job.row["priority"]), "" if one_queue else job.text("queue"),
         call(job), "" if narrow else job.text("user_id"), f"{job.row['attempts']}/{job.row['max_attempts']}",
         age(job.since("created_at")), note(job)]
        for id, job in zip(short_ids(jobs, width), jobs, strict=True)]
    return table(_COLUMNS, rows, width, heading=lambda text: style(text, bold=True))


def coloured(status: str, style: Style) -> Callable[[str], str]:
    """Gives a text the status' colour."""
    return lambda text: style(text, fg=_COLOURS[status])


def change(job: Job, width: int | None) -> str:
    """One line of a log: what the job has become."""
    moment = {"pending": "now", "processing": "now", "completed": "finished_at", "failed": "finished_at"}[job.status]
    clock = datetime.fromisoformat(job.row[moment] or job.row["now"]).astimezone().strftime("%H:%M:%S")
    line = clean(f"{clock}  {job.status:<10}  {job.task_id}  {call(job)}  {note(job)}")
    return line if width is None else cut(line, width)


# -- all of a job -------------------------------------------------------------------------------------------------------


def whole_job(row: Document, width: int | None, style: Style) -> list[str]:
    """Everything worth reading about one job."""
    job = Job({**row, "progress": None, "payload": None})
    said: list[tuple[str, str]] = [
        ("status", _status(job)),
        ("task", (row["task_name"] or "(none)") + _arguments(row)),
        ("job id", job.id),
        ("task id", job.task_id if job.task_id != job.id else ""),
        ("queue", f"{row['queue']}, priority {row['priority']}"),
        ("user", job.text("user_id")),
        ("attempts", f"{row['attempts']} of {row['max_attempts']}"
         + (f" ({row['total_starts']} starts in all)" if row["total_starts"] != row["attempts"] else "")),
        ("where", job.text("worker")),
        ("created", _moment(job, "created_at")),
        ("due", _moment(job, "run_at") if (job.between("created_at", "run_at") or 0) > 1 else ""),
        ("started", _moment(job, "started_at", _after(job))),
        ("finished", _moment(job, "finished_at", _ran(job))),
        ("expires", _moment(job, "expires_at")),
        ("leased until", _moment(job, "leased_until")),
        ("part of", ", ".join(f"{name.removesuffix('_id')} {row[name]}" for name in ("root_id", "parent_id", "group")
                              if row[name] and row[name] != row["task_id"])),
        ("then", _then(row["embed"])),
        ("celery state", job.text("state")),
        ("progress" if job.status == "processing" else "result", _result(row)),
        ("error" if job.status == "failed" else "last error", job.text("error_message")),
    ]
    label = len("celery state") + 2
    lines = [style(f"{name:<{label}}", bold=True) + _wrapped(text, label, width) for name, text in said if text]
    lines[0] = style(f"{'status':<{label}}", bold=True) + coloured(job.status, style)(said[0][1])
    if row["errors"]:
        lines += ["", style("What went wrong", bold=True)]
        columns = (Column("start", right=True), Column("when"), Column("where", least=8), Column("error", least=20))
        lines += table(columns, [[str(e.get("start") or "–"), _clock(e.get("at")), e.get("worker") or "", e.get("error") or ""]
                                 for e in row["errors"]], width)
    if row["traceback"]:
        lines += ["", style("Traceback", bold=True), *(_visible(line) for line in row["traceback"].rstrip().splitlines())]
    return lines


def _status(job: Job) -> str:
    if job.status == "processing":
        return f"processing for {took(job.since('started_at'))}"
    if job.status != "pending":
        return job.status
    wait = -(job.since("run_at") or 0)
    if job.row["claimed"]:
        return "pending, claimed by a worker"
    return f"pending, due in {took(wait)}" if wait > 0 else f"pending for {took(-wait)}"


def _arguments(row: Document) -> str:
    if row["args"] is not None:
        return arguments(row["args"], row["kwargs"])
    if row["args_repr"] is not None:
        return f"  args {row['args_repr']}  kwargs {row['kwargs_repr']}"
    return f"({row['payload_bytes']} bytes that are no JSON)" if row["payload_bytes"] else "(?)"


def _moment(job: Job, name: str, more: str = "") -> str:
    ago = job.since(name)
    if ago is None:
        return ""
    return f"{_clock(job.row[name])} ({f'{age(ago)} ago' if ago >= 0 else f'in {age(-ago)}'}{more})"


def _clock(text: str | None) -> str:
    return "" if text is None else datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _after(job: Job) -> str:
    waited = job.between("run_at", "started_at")
    return "" if waited is None else f", {took(waited)} after it was due"


def _ran(job: Job) -> str:
    ran = job.between("started_at", "finished_at")
    return "" if ran is None else f", ran {took(ran)}"


def _then(embed: Mapping[str, Any] | None) -> str:
    """What Celery does after it."""
    embed = embed if isinstance(embed, dict) else {}
    parts = []
    for name, word in (("chain", "chain"), ("callbacks", "on success"), ("errbacks", "on error"), ("chord", "chord")):
        several = embed.get(name) or []
        signatures = several if isinstance(several, list) else [several]
        # A chain is stored from its end.
        tasks = [str(s.get("task")) for s in (reversed(signatures) if name == "chain" else signatures) if isinstance(s, dict)]
        if tasks:
            parts.append(f"{word}: {', '.join(tasks)}")
    return "; ".join(parts)


def _result(row: Document) -> str:
    result = row["result"]
    if row["result_bytes"]:
        return f"({row['result_bytes']} bytes that are no text)"
    if result is None:
        return "None" if row["state"] == "SUCCESS" else ""
    if isinstance(result, dict) and "exc_type" in result:
        return ""  # stands under `error`
    if row["status"] == "processing":
        return progress(result)
    return _json(result)


def _wrapped(text: str, indent: int, width: int | None) -> str:
    """The text without control characters, long ones on lines of their own."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text)} characters, --json has them all)"
    text = clean(text)
    if width is None:
        return text
    room = max(20, width - indent)
    lines = []
    while text:
        piece = cut(text, room)
        if piece != text:  # cut() put an ellipsis in the place of the last character
            space = piece.rfind(" ", room // 2)
            piece = text[:space if space > 0 else len(piece) - 1]
        lines.append(piece)
        text = text[len(piece):].lstrip(" ")
    return ("\n" + " " * indent).join(lines)


def _visible(line: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line.expandtabs(4))

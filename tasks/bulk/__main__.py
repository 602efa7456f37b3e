"""`python -m tasks.bulk`: certificates for everybody in a file or a query."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import click
import psycopg
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from celery_jobqueue.db.errors import JobQueueError
from celery_jobqueue.db.url import masked
from tasks.app import engine
from tasks.bulk.attendees import Attendees
from tasks.bulk.batches import (
    BatchOptions,
    Plan,
    drop_batch,
    find_batch,
    issue_batch,
    list_batches,
    plan_batch,
    progress_of,
    resume_batch,
)
from tasks.bulk.csvfile import csv_attendees
from tasks.bulk.query import query_attendees
from tasks.bulk.screen import bar, plan_lines, say_again, summary_lines
from tasks.certificate import storage
from tasks.certificates.issue import LINK_LIFETIME
from tasks.certificates.preview import FORMATS

__all__ = ["main"]

_NOT_ISSUED = 2  # exit code: nothing was issued; 1: something failed


class _Refused(click.ClickException):
    exit_code = _NOT_ISSUED


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Whatever goes wrong is one message, without a password."""
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (JobQueueError, psycopg.Error, SQLAlchemyError, OperationalError, OSError) as error:
            raise _Refused(masked(str(error).strip())) from None

    return run


_json = click.option("--json", "as_json", is_flag=True, help="For programs: a document per line.")
_wait = click.option("--wait/--no-wait", default=True, help="Follow the batch until it has ended (the default).")


@click.group()
def main() -> None:
    """Certificates for everybody in a file or a query."""


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--query", metavar="SQL", help="Instead of a file: a SELECT with recipient_name, and email or recipient_key.")
@click.option("--event", metavar="ID", required=True, help="The event's id.")
@click.option("--user", metavar="ID", required=True, help="Who issues: one of the event's organisers.")
@click.option("--yes", is_flag=True, help="Issue without asking.")
@click.option("--skip-bad", is_flag=True, help="With --yes: issue the good rows although others cannot be issued.")
@click.option("--encoding", metavar="NAME", help="The file's, such as windows-1252. Default: UTF-8, or what its mark says.")
@click.option("--delimiter", metavar="CHAR", help="What separates the cells. Default: found from the header.")
@click.option("--column", "columns", metavar="MEANING=COLUMN", multiple=True,
              help="Which column is what, where names do not tell: name, given, family, email, key.")
@click.option("--send-email", is_flag=True, help="Send each certificate to its row's e-mail address.")
@click.option("--preview", type=click.Choice(list(FORMATS)), help="A picture beside each PDF.")
@click.option("--expires-on", metavar="YYYY-MM-DD", help="The last day on which they are valid. Default: what the design says.")
@click.option("--no-zip", is_flag=True, help="No zip of all certificates at the end.")
@click.option("--priority", type=click.IntRange(1, 10), default=6, show_default=True, help="1 first … 10 last.")
@_wait
@_json
@_clear_errors
def issue(file: Path | None, query: str | None, event: str, user: str, yes: bool, skip_bad: bool, encoding: str | None,
          delimiter: str | None, columns: tuple[str, ...], send_email: bool, preview: str | None, expires_on: str | None,
          no_zip: bool, priority: int, wait: bool, as_json: bool) -> None:
    """Look at the attendees, ask, and issue one certificate for each.

    Nothing is issued until the question is answered (or --yes was said). Doing it again skips who has a certificate.
    """
    if (file is None) == (query is None):
        raise click.UsageError("name a FILE, or say --query")
    options = BatchOptions(priority=priority, email=send_email, preview=preview, archive=not no_zip, expires_on=expires_on)
    meanings = dict(_meaning(column) for column in columns)
    source = (csv_attendees(file, encoding=encoding, delimiter=delimiter, columns=meanings) if file is not None else
              query_attendees(engine(), query or "", columns=meanings))
    plan = _planned(source, event, user, options, as_json)
    if not _confirmed(plan, yes, skip_bad, as_json):
        drop_batch(engine(), plan.batch)
        raise SystemExit(_NOT_ISSUED if plan.good or plan.bad else 0)
    with _counting("Queueing", as_json) as tell:
        queued = issue_batch(engine(), plan.batch, tell=tell)
    _started(plan.batch, queued, wait, as_json)


@main.command()
@click.argument("batch")
@_wait
@_json
@_clear_errors
def resume(batch: str, wait: bool, as_json: bool) -> None:
    """Queue again what failed, and make the zip and the report again."""
    batch = find_batch(engine(), batch)
    with _counting("Queueing", as_json) as tell:
        queued = resume_batch(engine(), batch, tell=tell)
    _started(batch, queued, wait, as_json)


@main.command()
@click.argument("batch")
@_json
@_clear_errors
def watch(batch: str, as_json: bool) -> None:
    """Follow a batch until it has ended; exit code 1 if something failed."""
    _follow(find_batch(engine(), batch), as_json)


@main.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@_json
@_clear_errors
def list_(limit: int, as_json: bool) -> None:
    """The newest batches."""
    for row in list_batches(engine(), limit):
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False, default=str))
        else:
            click.echo(f"{row['id'][:8]}  {row['created_at']:%Y-%m-%d %H:%M}  {row['state']:<9} {row['certificates']:>9,}  "
                       f"{row['event']}  {row['source']}")


def _meaning(given: str) -> tuple[str, str]:
    meaning, separator, column = given.partition("=")
    if not separator:
        raise click.UsageError(f"--column {given}: write for instance --column name='Full name'")
    return meaning, column


def _planned(source: AbstractContextManager[Attendees], event: str, user: str, options: BatchOptions, as_json: bool) -> Plan:
    with _counting("Reading", as_json) as tell, source as attendees:
        plan = plan_batch(engine(), attendees, event_id=event, user_id=user, options=options, tell=tell)
    if as_json:
        click.echo(json.dumps({"plan": asdict(plan)}, ensure_ascii=False))
    else:
        click.echo("\n".join(plan_lines(plan)))
    return plan


def _confirmed(plan: Plan, yes: bool, skip_bad: bool, as_json: bool) -> bool:
    if not plan.good:
        click.echo("Nothing to issue.", err=as_json)
        return False
    if yes:
        if plan.bad and not skip_bad:
            click.echo("Nothing was issued: correct the rows that cannot be issued, or say --skip-bad.", err=True)
            return False
        return True
    if as_json or not sys.stdin.isatty():
        click.echo("Nothing was issued: say --yes to issue.", err=True)
        return False
    return click.confirm(f"Issue {plan.good:,} certificate{'s' * (plan.good > 1)}?")


@contextmanager
def _counting(what: str, as_json: bool) -> Iterator[Callable[[int], None] | None]:
    """Says how far it is, on a terminal."""
    if as_json or not sys.stdout.isatty():
        yield None
        return
    yield lambda number: say_again(f"{what} {number:,}…")
    say_again("")


def _started(batch: str, queued: int, wait: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"queued": queued, "batch": batch}))
    else:
        click.echo(f"Queued {queued:,} job{'s' * (queued != 1)} as batch {batch}.\n"
                   f"Ctrl-C does not stop them; python -m tasks.bulk watch {batch[:8]} looks again.")
    if wait:
        _follow(batch, as_json)


def _follow(batch: str, as_json: bool) -> None:
    """Until it has ended. A look takes at most a twentieth of the time, however large the batch is."""
    last, pause = None, 0.05
    while True:
        began = time.monotonic()
        progress = progress_of(engine(), batch)
        took = time.monotonic() - began
        if progress.summary is not None:
            break
        if progress.started_at is None:
            raise click.ClickException(f"batch {batch} was never confirmed")
        if as_json and progress.done != last:
            shown = {key: value for key, value in asdict(progress).items() if key not in ("summary", "finished_at")}
            click.echo(json.dumps({"progress": shown}, default=str))
        elif not as_json and (sys.stdout.isatty() or progress.done != last):
            say_again(bar(progress))
        last = progress.done
        pause = min(2 * pause, 0.2 if sys.stdout.isatty() else 1.0)  # five certificates are there before the first second is over
        time.sleep(max(pause, 19 * took))
    summary = progress.summary
    links = {str(key): storage().url(summary[key], LINK_LIFETIME) for key in ("zip", "report") if key in summary}
    if as_json:
        click.echo(json.dumps({"summary": summary, "links": links}, ensure_ascii=False))
    else:
        say_again("", summary_lines(summary, links))
    raise SystemExit(1 if summary["failed"] else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

"""`celery -A … jobs`: look at the job queue and give orders. A plugin through Celery's entry points `celery.commands`.

Every Celery command imports this module, so it imports nothing that takes time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from celery_jobqueue.broker.commands.store import Filter, Job, JobStore

__all__ = ["jobs"]


def _for_programs(what: str) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help=f"For programs: {what}.")


def _filters(*more: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--queue", metavar="NAME", help="Only jobs of this queue."),
        click.option("--task", metavar="NAME", help="Only jobs of this task."),
        click.option("--user", metavar="ID", help="Only jobs of this user."),
        click.option("--since", metavar="DURATION", help="Only jobs created within '1 hour', '30 minutes', '2 days' …"),
    )

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((*more, *options)):
            command = option(command)
        return command

    return decorated


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Opens the application's job queue; whatever goes wrong is one line."""
    @click.pass_context
    @wraps(command)
    def run(ctx: click.Context, *args: Any, **kwargs: Any) -> None:
        import psycopg
        from kombu.exceptions import OperationalError

        from celery_jobqueue.broker.commands.store import open_store
        from celery_jobqueue.db.errors import JobQueueError
        from celery_jobqueue.db.url import masked

        try:
            store = open_store(ctx.obj.app)
            try:
                command(store, *args, **kwargs)
            finally:
                store.session.close()
        except psycopg.errors.InsufficientPrivilege as error:
            raise click.ClickException(f"{_first_line(error)}: to look takes the role jobqueue_monitor, "
                                       "to retry and cancel jobqueue_worker") from None
        except psycopg.errors.QueryCanceled:
            raise click.ClickException("the database took too long to answer: say --since, or fewer filters") from None
        except (psycopg.Error, OperationalError, JobQueueError, OSError) as error:
            raise click.ClickException(masked(_first_line(error))) from None

    return run


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _wanted(store: JobStore, statuses: Sequence[str], queue: str | None, task: str | None, user: str | None,
            since: str | None) -> Filter:
    from celery_jobqueue.broker.commands.store import Filter

    return Filter(frozenset(statuses), queue, task, user, store.duration(since) if since is not None else None)


def _style() -> Callable[..., str]:
    """Colours a text, unless `celery --no-color` was said; click takes them out again in a pipe."""
    style: Callable[..., str] = click.get_current_context().obj.style
    return style


def _dump(document: Any) -> None:
    click.echo(json.dumps(document, ensure_ascii=False))


@click.group()
def jobs() -> None:
    """Look at the job queue, run jobs again, cancel them.

    A job is named by its job id or its task id, or by as much of one's beginning as no other job shares.
    """


@jobs.command("list")
@_filters(
    click.option("--status", "statuses", multiple=True, type=click.Choice(("pending", "processing", "completed", "failed")),
                 help="Only jobs with this status; may be repeated."),
    click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="So many at most."))
@_for_programs("one JSON document per line")
@_clear_errors
def list_command(store: JobStore, statuses: Sequence[str], limit: int, as_json: bool,
                 **filters: str | None) -> None:
    """The newest jobs first.

    With `--status pending` alone in the order they will be claimed, with `--status completed` by when they ended.
    """
    from celery_jobqueue.broker.commands.store import LOOKED_AT
    from celery_jobqueue.broker.commands.text import screen_width
    from celery_jobqueue.broker.commands.views import job_table

    wanted = _wanted(store, statuses, **filters)
    found = store.jobs(wanted, limit)
    if as_json:
        for job in found:
            _dump(job.document())
    elif found:
        click.echo("\n".join(job_table(found, screen_width(), _style())))
    else:
        click.echo("no such jobs", err=True)
    if len(found) < limit and wanted.unindexed and wanted.since is None and not store.reaches_all():
        click.echo(f"only the newest {LOOKED_AT} jobs were looked at; --since '30 days' looks further back", err=True)


@jobs.command("show")
@click.argument("id")
@_for_programs("one JSON document")
@_clear_errors
def show_command(store: JobStore, id: str, as_json: bool) -> None:
    """Everything about one job."""
    from celery_jobqueue.broker.commands.text import screen_width
    from celery_jobqueue.broker.commands.views import whole_job

    row = store.whole(store.find([id])[0])
    if as_json:
        del row["now"]
        _dump(row)
    else:
        click.echo("\n".join(whole_job(row, screen_width(), _style())))


@jobs.command("retry")
@click.argument("ids", nargs=-1)
@click.option("--failed", is_flag=True, help="Every failed job that the filters mean.")
@click.option("--force", is_flag=True, help="Named jobs also where they are running: the worker's run is not stopped, "
                                            "but can no longer finish the job.")
@_filters()
@_for_programs("one JSON document")
@_clear_errors
def retry_command(store: JobStore, ids: Sequence[str], failed: bool, force: bool, as_json: bool,
          **filters: str | None) -> None:
    """Run failed or completed jobs again, each with at least one attempt.

    A job that is past its expiry stays as it is. The exit code is 1 when a named job was not changed.
    """
    from celery_jobqueue.broker.commands import orders

    if failed == bool(ids) or (ids and any(value is not None for value in filters.values())) or (failed and force):
        raise click.UsageError("name jobs, or say --failed with filters and without --force")
    if ids:
        _tell("retried", orders.retry(store, store.find(ids), force), as_json)
        return
    again: list[str] = []
    for some in orders.retry_failed(store, _wanted(store, (), **filters)):
        again += some
        if not as_json and sys.stdout.isatty():
            click.echo(f"\r{len(again)} …", nl=False)
    if as_json:
        _dump({"retried": again, "unchanged": []})
    else:
        click.echo(("\r" if sys.stdout.isatty() else "") + f"{len(again)} retried")


@jobs.command("cancel")
@click.argument("ids", nargs=-1, required=True)
@click.option("--terminate", is_flag=True, help="Running ones too: their workers are told to kill the process.")
@click.option("--signal", default="SIGTERM", show_default=True, help="With --terminate.")
@_for_programs("one JSON document")
@_clear_errors
def cancel_command(store: JobStore, ids: Sequence[str], terminate: bool, signal: str, as_json: bool) -> None:
    """End pending jobs: failed, `cancelled`, for Celery REVOKED.

    The exit code is 1 when a job was not changed.
    """
    from celery.platforms import signals

    from celery_jobqueue.broker.commands import orders
    from celery_jobqueue.broker.commands.text import clean

    if not signals.supported(signal):
        raise click.UsageError(f"there is no signal {signal!r}")
    found = store.find(ids)
    running = {job.id for job in store.by_id(found) if job.status == "processing"} if terminate else set()
    answer = orders.cancel(store, found, running=terminate)
    stopped = [job for job in answer.changed if job.id in running]
    said = orders.terminate(store, stopped, signal) if stopped else {}
    if stopped and not said:
        click.echo("no worker answered; whoever runs the job can no longer finish it", err=True)
    elif not as_json:
        for worker, text in said.items():
            click.echo(f"{worker}: {clean(text)}", err=True)
    _tell("cancelled", answer, as_json, **({"workers": said} if terminate else {}))


def _tell(word: str, answer: Any, as_json: bool, **more: Any) -> None:
    """What was changed and what was not; ends with 1 when something was not."""
    from celery_jobqueue.broker.commands.text import clean, cut, screen_width
    from celery_jobqueue.broker.commands.views import call

    changed: Sequence[Job] = answer.changed
    if as_json:
        _dump({word: [job.id for job in changed],
               "unchanged": [{"id": job.id, "status": job.status, "reason": reason} for job, reason in answer.unchanged], **more})
    else:
        width = screen_width() or 1000
        for job in changed:
            click.echo(cut(f"{word}  {job.task_id}  {clean(call(job))}", width))
        for job, reason in answer.unchanged:
            click.echo(f"unchanged  {job.task_id}  {reason}")
    if answer.unchanged:
        raise click.exceptions.Exit(1)


@jobs.command("stats")
@_for_programs("one JSON document")
@_clear_errors
def stats_command(store: JobStore, as_json: bool) -> None:
    """Jobs by queue and status, how long they wait, how many are done per minute, who works.

    Numbers with ≈ are estimated: nobody counts a million rows for this.
    """
    from celery_jobqueue.broker.commands import stats as numbers
    from celery_jobqueue.broker.commands.text import screen_width

    queues, workers = numbers.queues(store), store.workers()
    if as_json:
        _dump(numbers.as_document(queues, workers))
    else:
        click.echo("\n".join(numbers.as_text(queues, workers, screen_width(), _style())))


@jobs.command("watch")
@click.argument("ids", nargs=-1)
@_filters()
@click.option("--interval", type=click.FloatRange(0.1, 60), default=0.5, show_default=True, help="Seconds between two looks.")
@_for_programs("one JSON document per line and change")
@_clear_errors
def watch_command(store: JobStore, ids: Sequence[str], interval: float, as_json: bool,
          **filters: str | None) -> None:
    """Jobs, live: those named until all have ended, else what runs and waits until Ctrl-C.

    In a pipe a line for every change. The exit code is 1 when a named job failed.
    """
    from celery_jobqueue.broker.commands import watch as live

    if ids and any(value is not None for value in filters.values()):
        raise click.UsageError("name jobs, or say filters, not both")
    try:
        if not ids:
            live.watch_all(store, _wanted(store, (), **filters), interval, as_json, _style())
        elif not live.watch_these(store, store.find(ids), interval, as_json, _style()):
            raise click.exceptions.Exit(1)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130 if ids else 0) from None

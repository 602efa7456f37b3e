"""The command `jobqueue`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
import psycopg

from celery_jobqueue.db import embedded, migrate
from celery_jobqueue.db.errors import JobQueueError
from celery_jobqueue.db.url import database_url, libpq_dsn, looks_like_transaction_pooler, masked

__all__ = ["main"]

_url = click.option("--url", metavar="URL", help="Database, instead of DATABASE_URL.")
_certificates = click.option("--certificates", is_flag=True, help="Also the tables of the certificate application.")


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except psycopg.Error as error:
            raise click.ClickException(_in_one_line(error)) from None
        except (JobQueueError, OSError) as error:
            raise click.ClickException(str(error).strip()) from None

    return run


def _in_one_line(error: psycopg.Error) -> str:
    """What libpq says, without its hints; of several hosts what each of them said."""
    lines = masked(str(error).strip() or type(error).__name__).splitlines()
    return "; ".join([line for line in lines if line.startswith("- host:")] or lines[:1])


@click.group()
@click.version_option(package_name="celery-jobqueue")
def main() -> None:
    """Celery on PostgreSQL: look after the job queue's database.

    Without DATABASE_URL the embedded server is meant, which lives in .local/postgres (or JOBQUEUE_HOME).
    """


@main.command("migrate")
@_url
@_certificates
@_clear_errors
def migrate_command(url: str | None, certificates: bool) -> None:
    """Bring the schema up to date."""
    url = url or database_url()
    lines = migrate.LINES if certificates else ("queue",)
    applied = migrate.migrate(url, lines, notice=lambda text: click.echo(f"notice: {text}", err=True))
    for migration in applied:
        click.echo(f"applied {migration.line}/{migration.version:04d}_{migration.name}")
    click.echo(f"{masked(url)} is up to date")


@main.command()
@_url
@_clear_errors
def status(url: str | None) -> None:
    """What is installed, and how many jobs there are."""
    url = url or _running_url()
    lines = migrate.status(url)
    with psycopg.connect(libpq_dsn(url), prepare_threshold=None, connect_timeout=10) as conn:
        click.echo(f"database   {masked(url)}")
        version = conn.info.server_version
        click.echo(f"server     PostgreSQL {version // 10000}.{version % 10000}"
                   + (", through a pooler in transaction mode: workers poll" if looks_like_transaction_pooler(url) else ""))
        for line in lines:
            click.echo(f"schema     {line.line:<13}{_progress(line)}")
        if lines[0].applied:
            counts: dict[str, int] = dict(conn.execute(
                "select status, count(*) from public.job_queue group by status").fetchall())
            click.echo("jobs       " + ", ".join(
                f"{counts.get(name, 0)} {name}" for name in ("pending", "processing", "completed", "failed")))


def _progress(line: migrate.Status) -> str:
    if line.missing < 0:
        return f"version {line.applied}, newer than this code ({line.newest}): upgrade celery-jobqueue"
    if not line.applied:
        return "not installed" + ("" if line.line == "queue" else " (only the certificate application needs it)")
    return f"version {line.applied}" + ("" if not line.missing else f", {line.missing} to apply: run `jobqueue migrate`")


def _running_url() -> str:
    """Like database_url(), but asking for the status starts nothing."""
    import os

    if not os.environ.get("DATABASE_URL", "").strip():
        now = embedded.status()
        if now.url is None:
            raise click.ClickException(
                f"DATABASE_URL is not set and the embedded server in {now.directory} is not running: `jobqueue up` starts it")
        return now.url
    return database_url()


@main.command("sql")
@_certificates
def sql_command(certificates: bool) -> None:
    """Print the schema as one text to paste into an SQL editor."""
    for line in migrate.LINES if certificates else ("queue",):
        click.echo(migrate.bundle(line), nl=False)


@main.command()
@click.option("--show-url", is_flag=True, help="Print the URL with its password, for DATABASE_URL.")
@_clear_errors
def up(show_url: bool) -> None:
    """Start the embedded PostgreSQL."""
    url = embedded.ensure()
    if show_url:
        click.echo(url)
        return
    click.echo(f"PostgreSQL is running: {masked(url)}")
    click.echo("`jobqueue up --show-url` prints the URL with its password; `jobqueue down` stops the server.")


@main.command()
@_clear_errors
def down() -> None:
    """Stop the embedded PostgreSQL. Its data stays."""
    click.echo("PostgreSQL is stopped" if embedded.down() else "PostgreSQL was not running")


@main.command("bundle", hidden=True)
@click.option("--write", is_flag=True, help="Write the generated files into db/.")
def bundle_command(write: bool) -> None:
    """For developers: regenerate the texts to paste."""
    for line, name in (("queue", "create_job_queue_table.sql"), ("certificates", "create_certificate_tables.sql")):
        path = Path(__file__).with_name(name)
        if write:
            path.write_text(migrate.bundle(line), encoding="utf-8")
        current = path.read_text(encoding="utf-8") == migrate.bundle(line)
        click.echo(f"{path.name}: {'up to date' if current else 'outdated'}")

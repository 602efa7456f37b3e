"""`python -m tasks.certificates`: verify, revoke and reinstate certificates."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from celery_jobqueue.db.errors import JobQueueError
from celery_jobqueue.db.url import masked
from tasks.app import engine
from tasks.certificates.verification import REASONS, reinstate, revoke, verify


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except JobQueueError as error:
            raise click.ClickException(str(error)) from None
        except SQLAlchemyError as error:
            raise click.ClickException(masked(str(error).strip().splitlines()[0])) from None

    return run


@click.group()
def main() -> None:
    """Look after certificates that were issued, in the database of DATABASE_URL."""


@main.command("verify")
@click.argument("serial")
@_clear_errors
def verify_command(serial: str) -> None:
    """Say what the verification page says. Exit code 1 unless it is valid."""
    found = verify(engine(), serial)
    click.echo(f"{found.serial or serial}  {found.state}")
    for label, value in (("event", found.event), ("organiser", found.organiser), ("recipient", found.initials),
                         ("issued", found.issued_on), ("expires", found.expires_on), ("revoked", found.revoked_on),
                         ("reason", found.reason)):
        if value:
            click.echo(f"{label:<10} {value}")
    if found.state != "valid":
        raise SystemExit(1)


@main.command("revoke")
@click.argument("serial")
@click.option("--reason", type=click.Choice(REASONS), default="withdrawn", show_default=True, help="Shown to everybody.")
@click.option("--note", help="Why, in words; for the organisers, nobody else sees it.")
@_clear_errors
def revoke_command(serial: str, reason: str, note: str | None) -> None:
    """Revoke a certificate."""
    changed = revoke(engine(), serial, reason, note)
    click.echo(f"{serial} is revoked" if changed else f"{serial} was revoked before; nothing changed")


@main.command("reinstate")
@click.argument("serial")
@_clear_errors
def reinstate_command(serial: str) -> None:
    """Take a revocation back."""
    changed = reinstate(engine(), serial)
    click.echo(f"{serial} is valid again" if changed else f"{serial} was not revoked; nothing changed")


if __name__ == "__main__":
    main(prog_name="python -m tasks.certificates")

"""`python -m tasks.web`: the pages, served by uvicorn."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress

import click
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.applications import Starlette

from celery_jobqueue.db import migrate
from celery_jobqueue.db.errors import JobQueueError
from celery_jobqueue.db.models import CertificateConfig
from celery_jobqueue.db.url import database_url, masked
from tasks.app import engine
from tasks.web.app import create_app
from tasks.web.auth import User, anybody
from tasks.web.options import WebOptions

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Server(uvicorn.Server):
    """Ends the streams first, for which uvicorn would wait."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.feed.close()
        await super().shutdown(sockets)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--demo", is_flag=True, help="Everybody is the sample event's organiser; with a worker. On this machine only.")
def main(host: str, port: int, demo: bool) -> None:
    """Serve the application's page and the page that verifies certificates.

    Who may sign in is said in the environment: WEB_AUTHENTICATE=module:function or WEB_BASIC_AUTH=user:password.
    """
    if demo and host not in _LOOPBACK:
        raise click.UsageError(f"--demo lets everybody in, so it listens on {_LOOPBACK[0]} only, not on {host}")
    # uvicorn stops in good order and raises the signal again, which would end this process before the stack unwinds.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack, suppress(KeyboardInterrupt):
            url = database_url()
            options = _demo(stack, url, port) if demo else WebOptions.from_environment()
            app = create_app(options, url, engine())
            # Access logs would keep which address asked for which serial. Whom to believe about addresses is decided by the app.
            config = uvicorn.Config(app, host=host, port=port, proxy_headers=False, server_header=False, access_log=False,
                                    timeout_graceful_shutdown=10)
            _Server(config, app).run()
    except (JobQueueError, SQLAlchemyError) as error:
        raise click.ClickException(masked(str(error).strip())) from None


def _demo(stack: ExitStack, url: str, port: int) -> WebOptions:
    """The sample event with its organiser, and a worker whose QR codes lead here."""
    from tasks.certificates.samples import SAMPLE_EVENT, SAMPLE_USER, seed_sample_event
    from tasks.demo import demo_worker

    migrate.migrate(url, migrate.LINES)
    with Session(engine()) as session, session.begin():
        seed_sample_event(session)
        config = session.get_one(CertificateConfig, SAMPLE_EVENT)
        config.design = {**config.design, "verify_url": ""}  # VERIFY_URL says where
    os.environ.setdefault("VERIFY_URL", f"http://127.0.0.1:{port}/verify/{{serial}}")
    stack.enter_context(demo_worker())
    click.echo(f"Open          http://127.0.0.1:{port}\n")
    return WebOptions(anybody(User(SAMPLE_USER, "Sample organiser")), hosts=_LOOPBACK)


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m tasks.web"))

"""A real SMTP server in a thread, that does as a test tells it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

__all__ = ["PostOffice", "post_office"]

USER, PASSWORD = "postmaster", "p@ss:word/1"


class PostOffice:
    """What came in. answers: what the next messages are answered with instead of being taken."""

    def __init__(self) -> None:
        self.taken: list[EmailMessage] = []
        self.answers: list[str] = []
        self.recipient_answer: str | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """For SMTP_URL."""
        return f"smtp://127.0.0.1:{self.port}"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:  # noqa: N802
        """A recipient is named."""
        if self.recipient_answer:
            return self.recipient_answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """A message has come."""
        if self.answers:
            return self.answers.pop(0)
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.taken.append(message)
        return "250 taken"


def _authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=right)


@contextmanager
def post_office(tls: ssl.SSLContext | None = None, login: bool = False) -> Iterator[PostOffice]:
    """A running server; with tls it offers STARTTLS; with login it takes nothing from strangers."""
    office, loop = PostOffice(), asyncio.new_event_loop()

    def session() -> SMTP:
        return SMTP(office, hostname="post.example.org", tls_context=tls, authenticator=_authenticate if login else None,
                    auth_required=login, auth_require_tls=login, enable_SMTPUTF8=True, loop=loop)

    server = loop.run_until_complete(loop.create_server(session, "127.0.0.1", 0))
    office.port = int(server.sockets[0].getsockname()[1])
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield office
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

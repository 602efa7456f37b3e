"""The connections applications have, each in a transaction: psycopg's and SQLAlchemy's, waiting and awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from celery_jobqueue.db.url import sqlalchemy_url

SYNC = ("psycopg", "session", "scoped_session", "connection")
ASYNC = ("async psycopg", "async session", "async connection")


@dataclass(frozen=True, slots=True)
class Transaction:
    """What the tests do with a connection, whoever made it; each method of an awaited one gives an awaitable."""

    target: Any
    execute: Callable[[str], Any]
    savepoint: Callable[[], Any]

    def commit(self) -> Any:
        """Commit."""
        return self.target.commit()

    def rollback(self) -> Any:
        """Roll back."""
        return self.target.rollback()


@contextmanager
def opened(kind: str, url: str) -> Iterator[Transaction]:
    """A connection that waits."""
    if kind == "psycopg":
        with psycopg.connect(url) as conn:
            yield Transaction(conn, conn.execute, conn.transaction)
            conn.rollback()
        return
    engine = create_engine(sqlalchemy_url(url), poolclass=NullPool)
    makers = {"session": lambda: Session(engine), "scoped_session": lambda: scoped_session(sessionmaker(engine)),
              "connection": engine.connect}
    target: Any = makers[kind]()
    try:
        yield Transaction(target, lambda query: target.execute(text(query)), target.begin_nested)
    finally:
        target.close()
        engine.dispose()


@asynccontextmanager
async def opened_async(kind: str, url: str) -> AsyncIterator[Transaction]:
    """A connection that is awaited."""
    if kind == "async psycopg":
        conn = await psycopg.AsyncConnection.connect(url)
        async with conn:
            yield Transaction(conn, conn.execute, conn.transaction)
            await conn.rollback()
        return
    engine = create_async_engine(sqlalchemy_url(url), poolclass=NullPool)
    target: Any = AsyncSession(engine) if kind == "async session" else await engine.connect()
    try:
        yield Transaction(target, lambda query: target.execute(text(query)), target.begin_nested)
    finally:
        await target.close()
        await engine.dispose()

"""What this code needs of a server, for those who only ask: a worker does not load what applies migrations."""

from __future__ import annotations

import re
from pathlib import Path

from celery_jobqueue.db.errors import SchemaError

__all__ = ["FILE", "OLDEST_SERVER", "SCHEMA", "check_server", "files", "newest"]

OLDEST_SERVER = 14
#: A folder for each line of migrations, and how their files are named.
SCHEMA = Path(__file__).with_name("schema")
FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")


def files(line: str) -> list[Path]:
    """The line's migrations, in order."""
    return sorted(entry for entry in (SCHEMA / line).iterdir() if FILE.match(entry.name))


def newest(line: str) -> int:
    """Version of the line's schema. The files are not read for that: a worker would keep 0.2 MiB of them."""
    return len(files(line))


def check_server(version: int, encoding: str | None, where: str = "") -> None:
    """Raise SchemaError when the queue cannot live there.

    version: PostgreSQL's number, 180006 is 18.6. encoding: of the database; None where a pooler does not tell. where: for the
    message, the database's URL without its password.
    """
    place = f" in {where}" if where else ""
    if version < OLDEST_SERVER * 10_000:
        raise SchemaError(f"PostgreSQL {version // 10_000}{place} is too old: this needs {OLDEST_SERVER} or newer")
    if encoding not in ("UTF8", None):  # SQL_ASCII takes any bytes for text, LATIN1 has no place for most characters
        raise SchemaError(
            f"the encoding of the database{place} is {encoding}, and jobs are UTF-8: put the job queue into a database made with "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 (where its locale does not fit: LOCALE 'C' too)")

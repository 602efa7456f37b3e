"""PgBouncer in transaction mode, as managed PostgreSQL puts it before its servers."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests.support.waiting import wait_until

_CONFIG = """\
[databases]
{database} = host={host} port={server_port} dbname={database} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
ignore_startup_parameters = extra_float_digits,options
"""


@contextmanager
def transaction_pooler(url: str, folder: Path) -> Iterator[str]:
    """The database's URL through a PgBouncer of our own."""
    parts = urlsplit(url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "pgbouncer.ini"
    config.write_text(_CONFIG.format(database=parts.path[1:], host=parts.hostname, server_port=parts.port, user=parts.username,
                                     password=parts.password, port=port))
    config.chmod(0o600)
    pooled = f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?pooler=transaction"
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(["pgbouncer", *as_nobody, config], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, (folder / "pgbouncer.log").read_text()
        try:
            psycopg.connect(pooled.partition("?")[0], connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until(answers, "PgBouncer answers")
        yield pooled
    finally:
        process.kill()
        process.wait(10)

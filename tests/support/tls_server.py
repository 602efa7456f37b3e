"""Debian's PostgreSQL with TLS: the embedded one is built without OpenSSL. Certificates are made for the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import trustme

__all__ = ["PASSWORD", "Authority", "programs", "tls_server"]

PASSWORD = "Tr0ub4dor-and-3"


def programs() -> Path | None:
    """Folder of the newest PostgreSQL that Debian has installed; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class Authority:
    """A certificate authority, with its certificate in a file."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA()
        self.pem = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.pem))

    def issue(self, host: str, folder: Path) -> None:
        """server.crt and server.key for this host name."""
        issued = self._ca.issue_cert(host)
        issued.private_key_pem.write_to_path(str(folder / "server.key"))
        (folder / "server.key").chmod(0o600)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(folder / "server.crt"), append=True)


def _run(user: str | None, *command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, user=user, cwd="/", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def tls_server(folder: Path, authority: Authority, host: str) -> Iterator[str]:
    """A server that takes TLS only, with a certificate for `host`. Yields its URL, where it calls itself localhost.

    PostgreSQL does not run as root: then it runs as the user that Debian's package has made, so `folder` has to be open to it.
    """
    bin_, data = programs(), folder / "data"
    assert bin_ is not None
    user = "postgres" if os.getuid() == 0 else None
    password = folder / "password"
    password.write_text(PASSWORD)
    data.mkdir()
    if user:
        shutil.chown(data, user)
        shutil.chown(password, user)
    _run(user, bin_ / "initdb", "-D", data, "-U", "app", "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync", "-E", "UTF8",
         "--locale=C.UTF-8")
    authority.issue(host, data)
    if user:
        for name in ("server.key", "server.crt"):
            shutil.chown(data / name, user)
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    if user:
        shutil.chown(data / "pg_hba.conf", user)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _run(user, bin_ / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", data / "log", "-o",
         f"-c ssl=on -c listen_addresses=127.0.0.1 -c port={port} -c fsync=off -c unix_socket_directories=''", "start")
    try:
        yield f"postgresql://app:{quote(PASSWORD)}@localhost:{port}/postgres?hostaddr=127.0.0.1"
    finally:
        _run(user, bin_ / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")

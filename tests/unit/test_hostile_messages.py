"""Message ⇄ row under whatever hypothesis thinks of. `make fuzz` goes on where this stops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from tests.support.hostile import PROPERTIES


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_whatever_comes(holds: Callable[[], None]) -> None:
    settings(max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))(holds)()

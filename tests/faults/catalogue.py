"""All scenarios. Importing this module registers them."""

from __future__ import annotations

from tests.faults import (  # noqa: F401
    scenarios_limits,
    scenarios_network,
    scenarios_poison,
    scenarios_pool,
    scenarios_server,
    scenarios_shutdown,
    scenarios_workers,
)
from tests.faults.scenario import SCENARIOS, Scenario

__all__ = ["SCENARIOS", "Scenario"]

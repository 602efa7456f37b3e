"""All scenarios. Importing this module registers them."""

from __future__ import annotations

from tests.faults import scenarios_network, scenarios_poison, scenarios_pool, scenarios_server, scenarios_workers  # noqa: F401
from tests.faults.scenario import SCENARIOS, Scenario

__all__ = ["SCENARIOS", "Scenario"]

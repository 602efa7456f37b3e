"""All scenarios. Importing this module registers them."""

from __future__ import annotations

from tests.faults import scenarios_poison, scenarios_pool, scenarios_workers  # noqa: F401
from tests.faults.scenario import SCENARIOS, Scenario

__all__ = ["SCENARIOS", "Scenario"]

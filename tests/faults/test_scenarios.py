"""Every scenario of the fault suite, with tens of jobs."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import pytest

from tests.faults.catalogue import SCENARIOS, Scenario
from tests.faults.running import run, server

_QUICK = {name: scenario for name, scenario in SCENARIOS.items() if scenario.small}


@pytest.mark.parametrize("chosen", _QUICK.values(), ids=list(_QUICK))
def test_the_promise_is_kept(chosen: Scenario, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if chosen.needs and shutil.which(chosen.needs) is None:
        pytest.skip(f"needs the system program {chosen.needs}")
    seed = int(os.environ.get("FAULTS_SEED", "0")) or secrets.randbelow(1_000_000)
    print(f"FAULTS_SEED={seed}")
    if chosen.own_server:
        with server(tmp_path / "server") as url:
            verdict = run(chosen, url, tmp_path / "run", seed, chosen.small, tmp_path / "server")
    else:
        verdict = run(chosen, request.getfixturevalue("server"), tmp_path / "run", seed, chosen.small)
    assert not verdict.broken, verdict
    assert verdict.jobs >= chosen.small

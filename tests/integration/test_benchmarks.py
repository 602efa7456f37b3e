"""`make bench` in small: measurements with a real worker, the command line, and the document that is made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from celery_jobqueue.db import migrate
from tests.benchmarks import flat, latency, report
from tests.benchmarks.contenders import Contender, null
from tests.benchmarks.drain import drain
from tests.benchmarks.running import Plan, table
from tests.benchmarks.workers import Bench, Variant
from tests.support.database import one, rows
from tests.support.workers import ROOT

ENTRY = {"scenario": "drain", "contender": "ours", "variant": "prefork -c 2", "case": "", "unit": "jobs/s", "value": 4000.0,
         "at": "2026-11-24 12:00:00", "commit": "abc", "machine": ["machine: 2 × CPU; one fdatasync of 8 KiB: 250 µs"]}
ENTRIES = [ENTRY, {**ENTRY, "value": 5000.0}, {**ENTRY, "contender": "rabbitmq", "value": 2250.0}]


@pytest.fixture
def ours(database_url: str) -> Contender:
    def empty() -> None:
        rows(database_url, "truncate job_queue")

    return Contender("ours", database_url, database_url, empty, 1000, database=database_url)


@pytest.mark.parametrize("name", ["ours", "null"])
def test_a_drain_runs_every_job_once_and_tells_the_rate(name: str, ours: Contender, tmp_path: Path) -> None:
    contender = ours if name == "ours" else null(None)  # type: ignore[arg-type]
    bench = Bench(contender, Variant(pool="solo", results="stored"), tmp_path)
    bench.fill(60)
    measured = {each.unit: each.value for each in drain(bench, 60)}
    assert len(bench.journal) == 60
    assert measured["jobs/s"] > 10
    if name == "ours":
        assert one(ours.broker, "select count(*) from job_queue where status = 'completed' and state = 'SUCCESS'") == 60


def test_latency_is_measured_from_the_call_to_the_start(ours: Contender, tmp_path: Path) -> None:
    plan = Plan([Variant(pool="solo")], jobs=8, cases=["idle"], folder=tmp_path)
    found = {each.unit: each.value for each in latency.measure(plan, ours)}
    assert 0 < found["ms p50"] <= found["ms p99"] < 10_000


def test_jobs_that_lie_in_the_table_are_made_once_and_kept(ours: Contender, tmp_path: Path) -> None:
    migrate.migrate(ours.broker)
    plan = Plan([Variant(pool="solo")], jobs=40, cases=["due tomorrow"], size=500, folder=tmp_path)
    try:
        for _ in range(2):
            found = list(flat.measure(plan, ours))
            assert {each.case for each in found} == {"due tomorrow"}
        url = ours.broker.rpartition("/")[0] + "/flat_due_tomorrow"
        assert one(url, "select count(*) from job_queue where status = 'pending' and run_at > now()") == 500
        assert one(url, "select count(*) from job_queue where status = 'completed'") >= 80
    finally:
        rows(ours.broker, "drop database if exists flat_due_tomorrow with (force)")


def test_the_command_line_says_what_there_is() -> None:
    said = subprocess.run([sys.executable, "-m", "tests.benchmarks", "drain", "--contenders", "kafka"], cwd=ROOT, text=True,
                          capture_output=True, check=False)
    assert said.returncode == 2
    assert "no contender 'kafka'; there are ours, rabbitmq, redis, pgmq, sqla, null" in said.stderr


def test_medians_spread_and_ratio_are_shown() -> None:
    assert "| prefork -c 2 |  | rabbitmq | 2,250 | 2,250 – 2,250 | jobs/s | 2.00 × |" in table(ENTRIES)


def test_the_document_is_filled_between_its_marks() -> None:
    text = ("words\n<!-- table: drain -->\nold\n<!-- /table: drain -->\nmore\n<!-- table: wal -->\nkept\n<!-- /table: wal -->\n"
            "<!-- machine -->\n<!-- /machine -->\n")
    filled = report.filled(text, json.loads(json.dumps(ENTRIES)))
    assert "old" not in filled
    assert "|  | jobs/s | **4,500** (4,000–5,000) | 2,250 |" in filled
    assert "kept" in filled
    assert "- machine: 2 × CPU\n- one fdatasync of 8 KiB before each run: 250 to 250 µs" in filled

"""How many jobs per second get into the queue: one process, one at a time or many at once, and sixteen at once."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery import Celery, group

from celery_jobqueue.broker import enqueue_many, jobs_in
from tests.benchmarks.app import make_app
from tests.benchmarks.contenders import Contender
from tests.benchmarks.running import Measured, Plan, scenario

_PUBLISHERS = 16
_CHUNK = 1000


def _one_by_one(app: Celery, number: int) -> None:
    job = app.tasks["bench.job"]
    for _ in range(number):
        job.delay()


def _batch(app: Celery, number: int) -> None:
    job = app.tasks["bench.job"]
    with app.producer_or_acquire() as producer:
        for begin in range(0, number, _CHUNK):
            with producer.batch():
                for _ in range(min(_CHUNK, number - begin)):
                    job.apply_async(producer=producer)


def _block(app: Celery, number: int) -> None:
    for begin in range(0, number, _CHUNK):
        with jobs_in(app):
            _one_by_one(app, min(_CHUNK, number - begin))


def _group(app: Celery, number: int) -> None:
    job = app.tasks["bench.job"]
    for begin in range(0, number, _CHUNK):
        group(job.si() for _ in range(min(_CHUNK, number - begin))).apply_async()


def _many(app: Celery, number: int) -> None:
    enqueue_many(app.tasks["bench.job"], [(each,) for each in range(number)])


def _publisher(setup: dict[str, Any], barrier: Any, stop: Any, counts: Any, number: int) -> None:
    app = make_app(setup)
    job = app.tasks["bench.job"]
    job.delay()  # connects
    barrier.wait()
    done = 0
    while not stop.is_set():
        job.delay()
        done += 1
    counts[number] = done
    app.close()


def _at_once(setup: dict[str, Any], publishers: int, seconds: float) -> float:
    """Jobs per second of so many processes together."""
    context = multiprocessing.get_context("spawn")
    barrier, stop, counts = context.Barrier(publishers + 1), context.Event(), context.Array("l", publishers)
    processes = [context.Process(target=_publisher, args=(setup, barrier, stop, counts, number)) for number in range(publishers)]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    took = time.perf_counter() - began
    for process in processes:
        process.join(60)
    return sum(counts) / took


_WAYS: dict[str, Callable[[Celery, int], None]] = {"single": _one_by_one, "group": _group, "batch": _batch, "jobs_in": _block,
                                                     "enqueue_many": _many}


_CASES = "single,unconfirmed,group,batch,jobs_in,enqueue_many,16 publishers,16 publishers beside a worker"
#: Cases that not everybody has.
_ONLY = {"batch": ("ours",), "jobs_in": ("ours",), "enqueue_many": ("ours",), "unconfirmed": ("rabbitmq",),
         "16 publishers beside a worker": ("ours", "rabbitmq", "redis")}


@scenario("publish", contenders="ours,rabbitmq,redis,pgmq,sqla,null", cases=_CASES)
def measure(plan: Plan, contender: Contender) -> Iterator[Measured]:
    """Jobs per second into the queue; RabbitMQ confirms each, but in `unconfirmed`."""
    bench = plan.bench(contender)
    confirmed = {"confirm_publish": True} if contender.name == "rabbitmq" else {}
    for case in plan.cases:
        if contender.name not in _ONLY.get(case, (contender.name,)):
            continue
        setup = json.loads(json.dumps(bench.setup(**confirmed if case != "unconfirmed" else {})))
        contender.empty()
        if case == "16 publishers":
            yield Measured("jobs/s", _at_once(setup, _PUBLISHERS, plan.seconds), case)
        elif case == "16 publishers beside a worker":
            with bench.worker("-Q", "celery", jobs=0):  # it listens, so publishers may have to wake it
                yield Measured("jobs/s", _at_once(setup, _PUBLISHERS, plan.seconds), case)
        else:
            yield Measured("jobs/s", _from_one_process(make_app(setup), _WAYS.get(case, _one_by_one), plan.seconds), case)
    contender.empty()


def _from_one_process(app: Celery, publish: Callable[[Celery, int], None], seconds: float) -> float:
    publish(app, 10)
    at_once = {_one_by_one: 100, _many: 5 * _CHUNK}.get(publish, 2 * _CHUNK)
    number, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        publish(app, at_once)
        number += at_once
    app.close()
    return number / took

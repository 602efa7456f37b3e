"""A group's jobs are written together by kombu as a single message is: its retries, its failover, its errors, no job twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from celery import Celery, Signature, group
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import memory

from celery_jobqueue.broker import groups, transport
from tests.support.app import make_app
from tests.support.cutting import CuttingProxy
from tests.support.database import fresh_database
from tests.support.grouping import adding, published, transactions

NOWHERE = "postgresql://u:p@127.0.0.1:1/db"

assert transport, "with it groups are written so"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, it is the number of jobs that ends a transaction."""
    monkeypatch.setattr(groups, "_PATIENCE", 600.0)


@pytest.mark.parametrize("what", ["cut off", "cut in its midst", "never connected", "known to be dead", "closed"])
def test_a_lost_connection_is_made_anew(what: str, client: Celery, proxy: CuttingProxy, database_url: str) -> None:
    if what != "never connected":
        client.tasks["t.add"].delay(100, 100)
    if what in ("cut off", "known to be dead"):
        proxy.drop()
    if what == "known to be dead":
        with pytest.raises(OperationalError):
            client.tasks["t.add"].apply_async((101, 101), retry=False)
    if what == "closed":
        with client.producer_or_acquire() as producer:
            producer.connection.close()

    def members() -> Iterator[Signature]:
        for n in range(5):
            if n == 3 and what == "cut in its midst":
                proxy.drop()
            yield client.tasks["t.add"].si(n, n)

    group(members(), app=client).apply_async()
    assert published(database_url)[-5:] == list(range(5))
    assert transactions(database_url)[-2:] == [1, 4]


def test_a_connection_that_is_cut_between_two_transactions(client: Celery, proxy: CuttingProxy, database_url: str) -> None:
    def members() -> Iterator[Signature]:
        for n in range(2100):
            if n == 1500:
                proxy.drop()
            yield client.tasks["t.add"].si(n, n)

    group(members(), app=client).apply_async()
    assert transactions(database_url) == [1, 1000, 1000, 99]
    assert published(database_url) == list(range(2100))


def test_a_lost_reply_makes_no_second_jobs(client: Celery, proxy: CuttingProxy, database_url: str) -> None:
    client.tasks["t.add"].delay(100, 100)
    proxy.swallow_reply_to(b"jobqueue.publish", b"publish")
    adding(client, range(5)).apply_async()
    assert proxy.swallowed == 1
    assert published(database_url) == [100, *range(5)]


@pytest.mark.parametrize("connected", [False, True])
def test_another_host_of_the_list_takes_over(connected: bool, proxy: CuttingProxy, make_client: Callable[..., Celery],
                                             database_url: str) -> None:
    client = make_client(broker_url=f"{proxy.url};{database_url}", result_backend=None)
    if connected:
        client.tasks["t.add"].delay(100, 100)
    proxy.stop()
    adding(client, range(5)).apply_async()
    assert published(database_url)[-5:] == list(range(5))
    assert transactions(database_url)[-1] == 5


def test_the_other_host_learns_of_exchanges_and_queues(server: str, template: str, proxy: CuttingProxy, database_url: str,
                                                       make_client: Callable[..., Celery]) -> None:
    with fresh_database(server, template) as other:
        client = make_client(broker_url=f"{proxy.url};{other}", result_backend=None, task_default_queue="media",
                             task_queues=[Queue("media", Exchange("media", type="topic"), routing_key="media.#")])
        adding(client, range(3), exchange="media", routing_key="media.video").apply_async()
        proxy.stop()
        adding(client, range(5), exchange="media", routing_key="media.video").apply_async()
        client.close()
        assert (published(database_url), published(other)) == ([0, 1, 2], [0, 1, 2, 3, 4])
        assert transactions(other) == [5]


def test_the_other_host_may_be_another_kind_of_broker(proxy: CuttingProxy, make_client: Callable[..., Celery], database_url: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """That one takes them one by one, and has none of them twice if it fails in their midst."""
    plain, stored = memory.Channel._put, []

    def put(self: Any, queue: str, message: dict[str, Any], **options: Any) -> None:
        assert "_publish_batch" not in options, "it may have other batches of its own"
        stored.append(queue)
        if stored.count("of_another_kind") == 3:
            raise ConnectionResetError
        plain(self, queue, message, **options)

    monkeypatch.setattr(memory.Channel, "_put", put)
    client = make_client(broker_url=f"{proxy.url};memory://;memory://", result_backend=None, task_default_queue="of_another_kind")
    client.tasks["t.add"].delay(100, 100)
    proxy.stop()
    adding(client, range(5)).apply_async()
    assert published(database_url) == [100]
    with client.producer_or_acquire() as producer:
        assert producer.channel.queue_declare("of_another_kind", passive=True).message_count == 5


def outcome(publish: Callable[..., Any], **options: Any) -> tuple[type[Exception], int]:
    """What publishing raises, and how often kombu has tried again."""
    failures: list[Exception] = []
    policy = {"interval_start": 0, "interval_step": 0, "errback": lambda error, _: failures.append(error)}
    with pytest.raises(OperationalError) as raised:
        publish(retry_policy={**policy, **options.pop("retry_policy", {})}, **options)
    return type(raised.value), len(failures)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("options", [{"retry": False}, {"retry_policy": {"max_retries": 2}}, {}], ids=str)
def test_a_server_that_is_away_is_what_it_is_for_a_single_job(connected: bool, options: dict[str, Any], proxy: CuttingProxy,
                                                             make_client: Callable[..., Celery], database_url: str) -> None:
    """The same error after as many attempts, and none of kombu's own where nobody wants them."""
    found = []
    for number in (1, 5):
        client = make_client(broker_url=f"{proxy.url}?application_name=n{number}", result_backend=None)
        if connected:
            client.tasks["t.add"].delay(100, 100)
        with closing(client):
            proxy.hang_up()
            work = adding(client, range(number))
            found.append(outcome((work if number > 1 else work.tasks[0]).apply_async, **options))
            proxy.listen()
    assert found[0] == found[1]
    assert set(published(database_url)) <= {100}


def test_a_silent_server_is_what_it_is_for_a_single_job(proxy: CuttingProxy, make_client: Callable[..., Celery],
                                                        database_url: str) -> None:
    client = make_client(broker_url=proxy.url, result_backend=None, broker_transport_options={"timeout": 1, "connect_timeout": 2})
    client.tasks["t.add"].delay(100, 100)
    proxy.cut()
    with pytest.raises(OperationalError):
        adding(client, range(5)).apply_async()
    proxy.heal()
    client.tasks["t.add"].delay(101, 101)
    assert published(database_url) in ([100, 101], [100, *range(5), 101]), "all or nothing, each at most once"


def test_members_with_another_policy_are_written_apart(app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    group([add.si(n, n).set(retry=n not in (2, 3)) for n in range(6)], app=app).apply_async()
    assert transactions(database_url) == [2, 2, 2]
    assert published(database_url) == list(range(6))


def test_each_is_tried_as_often_as_it_says_whatever_the_next_one_says(proxy: CuttingProxy,
                                                                     make_client: Callable[..., Celery]) -> None:
    failures: list[Exception] = []
    policy = {"interval_start": 0, "interval_step": 0, "interval_max": 0, "errback": lambda error, _: failures.append(error)}
    tried: list[int] = []
    proxy.hang_up()
    for number in (1, 3):
        client = make_client(broker_url=f"{proxy.url}?application_name=n{number}", result_backend=None)
        add = client.tasks["t.add"]
        members = [add.si(n, n).set(retry_policy={**policy, "max_retries": 40 if n else 1}) for n in range(number)]
        with closing(client), pytest.raises(OperationalError):
            group(members, app=client).apply_async()
        tried.append(len(failures))
        failures.clear()
    assert tried[0] == tried[1] > 0


def test_who_catches_an_error_on_the_way_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full transaction is written while Celery makes the next message, and that may be in anybody's hands."""
    plain = Signature.apply_async

    def careless(self: Signature, *args: Any, **options: Any) -> Any:
        with suppress(OperationalError):
            return plain(self, *args, **options)

    monkeypatch.setattr(groups, "MAX_JOBS", 4)
    monkeypatch.setattr(Signature, "apply_async", careless)
    with closing(make_app(NOWHERE, result_backend=None)) as nowhere, pytest.raises(OperationalError, match="refused"):
        adding(nowhere, range(4)).apply_async(retry=False)  # one transaction, and nothing is left for the end

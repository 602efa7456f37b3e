"""Result backend `postgresql://…`: state, result and traceback stand on the job's own row.

What has no row of its own (a chain's later tasks failed in advance, eager tasks, groups) stands in jobqueue.result.
`AsyncResult.get()` waits on LISTEN; a backend polls only where nobody told the job whom to notify.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar

import psycopg
from celery import states
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import BaseBackend
from celery.result import GroupResult, allow_join_result, result_from_tuple
from kombu.utils.encoding import safe_str
from kombu.utils.json import dumps as json_dumps

from celery_jobqueue.broker.carried import bring, is_carried
from celery_jobqueue.broker.chords import ChordBackend
from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.collector import refuse_dead_wait
from celery_jobqueue.broker.context import lease_of
from celery_jobqueue.broker.expiry import Expiries, interval
from celery_jobqueue.broker.masking import install as _install_masking
from celery_jobqueue.broker.messages import check_size
from celery_jobqueue.broker.register import SCHEMES
from celery_jobqueue.broker.result_consumer import ResultConsumer
from celery_jobqueue.broker.session import Call, Row, Session
from celery_jobqueue.broker.sessions import PATIENCE, run_patiently, session_for, warn_if_lost
from celery_jobqueue.broker.settings import from_url
from celery_jobqueue.broker.settlements import Result, describe, shortened
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.db.url import libpq_dsn, masked

__all__ = ["ResultBackend"]


class ResultBackend(ChordBackend, AsyncBackendMixin, BaseBackend):  # type: ignore[misc]
    """Celery's result backend on the job queue's own database."""

    ResultConsumer = ResultConsumer
    supports_autoexpire = False
    supports_failure_expires = True
    supports_native_join = True
    supports_result_compression = True
    persistent = True
    #: Errors after which Celery may try again (`result_backend_always_retry`).
    retryable: ClassVar[tuple[type[BaseException], ...]] = (psycopg.OperationalError, psycopg.InterfaceError)

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, **kwargs)
        brokers = _broker_databases(app.conf)
        options = dict((app.conf.get("broker_transport_options") or {}) if brokers else {})
        options.update(app.conf.get("result_backend_transport_options") or {})
        self.settings = from_url(url or "", options)
        #: Whether jobs have their rows here; else the broker is another database, or something else.
        self.has_jobs = self.settings.conninfo in brokers
        self.result_consumer = self.ResultConsumer(
            self, self.app, self.accept, self._pending_results, self._pending_messages)

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url, "expires": self.expires})

    def as_uri(self, include_password: bool = False) -> str:
        """The URL, as it may be shown unless the password is asked for."""
        return (self.url or "") if include_password else masked(self.url or "")

    @property
    def _session(self) -> Session:
        return session_for(self.settings)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Storing is idempotent, so a lost connection may be tried again."""
        return isinstance(exc, self.retryable)

    def _run(self, name: str, params: Sequence[str | bytes | None], patience: float = 0.0) -> list[Row]:
        return run_patiently(self.settings, (statement(name), params), patience=patience)[0]

    # -- storing ------------------------------------------------------------------------------------------------------

    def _store_result(self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None,
                      **kwargs: Any) -> Any:
        text, binary = self._encoded(result)
        encoded_meta = self._meta(request)
        error = None
        if state in self.EXCEPTION_STATES:
            error = _error_text(result)
        traceback = None if traceback is None else safe_str(traceback).replace("\0", "\\0")
        own = self.has_jobs and request is not None and getattr(request, "id", None) == task_id
        lease = lease_of(request) if own else None
        if lease is not None:
            job = request.properties["job"]
            params: tuple[str | bytes | None, ...] = (
                lease.id, lease.token, state, text, binary, encoded_meta, traceback, error)
            if state == states.RETRY:
                self._run("store_retry", (*params, str(job.get("start", 0))), patience=PATIENCE)
                return result
            held: list[Call] | None = getattr(request, "held_result", None)
            if held is not None and state in self.READY_STATES:
                held.append((statement("store_result"), params))  # broker/chords.py stores it
                return result
            if self._run("store_result", params, patience=PATIENCE)[0][0] == "t":
                return result
            # Settled before, by finish_in(), or somebody else has the job now; what this run found out is no longer asked for.
            if state == states.SUCCESS:
                warn_if_lost(self.settings, lease)
            return None
        self._run("store_loose_result", (task_id, state, text, binary, encoded_meta, traceback))
        return result

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, store_result: bool = True, *args: Any,
                     **kwargs: Any) -> None:
        """The task succeeded. A quick one's worker stores the result, see broker/carried.py."""
        if store_result and self._carries and is_carried(request, task_id):
            text, binary = self._encoded(self.encode_result(result, states.SUCCESS))
            if binary is None and bring(request, Result(text, self._meta(request))):
                return
        super().mark_as_done(task_id, result, request, store_result, *args, **kwargs)

    @cached_property
    def _carries(self) -> bool:
        """Whether results may go past store_result(); not where somebody has one of their own."""
        kind = type(self)
        return (self.has_jobs and kind.store_result is BaseBackend.store_result
                and kind._store_result is ResultBackend._store_result)

    @cached_property
    def _extended(self) -> bool:
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def _meta(self, request: Any) -> str | None:
        known = (getattr(request, name, None) for name in ("children", "group", "parent_id"))
        if request is not None and not (self._extended or any(known)):
            return None
        # Not of an end: Celery would look at the clock for it, and the row knows when it was finished.
        meta = self._get_result_meta(result=None, state=states.STARTED, traceback=None, request=request)
        extra = {key: meta[key] for key in meta if key not in ("status", "result", "traceback", "date_done", "task_id")
                 and meta[key] not in (None, [])}
        return json_dumps(extra) if extra else None

    def _encoded(self, value: Any) -> tuple[str | None, bytes | None]:
        payload = self.encode(value)
        check_size(payload, "the task's result")
        if isinstance(payload, str) and "\0" not in payload and payload.isascii():
            return payload, None
        if isinstance(payload, str):
            try:
                payload.encode()
            except UnicodeEncodeError:
                return None, payload.encode("utf-8", "surrogatepass")
            return (payload, None) if "\0" not in payload else (None, payload.encode())
        return None, bytes(payload)

    # -- reading ------------------------------------------------------------------------------------------------------

    def fetch_metas(self, task_ids: Sequence[str], session: Session | None = None,
                    patience: float = 0.0) -> Iterator[dict[str, Any]]:
        """Celery's meta dictionary of every task with a state. patience: seconds to go on trying when there is no server."""
        params = (text_array(task_ids),)
        rows = self._run("results", params, patience) if session is None else session.run((statement("results"), params))[0]
        for task_id, state, text, binary, meta, traceback, finished in rows:
            payload: Any = text if binary is None else bytes.fromhex(binary[2:])
            decoded = {
                "status": state, "result": None if payload is None else self.decode(payload), "traceback": traceback,
                "children": [], "task_id": task_id, **(json.loads(meta) if meta else {}),
                "date_done": None,
            }
            if finished is not None and state in self.READY_STATES:
                decoded["date_done"] = datetime.fromtimestamp(float(finished), UTC).isoformat()
            yield self.meta_from_decoded(decoded)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        for meta in self.fetch_metas([str(task_id)]):
            return meta
        return {"status": states.PENDING, "result": None, "task_id": task_id, "traceback": None, "children": []}

    def iter_native(self, result: Any, no_ack: bool = True, on_interval: Any = None, **kwargs: Any) -> Any:
        """Results of a group as they come. Raises its parent's error, after which they never would (celery#6437)."""

        def follow_parents() -> None:
            node = result.parent
            while node:
                node.maybe_throw()
                node = node.parent
            if on_interval is not None:
                on_interval()

        parent = getattr(result, "parent", None)
        return super().iter_native(result, no_ack=no_ack, on_interval=follow_parents if parent else on_interval, **kwargs)

    def get_many(self, task_ids: Sequence[str], timeout: float | None = None, interval: float | None = 0.5,
                 no_ack: bool = True, on_message: Any = None, on_interval: Any = None, max_iterations: int | None = None,
                 READY_STATES: frozenset[str] = states.READY_STATES,  # noqa: N803  (Celery's name)
                 ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(task id, meta) of each task as it becomes ready. Raises TimeoutError after `timeout` seconds; 0 looks once.

        interval: longest pause between two looks, in seconds. max_iterations: looks after which it ends without an error.
        """
        waiting = {str(task_id) for task_id in task_ids}
        deadline = None if timeout is None else time.monotonic() + timeout
        looks, pause, longest = 0, 0.01, 0.5 if interval is None else max(0.01, interval)
        while waiting:
            left = PATIENCE if deadline is None else min(PATIENCE, max(0.0, deadline - time.monotonic()))
            for meta in list(self.fetch_metas(sorted(waiting), patience=left)):
                if meta["status"] in READY_STATES:
                    waiting.discard(meta["task_id"])
                    if on_message is not None:
                        on_message(meta)
                    yield meta["task_id"], meta
            if not waiting:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise self.TimeoutError(f"Operation timed out ({timeout})")
            looks += 1
            if looks == max_iterations:
                return
            if on_interval is not None:
                on_interval()
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 2, longest)

    def _forget(self, task_id: str) -> None:
        self._run("forget_result", (task_id,))

    def _wait_for_pending(self, result: Any, **kwargs: Any) -> Any:
        refuse_dead_wait(self.settings.conninfo, result)
        return super()._wait_for_pending(result, **kwargs)

    # -- groups -------------------------------------------------------------------------------------------------------

    def _save_group(self, group_id: str, result: Any) -> Any:
        text, binary = self._encoded({"result": result.as_tuple()})
        self._run("save_group", (group_id, text, binary))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        rows = self._run("restore_group", (group_id,))
        if not rows:
            return None
        text, binary, stored = rows[0]
        payload: Any = text if binary is None else bytes.fromhex(binary[2:])
        with allow_join_result():
            result: GroupResult = result_from_tuple(self.decode(payload)["result"], self.app)
        return {"task_id": group_id, "result": result, "date_done": datetime.fromtimestamp(float(stored or 0), UTC)}

    def _delete_group(self, group_id: str) -> None:
        self._run("delete_group", (group_id,))

    def cleanup(self) -> None:
        """Empty results, failures and chords past their time; the jobs' rows stay."""
        self._run("expire_results", tuple(map(interval, Expiries.of(self.app.conf))))


def _broker_databases(conf: Any) -> set[str]:
    """Connection strings of the databases that hold this application's jobs."""
    found: set[str] = set()
    for urls in (conf.broker_url, conf.broker_read_url):
        for url in urls.split(";") if isinstance(urls, str) else urls or ():
            if str(url).startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
                found.add(libpq_dsn(str(url)))
    return found


def _error_text(result: Any) -> str | None:
    if isinstance(result, dict) and "exc_type" in result:
        message = result.get("exc_message")
        text = ", ".join(map(safe_str, message)) if isinstance(message, (list, tuple)) else safe_str(message)
        if text and result["exc_type"] == "TaskRevokedError":
            return text  # nobody's error: revoked, expired
        return shortened(f"{result['exc_type']}: {text}".replace("\0", "\\0")) if text else safe_str(result["exc_type"])
    return None if result is None else describe(result).replace("\0", "\\0")


_install_masking()

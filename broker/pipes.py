"""How the worker talks to the processes of Celery's prefork pool: in fewer system calls, and in fewer words.

Celery reads one message at a time, its length and then itself, and goes back to the event loop for the next; a job it hands over
once that loop has found the pipe to be writable. The worker's process is what limits it, so here everything that a pipe holds is
read at once, and a job is written at once to a process that has nothing to do: of Celery's floor (tests/benchmarks/null.py) 1,900
jobs/s become 2,850, of ours at a prefetch of 32 1,330 become 1,620, on one machine.

A job that is written to such a process counts as accepted with that, and the process does not say it again: a message, a turn of
the event loop and two system calls less, 1,560 jobs/s become 1,870 (medians of five pairs). If the process dies and the job is
still in its pipe, that is taken back, and another process gets it; between reading a job and its first line it is lost already. A
job with a time limit is accepted by its process, as Celery has it, or the limit would count while nobody has read the job.
"""

from __future__ import annotations

import os
import pickle
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from struct import Struct
from time import monotonic
from typing import Any

from billiard.pool import ACK
from billiard.process import current_process
from billiard.reduction import ForkingPickler
from celery.concurrency import asynpool

from celery_jobqueue.broker.bundles import ENDED, ended
from celery_jobqueue.broker.comeback import leaving

with suppress(ImportError):  # neither is there on Windows, where this pool is not
    import fcntl
    import termios

__all__ = ["accept_silently", "knows_its_jobs", "talk_tersely"]

_length = Struct(">i")
_AT_ONCE = 65536  # bytes: what Linux lets a pipe hold
#: Bytes that any pipe takes as a whole or not at all. What is longer, and longer than an empty pipe, is for Celery to write.
_WHOLE = getattr(select, "PIPE_BUF", 0)
_HAS_SIZE = "fcntl" in globals() and hasattr(fcntl, "F_GETPIPE_SZ")
#: Bytes of what every process is told when the worker shuts down, and finds in its pipe once its job is over.
_FAREWELL = _length.size + len(ForkingPickler.dumps(None))
#: In the place of a job's index, which only map() uses: the job counts as accepted.
_ACCEPTED = 0


def talk_tersely(pool: Any) -> None:
    """Have the billiard pool read and write this way, from the next event loop on."""
    handler = pool._result_handler
    handler._make_process_result = lambda hub: _reading(handler, hub)
    handler.state_handlers[ENDED] = ended
    pool._create_write_handlers = _writing(pool, pool._create_write_handlers)
    pool.process_flush_queues = _taking_back(pool, pool.process_flush_queues)


def knows_its_jobs(pool: Any) -> bool:
    """Whether it can be said which jobs a process of the billiard pool had begun when it died, without its saying so."""
    # A spawned process shares nothing with us, and does not know that it shall be silent. One that ends after so many jobs does
    # not begin what is written to it then. Where jobs are written to busy processes, too (-O fast), there may be any number.
    return bool(pool._ctx.get_start_method() == "fork" and pool.sched_strategy == asynpool.SCHED_STRATEGY_FAIR
                and not (pool._maxtasksperchild or pool._max_memory_per_child))


def accept_silently() -> None:
    """In a process of the pool, before its first job: not say that jobs were accepted which count as that."""
    queue = getattr(getattr(current_process(), "_target", None), "outq", None)
    if queue is None:
        return
    send = queue.put

    def put(said: tuple[int, tuple[Any, ...]]) -> None:
        if said[0] != ACK or said[1][1] != _ACCEPTED:
            send(said)

    queue.put = put


def _reading(handler: Any, hub: Any) -> Callable[[int], None]:
    """What the event loop calls when there is something to read from a process."""

    def readable(fileno: int) -> None:
        if fileno not in handler.fileno_to_outq:  # the process is gone
            hub.remove_reader(fileno)
            return
        try:
            data = os.read(fileno, _AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            hub.remove_reader(fileno)
            return
        messages, begun = _split(data)
        failed: BaseException | None = None
        for message in messages:
            try:
                if said := pickle.loads(message):  # noqa: S301  (from the pool's own process)
                    handler.on_state_change(said)
            except BaseException as error:  # the others were read too, and nobody else will hear of them
                failed = failed or error
        if begun:
            _read_on(handler, hub, fileno, begun)
        if failed is not None:
            raise failed

    return readable


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The messages, and what has come of the next."""
    messages, at = [], 0
    while len(data) - at >= _length.size:
        begin = at + _length.size
        end = begin + _length.unpack_from(data, at)[0]
        if end > len(data):
            break
        messages.append(data[begin:end])
        at = end
    return messages, data[at:]


def _read_on(handler: Any, hub: Any, fileno: int, begun: bytes) -> None:
    """Leave a message of which there is only a part to Celery, which waits for the rest, also when the worker shuts down."""

    def read(fd: int, into: Any, size: int) -> int:
        nonlocal begun
        if not begun:
            return int(asynpool.__read__(fd, into, size))
        chunk, begun = begun[:size], begun[size:]
        if isinstance(into, memoryview):
            into[:len(chunk)] = chunk
        else:
            into.write(chunk)
        return len(chunk)

    reading = handler._recv_message(hub.add_reader, fileno, handler.on_state_change, __read__=read)
    try:
        next(reading)
    except StopIteration:
        return
    except (OSError, EOFError):
        hub.remove_reader(fileno)
        return
    hub.add_reader(fileno, reading)


def _writing(pool: Any, create: Callable[..., None]) -> Callable[..., None]:
    """Celery's making of the functions that write, which uses them for what cannot be written at once."""

    @wraps(create)
    def created(hub: Any, **options: Any) -> None:
        create(hub, **options)
        pool._quick_put = _putting(pool, pool._quick_put)
        pool.on_poll_start = _looking(pool, pool.on_poll_start)

    return created


def _putting(pool: Any, queue: Callable[[tuple[Any, ...]], None]) -> Callable[[tuple[Any, ...]], None]:
    outbound, busy, processes = pool.outbound_buffer, pool._busy_workers, pool._fileno_to_inq
    accepted = pool._result_handler.state_handlers[ACK]
    may_accept = knows_its_jobs(pool)

    def put(said: tuple[Any, ...]) -> None:
        """Write the job to a process that has nothing to do, or have it wait."""
        idle = None
        if not (outbound or leaving()):  # nothing is begun any more after this turn of the loop, nor shall it be now
            idle = next((fd for fd in pool._all_inqueues if fd not in busy and fd not in pool._active_writes), None)
        if idle is None or (process := processes.get(idle)) is None or not process._is_alive():
            queue(said)
            return
        job = pool._cache[said[1][0]]
        accepts = may_accept and not (job._timeout or job._soft_timeout)
        queue(_with_index(said, _ACCEPTED) if accepts else said)
        header, body, size = job._payload
        try:
            if size > _WHOLE - _length.size and size > _room(idle) - _length.size:
                raise BlockingIOError
            _write(idle, bytes(header) + bytes(body))
        except OSError:  # too long, full, or gone: Celery will find out
            if accepts:
                outbound.remove(job)
                queue(said)
            return
        outbound.remove(job)
        job._scheduled_for = job._write_to = process  # who dies with it has it given to another
        busy.add(idle)
        pool.write_stats[process.index] += 1
        if accepts:
            job.accepted_by_write = True
            accepted(job._job, _ACCEPTED, monotonic(), process.pid, None)

    return put


def _with_index(said: tuple[Any, ...], index: int | None) -> tuple[Any, ...]:
    kind, (number, _, *rest) = said
    return kind, (number, index, *rest)


def _taking_back(pool: Any, flush: Callable[[Any], None]) -> Callable[[Any], None]:
    """What is called for a process that has ended, before it is decided what becomes of its job."""

    @wraps(flush)
    def flushed(process: Any) -> None:
        flush(process)
        if process._is_alive() or process.inq._reader.closed or _unread(process.inq._reader) <= _FAREWELL:
            return
        for job in list(pool._cache.values()):
            if job._write_to is process and getattr(job, "accepted_by_write", False) and not job.ready():
                job.accepted_by_write = job._accepted = False
                job._worker_pid = job._time_accepted = None
                said = pickle.loads(job._payload[1])  # noqa: S301  (our own)
                job._payload = pool._create_payload(*_with_index(said, None))
                if forget := getattr(getattr(job._accept_callback, "__self__", None), "on_not_accepted", None):
                    forget()

    return flushed


def _write(pipe: int, data: bytes) -> None:
    """All of it. Where the system has no memory for that just now, who reads the pipe makes room."""
    written = os.write(pipe, data)
    if written < len(data):
        os.set_blocking(pipe, True)
        try:
            while written < len(data):
                written += os.write(pipe, data[written:])
        finally:
            os.set_blocking(pipe, False)


def _room(pipe: int) -> int:
    """How many bytes an empty pipe takes as a whole; that of a process that has nothing to do is empty."""
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) if _HAS_SIZE else 0


def _unread(reader: Any) -> int:
    """How many bytes lie in the pipe."""
    return int.from_bytes(fcntl.ioctl(reader.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


def _looking(pool: Any, look: Callable[[], None]) -> Callable[[], None]:
    watched = True

    def looked() -> None:
        """Watch the pipes for room while something waits for it, and not in each turn of the loop."""
        nonlocal watched
        if pool.outbound_buffer or watched:
            watched = bool(pool.outbound_buffer)
            look()

    return looked

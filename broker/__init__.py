"""Celery on PostgreSQL: kombu transport, result backend and worker integration.

Importing this package makes `postgresql://` known to kombu; usually the entry points have done so already.
For applications: `jobs_in` publishes jobs in their own transactions, `enqueue_many` thousands at once, `finish_in` and
`afinish_in` complete a task's job in a transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_jobqueue.broker import register as _register  # noqa: F401  (imported for its effect)

if TYPE_CHECKING:
    from celery_jobqueue.broker.enqueue import jobs_in as jobs_in
    from celery_jobqueue.broker.finish import LeaseLost as LeaseLost
    from celery_jobqueue.broker.finish import afinish_in as afinish_in
    from celery_jobqueue.broker.finish import finish_in as finish_in
    from celery_jobqueue.broker.many import enqueue_many as enqueue_many


def __getattr__(name: str) -> Any:
    # Imported when asked for: this package is loaded while kombu itself is being imported.
    if name == "jobs_in":
        from celery_jobqueue.broker.enqueue import jobs_in

        return jobs_in
    if name == "enqueue_many":
        from celery_jobqueue.broker.many import enqueue_many

        return enqueue_many
    if name in ("LeaseLost", "afinish_in", "finish_in"):
        from celery_jobqueue.broker import finish

        return getattr(finish, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

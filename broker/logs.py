"""What log records say of jobs beside their text, for formatters that write JSON (docs/monitoring.md).

Every line of ours about a job has the attributes `job_id`, `task_id`, `task_name`, `attempt` and `max_attempts`. The filter
puts them on what others log while a job runs, too: the task itself, its libraries, and Celery's "succeeded" and "raised".
"""

from __future__ import annotations

import logging
from typing import Any

from celery import signals

from celery_jobqueue.broker.context import lease_of, running_request

__all__ = ["JobFilter", "install"]


class JobFilter(logging.Filter):
    """Lets every record through, with the attributes of the job that runs in this thread. Attributes that are there stay.

    Workers have it on the handlers that Celery makes. An application that configures logging itself adds it to its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """True. Never raises."""
        lease = lease_of(running_request())
        if lease is not None and "job_id" not in record.__dict__:
            record.__dict__.update({**lease.about, **record.__dict__})
        return True


def install() -> None:
    """Have this worker's handlers filter, once Celery has made them. After the application's own receivers of these signals."""
    for signal in (signals.after_setup_logger, signals.after_setup_task_logger):
        signal.connect(_add_filter, weak=False, dispatch_uid="celery_jobqueue.logs")


def _add_filter(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        if not any(isinstance(there, JobFilter) for there in handler.filters):
            handler.addFilter(JobFilter())

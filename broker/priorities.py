"""Priorities: 1 first … 10 last in the table, whatever scale the application uses."""

from __future__ import annotations

from kombu.utils.encoding import safe_repr

from celery_jobqueue.db.errors import ConfigurationError, InvalidJob

__all__ = ["DEFAULT", "SCALES", "check_scale", "to_row"]

DEFAULT = 5
#: `jobs`: 1 first … 10 last. `amqp`: RabbitMQ's 9 first … 0 last. `redis`: 0 first … 9 last.
SCALES = ("jobs", "amqp", "redis")


def check_scale(scale: str) -> str:
    """The scale itself. Raises ConfigurationError for an unknown one."""
    if scale not in SCALES:
        raise ConfigurationError(f"broker_transport_options['priority_scale']={scale!r}: use one of {', '.join(SCALES)}")
    return scale


def to_row(priority: object, scale: str = "jobs") -> int:
    """The column's value for a message's priority. Raises InvalidJob when it is out of range.

    kombu writes 0 where nobody asked for a priority, so on the scale `jobs` 0 and None mean the default. On the other
    scales 0 is a real value, and out-of-range numbers are clamped, as those brokers do.
    """
    if priority is None:
        return DEFAULT
    try:
        value = int(str(priority))
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"priority={safe_repr(priority):.100} is not a number from 1 (first) to 10 (last)") from error
    if scale == "amqp":
        return 10 - min(max(value, 0), 9)
    if scale == "redis":
        return 1 + min(max(value, 0), 9)
    if value == 0:
        return DEFAULT
    if not 1 <= value <= 10:
        raise InvalidJob(f"priority={value} is out of range: 1 (first) to 10 (last)")
    return value

"""What `celery list bindings` asks of a broker."""

from __future__ import annotations

from kombu.transport import virtual

from celery_jobqueue.broker.sql import statement

__all__ = ["Management"]


class Management(virtual.Management):  # type: ignore[misc]
    """Bindings as the database knows them, not only those of this process."""

    def get_bindings(self) -> list[dict[str, str]]:
        """All bindings of all processes."""
        [rows] = self.channel.connection.run((statement("bindings"), ()))
        return [{"destination": row[0] or "", "source": row[1] or "", "routing_key": row[2] or ""} for row in rows]

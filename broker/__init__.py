"""Celery on PostgreSQL: kombu transport, result backend and worker integration.

Importing this package makes `postgresql://` known to kombu; usually the entry points have done so already.
"""

from __future__ import annotations

from celery_jobqueue.broker import register as _register  # noqa: F401  (imported for its effect)

"""Make `postgresql://` and `postgres://` known to kombu.

kombu keeps its transports in a plain dict and has no entry point for them, but it loads the group
`kombu.serializers` whenever `kombu.serialization` is imported, which every Celery application does.
The serializer registered there is a real one; importing this module to get it adds the two schemes.
This module therefore runs while kombu is being imported and must not import kombu.serialization itself.
"""

from __future__ import annotations

import json

from kombu.transport import TRANSPORT_ALIASES

__all__ = ["SCHEMES", "serializer"]

SCHEMES = ("postgresql", "postgres")
_TRANSPORT = "celery_jobqueue.broker.transport:Transport"

for _scheme in SCHEMES:
    TRANSPORT_ALIASES.setdefault(_scheme, _TRANSPORT)

#: (encode, decode, content type, content encoding), as kombu.serialization.register() takes it: plain JSON.
serializer = (json.dumps, json.loads, "application/x-jobqueue-json", "utf-8")

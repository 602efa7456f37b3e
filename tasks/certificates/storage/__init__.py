"""Where files go: a local folder, S3 and what speaks like it, Google Cloud Storage, Azure, behind one interface.

Keys are deterministic and writing overwrites, so doing it twice leaves one file. STORAGE_URL says where:

- `file:///var/certificates`, with `?links=https://app.example.org/files` for links that the application signs and serves;
- `s3://bucket/prefix?endpoint=https://…&region=…`, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY;
- `gs://bucket/prefix`, with GOOGLE_SERVICE_ACCOUNT;
- `az://container/prefix?account=…`, with AZURE_STORAGE_ACCOUNT_KEY.

Unset: `certificates` in JOBQUEUE_HOME, else in `.local`.
"""

from __future__ import annotations

from tasks.certificates.storage.base import LinkRefused, NoSuchFile, Storage, StorageError
from tasks.certificates.storage.urls import linked_file, storage_from_url

__all__ = ["LinkRefused", "NoSuchFile", "Storage", "StorageError", "linked_file", "storage_from_url"]

"""Every statement the broker sends, by name. They stand in statements.sql; no SQL is written anywhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["Statement", "statement"]


class Statement(NamedTuple):
    """One named SQL statement with `$1 … $n` parameters.

    `name` doubles as the name of the prepared statement on connections that may prepare.
    """

    name: str
    text: bytes


_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _load() -> dict[str, Statement]:
    text = Path(__file__).with_name("statements.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    statements: dict[str, Statement] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        lines = [line for line in body.strip().splitlines() if not line.startswith("--")]
        statements[name] = Statement(name, " ".join(line.strip() for line in lines).rstrip(";").encode())
    return statements


_STATEMENTS = _load()


def statement(name: str) -> Statement:
    """The statement of this name. Raises KeyError for a name that statements.sql does not hold."""
    return _STATEMENTS[name]

"""stub for the moment"""
from __future__ import annotations
def newest(line: str) -> int:
    return 0

"""Poppler's programs: they read PDFs and share no code with what wrote, signed or drew them here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

__all__ = ["needs", "poppler"]


def needs(program: str) -> pytest.MarkDecorator:
    """Skips by name where the program is missing."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program} (Debian: poppler-utils)")


def poppler(program: str, pdf: bytes, *options: str) -> str:
    """What the program says of this file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file.pdf"
        file.write_bytes(pdf)
        output = ["-"] if program == "pdftotext" else []
        done = subprocess.run([program, *options, file, *output], capture_output=True, text=True, encoding="utf-8", check=False)
        return done.stdout

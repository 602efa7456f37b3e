"""`make pythons`: the same certificates, byte for byte, from every Python ≥ 3.11 on this machine.

Each gets a virtual environment of its own below .local/pythons and draws every name of the tests, the designs that come with the
application in turns, in an order, time zone and hash seed of its own.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FOLDER = ROOT / ".local" / "pythons"
_PLACES = ("/usr/bin/python3.*", "/usr/local/bin/python3.*", "~/.pyenv/versions/3.*/bin/python3", "/opt/*/bin/python3.*")
_VERSION = "import sys; print(*sys.version_info[:3], sep='.')"
_ZONES = ("UTC", "Asia/Tokyo", "America/New_York", "Africa/Lagos")


def digests(seed: int) -> dict[str, str]:
    """Of every certificate, by design and name; drawn in an order that depends on the seed."""
    from tasks.certificates.samples import DESIGNS
    from tests.support.certificates import ATTENDEES, NAMES, rendered

    designs = list(DESIGNS)
    wanted = [(designs[number % len(designs)], name) for number, name in enumerate(dict.fromkeys((*ATTENDEES, *NAMES.values())))]
    random.Random(seed).shuffle(wanted)
    return {f"{design} {name}": hashlib.sha256(rendered(name, DESIGNS[design])).hexdigest() for design, name in wanted}


def pythons() -> dict[str, str]:
    """The newest of each Python ≥ 3.11 that is here: its version and program."""
    found = {}
    for place in _PLACES:
        for program in sorted(glob.glob(os.path.expanduser(place))):  # noqa: PTH111, PTH207  (patterns, not paths)
            if not re.fullmatch(r"python3(\.\d+)?", Path(program).name):
                continue
            asked = subprocess.run([program, "-c", _VERSION], capture_output=True, text=True, check=False).stdout.strip()
            if asked and tuple(map(int, asked.split("."))) >= (3, 11):
                found.setdefault(asked, program)
    return found


def _drawn_by(version: str, program: str, seed: int) -> dict[str, str]:
    environment = _FOLDER / version
    python = str(environment / "bin" / "python")
    if not (environment / ".installed").exists():
        subprocess.run([program, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt",
                        f"{ROOT}[certificates,fonts]", "pypdfium2"], check=True)
        (environment / ".installed").touch()
    done = subprocess.run([python, "-m", "tests.pythons", str(seed)], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONHASHSEED": str(seed), "TZ": _ZONES[seed % len(_ZONES)]})
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def main() -> int:
    """Compare them all with the first. Returns the process's exit code."""
    found = pythons()
    if len(found) < 2:
        print(f"only Python {', '.join(found)} is here: nothing to compare")
        return 2
    first: dict[str, str] = {}
    different = 0
    for seed, (version, program) in enumerate(found.items(), 1):
        drawn = _drawn_by(version, program, seed)
        first = first or drawn
        wrong = [name for name in first if drawn.get(name) != first[name]]
        different += len(wrong)
        print(f"Python {version:8} {len(drawn)} certificates, {len(wrong)} different {'; '.join(wrong[:3])}")
    return 1 if different else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(digests(int(sys.argv[1]))))
    else:
        sys.exit(main())

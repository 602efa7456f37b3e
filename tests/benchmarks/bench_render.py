"""How many certificates one core draws: `python -m tests.benchmarks.bench_render`. CPU time of one process, no storage, no queue.

The realistic design is what organisers have: A4 with a photograph of 200 dots an inch behind it, a logo and two scanned
signatures that can be seen through, three fonts, a paragraph, a QR code and a footer. Every certificate has another name and
serial, and its design is checked again, as when it is issued. The ways take turns and the medians are compared: only ratios from
one run mean something.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import _lru_cache_wrapper
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

from tasks.certificates import embedding, fonts, layout, ornaments, pictures, sheet
from tasks.certificates.design import parse_design
from tasks.certificates.render import render
from tasks.certificates.samples import DESIGNS

_GIVEN = ("Zoë", "Łukasz", "Jürgen", "Amélie", "Nguyễn", "Søren", "İpek", "José María", "Siobhán", "Žydrūnė")
_FAMILY = ("Ångström", "Wiśniewski", "Müller-Lüdenscheidt", "de la Peña", "Thị Hồng Hạnh", "Kierkegaard", "Öztürk", "O’Neill",
           "Papadopoulos", "Šiūkštaitė")
_WORLD = ("محمد عبد الرحمن", "प्रिया श्रीवास्तव", "山田 太郎", "김민준", "王小明", "สมชาย ใจดี", "Ольга Щербакова", "தமிழ்ச்செல்வி",
          "אברהם בן־דוד")

_PARAGRAPH = ("has attended all {hours} hours of {event_name} in {event_place}, {event_dates}, has taken part in every exercise, "
              "and has passed the examination that followed with distinction.")


def realistic() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The design and its pictures."""
    signature, text = {"kind": "signature", "y": 172, "width": 60}, {"kind": "text", "x": 148.5}
    design = {
        "title": "Certificate", "fields": {"hours": "24"}, "page": {"background": "paper.jpg"},
        "parts": [
            {"kind": "image", "key": "logo.png", "x": 148.5, "y": 18, "width": 30, "height": 30, "anchor": "top", "alt": "Logo"},
            {**text, "text": "Certificate of Completion", "y": 68, "size": 40, "font": "display", "role": "title"},
            {**text, "text": "{recipient_name}", "y": 95, "size": 38, "font": "display", "max_lines": 2},
            {**text, "text": _PARAGRAPH, "y": 120, "size": 13, "min_size": 13, "max_lines": 3, "max_width": 190},
            {**signature, "name": "Dr. Amélie Laurent", "title": "Programme Director", "x": 80, "image": "one.png"},
            {**signature, "name": "Prof. Jürgen Öztürk", "title": "Head of Examinations", "x": 217, "image": "two.png"},
            {"kind": "qr", "x": 148.5, "y": 170, "size": 22},
            {**text, "text": "No. {serial} · issued {issued_on}", "y": 197, "size": 8, "font": "sans"}]}
    return design, {"paper.jpg": _paper(), "logo.png": _drawn(400, 400, 1), "one.png": _drawn(700, 270, 2),
                    "two.png": _drawn(700, 270, 3)}


def _paper() -> bytes:
    """A4 at 200 dots an inch, soft structures as a photograph has them."""
    chance = random.Random(1)
    small = Image.frombytes("RGB", (90, 64), bytes(chance.randint(215, 255) for _ in range(90 * 64 * 3)))
    file = io.BytesIO()
    small.resize((2339, 1654), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _drawn(width: int, height: int, seed: int) -> bytes:
    """Ink on nothing."""
    chance, picture = random.Random(seed), Image.new("RGBA", (width, height))
    ImageDraw.Draw(picture).line([(chance.randrange(width), chance.randrange(height)) for _ in range(25)], (20, 40, 90, 255), 7)
    file = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(1)).save(file, "PNG")
    return file.getvalue()


def _names(world: bool) -> Iterator[str]:
    chance = random.Random(7)
    while True:
        yield f"{chance.choice(_GIVEN)} {chance.choice(_FAMILY)}" if not world else chance.choice(_WORLD)


def _forget() -> None:
    """As if the process had drawn nothing yet."""
    for module in (embedding, fonts, layout, ornaments, pictures, sheet):
        for kept in vars(module).values():
            if isinstance(kept, _lru_cache_wrapper):
                kept.cache_clear()


def _way(design: dict[str, Any], files: dict[str, bytes], *, world: bool = False, fresh: bool = False) -> Callable[[int], int]:
    """Draws so many certificates; answers with the bytes of the last."""
    names, serials = _names(world), iter(range(10**9))
    values = {"event_name": "PostgreSQL for Application Developers", "event_dates": "16–20 November 2026",
              "event_place": "Lisbon", "organiser": "NORTHERN LIGHTS ACADEMY", "issued_on": "24 November 2026", "expires_on": ""}

    def draw(count: int) -> int:
        size = 0
        for _ in range(count):
            if fresh:
                _forget()
            serial = f"AAAA-BBBB-{next(serials):06d}"
            given = {**values, "recipient_name": next(names), "serial": serial,
                     "verify_url": f"https://certificates.example.org/verify/{serial}"}
            size = len(render(parse_design(design), given, pictures=files.__getitem__))
        return size

    return draw


def main() -> None:
    """Measure and print a table for docs/certificates.md."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--certificates", type=int, default=300)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    design, files = realistic()
    ways = {
        "realistic": _way(design, files), "realistic, names in nine scripts": _way(design, files, world=True),
        "realistic, nothing kept between certificates": _way(design, files, fresh=True),
        **{f"design {name}": _way(shipped, {}) for name, shipped in DESIGNS.items()}}
    taken: dict[str, list[float]] = {}
    sizes = {way: draw(3) for way, draw in ways.items()}
    for _ in range(chosen.rounds):
        for way, draw in ways.items():
            count = chosen.certificates if "nothing" not in way else max(2, chosen.certificates // 50)
            draw(20 if count > 20 else 1)  # what the way before it has forgotten, fonts above all
            start = time.process_time()
            draw(count)
            taken.setdefault(way, []).append((time.process_time() - start) / count)
    base = statistics.median(taken["realistic"])
    print(f"{'':45} per core and second   milliseconds   least–most   ratio   kB")
    for way, times in taken.items():
        middle = statistics.median(times)
        print(f"{way:45} {1 / middle:19.0f} {middle * 1000:14.2f} {min(times) * 1000:7.2f}–{max(times) * 1000:.2f}"
              f" {base / middle:7.2f} {sizes[way] / 1000:6.0f}")


if __name__ == "__main__":
    main()

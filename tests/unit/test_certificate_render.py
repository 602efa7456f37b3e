"""The PDF as a reader, a printer and a phone see it."""

from __future__ import annotations

import ctypes
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pypdfium2
import pytest
import zxingcpp
from PIL import Image
from pypdfium2 import raw

from tasks.certificates.design import parse_design
from tasks.certificates.errors import DesignError, MissingGlyph
from tasks.certificates.render import render
from tests.benchmarks import bench_render
from tests.support.certificates import ATTENDEES, NAMES, VALUES, classic, image_of, one_part, rendered, text_of
from tests.support.workers import ROOT

RIGHT_TO_LEFT = [name for name in ATTENDEES if "\u0590" <= name[0] <= "\u06ff"]
HARD = [*ATTENDEES, "W" * 120, "Ng " * 39 + "Ng", "ญู่ที่ผู้" * 12, "ễ Ậ Ǻ" * 20, "محمد " * 23 + "محمد", "I"]
PAGES = {
    "A4": classic(),
    "a small sheet with one wide line": one_part({"size": "A5", "orientation": "portrait"}, x=74, max_width=1000),
    "off the middle": one_part(x=30, max_width=300),
    "at the left edge": one_part(x=1, anchor="left"),
    "at the right edge": one_part(x=296, anchor="right", max_lines=4, size=40),
    "as a signature": {"parts": [{"kind": "signature", "name": "{recipient_name}", "x": 40, "y": 100, "title": "{serial}"}]},
}


def objects(pdf: bytes) -> list[tuple[Any, int, tuple[float, float, float, float]]]:
    """(handle, type, (left, bottom, right, top)) of everything on the page; the document stays open as long as the list."""
    document = pypdfium2.PdfDocument(pdf)
    found = [(thing, thing.type, thing.get_bounds()) for thing in document[0].get_objects(max_depth=1)]
    found.append((document, -1, (0, 0, *document[0].get_size())))
    return found


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", HARD, ids=range(len(HARD)))
def test_nothing_leaves_the_page(name: str, page: str) -> None:
    *things, (_, _, (_, _, width, height)) = objects(rendered(name, PAGES[page]))
    assert len(things) > 1
    outside = [bounds for _, _, bounds in things
               if bounds[0] < -0.5 or bounds[1] < -0.5 or bounds[2] > width + 0.5 or bounds[3] > height + 0.5]
    assert not outside


@pytest.mark.parametrize("name", ATTENDEES)
def test_a_name_stands_in_the_middle(name: str) -> None:
    texts = [bounds for _, kind, bounds in objects(rendered(name, one_part(max_width=226, max_lines=2, y=100)))
             if kind == raw.FPDF_PAGEOBJ_TEXT]
    left, right = min(bounds[0] for bounds in texts), max(bounds[2] for bounds in texts)
    assert abs((left + right) / 2 - 841.89 / 2) < 4
    assert right - left <= 226 / 25.4 * 72 + 3


@pytest.mark.parametrize("name", ATTENDEES)
def test_every_font_is_in_the_file(name: str) -> None:
    pdf = rendered(name)
    *things, _ = objects(pdf)
    fonts = [raw.FPDFTextObj_GetFont(thing.raw) for thing, kind, _ in things if kind == raw.FPDF_PAGEOBJ_TEXT]
    assert len(fonts) > 10
    assert all(raw.FPDFFont_GetIsEmbedded(font) == 1 for font in fonts)
    names = set()
    for font in fonts:
        buffer = ctypes.create_string_buffer(200)
        raw.FPDFFont_GetBaseFontName(font, buffer, 200)
        names.add(buffer.value.decode())
    assert all("Noto" in entry for entry in names)
    assert b"/Helvetica" not in pdf


@pytest.mark.parametrize("name", [name for name in ATTENDEES if name not in RIGHT_TO_LEFT])
def test_the_text_can_be_copied_and_searched(name: str) -> None:
    text = text_of(rendered(name))
    assert name in text
    for part in ("Certificate of Completion", "has attended all 24 hours of PostgreSQL for Application Developers",
                 "Lisbon · 16–20 November 2026", "Prof. Jürgen Öztürk", "No. AAAA-BBBB-CCCC"):
        assert part in text


@pytest.mark.parametrize("name", RIGHT_TO_LEFT)
def test_right_to_left_text_is_in_the_file(name: str) -> None:
    """PDFium gives such words reversed; what a search needs is the text of every word, in the file in reading order."""
    words = [word for word in name.split() if word]
    text = text_of(rendered(name))
    assert all(word in text or word[::-1] in text for word in words)


def test_the_document_says_what_it_is() -> None:
    pdf = rendered("Zoë (Ångström) \\", classic(language="pt-BR", title="{event_name} – {recipient_name}"))
    document = pypdfium2.PdfDocument(pdf)
    meta = document.get_metadata_dict()
    assert meta["Title"] == "PostgreSQL for Application Developers – Zoë (Ångström) \\"
    assert meta["Subject"] == "PostgreSQL for Application Developers – Zoë (Ångström) \\"
    assert meta["Author"] == "NORTHERN LIGHTS ACADEMY"
    assert b"/Lang (pt-BR)" in pdf
    assert "Zoë (Ångström) \\" in text_of(pdf)
    document.close()


@pytest.mark.parametrize("size", [17, 12])
def test_a_phone_reads_the_code(size: int) -> None:
    design = classic()
    [code] = [part for part in design["parts"] if part["kind"] == "qr"]
    code["size"] = size
    [found] = zxingcpp.read_barcodes(image_of(rendered("Zoë", design), scale=3))
    assert found.text == "https://certificates.example.org/verify/AAAA-BBBB-CCCC"


def test_a_code_holds_any_text() -> None:
    pdf = rendered("प्रिया श्रीवास्तव", one_part(kind="qr", text="{recipient_name} {event_place}", size=60), event_place="Zürich")
    [found] = zxingcpp.read_barcodes(image_of(pdf))
    assert found.text == "प्रिया श्रीवास्तव Zürich"


def test_a_code_that_cannot_hold_its_text_says_so() -> None:
    design = one_part(kind="qr", text="{a}" * 40)
    design["fields"] = {"a": "ü" * 500}
    with pytest.raises(DesignError, match="a QR code cannot hold 20000 characters"):
        rendered("Ada", design)


def test_what_is_empty_is_left_out() -> None:
    pdf = rendered("Ada", {"parts": [*one_part()["parts"], *one_part(text="{event_place}")["parts"],
                                     *one_part(kind="qr")["parts"]]}, event_place="", verify_url="")
    assert text_of(pdf) == "Ada"


def test_line_breaks_in_values_are_spaces() -> None:
    assert "Postgres for everybody" in text_of(rendered("Ada", event_name="Postgres\r\nfor\teverybody"))


def test_a_missing_glyph_is_an_error_wherever_it_stands() -> None:
    for design in (one_part(text="{organiser}"), {"parts": [{"kind": "signature", "name": "{organiser}", "x": 100, "y": 100}]}):
        with pytest.raises(MissingGlyph, match="'🎉'"):
            rendered("Ada", design, organiser="🎉")


# -- the same bytes ----------------------------------------------------------------------------------------------------

def hashes(seed: str) -> dict[str, str]:
    """Digests of the certificates that a process of its own makes, in an order, time zone and hash seed of its own."""
    done = subprocess.run([sys.executable, "-m", "tests.pythons", seed], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo" if seed == "2" else "UTC"})
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def test_the_same_data_gives_the_same_bytes() -> None:
    """In any process, with any hash seed, whatever was rendered before. `make pythons` compares versions of Python."""
    first, second = hashes("1"), hashes("2")
    assert len(set(first.values())) == len(first) == len({*ATTENDEES, *NAMES.values()})
    assert list(first) != list(second)
    assert second == first


def test_the_benchmark_draws_what_it_says() -> None:
    design, files = bench_render.realistic()
    pdf = render(parse_design(design), {**VALUES, "recipient_name": "Zoë Ångström"}, pictures=files.__getitem__)
    assert "Zoë Ångström has attended all 24 hours of PostgreSQL for Application Developers" in text_of(pdf)
    assert [pdf.count(kind) for kind in (b"/DCTDecode", b"/SMask")] == [1, 3]
    assert bench_render._way(design, files, fresh=True)(1) > 100_000
    assert bench_render._way(design, files, world=True)(1) > 100_000


def test_threads_do_not_mix_their_certificates() -> None:
    names = ATTENDEES * 3
    alone = {name: rendered(name) for name in ATTENDEES}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(rendered, names)) == [alone[name] for name in names]
    finally:
        sys.setswitchinterval(before)


# -- pictures ----------------------------------------------------------------------------------------------------------

LOGO = one_part(kind="image", key="logo.png", x=100, y=50, width=40, height=20)


def picture(size: tuple[int, int] = (80, 40), form: str = "PNG", colour: str = "#c01030") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def drawn(content: bytes) -> bytes:
    values = dict.fromkeys(("recipient_name", "event_name", "organiser"), "x")
    return render(parse_design(LOGO), values, pictures={"logo.png": content}.__getitem__)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_drawn_where_it_belongs(form: str) -> None:
    scale = 2 / 25.4 * 72
    page = image_of(drawn(picture(form=form)))
    red, green, blue = page.getpixel((round(120 * scale), round(60 * scale)))
    assert (abs(red - 0xC0) < 8, abs(green - 0x10) < 12, abs(blue - 0x30) < 12) == (True, True, True)
    assert min(page.getpixel((round(98 * scale), round(60 * scale)))) > 240


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert drawn(picture()) == drawn(bytes(bytearray(picture())))


@pytest.mark.parametrize("content", [b"", b"no picture", picture()[:60], b"<svg"])
def test_what_is_no_picture_is_named(content: bytes) -> None:
    with pytest.raises(DesignError, match=r"image 'logo\.png' is not a picture"):
        drawn(content)


def test_a_picture_too_large_is_not_unpacked() -> None:
    with pytest.raises(DesignError, match=r"image 'logo\.png' has 8000 × 5001 pixels: at most 40 million"):
        drawn(picture((8000, 5001)))


def test_without_pictures_a_design_with_one_is_refused() -> None:
    with pytest.raises(DesignError, match=r"image 'logo\.png' is not in the storage"):
        rendered("Ada", LOGO)

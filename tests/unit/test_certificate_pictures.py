"""Pictures and fonts of a design: drawn when they are what they should be, else refused by name; nothing is fetched."""

from __future__ import annotations

import io
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.certificates import fonts
from tasks.certificates.design import parse_design
from tasks.certificates.errors import DesignError, MissingGlyph
from tasks.certificates.render import render
from tests.support.certificates import image_of, one_part, text_of

SCALE = 2 / 25.4 * 72  # pixels of image_of per millimetre
LOGO = one_part(kind="image", key="logo", x=100, y=50, width=40, height=20)
FONT = (Path(fonts.__file__).with_name("fonts") / "NotoSerifTamil-Regular.ttf").read_bytes()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a design holds, nobody is called."""
    def refuse(*_: Any) -> None:
        raise AssertionError("somebody was called")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def drawn(content: bytes, design: dict[str, Any] = LOGO, name: str = "x") -> bytes:
    values = {"recipient_name": name, "event_name": "x", "organiser": "x"}
    return render(parse_design(design), values, pictures=lambda _: content)


def pixel(pdf: bytes, x: float, y: float) -> tuple[int, ...]:
    """The colour at this place of the page, in millimetres."""
    found: tuple[int, ...] = image_of(pdf).getpixel((round(x * SCALE), round(y * SCALE)))
    return found


def svg(inside: str, box: str = 'viewBox="0 0 40 20"', before: str = "") -> bytes:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"{before}<svg {spaces} {box}>{inside}</svg>".encode()


def png(width: int, height: int, mode: str = "RGB", colour: Any = "#c01030") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return file.getvalue()


# -- pictures of dots --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixels(mode: str) -> None:
    file = io.BytesIO()
    base = Image.new("RGB", (40, 20), "#000000")
    (base.convert("L").convert(mode) if mode == "I;16" else base.convert(mode)).save(file, "JPEG" if mode == "CMYK" else "PNG")
    assert max(pixel(drawn(file.getvalue()), 120, 60)) < 12


def test_what_can_be_seen_through_shows_the_paper() -> None:
    file = io.BytesIO()
    picture = Image.new("RGBA", (40, 20), (192, 16, 48, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 20, 20))
    picture.save(file, "PNG")
    pdf = drawn(file.getvalue(), {**LOGO, "page": {"colour": "#00ff00"}})
    assert pixel(pdf, 110, 60) == (0, 255, 0)
    assert pixel(pdf, 130, 60) == (192, 16, 48)


@pytest.mark.parametrize(("anchor", "x", "y"), [
    ("top-left", 100, 50), ("top", 120, 50), ("top-right", 140, 50), ("left", 100, 60), ("centre", 120, 60), ("right", 140, 60),
    ("bottom-left", 100, 70), ("bottom", 120, 70), ("bottom-right", 140, 70),
])
def test_a_picture_hangs_at_any_of_nine_points(anchor: str, x: float, y: float) -> None:
    pdf = drawn(png(40, 20), one_part(kind="image", key="logo", x=x, y=y, width=40, height=20, anchor=anchor))
    assert [pixel(pdf, *at) == (192, 16, 48) for at in ((101, 51), (139, 69), (98, 60), (142, 60), (120, 48), (120, 72))] == [
        True, True, False, False, False, False]


def test_a_background_covers_the_page_and_keeps_its_proportions() -> None:
    file = io.BytesIO()
    picture = Image.new("RGB", (200, 200), "#0000ff")
    picture.paste("#ff0000", (0, 0, 200, 20))  # beyond the page's edge: 29 of its 297 mm, cut by 43 on either side
    picture.save(file, "PNG")
    pdf = drawn(file.getvalue(), {**one_part(), "page": {"background": "paper"}})
    assert {pixel(pdf, x, y) for x in (1, 148, 296) for y in (1, 209)} == {(0, 0, 255)}


def test_a_scanned_signature_stands_on_its_line() -> None:
    pdf = drawn(png(90, 35), one_part(kind="signature", name="Ada", x=100, y=100, width=60, image="ada"))
    assert pixel(pdf, 100, 90) == (192, 16, 48)
    assert pixel(pdf, 100, 78) != (192, 16, 48)


def test_a_picture_of_ten_megabytes_is_refused() -> None:
    with pytest.raises(DesignError, match=r"image 'logo' has 10,000,000 bytes: at most 8,000,000$"):
        drawn(bytes(10_000_000))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a kilobyte that claims this size: unpacked, 100 MB to 10 GB."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    packed = packer.compress(bytes(1_000_000)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("size", "message"), [
    ((8000, 5001), "8000 × 5001 pixels: at most 40 million"), ((12_000, 12_000), "too many pixels"),
    ((60_000, 60_000), "too many pixels"),
])
def test_a_bomb_is_not_unpacked(size: tuple[int, int], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        drawn(bomb(*size))


def test_half_a_picture_is_refused() -> None:
    with pytest.raises(DesignError, match="'logo' is not a picture that can be read"):
        drawn(png(400, 400, colour=None)[:200])


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "ICO", "EPS"])
def test_other_formats_are_refused(form: str) -> None:
    """Every decoder is one more that a stranger's bytes may break; EPS is a program."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, form)
    with pytest.raises(DesignError, match="use PNG, JPEG, WEBP or SVG"):
        drawn(file.getvalue())


# -- SVG ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [
    '<rect x="0" y="0" width="40" height="20" fill="#c01030"/>',
    '<path d="M0 0h40v20H0z" style="fill:rgb(192,16,48);stroke:none"/>',
    '<path d="M-40-40 L80-40 80 80 -40 80z" fill="#c01030"/>',
    '<g fill="#c01030"><g><polygon points="0,0 40,0 40,20 0,20"/></g></g>',
    '<ellipse cx="20" cy="10" rx="60" ry="60" fill="#c01030"/><title>nothing</title>',
    '<line x1="0" y1="10" x2="40" y2="10" stroke="#c01030" stroke-width="20"/>',
    '<g transform="translate(20 10) scale(2)"><circle r="30" fill="#C01030"/></g>',
    '<rect width="20" height="40" transform="rotate(90) translate(0 -40)" fill="#c01030"/>',
    '<rect width="40" height="20" rx="1" fill="#c01030" opacity="1" clip-path="none"/><defs><linearGradient id="a"/></defs>',
    '<path d="M0 0Q20 0 40 0T80 0V20A1 1 0 0 1 0 20Z" fill="#c01030"/>',
    '<x:note xmlns:x="urn:drawing-program" x:label="a"><x:b/>text</x:note><rect width="40" height="20" fill="#c01030"/>',
])
def test_shapes_are_drawn_as_they_look(inside: str) -> None:
    pdf = drawn(svg(inside))
    assert [pixel(pdf, x, y) for x, y in ((105, 53), (120, 60), (135, 67))] == [(192, 16, 48)] * 3
    assert pixel(pdf, 98, 60) != (192, 16, 48)  # and nothing beyond its box


def test_a_hole_is_a_hole() -> None:
    pdf = drawn(svg('<path fill-rule="evenodd" fill="#c01030" d="M0 0H40V20H0Z M10 5H30V15H10Z"/>'))
    assert pixel(pdf, 103, 60) == (192, 16, 48)
    assert pixel(pdf, 120, 60) != (192, 16, 48)


@pytest.mark.parametrize(("content", "message"), [
    (svg("<script>alert(1)</script>"), "with <script>"),
    (svg("<metadata><script>alert(1)</script></metadata>"), "with <script>"),
    (svg('<rect width="1" height="1" onclick="alert(1)"/>'), "with the attribute 'onclick' of <rect>"),
    (svg("", 'viewBox="0 0 1 1" onload="alert(1)"'), "with the attribute 'onload' of <svg>"),
    (svg('<a xlink:href="javascript:alert(1)"/>'), "with <a>"),
    (svg('<image xlink:href="http://169.254.169.254/latest/meta-data"/>'), "with <image>"),
    (svg('<image href="file:///etc/passwd"/>'), "with <image>"),
    (svg('<use xlink:href="http://example.org/a.svg#a"/>'), "with <use>"),
    (svg('<rect width="1" height="1" xlink:href="#a"/>'), "with the attribute 'href' of <rect>"),
    (svg('<rect width="1" height="1" fill="url(http://example.org/#a)"/>'), "whose fill refers to something"),
    (svg('<rect width="1" height="1" style="fill:url(#a)"/>'), "whose fill refers to something"),
    (svg('<rect width="1" height="1" style="background:red"/>'), "with the attribute 'background' of <rect>"),
    (svg("<style>@import 'http://example.org/a.css';</style>"), "with <style>"),
    (svg("<foreignObject><body/></foreignObject>"), "with <foreignObject>"),
    (svg("<text>Ada</text>"), "with <text>: convert text to paths"),
    (svg('<rect width="1" height="1" opacity=".5"/>'), "with the attribute 'opacity'"),
    (svg('<rect width="1" height="1" filter="url(#a)"/>'), "with the attribute 'filter'"),
    (svg('<rect width="1" height="1" fill="rgba(1,2,3,.5)"/>'), "the colour"),
    (svg('<rect width="50%" height="1"/>'), "with the length '50%'"),
    (svg('<rect width="1" height="1" transform="perspective(3)"/>'), "with the transform"),
    (svg("words"), "with text between its elements"),
    (svg("", box=""), "without a size: give it a viewBox"),
    (svg("", box='viewBox="0 0 0 10"'), "without a size"),
    (svg("", before='<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>'), "with a document type or entities"),
    (svg("", before='<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'), "document type"),
    (svg("", before='<?xml-stylesheet href="http://example.org/a.css"?>'), "with a processing instruction"),
    (svg("<g>" * 60 + "</g>" * 60), "inside of each other: simplify it"),
    (svg('<path d="M0 0"/>' * 20_001), "with more than 20,000 elements"),
    (b"<html><body/></html>", "that begins with <html>"),
])
def test_an_svg_that_could_do_more_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DesignError, match=r"^certificate design: image 'logo' is an SVG ") as caught:
        drawn(content)
    assert message in str(caught.value)


@pytest.mark.parametrize("inside", ["<g>", '<path d="M0 0 L nonsense"/>', '<path d="M0"/>', '<polygon points="1"/>',
                                    '<rect width="1" height="1" stroke="red" stroke-linecap="odd"/>'])
def test_a_broken_svg_is_refused(inside: str) -> None:
    with pytest.raises(DesignError, match="image 'logo' is not a picture that can be read"):
        drawn(svg(inside))


# -- fonts -------------------------------------------------------------------------------------------------------------

BRAND = {**one_part(font="brand"), "fonts": {"brand": "fonts/brand.ttf"}}


def test_an_event_brings_its_own_font() -> None:
    pdf = drawn(FONT, BRAND, "தமிழ்")
    assert b"+Own-" in pdf
    assert text_of(pdf) == "தமிழ்"


def test_what_its_font_lacks_comes_from_another() -> None:
    assert text_of(drawn(FONT, BRAND, "தமிழ் Ольга")) == "தமிழ் Ольга"
    with pytest.raises(MissingGlyph, match="🎉"):
        drawn(FONT, BRAND, "🎉")


def restricted() -> bytes:
    """The same font with a licence that forbids embedding."""
    table = fonts.Face("x", fonts.uharfbuzz.Blob(FONT)).face.reference_table("OS/2").data
    at = FONT.index(bytes(table)) + 8
    return FONT[:at] + b"\0\x02" + FONT[at + 2:]


@pytest.mark.parametrize(("content", "message"), [
    (b"", "font 'fonts/brand.ttf' is no TrueType or OpenType font"), (b"wOF2" + bytes(100), "is no TrueType or OpenType font"),
    (png(4, 4), "is no TrueType or OpenType font"), (FONT[:300], "is no TrueType or OpenType font"),
    (bytes(30_000_001), "has 30,000,001 bytes: at most"), (restricted(), "forbids to embed it"),
])
def test_a_font_that_cannot_be_used_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DesignError, match=r"^certificate design: ") as caught:
        drawn(content, BRAND)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", [
    "https://example.org/a.png", "http://169.254.169.254/", "file:///etc/passwd", "//example.org/a", "/etc/passwd",
    "data:image/png;base64,AAAA", "a/../../b", "..\\a", "a//b", "javascript:alert(1)",
])
def test_an_address_is_no_key(key: str) -> None:
    for design, where in ((one_part(kind="image", key=key, x=1, y=1, width=9, height=9), "parts.0.key"),
                          ({**one_part(), "page": {"background": key}}, "page.background"),
                          ({**one_part(), "fonts": {"brand": key}}, "fonts.brand"),
                          (one_part(kind="signature", name="Ada", x=100, y=100, image=key), "parts.0.image")):
        with pytest.raises(DesignError, match=r"is an address: nothing is fetched|is no key of the storage") as caught:
            parse_design(design)
        assert str(caught.value).startswith(f"certificate design: {where}: ")


def test_only_shipped_pictures_are_shipped() -> None:
    with pytest.raises(DesignError, match=r"image 'shipped/other\.svg' is not in the storage"):
        drawn(b"", one_part(kind="image", key="shipped/other.svg", x=1, y=1, width=9, height=9))

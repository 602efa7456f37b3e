"""What a certificate is made of. Positions and lengths are millimetres from the page's upper left corner, type is in points."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = ["LEADING", "SIGNED", "Box", "Colour", "Frame", "Image", "Key", "Model", "Page", "Part", "Plain", "Qr", "Rule", "Seal",
           "Signature", "Text", "markup_in"]

PAGE_SIZES = {"A3": (297.0, 420.0), "A4": (210.0, 297.0), "A5": (148.0, 210.0), "Letter": (215.9, 279.4), "Legal": (215.9, 355.6)}
LEADING = 1.25  # distance of baselines, in sizes
SIGNED = 1.15  # width of a signer's name at most, in widths of the line above it
_POINT = 25.4 / 72  # millimetres
_MARKUP = re.compile(r"<[A-Za-z/!?][^<>]*>|&(?:#\d+|#[xX][0-9A-Fa-f]+|[A-Za-z]{2,8});")


def markup_in(text: str) -> str:
    """The first tag or entity of HTML in a text that should have none; empty when there is none."""
    found = _MARKUP.search(text)
    return found[0] if found else ""


def _plain(text: str) -> str:
    if markup := markup_in(text):
        raise ValueError(f"holds HTML ({markup[:40]}): write plain text, nothing else is read")
    for char in text:
        if (ord(char) < 32 and char not in "\t\n\r") or 0x7F <= ord(char) < 0xA0:
            raise ValueError(f"holds U+{ord(char):04X}, which is no printable character: remove it")
    return text


def _stored(key: str) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", key):
        raise ValueError(f"{key[:60]!r} is an address: nothing is fetched; put the file into the storage and write its key")
    if key.startswith("/") or "\\" in key or {"", ".", ".."} & set(key.split("/")):
        raise ValueError(f"{key[:60]!r} is no key of the storage: write folder/file, without . and ..")
    return key


Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$", description="#rrggbb")]
#: Text without markup and control characters.
Plain = Annotated[str, AfterValidator(_plain)]
#: Where a file lies in the storage; never an address.
Key = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_stored)]
Millimetres = Annotated[float, Field(ge=0, le=1000)]
Length = Annotated[float, Field(gt=0, le=1000)]
Point = tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=-20, le=60)]]
Stroke = Annotated[tuple[Point, ...], Field(min_length=2, max_length=200)]
Corners = tuple[float, float, float, float]


class Model(BaseModel):
    """A piece of a design: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Model):
    """The sheet: a usual size, or width and height. background: a picture or SVG that covers it, by its key in the storage."""

    size: Literal["A3", "A4", "A5", "Letter", "Legal"] = "A4"
    orientation: Literal["landscape", "portrait"] = "landscape"
    width: Annotated[float, Field(ge=50, le=1000)] | None = None
    height: Annotated[float, Field(ge=50, le=1000)] | None = None
    colour: Colour = "#fffdf6"
    background: Key | None = None

    @model_validator(mode="after")
    def _both(self) -> Page:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height belong together: give both, or a size")
        return self

    @property
    def millimetres(self) -> tuple[float, float]:
        """Width and height."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        short, long = PAGE_SIZES[self.size]
        return (long, short) if self.orientation == "landscape" else (short, long)


class _Part(Model):
    def box(self, page: Page) -> Corners:
        """Left, top, right and bottom of what it may cover, in millimetres."""
        raise NotImplementedError


class Text(_Part):
    """A line or paragraph. It shrinks to `min_size` to fit `max_width` and the page, then wraps into up to `max_lines` lines.

    y is a baseline: of the first or last line, or the middle of all of them. role: what a screen reader calls it.
    """

    kind: Literal["text"]
    text: Plain = Field(min_length=1, max_length=500)
    x: Millimetres
    y: Millimetres
    anchor: Literal["left", "centre", "right"] = "centre"
    baseline: Literal["first", "middle", "last"] = "middle"
    font: str = Field(default="serif", max_length=40)
    size: float = Field(gt=3, le=200)
    min_size: float = Field(default=8, gt=3, le=200)
    colour: Colour = "#1b2a41"
    max_width: float = Field(default=200, ge=5, le=1000)
    max_lines: int = Field(default=1, ge=1, le=12)
    tracking: float = Field(default=0, ge=0, le=20, description="extra space between letters, points")
    role: Literal["title", "recipient", "paragraph", "decoration"] | None = None

    def room(self, page: Page) -> float:
        """How wide the text may be here: max_width, less where the page ends."""
        left, right = self.x - self._overhang, page.millimetres[0] - self.x - self._overhang
        return max(0.0, min(self.max_width, {"left": right, "centre": 2 * min(left, right), "right": left}[self.anchor]))

    def rise(self, lines: int) -> float:
        """How far above y the first of so many baselines stands, in sizes."""
        return {"first": 0.0, "middle": (lines - 1) / 2, "last": lines - 1.0}[self.baseline] * LEADING

    @property
    def _overhang(self) -> float:
        """How far a letter may reach out of its own width, in millimetres."""
        return self.size * _POINT / 20

    def box(self, page: Page) -> Corners:
        width, size = self.room(page), self.size * _POINT
        left = self.x - {"left": 0.0, "centre": width / 2, "right": width}[self.anchor] - self._overhang
        above, lines = self.rise(self.max_lines), (self.max_lines - 1) * LEADING
        # Accents and Vietnamese or Thai stacks reach 1.1 above the baseline, descenders 0.35 below.
        return (left, self.y - (above + 1.1) * size, left + width + 2 * self._overhang,
                self.y + (lines - above + 0.35) * size)


class Rule(_Part):
    """A line, horizontal unless `vertical`; x and y are its middle."""

    kind: Literal["rule"]
    x: Millimetres
    y: Millimetres
    width: Length
    thickness: float = Field(default=0.3, gt=0, le=5)
    colour: Colour = "#b08d3c"
    diamond: bool = False
    vertical: bool = False

    def box(self, page: Page) -> Corners:
        half, none = self.width / 2, 0.0
        across, along = (none, half) if self.vertical else (half, none)
        return self.x - across, self.y - along, self.x + across, self.y + along


class Box(_Part):
    """A rectangle, filled, outlined or both; x and y are its upper left corner."""

    kind: Literal["box"]
    x: Millimetres
    y: Millimetres
    width: Length
    height: Length
    fill: Colour | None = None
    colour: Colour | None = None
    thickness: float = Field(default=0.3, gt=0, le=20)
    radius: float = Field(default=0, ge=0, le=200)

    @model_validator(mode="after")
    def _visible(self) -> Box:
        if self.fill is None and self.colour is None:
            raise ValueError("give it a fill, or a colour for its outline: it cannot be seen")
        return self

    def box(self, page: Page) -> Corners:
        return self.x, self.y, self.x + self.width, self.y + self.height


class Frame(_Part):
    """A border: engraved waves between two rules, plain double lines, or corner brackets."""

    kind: Literal["frame"]
    style: Literal["waves", "lines", "corners"] = "waves"
    margin: Millimetres = 9
    width: float = Field(default=7, ge=2, le=40)
    colour: Colour = "#1b2a41"
    accent: Colour = "#b08d3c"

    def box(self, page: Page) -> Corners:
        # What a frame needs is twice its own depth and some paper between.
        depth = 2 * (self.margin + self.width) + 20
        return 0.0, 0.0, depth, depth


class Seal(_Part):
    """A rosette with an emblem, on request with ribbons below."""

    kind: Literal["seal"]
    x: Millimetres
    y: Millimetres
    radius: Length = 15
    colour: Colour = "#b08d3c"
    paper: Colour = "#ffffff"
    ribbon: Colour | None = None
    alt: Plain = Field(default="", max_length=200)

    def box(self, page: Page) -> Corners:
        tails = self.radius * 1.9 if self.ribbon else self.radius
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + tails


class Signature(_Part):
    """A line to sign on with name and title below.

    What stands on the line: `image`, a picture by its key, or `strokes`, curves through points of a 100 × 40 box.
    """

    kind: Literal["signature"]
    name: Plain = Field(min_length=1, max_length=120)
    title: Plain = Field(default="", max_length=120)
    x: Millimetres
    y: Millimetres
    width: Length = 60
    strokes: Annotated[tuple[Stroke, ...], Field(max_length=50)] = ()
    image: Key | None = None
    colour: Colour = "#1b2a41"
    font: str = Field(default="serif", max_length=40)
    title_font: str = Field(default="italic", max_length=40)

    @model_validator(mode="after")
    def _once(self) -> Signature:
        if self.strokes and self.image:
            raise ValueError("give strokes or an image, not both")
        return self

    @property
    def above(self) -> float:
        """How far what is signed reaches above the line: a stroke 54 of 100."""
        return self.width * 0.8 * 0.54 if self.strokes else self.width * 0.35 if self.image else 0.0

    def box(self, page: Page) -> Corners:
        wide = self.width * SIGNED  # the names below may be a little wider than the line
        return self.x - wide / 2, self.y - self.above, self.x + wide / 2, self.y + 11


class Qr(_Part):
    """A QR code of a text, normally {verify_url}."""

    kind: Literal["qr"]
    text: Plain = Field(default="{verify_url}", min_length=1, max_length=500)
    x: Millimetres
    y: Millimetres
    size: float = Field(default=20, ge=8, le=200)
    colour: Colour = "#1b2a41"
    alt: Plain = Field(default="QR code: {verify_url}", max_length=500)

    def box(self, page: Page) -> Corners:
        return self.x - self.size / 2, self.y - self.size / 2, self.x + self.size / 2, self.y + self.size / 2


class Image(_Part):
    """A picture (PNG, JPEG, WebP or SVG) that lies in the storage under this key, as large as fits into width × height.

    anchor: which point of that box is x and y. Without alt it is decoration, and screen readers pass over it.
    """

    kind: Literal["image"]
    key: Key
    x: Millimetres
    y: Millimetres
    width: Length
    height: Length
    anchor: Literal["top-left", "top", "top-right", "left", "centre", "right",
                    "bottom-left", "bottom", "bottom-right"] = "top-left"
    alt: Plain = Field(default="", max_length=500)

    def box(self, page: Page) -> Corners:
        across = 0.0 if "left" in self.anchor else self.width if "right" in self.anchor else self.width / 2
        down = 0.0 if "top" in self.anchor else self.height if "bottom" in self.anchor else self.height / 2
        return self.x - across, self.y - down, self.x - across + self.width, self.y - down + self.height


Part = Annotated[Text | Rule | Box | Frame | Seal | Signature | Qr | Image, Field(discriminator="kind")]

"""Pictures as they stand in a PDF: checked, decoded and compressed once per process, then only copied.

Nothing is fetched: a picture is the bytes that the storage has under its key.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from tasks.certificates.errors import DesignError
from tasks.certificates.pdf import PdfFile, number, stream
from tasks.certificates.svg import drawing

__all__ = ["Picture", "picture", "vector"]

LARGEST = 8_000_000  # bytes; a page of 200 dots an inch has 1 million as JPEG
_MOST_PIXELS = 40_000_000  # A4 at 600 dots an inch has 35 million
_FORMATS = ("PNG", "JPEG", "WEBP")


class Picture(NamedTuple):
    """A picture ready to be written. width and height: pixels, or units of an SVG."""

    width: float
    height: float
    content: bytes
    mask: bytes | None  # of what can be seen through
    vector: bool = False  # drawn in its own units; all others are drawn one unit wide and high

    def write(self, file: PdfFile) -> str:
        """Into this file; answers with the object's name."""
        if self.mask is None:
            return file.add(self.content)
        mask = file.add(self.mask)
        return file.add(self.content.replace(b"/SMask 0 0 R", f"/SMask {mask}".encode(), 1))


@lru_cache(maxsize=64)
def picture(content: bytes, key: str) -> Picture:
    """The picture in these bytes. Raises DesignError naming its key when it is none, too large, or an SVG that may do more."""
    if len(content) > LARGEST:
        raise DesignError(f"certificate design: image {key!r} has {len(content):,} bytes: at most {LARGEST:,}")
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        svg = drawing(content, key)
        return vector(svg.operators, (0, 0, svg.width, svg.height))
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise DesignError(f"certificate design: image {key!r} has {opened.width} × {opened.height} pixels: "
                                  f"at most {_MOST_PIXELS // 1_000_000} million")
            opened.load()
            return _raster(opened, content)
    except DesignError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DesignError(f"certificate design: image {key!r} has too many pixels: "
                          f"at most {_MOST_PIXELS // 1_000_000} million") from error
    except UnidentifiedImageError as error:
        raise DesignError(f"certificate design: image {key!r} is not a picture that can be read: "
                          f"use {', '.join(_FORMATS)} or SVG") from error
    except Exception as error:  # whatever a decoder makes of broken data
        raise DesignError(f"certificate design: image {key!r} is not a picture that can be read ({error})") from error


def vector(operators: str, box: tuple[float, float, float, float]) -> Picture:
    """Operators as a picture that can be drawn again and again. box: left, bottom, right and top of what shows."""
    sides = " ".join(map(number, box))
    return Picture(box[2] - box[0], box[3] - box[1],
                   stream(operators.encode(), f"/Type/XObject/Subtype/Form/BBox[{sides}]/Resources<<>>"), None, vector=True)


def _raster(opened: Image.Image, content: bytes) -> Picture:
    size = f"/Type/XObject/Subtype/Image/Width {opened.width}/Height {opened.height}/BitsPerComponent 8"
    if opened.format == "JPEG" and opened.mode in ("RGB", "L"):
        # As it is: unpacked and deflated, a photograph has five times the size.
        space = "/DeviceRGB" if opened.mode == "RGB" else "/DeviceGray"
        written = stream(content, f"{size}/ColorSpace{space}/Filter/DCTDecode", deflate=False)
        return Picture(opened.width, opened.height, written, None)
    mask = None
    if opened.has_transparency_data:
        opened = opened.convert("RGBA")
        alpha = opened.getchannel("A")
        if alpha.getextrema() != (255, 255):
            mask = stream(alpha.tobytes(), f"{size}/ColorSpace/DeviceGray")
    grey = opened.mode in ("L", "1")
    pixels = opened.convert("L" if grey else "RGB").tobytes()
    entries = f"{size}/ColorSpace{'/DeviceGray' if grey else '/DeviceRGB'}{'/SMask 0 0 R' if mask else ''}"
    return Picture(opened.width, opened.height, stream(_deflated(pixels), f"{entries}/Filter/FlateDecode", deflate=False), mask)


def _deflated(pixels: bytes) -> bytes:
    return zlib.compress(pixels, 9)  # once per process: a tenth smaller than the default on flat colours

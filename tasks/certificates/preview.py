"""A picture of a certificate, for pages and posts where a PDF is no use."""

from __future__ import annotations

import io

from tasks.certificates.errors import CertificateError

__all__ = ["FORMATS", "picture_of"]

#: Content types by file ending.
FORMATS = {"webp": "image/webp", "png": "image/png"}
_WIDEST = 4000  # pixels


def picture_of(pdf: bytes, format: str = "webp", width: int = 1200) -> bytes:
    """The first page, `width` pixels wide. The same PDF gives the same picture. Raises CertificateError."""
    if format not in FORMATS:
        raise CertificateError(f"a preview cannot be {format!r}: there are {', '.join(FORMATS)}")
    if isinstance(width, bool) or not isinstance(width, int) or not 16 <= width <= _WIDEST:
        raise CertificateError(f"width={width!r} must be a whole number of pixels from 16 to {_WIDEST}")
    import pypdfium2  # 0.1 s, and only pictures need it

    document = pypdfium2.PdfDocument(pdf)
    try:
        page = document[0]
        image = page.render(scale=width / page.get_width()).to_pil().convert("RGB")
    finally:
        document.close()
    out = io.BytesIO()
    # method 4 of 6: 6 takes three times as long for a few per cent.
    options = {"quality": 88, "method": 4} if format == "webp" else {"optimize": False}
    image.save(out, format, **options)
    return out.getvalue()

"""Every name: drawn with real glyphs, and found again by two readers that share no code, PDFium and Poppler."""

from __future__ import annotations

import random
import unicodedata
from functools import cache

import pytest

from tasks.certificates.design import parse_design
from tasks.certificates.layout import lay_out, line_of
from tasks.certificates.samples import DESIGNS
from tests.support.certificates import ATTENDEES, NAMES, image_of, rendered, text_of
from tests.support.poppler import needs, poppler

POINTED = {"Hebrew": ("שָׁלוֹם", "שלום"), "Arabic": ("مُحَمَّد", "محمد"), "Persian": ("فاطِمَه", "فاطمه")}
RIGHT_TO_LEFT = {"Arabic", "Abdullah", "Persian", "Urdu", "Hebrew", "Latin and Arabic"}


def plain(text: str) -> str:
    """In one line, without joiners, which PDFium drops, and marks of direction, which Poppler puts around what it turns round."""
    return " ".join("".join(char for char in text if unicodedata.category(char) != "Cf").split())


@cache
def sheet(script: str) -> bytes:
    """The certificate of somebody whose name is in this script."""
    return rendered(NAMES[script])


@pytest.mark.parametrize("script", NAMES)
def test_a_reader_copies_and_finds_the_name(script: str) -> None:
    assert plain(NAMES[script]) in plain(text_of(sheet(script)))


@needs("pdftotext")
@pytest.mark.parametrize("script", NAMES)
def test_another_reader_does_too(script: str) -> None:
    assert plain(NAMES[script]) in plain(poppler("pdftotext", sheet(script)))


@pytest.mark.parametrize("script", POINTED)
def test_of_pointed_words_the_letters_are_found(script: str) -> None:
    pointed, letters = POINTED[script]
    pdf = rendered(pointed)
    assert letters in text_of(pdf)
    assert letters in plain(poppler("pdftotext", pdf))
    assert image_of(pdf).tobytes() != image_of(rendered(letters)).tobytes()


@needs("pdffonts")
@pytest.mark.parametrize("script", NAMES)
def test_every_font_is_embedded_as_a_subset_with_its_text(script: str) -> None:
    rows = poppler("pdffonts", sheet(script)).splitlines()[2:]
    assert len(rows) >= 4
    for row in rows:
        assert row.split()[-5:-2] == ["yes", "yes", "yes"], row  # embedded, subset, ToUnicode
        assert row[6] == "+"


@pytest.mark.parametrize("script", NAMES)
def test_every_letter_leaves_ink(script: str) -> None:
    """No glyph is missing from what was embedded: without any one of its letters the name looks different."""
    name = NAMES[script]
    shapes = [glyph for run in line_of(name, "serif", 20).runs for glyph in run.glyphs]
    assert 0 not in {glyph.number for glyph in shapes}  # .notdef, the empty box
    lacking = {char: name[:number] + name[number + 1:] for number, char in enumerate(name)
               if unicodedata.category(char)[0] == "L" and name.count(char) == 1}
    # One sheet with all of them, in strips of half an inch, which are 36 pixels.
    strips = {"page": {"width": 250, "height": 12.7 * max(4, 1 + len(lacking))}, "parts": [
        {"kind": "text", "text": text, "anchor": "left", "x": 10, "y": 12.7 * number + 8, "size": 20, "max_width": 230}
        for number, text in enumerate((name, *lacking.values()))]}
    page = image_of(rendered("", strips), 1).convert("L")
    whole, *others = (page.crop((0, top, page.width, top + 36)).tobytes() for top in range(0, page.height, 36))
    assert sum(value < 140 for value in whole) > 50
    assert [char for char, ink in zip(lacking, others, strict=False) if ink == whole] == []


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("script", ["Latin", "Vietnamese", "Arabic", "Hindi", "Bengali", "Tamil", "Thai", "Japanese", "Korean"])
def test_names_of_1_to_120_characters(script: str, design: str) -> None:
    alphabet = [char for char in NAMES[script] if unicodedata.category(char) == "Lo" or char.isalpha()]
    chance = random.Random(script)
    for length in (1, 120):
        letters = [chance.choice(alphabet) for _ in range(length)]
        letters[9:-1:9] = " " * len(letters[9:-1:9])
        name = "".join(letters)
        found = text_of(rendered(name, DESIGNS[design]))
        assert all(word in found for word in name.split()) or "".join(name.split()) in "".join(found.split())


def test_a_long_name_stays_legible() -> None:
    """120 characters in two lines are never smaller than this in the designs that come with the application."""
    for name in ("Maria Antónia " * 9)[:120].strip(), "山" * 120, "प्रिया " * 17, "ศรีสุดา" * 17:
        for design in DESIGNS.values():
            [part] = [part for part in design["parts"] if part.get("text") == "{recipient_name}"]
            lines = lay_out(name, part["font"], part["size"], max_width=part["max_width"] / 25.4 * 72, min_size=part["min_size"],
                            max_lines=part["max_lines"])
            assert lines[0].size > 7


# -- for screen readers ------------------------------------------------------------------------------------------------


@needs("pdfinfo")
@pytest.mark.parametrize("script", ["Latin", "Arabic"])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_structure_tells_what_is_what(design: str, script: str) -> None:
    pdf = rendered(NAMES[script], DESIGNS[design])
    assert "Tagged:          yes" in poppler("pdfinfo", pdf)
    told = poppler("pdfinfo", pdf, "-struct").splitlines()
    assert told[0] == "Document"
    kinds = [line.split()[0] for line in told[1:]]
    assert kinds.count("H1") == 1
    assert kinds.count("Figure") == {"classic": 3, "modern": 4, "diploma": 4}[design]
    assert set(kinds) == {"H1", "P", "Figure"}
    [title] = [part["text"] for part in DESIGNS[design]["parts"] if part.get("role") == "title"]
    texts = poppler("pdfinfo", pdf, "-struct-text").splitlines()
    [heading] = [number for number, line in enumerate(texts) if line.split()[0] == "H1"]
    assert texts[heading + 1].strip() == f'"{title}"'


def test_pictures_and_the_recipient_are_named() -> None:
    pdf = rendered("محمد", DESIGNS["diploma"])
    signed = "Signature of Dr. Amélie Laurent".encode("utf-16-be").hex().upper()
    for said in ("(Emblem of NORTHERN LIGHTS ACADEMY)", f"<FEFF{signed}>",
                 "(QR code: https://certificates.example.org/verify/AAAA-BBBB-CCCC)"):
        assert f"/Alt{said}".encode() in pdf
    name = "محمد".encode("utf-16-be").hex().upper()  # in the order in which it is read
    assert f"/T(Recipient)/ActualText<FEFF{name}>".encode() in pdf


@needs("pdfinfo")
def test_the_same_facts_stand_in_both_kinds_of_metadata() -> None:
    pdf = rendered("Zoë <& Co>", {**DESIGNS["classic"], "language": "pt-BR"})
    meta = poppler("pdfinfo", pdf, "-meta")
    for part in ("<rdf:li xml:lang=\"x-default\">Certificate of Completion</rdf:li>", "<rdf:li>NORTHERN LIGHTS ACADEMY</rdf:li>",
                 "PostgreSQL for Application Developers – Zoë &lt;&amp; Co&gt;", "<rdf:li>pt-BR</rdf:li>",
                 "<dc:identifier>AAAA-BBBB-CCCC</dc:identifier>"):
        assert part in meta
    assert "Keywords:        AAAA-BBBB-CCCC" in poppler("pdfinfo", pdf)
    assert b"/Lang (pt-BR)" in pdf
    assert b"/DisplayDocTitle true" in pdf


@pytest.mark.parametrize("design", DESIGNS)
def test_the_designs_that_come_with_it_are_whole(design: str) -> None:
    parsed = parse_design(DESIGNS[design])
    assert parsed.verify_url == ""  # theirs is the setting
    for name in ATTENDEES:
        assert name in text_of(rendered(name, DESIGNS[design]))


@pytest.mark.parametrize("char", ["\u200c", "\u200d"])
def test_joiners_show_nothing(char: str) -> None:
    """Some fonts have bars for them."""
    for name in ("گل", "پریسا", "प्रिया", "শ্রী", "ශ්‍රී", "Ada"):
        for run in line_of(f"{name}{char}", "serif", 20).runs:
            shown = [glyph for glyph in run.glyphs if glyph.cluster == len(name)]
            assert all(run.face.is_blank(glyph.number) and not glyph.advance for glyph in shown), run.face.name

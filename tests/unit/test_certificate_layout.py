"""Fonts and layout: every character has a glyph or an error, and every line has its place."""

from __future__ import annotations

import importlib.util
import random

import pytest

from celery_jobqueue.db.errors import FinalError
from tasks.certificates import fonts
from tasks.certificates.errors import MissingGlyph
from tasks.certificates.fonts import Fonts
from tasks.certificates.layout import Line, lay_out, line_of
from tests.support.certificates import ATTENDEES

LONG = next(name for name in ATTENDEES if name.startswith("Maria"))


def fitted(text: str, max_width: float, max_lines: int = 1, min_size: float = 20, size: float = 40) -> list[Line]:
    return lay_out(text, "display", size, max_width=max_width, min_size=min_size, max_lines=max_lines)


def said(line: Line) -> str:
    return "".join(run.text for run in line.runs)


def test_what_fits_keeps_its_size() -> None:
    [line] = fitted("Ada", 500)
    assert line.size == 40
    assert 50 < line.width < 100


def test_what_does_not_fit_shrinks() -> None:
    [line] = fitted("José María Ñúñez de la Peña", 300)
    assert 20 < line.size < 40
    assert 299 < line.width <= 300


def test_what_would_be_too_small_wraps_in_balance() -> None:
    lines = fitted(LONG, 500, max_lines=2)
    assert " ".join(map(said, lines)) == LONG
    assert len(lines) == 2
    assert lines[0].size == lines[1].size >= 20
    shorter, longer = sorted(line.width for line in lines)
    assert shorter > 0.7 * longer
    assert longer <= 500


def test_a_name_is_never_cut_however_long_it_is() -> None:
    [line] = fitted("W" * 120, 300, max_lines=3)
    assert said(line) == "W" * 120
    assert line.size < 20
    assert line.width <= 300


def test_nothing_is_wider_than_it_may_be() -> None:
    chance = random.Random(7)
    for _ in range(150):
        text = " ".join(chance.choice(ATTENDEES) for _ in range(chance.randint(1, 3)))
        room, most = chance.uniform(20, 600), chance.randint(1, 4)
        lines = lay_out(text, chance.choice(["display", "serif", "italic", "sans"]), chance.uniform(8, 80), max_width=room,
                        min_size=chance.uniform(4, 30), max_lines=most, tracking=chance.choice([0, 3]))
        assert len(lines) <= most
        assert max(line.width for line in lines) <= room
        assert " ".join(map(said, lines)).count(" ") == text.count(" ")


@pytest.mark.parametrize(("name", "breaks"), [
    ("山田" * 40, ["山田" * 20] * 2),  # anywhere between characters
    ("山田太郎（東京）" * 8, ["山田太郎（東京）" * 4] * 2),  # but not before a closing bracket
    ("ก้" * 60, ["ก้" * 30] * 2),  # a word too long for a line: between letters, never before a mark
])
def test_what_has_no_spaces_wraps_all_the_same(name: str, breaks: list[str]) -> None:
    assert [said(line) for line in fitted(name, 400, max_lines=2)] == breaks


def test_korean_wraps_between_words() -> None:
    assert [said(line) for line in fitted("대한민국 " * 11 + "대한민국", 640, max_lines=2)] == [("대한민국 " * 6).strip()] * 2


def test_space_between_letters_counts() -> None:
    plain, tracked = line_of("ABC", "sans", 10), line_of("ABC", "sans", 10, 5)
    assert tracked.width == pytest.approx(plain.width + 10)


@pytest.mark.parametrize(("text", "font"), [
    ("Zoë ễ Łukasz", "NotoSerifDisplay"), ("Αλεξάνδρα", "NotoSerifDisplay"), ("Ольга", "NotoSerifDisplay"),
    ("محمد", "NotoNaskhArabic"), ("אברהם", "NotoSerifHebrew"), ("प्रिया", "NotoSerifDevanagari"), ("สมชาย", "NotoSerifThai"),
    ("শ্রী", "NotoSerifBengali"), ("தமிழ்", "NotoSerifTamil"), ("山田", "NotoSerifSC"), ("山田ゆき", "NotoSerifJP"),
    ("김민준", "NotoSerifKR"), ("王小明ㄅ", "NotoSerifTC"), ("გიორგი", "NotoSansGeorgian"), ("Հայկ", "NotoSansArmenian"),
    ("ગુજરાતી", "NotoSansGujarati"), ("ਪੰਜਾਬੀ", "NotoSansGurmukhi"), ("తెలుగు", "NotoSansTelugu"), ("ಕನ್ನಡ", "NotoSansKannada"),
    ("മലയാളം", "NotoSansMalayalam"), ("සිංහල", "NotoSansSinhala"), ("សុខ", "NotoSansKhmer"), ("ລາວ", "NotoSansLao"),
    ("ကျော်", "NotoSansMyanmar"), ("አበበ", "NotoSansEthiopic"), ("ଓଡ଼ିଆ", "NotoSansOriya"),
])
def test_every_script_has_its_font(text: str, font: str) -> None:
    runs = line_of(text, "display", 20, fonts=Fonts().for_text(text)).runs
    assert {run.face.name.removesuffix("-Regular") for run in runs} == {font}


@pytest.mark.parametrize(("language", "font"), [
    ("en", "SC"), ("zh", "SC"), ("zh-Hans", "SC"), ("zh-TW", "TC"), ("zh-hant-HK", "TC"), ("ja", "JP"), ("ja-JP", "JP"),
    ("ko", "KR"),
])
def test_chinese_characters_have_the_shapes_of_the_designs_language(language: str, font: str) -> None:
    own = Fonts.of(language, {})
    assert own.face_for("直", "serif").name == f"NotoSerif{font}-Regular"
    assert own.face_for("直", "sans").name == f"NotoSans{font}-Regular"


def test_what_one_regions_font_lacks_another_has() -> None:
    assert Fonts("jp").face_for("김", "serif").name == "NotoSerifKR-Regular"


def test_a_script_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    absent = ("pylopdf", "manimgx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith(absent) else find(name))
    fonts._packaged.cache_clear()
    fonts._fallback.cache_clear()
    try:
        with pytest.raises(MissingGlyph, match=r"'山' \(U\+5C71\): .* pip install pylopdf-fonts-zh-cn .* manimgx-fonts$"):
            line_of("山", "display", 21)
    finally:
        fonts._packaged.cache_clear()
        fonts._fallback.cache_clear()

def test_two_scripts_in_one_line() -> None:
    runs = line_of("Priya प्रिया", "italic", 20).runs
    assert [(run.face.name.partition("-")[0], run.text) for run in runs] == [
        ("NotoSerif", "Priya "), ("NotoSerifDevanagari", "प्रिया")]


def test_a_mark_stays_with_its_letter() -> None:
    [run] = line_of("ש\u05c1\u05b8לום", "display", 20).runs  # pointed Hebrew; the points are in other fonts too
    assert run.face.name.startswith("NotoSerifHebrew")


@pytest.mark.parametrize(("char", "code"), [("🎉", "U+1F389"), ("\u0f40", "U+0F40"), ("\x07", "U+0007")])
def test_a_character_that_no_font_has_is_named(char: str, code: str) -> None:
    with pytest.raises(MissingGlyph, match=rf"^no font has the character .* \({code.replace('+', '[+]')}\)") as caught:
        line_of(f"Ada {char}", "display", 20)
    assert repr(char) in str(caught.value)
    assert isinstance(caught.value, FinalError)


def test_letters_join_and_conjoin() -> None:
    assert len(line_of("श्री", "serif", 20).runs[0].glyphs) < len("श्री")
    [run] = line_of("محمد", "serif", 20).runs
    alone = {run.face.glyph_of(char) for char in "محمد"}
    assert not {glyph.number for glyph in run.glyphs} & alone  # no letter keeps the form it has alone


def test_joiners_decide_whether_letters_join() -> None:
    """Persian writes them; the bidirectional algorithm would drop them."""
    [joined], [apart] = line_of("میخواهم", "serif", 20).runs, line_of("می\u200cخواهم", "serif", 20).runs
    assert [glyph.number for glyph in joined.glyphs] != [glyph.number for glyph in apart.glyphs if glyph.advance]
    assert apart.text == "می\u200cخواهم"


def test_right_to_left_is_drawn_from_the_right() -> None:
    [run] = line_of("אבג", "serif", 20).runs
    assert [glyph.number for glyph in run.glyphs] == [run.face.glyph_of(char) for char in "גבא"]


def test_directions_mix() -> None:
    runs = [run.text.strip() for run in line_of("Dr. דוד בן PhD", "serif", 20).runs if run.text.strip()]
    assert runs == ["Dr.", "דוד בן", "PhD"]
    # A number within Arabic keeps its direction, and stands to the left of the word it follows.
    runs = [run.text.strip() for run in line_of("محمد 2026", "serif", 20).runs if run.text.strip()]
    assert runs == ["2026", "محمد"]


def test_a_style_that_has_the_character_is_preferred() -> None:
    assert Fonts().face_for("a", "italic").name == "NotoSerif-Italic"
    assert Fonts().face_for("a", "sans").name == "NotoSans-Regular"

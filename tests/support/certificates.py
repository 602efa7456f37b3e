"""Certificates for tests: rendered in this process, looked at with PDFium as a reader would."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pypdfium2

from tasks.certificates.design import parse_design
from tasks.certificates.render import render
from tasks.certificates.samples import CLASSIC

__all__ = ["ATTENDEES", "NAMES", "VALUES", "classic", "image_of", "one_part", "rendered", "text_of"]

_DATA = Path(__file__).parents[1] / "data"

with (_DATA / "attendees.csv").open(encoding="utf-8") as _file:
    #: The demo's names.
    ATTENDEES = [row["recipient_name"] for row in csv.DictReader(_file)]

#: A name in every script, some of them hard.
NAMES = {
    "Latin": "Þórdís Ærøskøbing", "Vietnamese": "Nguyễn Thị Hồng Hạnh", "Polish": "Grzegorz Brzęczyszczykiewicz",
    "Turkish": "İpek Şimşek-Ağaoğlu", "Czech": "Jiří Třebíčský", "Romanian": "Ștefan Țuțea", "Yoruba": "Ọláolúwa Adébáyọ̀",
    "Lithuanian": "Žydrūnė Šiūkštaitė", "Apostrophes": "Siobhán O’Neill-D'Angelo", "Ligatures": "Sofía Offenbach-Fjeldsted",
    "Greek": "Αλέξανδρος Παπαδόπουλος", "Polytonic": "Ἀριστοτέλης ᾨδή", "Russian": "Ольга Щербакова",
    "Ukrainian": "Ґалаґан Їжак Є.",
    "Serbian": "Ђорђе Љубишић", "Kazakh": "Әйгерім Құрманғалиева",
    "Arabic": "محمد عبد الرحمن الفارسي", "Abdullah": "عبد الله الأحمد", "Persian": "پریسا گل‌محمدی", "Urdu": "ڈاکٹر ٹیپو چوہدری",
    "Hebrew": "אברהם בן־דוד",
    "Hindi": "प्रिया श्रीवास्तव", "Sanskrit": "क्षत्रिय ज्ञानेश्वर", "Nepali": "ङ्वाङ लामा", "Bengali": "শ্রীময়ী চট্টোপাধ্যায়",
    "Tamil": "தமிழ்ச்செல்வி கோபாலகிருஷ்ணன்", "Thai": "ศรีสุดา ญู่ที่ผู้", "Gujarati": "શ્રેયા પટેલ", "Punjabi": "ਗੁਰਪ੍ਰੀਤ ਸਿੰਘ",
    "Telugu": "శ్రీనివాస్ రెడ్డి", "Kannada": "ಶ್ರೀಕಾಂತ್ ಹೆಗಡೆ", "Malayalam": "ശ്രീജിത്ത് നായർ", "Odia": "ସୁବ୍ରତ ମିଶ୍ର",
    "Sinhala": "මහින්ද රාජපක්ෂ", "Khmer": "សុខ ស្រីមុំ", "Lao": "ສົມໄຊ ພົມມະຈັນ", "Burmese": "ကျော်စွာ အောင်",
    "Georgian": "გიორგი ჭავჭავაძე",
    "Armenian": "Հովհաննես Թումանյան", "Amharic": "አበበ ቢቂላ",
    "Chinese": "王小明", "Traditional": "龔詠儀", "Japanese": "山田 太郎", "Kana": "さとう・アンジェリカ",
    "Korean": "김민준", "Rare": "䶮𠮷",
    "Two scripts": "Priya प्रिया", "Latin and Chinese": "Jackie 陳港生", "Latin and Arabic": "Leila ليلى", "A digit": "Иван 2-й",
}

#: What a certificate says, less its recipient.
VALUES = {
    "event_name": "PostgreSQL for Application Developers", "event_dates": "16–20 November 2026", "event_place": "Lisbon",
    "organiser": "NORTHERN LIGHTS ACADEMY", "issued_on": "24 November 2026", "expires_on": "", "serial": "AAAA-BBBB-CCCC",
    "verify_url": "https://certificates.example.org/verify/AAAA-BBBB-CCCC",
}


def classic(**changes: Any) -> dict[str, Any]:
    """The sample design, with other fields."""
    return {**copy.deepcopy(CLASSIC), **changes}


def one_part(page: dict[str, Any] | None = None, **part: Any) -> dict[str, Any]:
    """A design with this part only; a text unless it says otherwise."""
    whole = {"kind": "text", "text": "{recipient_name}", "x": 148.5, "y": 100, "size": 30, **part}
    if whole["kind"] != "text":
        whole = {key: value for key, value in whole.items() if key not in ("text", "size") or key in part}
    return {"parts": [whole], **({"page": page} if page else {})}


def rendered(name: str, design: dict[str, Any] | None = None, **values: str) -> bytes:
    """The PDF of this recipient."""
    return render(parse_design(design or CLASSIC), {**VALUES, "recipient_name": name, **values})


def text_of(pdf: bytes) -> str:
    """What a reader copies from the only page, in one line."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        assert len(document) == 1
        page = document[0].get_textpage()
        return " ".join(page.get_text_bounded().split())
    finally:
        document.close()


def image_of(pdf: bytes, scale: float = 2.0) -> Any:
    """The only page as a picture."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        return document[0].render(scale=scale).to_pil().convert("RGB")
    finally:
        document.close()

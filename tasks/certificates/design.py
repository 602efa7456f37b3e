"""An event's certificate design, as it stands in the database: validated before anything is drawn."""

from __future__ import annotations

import string
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tasks.certificates.errors import DesignError
from tasks.certificates.expiry import day_in, duration_in
from tasks.certificates.fonts import STYLES
from tasks.certificates.parts import Image, Key, Model, Page, Part, Plain, Qr, Seal, Signature, Text

__all__ = ["PLACEHOLDERS", "Design", "fill", "parse_design"]

#: What every design may use; an event adds its own with `fields`.
PLACEHOLDERS = ("recipient_name", "event_name", "event_dates", "event_place", "organiser", "issued_on", "expires_on", "serial",
                "verify_url")

#: The fields of each kind of part that may hold placeholders.
_FILLED = {Text: ("text",), Qr: ("text", "alt"), Signature: ("name", "title"), Image: ("alt",), Seal: ("alt",)}
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Design(Model):
    """A whole design. `fields` are the event's own placeholders with their values, `fonts` its own fonts with their keys.

    valid_for (`2 years`) or expires_on: until when its certificates are valid, if not for ever.
    """

    title: Plain = Field(default="Certificate", min_length=1, max_length=200)
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")
    page: Page = Page()
    fields: dict[_Name, Annotated[Plain, Field(max_length=500)]] = Field(default={}, max_length=50)
    fonts: dict[_Name, Key] = Field(default={}, max_length=10)
    valid_for: Annotated[str, BeforeValidator(duration_in)] | None = None
    expires_on: Annotated[date, BeforeValidator(day_in)] | None = None
    verify_url: str = Field(default="", max_length=300, pattern=r"^(https?://\S+)?$")
    parts: tuple[Part, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _consistent(self) -> Design:
        for given, taken in (("fields", PLACEHOLDERS), ("fonts", STYLES)):
            for name in getattr(self, given):
                if name in taken:
                    raise ValueError(f"{given}.{name}: this name is built in; choose another one")
        if self.valid_for and self.expires_on:
            raise ValueError("valid_for and expires_on: say one of the two")
        self._check_placeholders("title", self.title)
        self._check_placeholders("verify_url", self.verify_url, without="verify_url")
        for number, part in enumerate(self.parts):
            for field in _FILLED.get(type(part), ()):
                self._check_placeholders(f"parts.{number}.{field}", getattr(part, field))
            for field in ("font", "title_font"):
                self._check_font(f"parts.{number}.{field}", getattr(part, field, None))
            self._check_inside(f"parts.{number}", part)
        return self

    def _check_font(self, where: str, name: str | None) -> None:
        known = {*STYLES, *self.fonts}
        if name is not None and name not in known:
            raise ValueError(f"{where}: unknown font {name!r}; there are: {', '.join(sorted(known))}")

    def _check_placeholders(self, where: str, text: str, without: str = "") -> None:
        known = {*PLACEHOLDERS, *self.fields} - {without}
        try:
            found = [entry for entry in string.Formatter().parse(text) if entry[1] is not None]
        except ValueError as error:
            raise ValueError(f"{where}: {error}; write {{{{ or }}}} for a brace") from error
        for _, name, form, conversion in found:
            if name not in known:
                raise ValueError(f"{where}: unknown placeholder {{{name}}}; there are: {', '.join(sorted(known))}")
            if form or conversion:
                raise ValueError(f"{where}: write {{{name}}} without a format or conversion")

    def _check_inside(self, where: str, part: Part) -> None:
        width, height = self.page.millimetres
        if isinstance(part, Text) and part.x <= width and (room := part.room(self.page)) < 5:
            raise ValueError(f"{where}.x: leaves {room:.1f} mm for the text, 5 are the least: move it, or change its anchor")
        left, top, right, bottom = part.box(self.page)
        for beyond, side in ((-left, "left"), (-top, "top"), (right - width, "right"), (bottom - height, "bottom")):
            if beyond > 0.01:
                raise ValueError(f"{where}: reaches {beyond:.1f} mm beyond the {side} of the page ({width:g} × {height:g} mm)")


def parse_design(raw: Mapping[str, Any]) -> Design:
    """The design in this JSON object. Raises DesignError naming the first field that is wrong and how to mend it."""
    try:
        return Design.model_validate(raw)
    except ValidationError as error:
        every = error.errors(include_url=False)
        # An item that is wrong is missing from its list afterwards, which pydantic counts as a second error.
        inside = {entry["loc"][:depth] for entry in every for depth in range(len(entry["loc"]))}
        found = [entry for entry in every if entry["type"] != "too_short" or entry["loc"] not in inside]
        first = found[0]
        steps = [str(step) for step in first["loc"] if step != "[key]"]
        if steps[:1] == ["parts"] and len(steps) > 3:
            del steps[2]  # pydantic names the kind of the part here, which is no field
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "union_tag_not_found":
            message = "kind is missing: say what to draw"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DesignError(": ".join(filter(None, ("certificate design", ".".join(steps), message))) + more) from error


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its placeholders replaced; values are taken literally, whatever they contain."""
    return "".join(
        literal + (values[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(text))

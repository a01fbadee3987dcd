"""HTML from values: what is not markup already is escaped, so that no value can be forgotten. And numbers, sizes, times as people read them.

tag("td", "<script>")   ->   <td>&lt;script&gt;</td>
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EMPTY = frozenset(("meta", "rect", "path", "line", "br"))
"""Elements without content, as they are used here."""


class Html(str):
    """Text that is markup already: `tag` takes it as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as text of a page: escaped, and what cannot be printed (control characters, marks that turn the writing direction) spelled out."""
    plain = str(value)
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)
    return Html(html.escape(plain))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children that are no Html are escaped, None is left out; `class_` and `aria_label` are `class` and `aria-label`."""
    given = "".join(f' {_attribute(key)}="{text(value)}"' for key, value in attributes.items() if value is not None)
    if name in _EMPTY and not children:
        return Html(f"<{name}{given}>") if name in ("meta", "br") else Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Html:
    """All of them, one after the other."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children if child is not None))


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def cut(value: object, most: int) -> str:
    """The first `most` characters, with an ellipsis where there are more."""
    plain = str(value)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def cut_front(value: object, most: int) -> str:
    """The last `most` characters: of a path, those that tell files apart."""
    plain = str(value)
    return plain if len(plain) <= most else "…" + plain[len(plain) - most + 1 :]


# ------------------------------------------------------------------------------------------------------------------ words


def number(value: float) -> str:
    """With thousands separators: `336,776`."""
    return f"{value:,.0f}"


def counted(rows: int, word: str, many: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{rows:,} {word if rows == 1 else many or word + 's'}"


def share(part: float, whole: float) -> str:
    """Part of a whole in percent; 0 % and 100 % are exact, what is merely close says so.

    >>> share(36, 336_776), share(1, 10_000_000), share(9_999_999, 10_000_000), share(0, 5)
    ('0.011 %', '< 0.001 %', '> 99.99 %', '0 %')
    """
    if not whole:
        return "–"
    percent = 100 * part / whole
    if percent in (0, 100):
        return f"{percent:.0f} %"
    if 0 < percent < 0.001:
        return "< 0.001 %"
    if 99.99 < percent < 100:
        return "> 99.99 %"
    return f"{percent:.3f} %" if abs(percent) < 0.1 else f"{percent:.2f} %" if not 1 <= abs(percent) <= 99 else f"{percent:.1f} %"


def size(value: int) -> str:
    """Bytes: `14.7 MB`."""
    scaled, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while scaled >= 999.95 and len(units) > 1:
        scaled /= 1000
        units.pop(0)
    return f"{scaled:,.0f} B" if units[0] == "B" else f"{scaled:,.1f} {units[0]}"


def duration(seconds: float) -> str:
    """The two largest units of a span: `250 ms`, `9 s`, `3 min 5 s`, `4,715 d 1 h`; negative with a minus sign."""
    sign, s = ("−" if seconds < 0 else ""), abs(seconds)
    if s < 1:
        return f"{sign}{s * 1000:.0f} ms" if s else "0 s"
    if s < 59.95:
        return f"{sign}{s:.1f} s" if s % 1 else f"{sign}{s:.0f} s"
    whole = round(s)
    for unit, many, below, few in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= many:
            rest = whole % many // few
            return f"{sign}{whole // many:,} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{sign}{whole} s"


def instant(micros: int, *, seconds: bool = True) -> str:
    """Microseconds since 1970 as a time in UTC; years that Python does not know as their number."""
    try:
        at = _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return f"{micros:,} µs since 1970"
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if seconds else f"{at:%Y-%m-%d %H:%M}"


def micros_of(iso: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 text; None where it is none."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return None
    return (at.replace(tzinfo=at.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


def moment(iso: str) -> str:
    """An ISO 8601 text as the page writes times; as it stands where it is none."""
    at = micros_of(iso)
    return iso if at is None else instant(at)

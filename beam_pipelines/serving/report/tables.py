"""Tables of the page. On a phone each row is a card: every cell says its column."""

from __future__ import annotations

from collections.abc import Sequence

from beam_pipelines.serving.report.markup import Html, tag


def table(
    names: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    grow: str | None = None,
    here: int = -1,
    class_: str = "",
) -> Html:
    """A table of texts or markup; `right` names columns of numbers, `grow` the one that takes the room left, `here` marks one row.

    Columns in which every row is empty are left out.
    """
    full = [i for i in range(len(names)) if any(row[i] != "" for row in rows)]
    names, rows = [names[i] for i in full], [[row[i] for i in full] for row in rows]

    def kind(name: str) -> str | None:
        return "n" if name in right else "grow" if name == grow else None

    head = tag("thead", tag("tr", *(tag("th", name, scope="col", class_=kind(name)) for name in names)))
    body = [
        tag("tr", *(_cell(name, value, kind(name)) for name, value in zip(names, row, strict=True)), class_="here" if i == here else None)
        for i, row in enumerate(rows)
    ]
    return tag("div", tag("table", head, tag("tbody", *body), class_=f"cards {class_}".strip()), class_="scroll")


def _cell(name: str, value: object, class_: str | None) -> Html:
    return tag("td", value, class_=class_, data_label=name or None)


def section(id_: str, title: str, *content: object) -> Html:
    """A part of the page that the navigation can name."""
    return tag("section", tag("h2", title), *content, id=id_)


def note(*said: object) -> Html:
    """A sentence that explains."""
    return tag("p", *said, class_="soft small")


def badge(word: str, tone: str) -> Html:
    """A word in its color."""
    return tag("span", word, class_=f"badge {tone}")


def facts(pairs: Sequence[tuple[str, object]]) -> Html:
    """Names and values; those without a value are left out."""
    return tag(
        "dl", *(tag(t, v) for name, value in pairs if value not in ("", None) for t, v in (("dt", name), ("dd", value))), class_="facts"
    )


def rest(all_: int, shown: int, word: str) -> Html | None:
    """What the page leaves out."""
    return note(f"… and {all_ - shown:,} more {word}.") if all_ > shown else None

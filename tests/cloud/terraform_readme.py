"""The tables of variables and outputs in terraform/README.md and docs/terraform.md, written from the .tf files.

    python -m tests.cloud.terraform_readme           # writes them; test_terraform.py fails where they are not current

It reads what `terraform fmt` has formatted: a block ends with `}` at the beginning of a line. terraform-docs does more and is one more tool to install.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = (ROOT / "terraform" / "README.md", ROOT / "docs" / "terraform.md")
TABLES = re.compile(r"<!-- (?P<what>variables|outputs): .*?-->\n.*?<!-- end of \1 -->", re.DOTALL)
_BLOCK = re.compile(
    r'^(?P<kind>variable|output) "(?P<name>\w+)" \{\n(?P<body>.*?)^\}$|^# ── (?P<section>.*?) ─+$', re.MULTILINE | re.DOTALL
)
_FIELD = re.compile(r"^ +(?P<name>\w+) += (?:optional\((?P<type>.+?)(?:, (?P<default>[^()]+|\{\}))?\)|(?P<needed>.+))$", re.MULTILINE)


@dataclass(frozen=True)
class Variable:
    """One variable: `fields` are those of an object, with their defaults."""

    section: str
    name: str
    description: str
    type: str
    default: str | None
    fields: tuple[tuple[str, str], ...] = ()


def variables_of(text: str) -> Iterator[Variable]:
    section = ""
    for block in _BLOCK.finditer(text):
        if block["section"]:
            section = block["section"]
        elif block["kind"] == "variable":
            yield _variable(section, block["name"], block["body"])


def outputs_of(text: str) -> Iterator[tuple[str, str]]:
    for block in _BLOCK.finditer(text):
        if block["kind"] == "output":
            yield block["name"], _argument(block["body"], "description").strip('"')


def _variable(section: str, name: str, body: str) -> Variable:
    kind, default = _argument(body, "type"), _argument(body, "default")
    fields = tuple(
        (f["name"], f"`{f['default']}`" if f["default"] else "none" if f["type"] else "needed")
        for f in _FIELD.finditer(kind)
        if "\n" in kind
    )
    return Variable(section, name, _argument(body, "description").strip('"').replace('\\"', '"'), kind, default or None, fields)


def _argument(body: str, name: str) -> str:
    """What stands behind `name =`, with the lines below that are indented or close it; empty if it is not there."""
    found = re.search(rf"^  {name} += (.*\n(?:(?:    .*|  [)}}\]]+.*)\n)*)", body, re.MULTILINE)
    return found[1].rstrip() if found else ""


def variables_table(text: str) -> str:
    """Markdown, a table per section."""
    lines: list[str] = []
    section = None
    for variable in variables_of(text):
        if variable.section != section:
            section = variable.section
            lines += [
                "",
                f"**{section[:1].upper()}{section[1:]}**",
                "",
                "| variable | what it says | type | default |",
                "|---|---|---|---|",
            ]
        lines.append(f"| `{variable.name}` | {_described(variable)} | {_short(variable.type)} | {_default(variable)} |")
    return "\n".join(lines[1:])


def _described(variable: Variable) -> str:
    of_fields = ", ".join(f"`{name}` {default}" for name, default in variable.fields)
    return f"{variable.description} Fields: {of_fields}." if of_fields else variable.description


def _short(kind: str) -> str:
    if "\n" not in kind:
        return kind.replace("(", " of ").replace(")", "")
    return "map of objects" if kind.startswith("map(") else "object"


def _default(variable: Variable) -> str:
    return "**needed**" if variable.default is None else f"`{variable.default}`"


def outputs_table(text: str) -> str:
    return "\n".join(["| output | what it says |", "|---|---|", *(f"| `{name}` | {said} |" for name, said in outputs_of(text))])


def current(page: str, folder: Path = ROOT / "terraform") -> str:
    """The page with its tables as they must be."""
    tables = {
        "variables": variables_table((folder / "variables.tf").read_text("utf-8")),
        "outputs": outputs_table((folder / "outputs.tf").read_text("utf-8")),
    }

    def written(found: re.Match[str]) -> str:
        what = found["what"]
        return f"<!-- {what}: written by `python -m tests.cloud.terraform_readme` -->\n\n{tables[what]}\n\n<!-- end of {what} -->"

    return TABLES.sub(written, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(current(path.read_text("utf-8")), "utf-8")

"""YAML 1.2 text as plain values and the place of every one of them.

Sequences become tuples, mappings dicts with text keys, dates stay text. Duplicate keys, tags, recursive aliases and texts that expand
beyond a limit are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from beam_pipelines.spec.problems import Path, Problem, SpecErrors, show_path

MAX_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 60
_TAG = "tag:yaml.org,2002:"
Node = Any  # a node of ruamel.yaml, which declares `style` and `id` in subclasses only


class Place(NamedTuple):
    """A node and the file it stands in."""

    file: str
    text: str
    node: Node


@dataclass
class Document:
    """A YAML file's value as `value`, and where each part of it stands. `problems` collects what is wrong with it; `doubtful` the names
    that a wrong part may have meant, of which nothing more can be said; `vague` the kinds of names (columns, checks) where these are not known.
    """

    file: str
    text: str
    value: Any = None
    problems: list[Problem] = field(default_factory=list)
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    vague: set[str] = field(default_factory=set)

    def problem(self, path: Path, message: str, *, key: bool = False, offset: int | None = None, about: Path | None = None) -> None:
        """Adds a problem at the value at `path` (or its key), or at the character `offset` inside that text; `about` is the path shown."""
        file, line, column, exact = self.position(path, key=key, offset=offset)
        inside = "" if offset is None or exact else f"at character {offset + 1}: "
        self.problems.append(Problem(file, line, column, show_path(path if about is None else about), inside + message))

    def position(self, path: Path, *, key: bool = False, offset: int | None = None) -> tuple[str, int, int, bool]:
        """File, line and column of the value at `path`, or of the nearest thing around it, and whether `offset` could be followed."""
        place = self.place(path, key=key)
        if place is None:
            return self.file, 1, 1, False
        mark = place.node.start_mark
        exact = offset is not None and _verbatim(place, path, self.values)
        shift = (offset or 0) + (place.node.style is not None) if exact else 0
        return place.file, mark.line + 1, mark.column + 1 + shift, exact

    def place(self, path: Path, *, key: bool = False) -> Place | None:
        for length in range(len(path), -1, -1):
            known = path[:length]
            at_key = self.keys.get(known)
            found = self.values.get(known)
            if at_key is not None and (key or found is None or _empty(found)):
                return at_key
            if found is not None:
                return found
        return None

    def source(self, path: Path) -> str | None:
        """The scalar at `path` as it is written, without quotes."""
        place = self.values.get(path)
        return place.node.value if place is not None and isinstance(place.node.value, str) else None

    def graft(self, at: Path, other: Document) -> None:
        """Puts the value of `other` at the path `at`."""
        parent = self.value
        for step in at[:-1]:
            parent = parent[step]
        parent[at[-1]] = other.value
        for mine, theirs in ((self.values, other.values), (self.keys, other.keys)):
            for known in [p for p in mine if p[: len(at)] == at and len(p) > len(at)]:
                del mine[known]
            mine.update({at + p: place for p, place in theirs.items()})
        self.problems += other.problems

    def fail(self) -> None:
        """Raises SpecErrors if there are problems."""
        if self.problems:
            raise SpecErrors(self.problems)


def read_document(text: str | bytes, *, file: str) -> Document:
    """The YAML `text` of `file`. Raises SpecErrors where it is no YAML at all or too large; lesser problems are collected."""
    decoded = _decoded(text, file)
    document = Document(file, decoded)
    root = _compose(decoded, file)
    if root is None:
        raise SpecErrors([Problem(file, 1, 1, "", "the file is empty; expected a mapping, key: value")])
    document.value = _Reader(document).plain(root, ())
    return document


def _decoded(text: str | bytes, file: str) -> str:
    if len(text) > MAX_BYTES:
        raise SpecErrors([Problem(file, 1, 1, "", f"the file has {len(text)} bytes; at most {MAX_BYTES} are read")])
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        column = error.start - text.rfind(b"\n", 0, error.start)
        raise SpecErrors([Problem(file, line, column, "", f"byte {text[error.start]:#04x} is not UTF-8; save the file as UTF-8")]) from None


def _compose(text: str, file: str) -> Node | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"character {error.character:#x} is not allowed in YAML"
        raise SpecErrors([Problem(file, line, error.position - text.rfind("\n", 0, error.position), "", message)]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        dollar = mark is not None and text[: mark.index].endswith("$")
        raise SpecErrors([Problem(file, line, column, "", _yaml_message(error, dollar=dollar))]) from None
    except (YAMLError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise SpecErrors([Problem(file, 1, 1, "", "nested too deeply" if deep else f"not YAML: {error}")]) from None


def _yaml_message(error: Any, *, dollar: bool) -> str:
    text = " ".join(str(part) for part in (error.context, error.problem) if part)
    hint = ""
    if "'\\t'" in text:
        hint = "; indent with spaces, not tabs"
    elif "mapping values are not allowed" in text:
        hint = "; quote a text that holds ': '"
    elif dollar:
        hint = '; inside { } quote texts with ${...}: "${name}/orders"'
    elif "cannot start any token" in text or "undefined alias" in text:
        hint = "; quote the text"
    return f"not YAML: {text}{hint}"


@dataclass
class _Reader:
    """The walk from nodes to values: counts what it makes, so that aliases cannot multiply without end."""

    document: Document
    made: int = 0
    merging: int = 0
    above: list[int] = field(default_factory=list)

    def plain(self, node: Node, path: Path) -> Any:
        self.made += 1
        document = self.document
        self.record(document.values, path, node)
        if self.made > MAX_NODES:
            self.give_up(path, f"the text expands to more than {MAX_NODES} values; aliases (*name) multiply what they name")
        if id(node) in self.above:
            self.give_up(path, "an alias (*name) names something it is inside of")
        if len(path) > MAX_DEPTH:
            self.give_up(path, f"nested deeper than {MAX_DEPTH} levels")
        self.above.append(id(node))
        try:
            return self.made_from(node, path)
        finally:
            self.above.pop()

    def record(self, places: dict[Path, Place], path: Path, node: Node) -> None:
        """Notes where a value stands; what is merged in from elsewhere never hides what stands here."""
        if not self.merging or path not in places:
            places[path] = Place(self.document.file, self.document.text, node)

    def made_from(self, node: Node, path: Path) -> Any:
        tag = str(node.tag)
        if isinstance(node.value, str):
            return self.scalar(node, tag.removeprefix(_TAG), path)
        if tag not in (_TAG + "map", _TAG + "seq"):
            self.document.problem(path, f"the tag {tag.removeprefix(_TAG)!r} means nothing here; leave it out")
        if node.id == "sequence":
            return tuple(self.plain(item, (*path, i)) for i, item in enumerate(node.value))
        return self.mapping(node, path)

    def mapping(self, node: Node, path: Path) -> dict[str, Any]:
        made: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if str(key_node.tag) == _TAG + "merge":
                merged = {**self.merge(value_node, path), **merged}
                continue
            key = self.key(key_node, path)
            below = (*path, key)
            if key in made:
                first = self.document.keys[below].node.start_mark.line + 1
                at = key_node.start_mark
                message = f"the key {key!r} stands here twice (first in line {first})"
                self.document.problems.append(Problem(self.document.file, at.line + 1, at.column + 1, show_path(path), message))
                continue
            self.record(self.document.keys, below, key_node)
            made[key] = self.plain(value_node, below)
        return {**{k: v for k, v in merged.items() if k not in made}, **made}

    def merge(self, node: Node, path: Path) -> dict[str, Any]:
        """`<<: *name`: keys of the named mapping that are not given themselves."""
        if node.id == "sequence":
            parts = [self.merge(item, path) for item in node.value]
            return {k: v for part in reversed(parts) for k, v in part.items()}
        self.merging += 1
        value = self.plain(node, path)
        self.merging -= 1
        if not isinstance(value, dict):
            self.document.problem(path, "<< needs a mapping, such as *name")
            return {}
        return value

    def key(self, node: Node, path: Path) -> str:
        text = node.value if isinstance(node.value, str) else ""
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in ("str", "timestamp"):
            words = {"int": "a number", "float": "a number", "bool": "a truth value", "null": "null"}
            shown = f'the key {text} is {words[kind]}; quote it: "{text}"' if kind in words else "a key must be a text"
            at = node.start_mark
            self.document.problems.append(Problem(self.document.file, at.line + 1, at.column + 1, show_path(path), shown))
        return text

    def scalar(self, node: Node, kind: str, path: Path) -> Any:
        text: str = node.value
        if kind in ("str", "timestamp", "value"):
            return text
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("int", "float"):
            return self.number(text, kind, path)
        if kind == "bool":
            return text  # yes, no, on, off of YAML 1.1: texts
        self.document.problem(path, f"the tag {kind!r} means nothing here; leave it out")
        return text

    def number(self, text: str, kind: str, path: Path) -> Any:
        try:
            if kind == "float":
                value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                if not math.isfinite(value):
                    self.document.problem(path, f"{text} is not a finite number")
                return value
            plain = text.lower().lstrip("+-")
            base = 16 if plain.startswith("0x") else 8 if plain.startswith("0o") else 10
            return int(text, base)
        except ValueError:
            self.document.problem(path, f"{text[:40]!r} is not a number that can be read; quote it if it is a text")
            return text

    def give_up(self, path: Path, message: str) -> None:
        self.document.problem(path[:8], message)
        raise SpecErrors(self.document.problems)


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value under `value` with its path, parents first."""
    yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from walk(item, (*path, i))


def _empty(place: Place) -> bool:
    return place.node.value == "" and place.node.style is None


def _verbatim(place: Place, path: Path, values: dict[Path, Place]) -> bool:
    """Whether the text's characters stand in the file as they are in the value: one line, nothing escaped."""
    node = place.node
    if values.get(path) is not place or not isinstance(node.value, str) or node.style not in (None, "'", '"'):
        return False
    start = node.start_mark.index + (node.style is not None)
    return place.text[start : start + len(node.value)] == node.value and "\n" not in node.value

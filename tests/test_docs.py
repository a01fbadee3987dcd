"""The README and the docs do what they say: commands are run, files written, outputs compared, code executed.

A block is spoken for by the HTML comment above it:

    <!-- run -->              bash: run in the page's own folder; it must exit 0.  python: run with the page's other python blocks
    <!-- run expect=1 -->     the same, but it must exit 1
    <!-- file orders.yaml --> the block becomes that file in the page's folder
    <!-- output -->           what the last command printed; `...` stands for anything within a line, a line of `...` for any lines
    <!-- show REASON -->      not run, and why

A page's blocks run from top to bottom in one folder, which holds a copy of examples/. Every bash and python block needs a
comment; a whole spec without one must validate.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from beam_pipelines.spec.load import load_spec
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- (?P<verb>run|file|output|show)(?: (?P<rest>[^\n]*?))? -->\n)?```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block and the comment above it."""

    page: Path
    line: int
    verb: str
    rest: str
    language: str
    body: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m["verb"] or "", m["rest"] or "", m["language"], m["body"])
        for m in FENCE.finditer(text)
    ]


ALL = {page: blocks(page) for page in PAGES}
RUNNABLE = [page for page, found in ALL.items() if any(b.verb == "run" for b in found)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass
class Reader:
    """Somebody who follows one page from top to bottom."""

    folder: Path
    environment: dict[str, str]
    printed: str = ""
    code: list[str] = field(default_factory=list)

    def follow(self, block: Block) -> None:
        if block.verb == "file":
            target = self.folder / block.rest
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.body, "utf-8")
        elif block.verb == "output":
            assert matches(self.printed, block.body), f"{block.where}: expected\n{block.body}\ngot\n{self.printed}"
        elif block.verb == "run" and block.language == "bash":
            self.printed = self.run(block, ["bash", "-euo", "pipefail", "-c", block.body])
        elif block.verb == "run" and block.language == "python":
            # The lines stay where they are on the page, so that a traceback names the page's line.
            self.code.append("\n" * (block.line + 1 - sum(c.count("\n") for c in self.code)) + block.body)

    def run(self, block: Block, command: list[str]) -> str:
        expected = int(block.rest.partition("expect=")[2] or 0)
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == expected, f"{block.where}: ended with {done.returncode}\n{block.body}\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if expected else "")

    def run_code(self, page: Path, *arguments: str) -> None:
        script = self.folder / f"{page.stem.replace('-', '_')}_md.py"
        script.write_text("".join(self.code), "utf-8")
        command = [sys.executable, script.name, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{name(page)} {arguments}\n{done.stdout}\n{done.stderr}"


def matches(printed: str, expected: str) -> bool:
    """Whether `expected` describes `printed`; spaces at line ends do not count."""
    parts = ["(?:[^\n]*\n)*?" if line.strip() == "..." else line_pattern(line) for line in expected.strip("\n").splitlines()]
    lines = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
    return re.fullmatch("".join(parts), lines) is not None


def line_pattern(line: str) -> str:
    return "[^\n]*".join(re.escape(part) for part in line.rstrip().split("...")) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    made = shutil.ignore_patterns("data", "lake", ".beam_pipelines", "__pycache__")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=made)
    reader = Reader(tmp_path, environment)
    for block in ALL[page]:
        reader.follow(block)
    if reader.code:
        reader.run_code(page)
        reader.run_code(page, "--test-pipeline-options=--runner=DirectRunner")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_code_block_is_spoken_for(page: Path) -> None:
    for block in ALL[page]:
        if block.language in ("bash", "sh", "console", "python"):
            assert block.verb, f"{block.where}: say above the block whether it is run, a file, or only shown and why"
        if block.verb == "show":
            assert block.rest, f"{block.where}: say why it is not run"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_spec_of_a_page_is_run_there_or_validates(page: Path, tmp_path: Path) -> None:
    commands = "".join(b.body for b in ALL[page] if b.verb == "run")
    for block in ALL[page]:
        if not (block.language == "yaml" and re.search(r"^spec: 1$", block.body, re.MULTILINE)):
            continue
        if block.verb == "file":
            assert block.rest in commands, f"{block.where}: no command on the page uses {block.rest}"
        else:
            (tmp_path / "spec.yaml").write_text(block.body, "utf-8")
            load_spec(tmp_path / "spec.yaml")


def test_every_fence_is_understood() -> None:
    for page, found in ALL.items():
        fences = len(re.findall(r"^```", page.read_text("utf-8"), re.MULTILINE))
        assert fences == 2 * len(found), f"{name(page)}: {fences} fence lines, {len(found)} blocks understood"


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("a\nb\n", "a\nb", True),
        ("a  \n", "a", True),
        ("took 3.2 s\n", "took ... s", True),
        ("a\n1\n2\nz\n", "a\n...\nz", True),
        ("a\nz\n", "a\n...\nz", True),
        ("a\nb\n", "a\nc", False),
        ("a.b\n", "axb", False),
    ],
)
def test_expected_output_may_leave_things_open(printed: str, expected: str, same: bool) -> None:
    assert matches(printed, expected) is same


def test_links_between_files_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{name(page)}: {target}"


def test_what_the_readme_leaves_to_make_is_run_by_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text("utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README: make {target}"
    for target in ("env", "lint", "types", "test", "test-slow", "docs", "demo", "smoke"):
        assert f"make {target}\n" in script

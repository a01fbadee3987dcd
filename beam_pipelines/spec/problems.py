"""What is wrong with a spec, and where: file, line, column, path, sentence. All of it at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from beam_pipelines.errors import SpecError

Path = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong at `file:line:column` (from 1; line 0: nowhere in a file, such as a flag); `path` as in `sinks[0].parquet`."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class SpecErrors(SpecError):
    """Everything wrong with a spec, a contract or a test file, sorted by place; `problems` holds it piece by piece."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[object, ...]:
        return (SpecErrors, (self.problems,))


def show_path(path: Iterable[str | int]) -> str:
    """A path as people write it.

    >>> show_path(('sinks', 0, 'parquet', 'path'))
    'sinks[0].parquet.path'
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w-]+", step):
            text += f".{step}" if text else step
        else:
            text += f"[{step!r}]"
    return text

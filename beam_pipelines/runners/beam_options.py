"""Beam's own options, checked: Beam ignores what it does not know, and a flag that does nothing is a question without an answer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, _BeamArgumentParser

from beam_pipelines.errors import SpecError


class Options(PipelineOptions):  # type: ignore[misc]  # Beam ships no types
    """Beam's options, of which each view is made once.

    Beam asks for a view several times per transform, and each builds an argument parser: a tenth of a second per graph. Views share their
    values with the options they are of, so one serves as well as many.
    """

    def view_as(self, cls: Any) -> Any:
        views: dict[Any, Any] = self.__dict__.setdefault("_views", {})  # Beam's own __setattr__ takes options only
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


class _Parser(_BeamArgumentParser):  # type: ignore[misc]  # Beam ships no types
    def error(self, message: str) -> NoReturn:
        raise SpecError(f"Beam option: {message}.", hint="Everything after -- are Beam pipeline options.")


def temp_location(flags: Sequence[str]) -> str | None:
    """The folder that `--temp_location` names; None where no flag does."""
    given = PipelineOptions(list(flags)).view_as(GoogleCloudOptions).temp_location
    return str(given) if given else None


def unknown_flags(flags: Sequence[str]) -> list[str]:
    """A sentence for each word of `flags` that no Beam option takes. Raises SpecError for a value that Beam does not accept."""
    parser = _parser()
    _, unknown = parser.parse_known_args(list(flags))
    known = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    return [_sentence(word, known) for word in unknown]


def _parser() -> Any:
    parser = _Parser(allow_abbrev=False, add_help=False)
    for kind in {f"{k.__module__}.{k.__qualname__}": k for k in _all(PipelineOptions)}.values():
        if "_add_argparse_args" in kind.__dict__:
            try:
                kind._add_argparse_args(parser)
            except argparse.ArgumentError:
                continue  # two classes of options share a flag
    return parser


def _all(kind: Any) -> list[Any]:
    return [inner for sub in kind.__subclasses__() for inner in (sub, *_all(sub))]


def _sentence(word: str, known: Sequence[str]) -> str:
    if not word.startswith("--"):
        return f"{word!r} is no Beam option, and no value of one: ignored."
    name = word.partition("=")[0]
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Beam knows no option {name}: ignored." + (f" Did you mean {close[0]}?" if close else "")

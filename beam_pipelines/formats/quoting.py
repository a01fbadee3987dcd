"""Quotes in delimited text: where records end in a block of bytes, and the fields of one record, exactly.

The rule is that of Python's `csv` and of pyarrow: a quote opens a field only as the field's first character; inside, a doubled
(or escaped) quote is a quote; what follows the closing quote up to the delimiter is taken as it stands. Elsewhere a quote is
a character like any other. Only a line feed ends a record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from beam_pipelines.formats.lines import Bytes, Cut, Indexes, line_ends, positions
from beam_pipelines.formats.options import CsvFormat

_NEWLINE = 10
UNCLOSED = "a quoted field is opened and never closed"


@dataclass(frozen=True)
class Dialect:
    """The characters of one kind of delimited text; without `quote` nothing is quoted, with `escape` quotes are not doubled."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    comment: str = ""
    multiline: bool = True

    @classmethod
    def of(cls, fmt: CsvFormat) -> Dialect:
        return cls(fmt.delimiter, fmt.quote, fmt.escape, fmt.comment, fmt.multiline)

    @property
    def doubled(self) -> bool:
        return not self.escape

    def fields(self, record: str) -> list[str | None]:
        """The fields of one record without its line terminator; None for an empty field that is not quoted.

        Raises ValueError where a quoted field is never closed.

        >>> Dialect().fields('a,,"","say ""hi"", twice"')
        ['a', None, '', 'say "hi", twice']
        """
        out: list[str | None] = []
        at = 0
        while True:
            text: str | None = None
            if self.quote and record.startswith(self.quote, at):
                quoted = self._quoted.match(record, at)
                if quoted is None:
                    raise ValueError(UNCLOSED)
                text, at = self._literal(quoted[1]), quoted.end()
            plain = self._plain.match(record, at)
            assert plain is not None
            if plain[0]:
                text = (text or "") + (self._unescaped(plain[0]) if self.escape else plain[0])
            out.append(text)
            at = plain.end() + 1
            if at > len(record):
                return out

    @cached_property
    def _quoted(self) -> re.Pattern[str]:
        q, e = re.escape(self.quote), re.escape(self.escape)
        return re.compile(rf"{q}((?:[^{q}]++|{q}{q})*+){q}" if self.doubled else rf"{q}((?:[^{q}{e}]++|{e}.)*+){q}", re.DOTALL)

    @cached_property
    def _plain(self) -> re.Pattern[str]:
        d, e = re.escape(self.delimiter), re.escape(self.escape)
        return re.compile(rf"(?:[^{d}{e}]++|{e}.?)*+" if e else rf"[^{d}]*+", re.DOTALL)

    def _literal(self, text: str) -> str:
        return text.replace(self.quote * 2, self.quote) if self.doubled else self._unescaped(text)

    def _unescaped(self, text: str) -> str:
        return re.sub(re.escape(self.escape) + "(.)", r"\1", text, flags=re.DOTALL)

    def record_ends(self, data: Bytes) -> Cut:
        """The Splitter (see `lines`) of this dialect: `data` begins where a record does."""
        if not self.multiline:
            return line_ends(data)
        escaped = self._escaped(data)
        newlines = _without(positions(data, _NEWLINE), escaped)
        borders = self._borders(data, newlines, escaped)
        if not len(borders):
            return Cut(newlines + 1)
        outside = np.searchsorted(borders, newlines) & 1 == 0
        return Cut(newlines[outside] + 1, open=bool(len(borders) & 1))

    def _borders(self, data: Bytes, newlines: Indexes, escaped: Indexes) -> Indexes:
        """Positions of the quotes that open and close fields, alternating (a doubled quote closes and opens)."""
        if not self.quote:
            return np.empty(0, np.int64)
        quotes = _without(positions(data, ord(self.quote)), escaped)
        if not len(quotes):
            return quotes
        comments = self._comments_with_quotes(data, newlines, quotes)
        opening = quotes[::2]
        if self.doubled:  # many quotes are the second of two: they need no look at the text
            opening = opening[np.append(True, opening[1:] - quotes[1:-1:2] != 1)]
        if not len(comments) and self._first_in_field(data, opening, escaped).all():
            return quotes
        return self._borders_one_by_one(quotes, self._first_in_field(data, quotes, escaped), comments, newlines)

    def _first_in_field(self, data: Bytes, quotes: Indexes, escaped: Indexes) -> npt.NDArray[np.bool_]:
        before = data[np.maximum(quotes - 1, 0)]
        first: npt.NDArray[np.bool_] = (before == ord(self.delimiter)) | (before == _NEWLINE) | (quotes == 0)
        if len(escaped):
            first &= ~np.isin(quotes - 1, escaped)
        return first

    def _borders_one_by_one(self, quotes: Indexes, first: npt.NDArray[np.bool_], comments: Indexes, newlines: Indexes) -> Indexes:
        """The same where some quote stands inside an unquoted field or a comment: a loop, because each depends on the one before.

        Only the quotes of such a block are looped over.
        """
        lines = np.concatenate((np.zeros(1, np.int64), newlines + 1))
        line_starts = lines[np.searchsorted(newlines, quotes)]
        in_comment = np.isin(line_starts, comments)
        borders: list[int] = []
        inside, closed, doubled_at = False, -1, -1
        following = np.append(quotes[1:], -1)
        columns = (quotes, following, first, in_comment, line_starts)
        for quote, after, may_open, comment, line in zip(*(c.tolist() for c in columns), strict=True):
            if quote == doubled_at:
                continue
            if inside and self.doubled and after == quote + 1:
                doubled_at = after
            elif inside:
                borders.append(quote)
                inside, closed = False, quote
            elif may_open and not (comment and line > closed):
                borders.append(quote)
                inside = True
        return np.array(borders, np.int64)

    def _comments_with_quotes(self, data: Bytes, newlines: Indexes, quotes: Indexes) -> Indexes:
        """Starts of lines that look like comments and hold quotes."""
        if not self.comment:
            return np.empty(0, np.int64)
        starts = np.concatenate((np.zeros(1, np.int64), newlines + 1))
        starts = starts[starts < len(data)]
        starts = starts[data[starts] == ord(self.comment)]
        ends = np.append(newlines, len(data))[np.searchsorted(newlines, starts)]
        quoted: Indexes = starts[np.searchsorted(quotes, starts) < np.searchsorted(quotes, ends)]
        return quoted

    def _escaped(self, data: Bytes) -> Indexes:
        """Positions behind an escape character that is not itself escaped."""
        if not self.escape:
            return np.empty(0, np.int64)
        escapes = positions(data, ord(self.escape))
        if not len(escapes):
            return escapes
        begins = np.concatenate((np.ones(1, bool), np.diff(escapes) != 1))
        run_start = np.maximum.accumulate(np.where(begins, escapes, 0))
        escaped: Indexes = escapes[(escapes - run_start) % 2 == 0] + 1
        return escaped

    def unsure_records(self, data: Bytes, starts: Indexes) -> npt.NDArray[np.bool_]:
        """Which of the lines that begin at `starts` hold an unclosed or a misplaced quote: a block parser would join them."""
        unsure = np.zeros(len(starts), bool)
        quotes = positions(data, ord(self.quote)) if self.quote else np.empty(0, np.int64)
        quotes = _without(quotes, self._escaped(data))
        if not len(quotes):
            return unsure
        record = np.searchsorted(starts, quotes, side="right") - 1
        before = np.searchsorted(quotes, starts)
        unsure |= np.diff(np.append(before, len(quotes))) % 2 == 1
        opening = (np.arange(len(quotes)) - before[record]) % 2 == 0
        fine = self._first_in_field(data, quotes, self._escaped(data)) | (quotes == starts[record])
        if self.doubled:
            fine[1:] |= np.diff(quotes) == 1
        unsure[record[opening & ~fine]] = True
        return unsure


def _without(positions: Indexes, escaped: Indexes) -> Indexes:
    return positions[~np.isin(positions, escaped)] if len(escaped) else positions

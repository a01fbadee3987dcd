"""Expected rows to actual rows, as many as can be: an expected row that names few columns fits many.

rows that are equal as they compare     by their keys, in one pass
the rest                                augmenting paths among the rows whose deciding keys are equal
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from beam_pipelines.testing.rows import Row

_Wanted = tuple[tuple[str, Hashable, bool], ...]
"""An expected row: names, keys, and whether the key decides."""


class Keys(NamedTuple):
    """What stands for a value, by the column's name: values with equal keys fit each other, and what the other fits. With `decides`, values with unequal ones do not."""

    have: Callable[[str, Any], Hashable]
    want: Callable[[str, Any], tuple[Hashable, bool]]
    absent: Any
    """The value of a column that an actual row does not have."""


def matched(actual: Sequence[Row], expected: Sequence[Row], *, fits: Callable[[Row, Row], bool], keys: Keys) -> dict[int, int]:
    """Numbers of expected rows, each with that of the actual row that is its own; no other choice pairs more."""
    alike = _Alike(actual, keys)
    wanted = [tuple((name, *keys.want(name, value)) for name, value in want.items()) for want in expected]
    one_of = {want: expected[i] for i, want in enumerate(wanted)}

    def candidates(want: _Wanted) -> Sequence[int]:
        deciding = {name: key for name, key, decides in want if decides}
        rows = alike.rows(deciding)
        return rows if len(deciding) == len(want) else [j for j in rows if fits(actual[j], one_of[want])]

    pairs = _equal(alike, wanted)
    _augment(pairs, wanted, functools.cache(candidates))
    return pairs


class _Alike:
    """Actual rows by the keys of some of their columns."""

    def __init__(self, actual: Sequence[Row], keys: Keys) -> None:
        self._actual, self._keys = actual, keys
        self._by: dict[tuple[str, ...], dict[tuple[Hashable, ...], list[int]]] = {}

    def rows(self, found: Mapping[str, Hashable]) -> Sequence[int]:
        names = tuple(found)
        if names not in self._by:
            self._by[names] = self._index(names)
        return self._by[names].get(tuple(found.values()), ())

    def _index(self, names: tuple[str, ...]) -> dict[tuple[Hashable, ...], list[int]]:
        found = defaultdict[tuple[Hashable, ...], list[int]](list)
        for j, row in enumerate(self._actual):
            found[tuple(self._keys.have(n, row.get(n, self._keys.absent)) for n in names)].append(j)
        return found


def _equal(alike: _Alike, wanted: Sequence[_Wanted]) -> dict[int, int]:
    """Pairs whose keys are all equal; expected rows that few are equal to choose first."""
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    equal = {want: alike.rows({name: key for name, key, _ in want}) for want in dict.fromkeys(wanted)}
    left = {want: iter(rows) for want, rows in equal.items()}
    for i in sorted(range(len(wanted)), key=lambda i: len(equal[wanted[i]])):
        j = next((j for j in left[wanted[i]] if j not in taken), None)
        if j is not None:
            pairs[i] = j
            taken.add(j)
    return pairs


def _augment(pairs: dict[int, int], wanted: Sequence[_Wanted], candidates: Callable[[_Wanted], Sequence[int]]) -> None:
    """Adds what can be paired, if need be by giving others another row (augmenting paths, breadth first)."""
    owner = {j: i for i, j in pairs.items()}
    nowhere: set[int] = set()  # rows that a search saw in vain: no path through them will ever end at a free one
    for start in range(len(wanted)):
        if start in pairs:
            continue
        asked_by, j = _search(start, wanted, owner, nowhere, candidates)
        if j is None:
            nowhere |= asked_by.keys()
        while j is not None:
            i = owner[j] = asked_by[j]
            pairs[i], j = j, pairs.get(i)


def _search(
    start: int,
    wanted: Sequence[_Wanted],
    owner: Mapping[int, int],
    nowhere: Collection[int],
    candidates: Callable[[_Wanted], Sequence[int]],
) -> tuple[dict[int, int], int | None]:
    """Which expected row asked for each actual one on the way, and the free one at the end, if there is one."""
    asked_by: dict[int, int] = {}
    queue, asked = [start], {wanted[start]}
    for i in queue:  # it grows
        for j in candidates(wanted[i]):
            if j in nowhere or j in asked_by:
                continue
            asked_by[j] = i
            if j not in owner:
                return asked_by, j
            if wanted[owner[j]] not in asked:  # equal ones ask for the same rows
                asked.add(wanted[owner[j]])
                queue.append(owner[j])
    return asked_by, None

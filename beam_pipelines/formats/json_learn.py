"""What is learnt from one judged record: its shape, for `json_shapes` to recognise."""

from __future__ import annotations

import numpy as np

from beam_pipelines.formats.json_bits import Bytes, Indexes
from beam_pipelines.formats.json_names import ANY_NODE, Ints, Nodes
from beam_pipelines.formats.json_plan import ARRAY, NULL, NUMBER, OBJECT, STRING
from beam_pipelines.formats.json_shapes import Array, Shape, Values, names_as_words
from beam_pipelines.formats.json_tokens import STEP, Analysis

_COMMA, _BRACKET, _QUOTE = 44, 91, 34
_LONGEST_SHAPED_NAME = 80


def shape_of(text: Bytes, found: Analysis, nodes: Nodes, *, keep: bool) -> Shape | None:
    """The shape of the record of which `found` tells; None where it is not regular. With `keep`, unknown members are to be kept."""
    tokens, keys = found.tokens, found.keys
    shaped = tokens.char_in_text != _COMMA
    number = np.cumsum(shaped) - 1  # of each token in the text's order among those of the shape
    by_text = np.argsort(keys.at, kind="stable")
    at, back = keys.at[by_text], (keys.at - keys.start)[by_text]
    if len(at) == 0 or (back > _LONGEST_SHAPED_NAME).any() or (text[at - 1] != _QUOTE).any():
        return None
    colons = number[tokens.order[keys.where[by_text]]]
    arrays, steps = _array_parts(found, nodes, number)
    if arrays is None:
        return None
    kinds = nodes.kinds[found.nodes[by_text]]
    unknown = _unknown_parts(found, by_text, colons, back, int(number[-1])) if keep else ()
    words = names_as_words(text, colons, at, back)
    chars = tokens.char_in_text[shaped]
    values = _values_of(chars, colons, back, found.nodes[by_text], nodes.leaves)
    return Shape(chars, colons, back, kinds, words, arrays, steps, unknown, values)


def _array_parts(found: Analysis, nodes: Nodes, number: Indexes) -> tuple[tuple[Array, ...] | None, Indexes]:
    """The typed arrays of a record: those of scalars, and the tokens between which an array of objects holds nothing else."""
    tokens = found.tokens
    arrays: list[Array] = []
    steps: list[int] = []
    typed = (tokens.char[tokens.opens] == _BRACKET) & (nodes.item[found.places] != ANY_NODE)
    for container in np.flatnonzero(typed).tolist():
        kinds = int(nodes.kinds[nodes.item[found.places[container]]]) & ~NULL
        own = np.flatnonzero(tokens.container == container)
        opening, closing = int(tokens.order[own[0]]), int(tokens.order[own[-1]])
        if kinds in (STRING, NUMBER):
            arrays.append(Array(int(number[opening]), int(number[closing]), kinds))
        elif kinds in (OBJECT, ARRAY):
            inside = np.arange(opening, closing)
            depth = np.cumsum(STEP[tokens.char_in_text[inside]])
            shaped = tokens.char_in_text[inside] != _COMMA
            steps += number[inside[(depth == 1) & shaped]].tolist()  # behind the array's bracket and behind each element
        else:
            return None, np.empty(0, np.intp)
    return tuple(arrays), np.array(steps, np.intp)


def _values_of(chars: Bytes, colons: Indexes, back: Indexes, nodes: Ints, leaves: Ints) -> Values:
    """`Shape.values`: an object or array ends with its bracket, a scalar before the next member's name or with the object around it."""
    depth = np.cumsum(STEP[chars])
    member_at = {int(colon): member for member, colon in enumerate(colons)}
    found: list[tuple[int, int, int, int, bool]] = []
    for column, node in enumerate(leaves.tolist()):
        for member in np.flatnonzero(nodes == node).tolist():  # one, or none where the shape has no such member
            after = int(colons[member]) + 1
            if STEP[chars[after]] > 0:
                close = after + int(np.argmax(depth[after:] < depth[after]))
                found.append((column, member, close, 1, False))
            elif after in member_at:
                found.append((column, member, after, -int(back[member_at[after]]), True))
            else:
                found.append((column, member, after, 0, False))
    columns = np.array(found, np.int64).reshape(-1, 5).T
    return Values(columns[0], columns[1], columns[2], columns[3], columns[4].astype(bool))


def _unknown_parts(found: Analysis, by_text: Indexes, colons: Indexes, back: Indexes, last: int) -> tuple[tuple[int, int, int], ...]:
    """`Shape.unknown`: runs of top members; each ends where the name of the next begins, or with the record."""
    top = np.flatnonzero(found.tokens.level[found.keys.where[by_text]] == 1)
    parts: list[tuple[int, int, int]] = []
    begin: int | None = None
    for here, there in zip(top.tolist(), [*top[1:].tolist(), -1], strict=True):
        if not found.unknown[by_text[here]]:
            continue
        begin = here if begin is None else begin
        if there < 0 or not found.unknown[by_text[there]]:
            parts.append((begin, last, 0) if there < 0 else (begin, int(colons[there]), int(back[there])))
            begin = None
    return tuple(parts)

"""A grammar as a tree, and its spelling in llguidance's form of Lark. Knows nothing of other notations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

from .errors import SettingError

#: Tokens are allowed by their text alone. llguidance would else ask for one spelling where the text is certain, and hide the others.
HEADER = '%llguidance {"no_forcing": true}\n'


@dataclass(frozen=True)
class Chars:
    """One character of a set. ``ranges``: the first and last code points of each part of it."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def __str__(self) -> str:
        ranges = "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in self.ranges)
        return f"/[{'^' if self.negated else ''}{ranges}]/"


@dataclass(frozen=True)
class RuleName:
    """A rule by its name."""

    name: str


@dataclass(frozen=True)
class InOrder:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """Any one of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeated:
    """A part again and again."""

    part: Node
    least: int
    most: int | None  # None: without end


Node: TypeAlias = Chars | RuleName | InOrder | Choice | Repeated


def to_lark(rules: Mapping[str, Node]) -> str:
    """The rules in llguidance's dialect of Lark, spelled out character by character.

    Where no rule comes back to itself all of them are one pattern, for which there is a quick automaton. Raises SettingError when
    nothing satisfies the root.
    """
    ends: set[str] = set()  # the rules of which at least one sentence ends
    found = -1
    while found < len(ends):
        found = len(ends)
        for name in reversed(list(rules)):  # rules mostly stand before those that they ask for, so one round does nearly always
            if name not in ends and _pruned(rules[name], ends) is not None:
                ends.add(name)
    if "root" not in ends:
        raise SettingError("no text satisfies the grammar: no way through its rule root ever ends; give one of its choices an end")
    used: dict[str, Node] = {}
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in used and (node := _pruned(rules[name], ends)) is not None:
            used[name] = node
            waiting += _mentioned(node)
    # Names of patterns are written in capitals.
    letter = "r" if _comes_back(used) else "R"
    spelled = {name: f"{letter}{i}" for i, name in enumerate(used)}
    lines = [f"{spelled[name]}: {_spelled(node, spelled)}" for name, node in used.items()]
    return "\n".join([HEADER + f"start: {spelled['root']}", *lines, ""])


def _pruned(node: Node, ends: set[str]) -> Node | None:
    """The node without what can never end; None if that is all of it."""
    if isinstance(node, RuleName):
        return node if node.name in ends else None
    if isinstance(node, InOrder):
        parts = [_pruned(part, ends) for part in node.parts]
        return None if None in parts else InOrder(tuple(part for part in parts if part is not None))
    if isinstance(node, Choice):
        left = [part for part in (_pruned(part, ends) for part in node.parts) if part is not None]
        return Choice(tuple(left)) if left else None
    if isinstance(node, Repeated):
        part = _pruned(node.part, ends)
        if part is None or node.most == 0:
            return None if node.least else InOrder(())
        return Repeated(part, node.least, node.most)
    return None if node.negated and _covers_all(node.ranges) else node


def _covers_all(ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether no character lies outside the ranges. The codes D800 to DFFF are none."""
    reached = 0
    for low, high in sorted([*ranges, (0xD800, 0xDFFF)]):
        if low > reached:
            return False
        reached = max(reached, high + 1)
    return reached > 0x10FFFF


def _mentioned(node: Node) -> set[str]:
    if isinstance(node, RuleName):
        return {node.name}
    parts = node.parts if isinstance(node, (InOrder, Choice)) else (node.part,) if isinstance(node, Repeated) else ()
    return {name for part in parts for name in _mentioned(part)}


def _comes_back(rules: Mapping[str, Node]) -> bool:
    """Whether some rule mentions itself, over others or not."""
    try:
        TopologicalSorter({name: _mentioned(node) for name, node in rules.items()}).prepare()
    except CycleError:
        return True
    return False


def _spelled(node: Node, names: Mapping[str, str]) -> str:
    if isinstance(node, Chars):
        return str(node)
    if isinstance(node, RuleName):
        return names[node.name]
    if isinstance(node, Repeated):
        return f"({_spelled(node.part, names)}){{{node.least},{'' if node.most is None else node.most}}}"
    between = " " if isinstance(node, InOrder) else " | "
    return f"({between.join(_spelled(part, names) for part in node.parts)})" if node.parts else '""'

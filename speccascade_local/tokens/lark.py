"""A grammar as a tree, and its spelling in llguidance's form of Lark. Knows nothing of other notations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

from ..common.errors import SettingError

#: Tokens are allowed by their text alone. llguidance would else ask for one spelling where the text is certain, and hide the others.
HEADER = '%llguidance {"no_forcing": true}\n'
#: How many references may follow one another. llguidance recurses along them, and would run out of stack at a few thousand.
MOST_STEPS = 1000


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
    ends = _ending(rules)
    if "root" not in ends:
        raise SettingError("no text satisfies the grammar: no way through its rule root ever ends; give one of its choices an end")
    used: dict[str, Node] = {}
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in used and (node := _prune(rules[name], ends)) is not None:
            used[name] = node
            waiting += _collect_names(node)
    graph = {name: _collect_names(node) for name, node in used.items()}
    depth = depth_of(graph, "root")
    if depth > MOST_STEPS:
        raise SettingError(f"the grammar's rules ask for one another over {depth} steps; at most {MOST_STEPS} are read, join some of them")
    # Names of patterns are written in capitals.
    letter = "r" if _comes_back(graph) else "R"
    spelled = {name: f"{letter}{i}" for i, name in enumerate(used)}
    lines = [f"{spelled[name]}: {_spell(node, spelled)}" for name, node in used.items()]
    return "\n".join([HEADER + f"start: {spelled['root']}", *lines, ""])


def _ending(rules: Mapping[str, Node]) -> set[str]:
    """The rules of which at least one sentence ends.

    Each part is looked at once: what surely ends is handed up to what asks for it, so hostile orders cost no more than others.
    """
    above: list[tuple[int | None, str | None]] = []  # of each part: the part that it stands in, or the rule that it is the whole of
    missing: list[int] = []  # of each part: how many of those in it must still be found to end
    asking: defaultdict[str, list[int]] = defaultdict(list)  # the places where a rule's name stands
    waiting: list[tuple[Node, int | None, str | None]] = [(node, None, name) for name, node in rules.items()]
    while waiting:
        node, parent, rule = waiting.pop()
        if isinstance(node, RuleName):
            asking[node.name].append(len(above))
        waiting += [(part, len(above), None) for part in _parts(node)]
        above.append((parent, rule))
        missing.append(_collect_needed(node))
    ending: set[str] = set()
    found = [place for place, count in enumerate(missing) if count == 0]
    while found:
        parent, rule = above[found.pop()]
        if rule is not None:
            ending.add(rule)
        for place in asking[rule] if rule is not None else [parent]:
            assert place is not None
            missing[place] -= 1
            if missing[place] == 0:
                found.append(place)
    return ending


def _collect_needed(node: Node) -> int:
    """How many of its parts must end so that it ends."""
    if isinstance(node, InOrder):
        return len(node.parts)
    if isinstance(node, Repeated):
        return int(node.least > 0)
    return int(isinstance(node, (Choice, RuleName)) or (node.negated and _covers_all(node.ranges)))


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, (InOrder, Choice)):
        return node.parts
    return (node.part,) if isinstance(node, Repeated) else ()


def _prune(node: Node, ends: set[str]) -> Node | None:
    """The node without what can never end; None if that is all of it."""
    if isinstance(node, RuleName):
        return node if node.name in ends else None
    if isinstance(node, InOrder):
        parts = [_prune(part, ends) for part in node.parts]
        return None if None in parts else InOrder(tuple(part for part in parts if part is not None))
    if isinstance(node, Choice):
        left = [part for part in (_prune(part, ends) for part in node.parts) if part is not None]
        return Choice(tuple(left)) if left else None
    if isinstance(node, Repeated):
        part = _prune(node.part, ends)
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


def _collect_names(node: Node) -> list[str]:
    """The rules that it asks for, in the order of their first mention."""
    if isinstance(node, RuleName):
        return [node.name]
    return list(dict.fromkeys(name for part in _parts(node) for name in _collect_names(part)))


def depth_of(graph: Mapping[str, Sequence[str]], start: str) -> int:
    """How many steps a depth-first walk from ``start`` goes at most, entering each name once: what a recursive reader needs of stack."""
    seen, path, deepest = {start}, [iter(graph[start])], 0
    while path:
        following = next((name for name in path[-1] if name not in seen), None)
        if following is None:
            path.pop()
        else:
            seen.add(following)
            path.append(iter(graph[following]))
            deepest = max(deepest, len(path) - 1)
    return deepest


def _comes_back(graph: Mapping[str, Sequence[str]]) -> bool:
    """Whether some rule mentions itself, over others or not."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _spell(node: Node, names: Mapping[str, str]) -> str:
    if isinstance(node, Chars):
        return str(node)
    if isinstance(node, RuleName):
        return names[node.name]
    if isinstance(node, Repeated):
        return f"({_spell(node.part, names)}){{{node.least},{'' if node.most is None else node.most}}}"
    between = " " if isinstance(node, InOrder) else " | "
    return f"({between.join(_spell(part, names) for part in node.parts)})" if node.parts else '""'

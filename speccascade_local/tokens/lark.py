"""A grammar as a tree, and its spelling in llguidance's dialect of Lark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

from ..common.errors import SettingError

#: Tokens are allowed by their text alone. Otherwise llguidance asks for one spelling where the text is certain, and hides the others.
HEADER = '%llguidance {"no_forcing": true}\n'
#: The most references that may follow one another. llguidance recurses along them and runs out of stack at a few thousand.
MOST_STEPS = 1000


@dataclass(frozen=True)
class Characters:
    """One character of a set. ``ranges``: the first and last code points of each part of it."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False
    parts = ()

    @property
    def is_empty(self) -> bool:
        """Whether no character is in the set. The codes D800 to DFFF are none."""
        covered = 0
        for low, high in sorted([*self.ranges, (0xD800, 0xDFFF)]):
            if low > covered:
                break
            covered = max(covered, high + 1)
        return self.negated and covered > 0x10FFFF

    def __str__(self) -> str:
        ranges = "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in self.ranges)
        return f"/[{'^' if self.negated else ''}{ranges}]/"


@dataclass(frozen=True)
class Reference:
    """A rule by its name."""

    name: str
    parts = ()


@dataclass(frozen=True)
class Concatenation:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """Any one of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repetition:
    """A part ``least`` to ``most`` times; None: without end."""

    part: Node
    least: int
    most: int | None

    @property
    def parts(self) -> tuple[Node, ...]:
        """The part, as other nodes have it."""
        return (self.part,)


Node: TypeAlias = Characters | Reference | Concatenation | Choice | Repetition


def to_lark(rules: Mapping[str, Node]) -> str:
    """Return the rules in llguidance's dialect of Lark, spelled out character by character.

    Where no rule is recursive, all of them become one pattern, for which there is a quick automaton. Raises SettingError when no text
    satisfies the root.
    """
    finite = _finite_rules(rules)
    if "root" not in finite:
        raise SettingError("no text satisfies the grammar: no way through its rule root ever ends; give one of its choices an end")
    used: dict[str, Node] = {}
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in used and (node := _prune(rules[name], finite)) is not None:
            used[name] = node
            waiting += _references(node)
    graph = {name: _references(node) for name, node in used.items()}
    depth = depth_of(graph, "root")
    if depth > MOST_STEPS:
        raise SettingError(
            f"the grammar's rules refer to one another over {depth} steps; at most {MOST_STEPS} are allowed, join some of them"
        )
    letter = "r" if _is_recursive(graph) else "R"  # names of patterns are in capitals
    names = {name: f"{letter}{i}" for i, name in enumerate(used)}
    lines = [f"{names[name]}: {_spell(node, names)}" for name, node in used.items()]
    return "\n".join([HEADER + f"start: {names['root']}", *lines, ""])


def _finite_rules(rules: Mapping[str, Node]) -> set[str]:
    """Return the rules that have at least one sentence that ends.

    Each node is visited once: a node that is known to be finite is reported to its parent, so no order of rules is slow.
    """
    parents: list[tuple[int | None, str | None]] = []  # of each node: the node that holds it, or the rule that it is the whole of
    missing: list[int] = []  # of each node: how many of its parts must still be found finite
    references: defaultdict[str, list[int]] = defaultdict(list)  # the nodes that refer to a rule
    waiting: list[tuple[Node, int | None, str | None]] = [(node, None, name) for name, node in rules.items()]
    while waiting:
        node, parent, rule = waiting.pop()
        if isinstance(node, Reference):
            references[node.name].append(len(parents))
        waiting += [(part, len(parents), None) for part in node.parts]
        parents.append((parent, rule))
        missing.append(_count_required(node))
    finite: set[str] = set()
    known = [index for index, count in enumerate(missing) if count == 0]
    while known:
        parent, rule = parents[known.pop()]
        if rule is not None:
            finite.add(rule)
        for index in references[rule] if rule is not None else [parent]:
            assert index is not None
            missing[index] -= 1
            if missing[index] == 0:
                known.append(index)
    return finite


def _count_required(node: Node) -> int:
    """Return how many of its parts must be finite so that the node is."""
    if isinstance(node, Concatenation):
        return len(node.parts)
    if isinstance(node, Repetition):
        return int(node.least > 0)
    return int(isinstance(node, (Choice, Reference)) or node.is_empty)


def _prune(node: Node, finite: set[str]) -> Node | None:
    """Return the node without alternatives that never end; None if nothing is left."""
    if isinstance(node, Reference):
        return node if node.name in finite else None
    if isinstance(node, Characters):
        return None if node.is_empty else node
    parts = [_prune(part, finite) for part in node.parts]
    left = tuple(part for part in parts if part is not None)
    if isinstance(node, Choice):
        return Choice(left) if left else None
    if isinstance(node, Concatenation):
        return Concatenation(left) if len(left) == len(parts) else None
    if not left or node.most == 0:
        return None if node.least else Concatenation(())
    return Repetition(left[0], node.least, node.most)


def _references(node: Node) -> list[str]:
    """Return the rules that a node refers to, in the order of their first mention."""
    if isinstance(node, Reference):
        return [node.name]
    return list(dict.fromkeys(name for part in node.parts for name in _references(part)))


def depth_of(graph: Mapping[str, Sequence[str]], start: str) -> int:
    """Return the depth of a depth-first walk from ``start`` that enters each name once: the stack that a recursive reader needs."""
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


def _is_recursive(graph: Mapping[str, Sequence[str]]) -> bool:
    """Return whether some rule refers to itself, directly or through others."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _spell(node: Node, names: Mapping[str, str]) -> str:
    if isinstance(node, Characters):
        return str(node)
    if isinstance(node, Reference):
        return names[node.name]
    if isinstance(node, Repetition):
        return f"({_spell(node.part, names)}){{{node.least},{'' if node.most is None else node.most}}}"
    separator = " " if isinstance(node, Concatenation) else " | "
    return f"({separator.join(_spell(part, names) for part in node.parts)})" if node.parts else '""'

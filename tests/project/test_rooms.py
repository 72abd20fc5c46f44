"""A room of the package imports only rooms below it, so that a folder's name says what its code may know."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import speccascade_local

PACKAGE = Path(speccascade_local.__file__).parent

#: From the bottom up. A room may import itself and the rooms that it names, and what those may import.
ROOMS: dict[str, set[str]] = {
    "common": set(),
    "tokens": {"common"},
    "rules": {"tokens"},
    "decoding": {"rules"},
    "models": {"rules"},  # models.yaml names a rule
    "llama": {"models"},
    "machine": {"llama", "decoding"},
    "runtime": {"machine"},
    "bench": {"runtime"},
    "server": {"runtime"},
    "cli": {"bench", "server"},
    "programs": {"runtime"},  # child processes, started by name: no room imports them
}
MOST_LINES, MOST_MODULES = 350, 14
#: One file for each command of the command line, however many there are.
ONE_FILE_EACH = "cli/verbs"
#: These run without any model, on numpy alone; the others of these rooms need a library for what they read or start.
NUMPY_ONLY = {"decoding", "rules", "tokens"}
NEED_MORE = {
    "rules/registry",
    "rules/calibrated",
    "rules/user_rule",
    "tokens/grammar",
    "tokens/grammar_pool",
    "tokens/chat_template",
    "tokens/template_process",
}

MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
IN_ROOMS = sorted(module for module in MODULES if "/" in module)


def own_imports(module: str) -> set[str]:
    """Modules of the package that this one imports, each as its path without ``.py``."""
    found = set()
    folder = module.split("/")[:-1]
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            origin = [*folder[: len(folder) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                whole = "/".join([*origin, alias.name])
                found.add(whole if whole in MODULES else "/".join(origin))
    return found & set(MODULES)


def outside_imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def room_of(module: str) -> str:
    return module.split("/")[0]


def below(room: str) -> set[str]:
    """The rooms that a room may import."""
    return set.union(set(), *({lower, *below(lower)} for lower in ROOMS[room]))


def storeys(room: str) -> int:
    """The longest chain of rooms that ends here."""
    return 1 + max((storeys(lower) for lower in ROOMS[room]), default=0)


def test_every_module_lies_in_a_room():
    assert {module for module in MODULES if "/" not in module} == {"__init__", "__main__"}
    assert {room_of(module) for module in IN_ROOMS} == set(ROOMS)


def test_there_are_few_storeys():
    assert max(map(storeys, ROOMS)) <= 9


@pytest.mark.parametrize("module", IN_ROOMS)
def test_a_module_imports_only_its_own_room_and_rooms_below(module):
    allowed = {room_of(module), *below(room_of(module))}
    for imported in own_imports(module):
        assert room_of(imported) in allowed, f"{module} imports {imported}"


def test_no_modules_import_each_other_in_a_circle():
    seen, path = set(), []

    def visit(module):
        assert module not in path, f"circle: {path} -> {module}"
        if module not in seen:
            path.append(module)
            for imported in own_imports(module):
                visit(imported)
            seen.add(path.pop())

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize("module", sorted(module for module in IN_ROOMS if room_of(module) in NUMPY_ONLY))
def test_what_decides_needs_nothing_but_numpy(module):
    needs_more = not outside_imports(module) <= {"numpy", "__future__", *sys.stdlib_module_names}
    assert not needs_more or module in NEED_MORE, outside_imports(module)
    if module not in NEED_MORE:
        assert not {imported for imported in own_imports(module) if imported in NEED_MORE}


def test_only_one_room_and_the_dry_run_import_llama_cpp():
    users = {module for module in MODULES if "llama_cpp" in outside_imports(module)}
    assert {room_of(module) for module in users} == {"llama", "programs"}
    assert {module for module in users if room_of(module) == "programs"} == {"programs/dry_run"}


@pytest.mark.parametrize("module", IN_ROOMS)
def test_no_module_imports_a_private_name_of_another(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert not [alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_does_and_is_short(module):
    assert ast.get_docstring(MODULES[module])
    assert len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("folder", sorted({module.rpartition("/")[0] for module in IN_ROOMS} - {ONE_FILE_EACH}))
def test_a_room_is_small(folder):
    assert len(list((PACKAGE / folder).glob("*.py"))) - 1 <= MOST_MODULES

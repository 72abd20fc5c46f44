"""Imports run downward only, so that anyone can tell from a module's name what it may know."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import speccascade_local

PACKAGE = Path(speccascade_local.__file__).parent

#: From the bottom up. A module may import from lower rows and, without a circle, from its own.
LAYERS = [
    {"errors", "programs", "sandbox", "matcher", "bench.matching"},
    {"limited_child", "matcher_pool"},
    {"checks", "lark", "lazy", "sequences", "layout", "header", "rendering", "hub_cache", "ggml", "rebuilding", "doctor.redaction"},
    {"machine", "doctor.bandwidth", "endpoints"},
    {"placement"},
    {
        "sampling",
        "stats",
        "profile",
        "figures",
        "ngram",
        "backend",
        "batch",
        "tokenizer",
        "gbnf",
        "json_schema",
        "checked_yaml",
        "model_source",
    },
    {"devices", "rehearsal", "adapters"},
    {"rpc"},
    {"parameters"},
    {"rows", "vocabulary", "model", "memory", "rehearsal_cache", "rpc_server", "build", "local_models", "findings"},
    {"evidence", "shaping", "clipping", "pacing", "experience", "prospect"},
    {"deferral", "generation", "controller"},
    {"account", "rules", "token_rules", "acceptance", "custom", "grammar"},
    {"guards", "verify", "drafting", "rollback", "rollback_trial", "exactness", "context", "session"},
    {"ahead", "gathering"},
    {"cascade", "text", "templates", "pairing", "prompts", "saved"},
    {"rehearsing"},
    {"audit", "routing", "transcript"},
    {"calibration", "loop_cost", "stopwatch"},
    {"profiling"},
    {"pictures", "profile_cache", "methods"},
    {"reply", "settings", "catalog_file", "catalog", "hub_errors", "fetching", "remote_header"},
    {"pending", "answering", "sharing", "runtime", "loading"},
    {"compare", "aio", "chat_file", "doctor.trial", "doctor.installation"},
    {"conversation", "doctor.inspection"},
    {"doctor.diagnosis", "doctor"},
    {"catalog_edit", "bench.graders", "bench.intervals", "bench.rows"},
    {"bench.questions", "bench.grid"},
    {"bench.running", "bench.setup", "bench.summary"},
    {"bench.export", "bench.judging", "bench.tuning", "bench.planning"},
    {"bench.charts", "checking", "suggesting"},
    {"bench.report", "bench"},
    {"server.waiting", "server.slots", "server.engine", "server.large_requests", "server"},
    {"server.messages", "server.tool_calls", "server.fields"},
    {"server.protocol", "server.refusals", "server.answers", "server.metrics", "server.policy"},
    {"server.security", "server.choosing", "server.streams", "server.translating"},
    {"server.asking", "server.listing", "server.openapi"},
    {"server.app", "server.connections", "server.log_limit", "server.watchdog"},
    {"server.listening"},
    {"cli.placing"},
    {"cli.terminal", "cli.options"},
    {"cli.invocation", "cli.scores", "cli.commands", "cli.verdicts"},
    {
        "cli.answers",
        "cli.benchmarks",
        "cli.chatting",
        "cli.checking",
        "cli.doctoring",
        "cli.fetching",
        "cli.hosting",
        "cli.listings",
        "cli.measurements",
        "cli.planning",
        "cli.serving",
        "cli.tuning",
    },
    {"cli.app", "cli"},
    {"__init__", "__main__"},
]
#: Who may touch llama.cpp.
LLAMA_CPP = {
    *(
        "adapters",
        "backend",
        "batch",
        "build",
        "context",
        "ggml",
        "model",
        "parameters",
        "rehearsing",
        "rollback",
        "rpc",
        "saved",
        "tokenizer",
    ),
}
#: These must run on toy sessions without any model, so nothing heavier than numpy.
ALGORITHMS = {
    *(
        "checks",
        "lazy",
        "sequences",
        "sampling",
        "stats",
        "profile",
        "rows",
        "vocabulary",
        "evidence",
        "deferral",
        "account",
        "shaping",
        "lark",
        "gbnf",
        "json_schema",
        "rules",
        "token_rules",
    ),
    *("acceptance", "clipping", "custom", "guards", "verify", "generation", "drafting", "cascade", "routing"),
    *("ngram", "pacing", "experience", "prospect", "controller", "ahead"),
}


def name_of(path: Path) -> str:
    """``cli.options`` for cli/options.py, ``cli`` for cli/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
FOLDERS = {name_of(path) for path in PACKAGE.glob("*/__init__.py")}


def own_imports(module: str) -> set[str]:
    """Names of the package's modules that this one imports."""
    found = set()
    here = module.split(".") if module in FOLDERS else module.split(".")[:-1]
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            origin = [*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                whole = ".".join([*origin, alias.name])
                found.add(whole if whole in MODULES else ".".join(origin))
    return found & set(MODULES)


def outside_imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def level(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def test_every_module_has_its_place():
    assert set(MODULES) == set.union(*LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    for imported in own_imports(module):
        assert level(imported) <= level(module), f"{module} imports {imported}, which lies above it"


def test_there_is_no_circle():
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


@pytest.mark.parametrize("module", sorted(ALGORITHMS))
def test_an_algorithm_needs_nothing_but_numpy(module):
    assert outside_imports(module) <= {"numpy", "__future__", *sys.stdlib_module_names}


def test_only_the_rooms_below_a_session_touch_llama_cpp():
    assert {module for module in MODULES if "llama_cpp" in outside_imports(module)} == LLAMA_CPP


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_private_name_of_another(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert not [alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_does(module):
    assert ast.get_docstring(MODULES[module])

"""What ``speccascade serve`` refuses, before anything is loaded and in one line."""

from __future__ import annotations

import socket
import sys

import pytest
from typer.testing import CliRunner

from speccascade_local.cli import app as cli_app
from speccascade_local.cli.verbs import serve


@pytest.fixture
def refused(monkeypatch):
    """Calls the verb; its one line."""
    monkeypatch.delenv("SPECCASCADE_API_KEY", raising=False)
    monkeypatch.setattr(serve, "set_log_level", lambda _: None)
    monkeypatch.setattr(serve, "load_with_progress", lambda *_, **__: pytest.fail("something was loaded"))

    def call(*arguments):
        done = CliRunner().invoke(cli_app.app, ["serve", *map(str, arguments)])
        assert done.exit_code == 1, done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    return call


def test_a_port_that_is_in_use(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in refused("--port", port)


@pytest.mark.parametrize("library", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_library_names_the_command_that_brings_it(refused, monkeypatch, library):
    for name in [name for name in sys.modules if name.startswith("speccascade_local.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["speccascade_local"], "server", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    assert "-m pip install 'speccascade-local[serve]'" in refused()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "API key"),
        (["--host", "no.such.host.invalid", "--api-key-file", "/nowhere"], "cannot be read"),
        (["--port", 70_000], "--port"),
        (["--slots", 0], "--slots"),
        (["--max-queue", 0], "--max-queue"),
        (["--timeout", "nan"], "--timeout"),
        (["--timeout", -1], "--timeout"),
        (["--allow-origin", "example.org"], "app://obsidian.md"),
        (["--allow-origin", "file://"], "not an origin"),
        (["--allow-origin", "*"], "no API key"),
        (["--allow-host", "http://box.lan"], "give only the name"),
        (["--rule", "mine"], "NAME=RULE"),
        (["--rule", "strict=never"], "is taken"),
        (["--rule", "expert=never"], "is taken"),
        (["--rule", "mine=unheard"], "unknown rule"),
        (["--alias", "gpt-4o=other"], "unknown pair 'other'; the pairs here are demo"),
        (["--alias", "demo"], "a pair has this name"),
        (["--alias", "a b"], "cannot be a model's name"),
        (["--alias", "a", "--alias", "a=demo"], "given twice"),
        (["no-such-pair"], "no-such-pair"),
        (["demo", "demo"], "twice"),
        (["demo", "--drafter", "a.gguf", "--expert", "b.gguf"], "one or the other"),
    ],
)
def test_an_error_is_one_line(refused, arguments, message):
    assert message in refused("--port", 0, *arguments)

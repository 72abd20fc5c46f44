"""What docs/install.md and docs/several-machines.md say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import serving

from speccascade_local.cli.app import VERBS
from speccascade_local.common.endpoints import DEFAULT_PORT

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("install.md", "several-machines.md")}
PROJECT = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (DOCS / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_the_version_of_llama_cpp_is_the_one_that_is_asked_for(page):
    (wanted,) = set(re.findall(r'"(llama-cpp-python[^"]+)"', PAGES[page]))
    assert f'"{wanted}"' in PROJECT


@pytest.mark.slow
def test_the_verbs_and_their_options_exist():
    text = "".join(PAGES.values())
    assert set(re.findall(r"speccascade ([a-z][a-z-]+)", text)) <= set(VERBS)
    row = next(line for line in text.splitlines() if line.startswith("| each other machine"))
    help_text = subprocess.run(
        [sys.executable, "-m", "speccascade_local", "rpc-serve", "--help"], capture_output=True, text=True, check=True
    )
    for option in re.findall(r"`(--[a-z-]+)", row):
        assert option in help_text.stdout
    assert f"({DEFAULT_PORT})" in row


def python_in(page: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    return block


@pytest.mark.slow
def test_the_first_lines_of_python_run_as_they_stand():
    done = subprocess.run([sys.executable, "-c", python_in("index.md")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Lovelace" in done.stdout


@pytest.mark.slow
def test_the_openai_client_talks_to_the_server_as_its_page_says():
    address = "http://127.0.0.1:8080"
    assert address in python_in("http.md")
    with serving() as served:
        program = python_in("http.md").replace(address, served.url)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Lovelace" in done.stdout

"""Child processes of a frozen application, by a script that stands for one: it is its own ``sys.executable``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speccascade_local.common import child_process

APPLICATION = """#!{python}
import sys
sys.frozen, sys.executable = True, {path!r}
import speccascade_local as sc
sc.freeze_support()
print("the application itself", *sys.argv[1:])
{body}
"""


def application(folder: Path, body: str = "") -> Path:
    path = folder / "application"
    path.write_text(APPLICATION.format(python=sys.executable, path=str(path), body=body))
    path.chmod(0o755)
    return path


def ran(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(child_process.PACKAGE.parent),
        "XDG_CACHE_HOME": str(Path(str(words[0])).parent),
    }
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=240, env=environment, **more)


pytestmark = pytest.mark.skipif(os.name != "posix", reason="a script is no program here")


@pytest.mark.slow
def test_a_frozen_application_rehearses_renders_and_answers_by_its_own_children_and_begins_once(tmp_path):
    body = """
from speccascade_local.machine.trial import try_bundled_pair
with sc.load(n_threads=1, profile=False) as runtime:
    print(runtime.chat([{"role": "user", "content": "Who is Ada Lovelace?"}], rule="strict", max_tokens=40).text)
print(try_bundled_pair().works)
"""
    done = ran(application(tmp_path, body))
    assert done.returncode == 0, done.stderr
    first, answer, works = done.stdout.splitlines()
    assert first == "the application itself"
    assert "Lovelace" in answer
    assert works == "True"


def test_a_child_is_nothing_but_its_program(tmp_path):
    done = ran(
        application(tmp_path), child_process._WORD, "chat_template", "10", "1000", input='{"source": "{{ 6 * 7 }}", "variables": {}}\n'
    )
    assert (done.returncode, done.stdout) == (0, '{"text": "42"}\n'), done.stderr


@pytest.mark.slow
def test_no_other_module_is_run_by_that_word(tmp_path):
    for words in (["cli.app"], ["os"], []):
        done = ran(application(tmp_path), child_process._WORD, *words)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "unknown program; allowed are chat_template, dry_run, grammar" in done.stderr


def test_an_application_that_is_not_frozen_takes_no_notice_of_the_word(tmp_path):
    code = "import speccascade_local, sys; speccascade_local.freeze_support(); print(sys.argv[1:])"
    assert ran(sys.executable, "-c", code, child_process._WORD, "chat_template").stdout == f"['{child_process._WORD}', 'chat_template']\n"


def test_every_program_there_is_can_be_started_by_its_name():
    for program in child_process.get_args(child_process.Program):
        path = (child_process.PACKAGE / "programs" / program).with_suffix(".py")
        assert "__main__" in path.read_text(), program


def test_advice_about_pip_does_not_name_an_application_that_has_none(monkeypatch):
    from speccascade_local.common.pip import pip

    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert pip("install", "x", windows=False) == "python -m pip install x"

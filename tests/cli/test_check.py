"""``speccascade check`` as its users meet it: what it says, where it looks, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_files import CHATML, recurrent_model, text_model, textless_model
from local_hub import LocalHub
from typer.testing import CliRunner, Result

import speccascade_local
from speccascade_local.cli import app as cli_app
from speccascade_local.cli.verbs import check as check_verb

DEMO = Path(speccascade_local.__file__).parent / "demo"
OLD_PLACES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "SPECCASCADE_MODELS")

Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Calls the verb in this process, in an empty home; nothing may open a socket."""
    for name in OLD_PLACES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.chdir(home)
    monkeypatch.setattr(check_verb, "set_log_level", lambda _: None)  # it would stay for later tests
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    return lambda *arguments: CliRunner().invoke(cli_app.app, ["check", *map(str, arguments)])


@pytest.mark.slow
def test_the_bundled_pair_is_a_yes_and_the_verdict_stands_first(check):
    done = check()
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "yes  demo: they pair"
    for about in ("vocabulary", "pre-type", "special ids", "end ids", "chat template", "drafter: rollback", "expert: rollback", "memory"):
        assert f"\nok {about}" in done.stdout
    assert "total" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_what_is_to_be_known_comes_before_what_is_well(check, tmp_path):
    files = ("--drafter", textless_model(tmp_path / "d.gguf"), "--expert", recurrent_model(tmp_path / "e.gguf"))
    done = check(*files)
    assert done.exit_code == 1
    first, *lines = done.stdout.splitlines()
    assert first.startswith("yes, but  d.gguf + e.gguf: they pair, with ")
    marks = [line.split()[0] for line in lines if line.split() and line.split()[0] in ("no", "but", "–", "ok")]
    assert marks == sorted(marks, key=["no", "but", "–", "ok"].index)
    assert f"with {marks.count('but')} warnings" in first


@pytest.mark.slow
def test_a_no_has_the_reason_and_exit_code_2(check, tmp_path):
    files = ("--drafter", text_model(tmp_path / "d.gguf", texts={9: "<x>"}), "--expert", text_model(tmp_path / "e.gguf"))
    done = check(*files)
    assert done.exit_code == 2
    assert done.stdout.startswith("no  d.gguf + e.gguf: they do not pair")
    assert "token id 9 is '<x>' for the drafter" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demmo"], "unknown pair 'demmo'; did you mean 'demo'?"),
        (["--drafter", "x.gguf"], "a drafter file needs an expert file"),
        (["--ctx", "0"], "n_ctx (--ctx) is 0"),
        (["--cache-type", "q9"], "cache_type (--cache-type) is 'q9'"),
        (["--expert-device", "CUDA7"], "device is 'CUDA7'"),
        (["--suggest", "x.gguf", "demo"], "--suggest takes an expert's file"),
        (["--suggest", "x.gguf", "--remote"], "--suggest takes an expert's file"),
        (["--folder", "."], "--folder says where --suggest searches"),
        (["--suggest", "x.gguf"], "x.gguf: no such file"),
        (["--suggest", "x.gguf", "--folder", "gone"], "--folder gone: no such folder"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2_because_1_is_an_answer(check, arguments, said):
    done = check(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("damage", ["gone", "empty", "text", "cut"])
def test_files_that_are_missing_or_damaged_are_a_no(check, tmp_path, damage):
    path = tmp_path / "e.gguf"
    if damage != "gone":
        path.write_bytes({"empty": b"", "text": b"a text", "cut": (DEMO / "expert.gguf").read_bytes()[:50_000]}[damage])
    done = check("--drafter", DEMO / "drafter.gguf", "--expert", path)
    assert done.exit_code == 2
    assert done.stdout.startswith("no  drafter.gguf + e.gguf: they do not pair")
    assert "e.gguf" in done.stdout.splitlines()[1]


@pytest.mark.slow
def test_json_has_it_all_whatever_the_answer(check, tmp_path):
    done = check("--json", "--ctx", "256")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["answer"], found["n_ctx"], found["pair"]) == (0, "yes", 256, "demo")
    done = check("--json", "--drafter", DEMO / "drafter.gguf", "--expert", tmp_path / "gone.gguf")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["answer"], found["exit_code"]) == (2, "no", 2)


@pytest.mark.slow
def test_facts_in_models_yaml_count_unless_an_option_overrides_them(check, tmp_path):
    (tmp_path / "models.yaml").write_text(
        f"pairs: {{p: {{drafter: {{file: {DEMO / 'drafter.gguf'}, cache_type: q8_0}}, expert: {DEMO / 'expert.gguf'}}}}}"
    )
    found = json.loads(check("p", "--json", "--models", tmp_path / "models.yaml").stdout)
    assert "held as q8_0" in next(each["text"] for each in found["findings"] if each["about"] == "cache")
    found = json.loads(check("p", "--json", "--models", tmp_path / "models.yaml", "--drafter-cache-type", "q4_0").stdout)
    assert "held as q4_0" in next(each["text"] for each in found["findings"] if each["about"] == "cache")


@pytest.mark.slow
def test_machines_that_share_the_expert_are_not_asked_and_its_size_is_then_no_error(check, tmp_path, monkeypatch):
    monkeypatch.setattr("speccascade_local.machine.check.free_memory", lambda: 1000)
    shared = f"{{drafter: {DEMO / 'drafter.gguf'}, expert: {DEMO / 'expert.gguf'}, rpc: ['10.0.0.9:50052']}}"
    (tmp_path / "models.yaml").write_text(f"pairs: {{p: {shared}}}")
    done = check("p", "--models", tmp_path / "models.yaml")
    assert done.exit_code == 1
    assert "10.0.0.9:50052 share the expert" in " ".join(done.stdout.split())
    assert check().exit_code == 2


def test_a_missing_adapter_is_a_no(check, tmp_path):
    model = f"{{file: {DEMO / 'expert.gguf'}, lora: gone.gguf}}"
    (tmp_path / "models.yaml").write_text(f"pairs: {{p: {{drafter: {DEMO / 'drafter.gguf'}, expert: {model}}}}}")
    done = check("p", "--models", tmp_path / "models.yaml")
    assert done.exit_code == 2
    assert "the expert's LoRA adapter gone.gguf is not on this machine" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_as_a_process_the_exit_code_is_the_answer(tmp_path):
    command = [sys.executable, "-m", "speccascade_local", "check", "--drafter", DEMO / "drafter.gguf", "--expert", DEMO / "expert.gguf"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --------------------------------------------------------------------------- drafters on this machine


@pytest.mark.slow
def test_drafters_are_searched_where_other_programs_store_models(check, tmp_path):
    home = tmp_path / "home"
    store = home / ".lmstudio" / "models" / "me" / "demo-GGUF"
    store.mkdir(parents=True)
    shutil.copy(DEMO / "drafter.gguf", store / "small.gguf")
    text_model(store / "other.gguf", texts={50: "<x>"})
    (store / "broken.gguf").write_text("no model")
    done = check("--suggest", DEMO / "expert.gguf")
    assert done.exit_code == 0
    assert "me/demo-GGUF/small.gguf" in done.stdout.splitlines()[1]
    assert "not me/demo-GGUF/other.gguf: " in done.stdout
    assert "broken.gguf" in done.stderr
    found = json.loads(check("--suggest", DEMO / "expert.gguf", "--json").stdout)
    assert [each["model"]["name"] for each in found["ranked"]] == ["me/demo-GGUF/small.gguf"]
    assert [each["name"] for each in found["others"]] == ["me/demo-GGUF/other.gguf"]
    assert found["places"] == {"LM Studio": str(home / ".lmstudio" / "models")}
    assert (found["measured"], len(found["troubles"])) == (False, 1)


def test_without_a_match_the_searched_folders_are_named(check, tmp_path):
    done = check("--suggest", DEMO / "expert.gguf", "--folder", tmp_path)
    assert done.exit_code == 2
    assert done.stdout == f"no model pairs with the expert; looked in {tmp_path}\n"
    done = check("--suggest", DEMO / "expert.gguf")
    assert (done.exit_code, done.stdout) == (2, "no model pairs with the expert; found no folder to look in; name one with --folder\n")


# --------------------------------------------------------------------------- files that are not here


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A models.yaml whose pair is on the hub."""
    models = tmp_path / "models.yaml"
    models.write_text("pairs: {far: {drafter: {hub: me/models, file: d.gguf}, expert: {hub: me/models, file: e.gguf}}}")
    return models


def test_without_remote_nothing_is_fetched(check, remote):
    done = check("far", "--models", remote)
    assert done.exit_code == 2
    assert "d.gguf of me/models is not on this machine" in " ".join(done.stdout.split())
    assert "speccascade pull far" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("without_range", [False, True])
def test_with_remote_the_headers_are_fetched_and_nothing_stays(tmp_path, remote, without_range):
    data = {
        "d.gguf": text_model(tmp_path / "d.gguf", chat_template=CHATML).read_bytes() + bytes(3_000_000),
        "e.gguf": text_model(tmp_path / "e.gguf", chat_template=CHATML, seed=1).read_bytes() + bytes(3_000_000),
    }
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with LocalHub({"me/models": data}) as hub:
        hub.without_range = without_range
        own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(temporary)}
        command = [sys.executable, "-m", "speccascade_local", "check", "far", "--models", str(remote), "--remote", "--json"]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, env=os.environ | own)
    assert list(temporary.iterdir()) == []
    if without_range:
        assert done.returncode == 2
        assert b"no range requests" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        found = json.loads(done.stdout)
        assert (done.returncode, found["answer"]) == (1, "yes, but")
        assert found["models"]["expert"]["path"] == str(Path("me/models/e.gguf"))
        assert str(temporary) not in done.stdout.decode()
        assert hub.sent <= 2 << 20
        assert not (tmp_path / "hf" / "hub").exists()


def test_help_explains_the_exit_codes():
    done = CliRunner().invoke(cli_app.app, ["check", "--help"], env={"COLUMNS": "200"})
    assert "Exit code 0: yes. 1: yes, with warnings. 2: no" in " ".join(done.stdout.split())

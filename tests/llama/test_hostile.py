"""Whatever a model file holds, the user's process lives: it is refused, or it loads and answers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import gguf
import pytest
from gguf_files import CHATML, recurrent_model, text_model, textless_model
from gguf_mutants import mutants

import speccascade_local as sc
from speccascade_local.common.errors import ModelLoadError
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.models.gguf_header import check_gguf

READER = Path(__file__).parents[1] / "support" / "mutant_reader.py"
OF_EACH = 120


def taken(how: str, paths: list[Path]) -> list[str]:
    """What becomes of each file in a process that reads one after the other, and in a new one after each death."""
    verdicts: list[str] = []
    while len(verdicts) < len(paths):
        rest = paths[len(verdicts) :]
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        given = "".join(f"{path}\n" for path in rest)
        ran = subprocess.run([sys.executable, READER, how], input=given, capture_output=True, text=True, errors="replace", env=environment)
        told = ran.stdout.splitlines()
        verdicts += told if len(told) == len(rest) else [*told, f"died {ran.returncode} {ran.stderr[-300:]}"]
    return verdicts


def test_every_mutant_is_refused_or_works(tmp_path):
    originals = [text_model(tmp_path / "t", chat_template=CHATML), textless_model(tmp_path / "i"), recurrent_model(tmp_path / "r")]
    whole, walked = [], Counter()
    for original in originals:
        for number, data in enumerate(mutants(original, OF_EACH, seed=7)):
            path = tmp_path / f"{original.name}{number}.gguf"
            path.write_bytes(data)
            try:
                check_gguf(path)
                whole.append(path)
            except ModelLoadError:
                walked[original.name] += 1
    assert all(walked[original.name] > OF_EACH / 3 for original in originals)

    tried = dict(zip(whole, taken("rehearse", whole)))
    fatal = [path for path, verdict in tried.items() if verdict.startswith("died")]
    for path in fatal[:3]:  # what kills whoever reads it does not kill us
        with pytest.raises(ModelLoadError, match=rf"{path.name}: llama\.cpp gave up on this file \(killed by signal \d+\): .*GGML_ASSERT"):
            dry_run_models({"expert": path}, n_ctx=64)
    usable = [path for path, verdict in tried.items() if verdict == "ok"]
    verdicts = taken("use", usable)
    assert not [(path.name, verdict) for path, verdict in zip(usable, verdicts) if verdict.startswith("died")]
    assert verdicts.count("ok") > 10
    assert any(verdict.startswith("refused") for verdict in tried.values())


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.bin", "weights")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (zipped(), "not a GGUF file: it begins with b'PK"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + (2**40).to_bytes(8, "little"), "claims 1099511627776 keys"),
    ],
)
def test_the_command_says_one_line_and_ends_with_1(tmp_path, data, said):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    assert_one_line(bad, said)


def test_a_file_that_kills_llama_cpp_is_one_line_too(tmp_path):
    """Two ids with one text: llama.cpp aborts."""
    assert_one_line(text_model(tmp_path / "twins.gguf", texts={100: "a", 101: "a"}), "llama.cpp gave up on this file")


@pytest.mark.parametrize("kind", ["empty", "control"])
def test_a_vocabulary_of_hundreds_of_thousands_of_odd_tokens_is_tried_in_seconds(tmp_path, kind):
    count = 200_000
    odd = range(300, count)
    path = text_model(
        tmp_path / "odd.gguf",
        n_vocab=count,
        texts={i: "" if kind == "empty" else f"<|{i}|>" for i in odd},
        types={} if kind == "empty" else dict.fromkeys(odd, gguf.TokenType.CONTROL),
    )
    begun = time.monotonic()
    assert dry_run_models({"drafter": path, "expert": path}, n_ctx=64)["drafter"].n_shared == count
    assert time.monotonic() - begun < 30


def test_where_llama_cpp_ends_the_process_its_last_line_says_why_and_names_the_file(tmp_path):
    """A file that nothing tried first, as one that is replaced between the trial and the load."""
    path = text_model(tmp_path / "twins.gguf", texts={100: "a", 101: "a"})
    code = "import os, sys; from pathlib import Path; from speccascade_local.llama.model import LlamaModel; LlamaModel(Path(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if name != "GGML_NO_BACKTRACE"}
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=environment)
    assert ran.returncode not in (0, 1)
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"error: llama.cpp gave up on {path}: ")
    assert "GGML_ASSERT" in last
    assert "changed after it was tried: fetch it again" in last
    assert "No such process" not in ran.stderr
    assert "ptrace" not in ran.stderr


def assert_one_line(bad: Path, said: str) -> None:
    drafter = sc.catalog.bundled().drafter
    command = [sys.executable, "-m", "speccascade_local", "run", "--drafter", drafter, "--expert", bad, "hello"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: {bad}: ")
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_cut_copy_is_refused_by_load_before_anything_is_loaded(tmp_path, made):
    pair = sc.catalog.bundled()
    (tmp_path / "cut.gguf").write_bytes(pair.expert.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf: cut off"):
        sc.load(drafter=pair.drafter, expert=tmp_path / "cut.gguf")
    assert not made

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
from command_line import as_text
from gguf_files import CHATML, recurrent_model, text_model, textless_model
from gguf_mutants import mutants

import speccascade_local as sc
from speccascade_local.common.errors import ModelLoadError
from speccascade_local.machine.dry_run import dry_run_models
from speccascade_local.models.catalog import bundled_pair
from speccascade_local.models.gguf_header import check_gguf

READER = Path(__file__).parents[1] / "support" / "mutant_reader.py"
OF_EACH = 120


def verdicts_of(how: str, paths: list[Path]) -> list[str]:
    """The verdict on each file, in a process that reads one after the other, and in a new one after each death."""
    verdicts: list[str] = []
    while len(verdicts) < len(paths):
        rest = paths[len(verdicts) :]
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        given = "".join(f"{path}\n" for path in rest)
        ran = subprocess.run([sys.executable, READER, how], input=given, capture_output=True, text=True, errors="replace", env=environment)
        lines = ran.stdout.splitlines()
        verdicts += lines if len(lines) == len(rest) else [*lines, f"died {ran.returncode} {ran.stderr[-300:]}"]
    return verdicts


@pytest.mark.slow
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

    tried = dict(zip(whole, verdicts_of("dry-run", whole)))
    fatal = [path for path, verdict in tried.items() if verdict.startswith("died")]
    for path in fatal[:3]:  # a file that kills its reader does not kill this process
        with pytest.raises(ModelLoadError, match=rf"{path.name}: llama\.cpp aborted on this file \(killed by signal \d+\): .*GGML_ASSERT"):
            dry_run_models({"expert": path}, n_ctx=64)
    usable = [path for path, verdict in tried.items() if verdict == "ok"]
    verdicts = verdicts_of("use", usable)
    assert not [(path.name, verdict) for path, verdict in zip(usable, verdicts) if verdict.startswith("died")]
    assert verdicts.count("ok") > 10
    assert any(verdict.startswith("refused") for verdict in tried.values())


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.bin", "weights")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (zipped(), "not a GGUF file: it begins with b'PK"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + (2**40).to_bytes(8, "little"), "claims 1099511627776 keys"),
    ],
)
def test_the_command_prints_one_line_and_exits_with_1(tmp_path, data, message):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    assert_one_line(bad, message)


def test_a_file_that_makes_llama_cpp_abort_is_one_line_too(tmp_path):
    """Two ids with one text: llama.cpp aborts."""
    assert_one_line(text_model(tmp_path / "twins.gguf", texts={100: "a", 101: "a"}), "llama.cpp aborted on this file")


@pytest.mark.slow
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


def test_when_llama_cpp_aborts_the_last_line_has_the_reason_and_the_file(tmp_path):
    """A file that nothing tried first, as one that is replaced between the trial and the load."""
    path = text_model(tmp_path / "twins.gguf", texts={100: "a", 101: "a"})
    code = "import os, sys; from pathlib import Path; from speccascade_local.llama.model import LlamaModel; LlamaModel(Path(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if name != "GGML_NO_BACKTRACE"}
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=environment)
    assert ran.returncode not in (0, 1)
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"error: llama.cpp aborted on {path}: ")
    assert "GGML_ASSERT" in last
    assert "has changed since its dry run: fetch it again" in last
    assert "No such process" not in ran.stderr
    assert "ptrace" not in ran.stderr


def assert_one_line(bad: Path, message: str) -> None:
    drafter = bundled_pair().drafter
    ran = as_text("run", "--drafter", drafter, "--expert", bad, "hello")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: {bad}: ")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_cut_copy_is_refused_by_load_before_anything_is_loaded(tmp_path, made):
    pair = bundled_pair()
    (tmp_path / "cut.gguf").write_bytes(pair.expert.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf: cut off"):
        sc.load(drafter=pair.drafter, expert=tmp_path / "cut.gguf")
    assert not made

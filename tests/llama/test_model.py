"""Files into weights: what is refused, what is freed, what a file says of itself."""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import gguf
import llama_cpp
import pytest
from gguf_files import (
    CHATML,
    adapter,
    embedding_model,
    textless_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from speccascade_local.common.errors import ModelLoadError, SessionError
from speccascade_local.llama import parameters
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.machine.dry_run import dry_run_models


def test_an_adapter_in_place_of_a_model_is_refused_with_the_right_option(tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora.gguf")
    for load in (LlamaModel, lambda path: dry_run_models({"expert": path})):
        with pytest.raises(ModelLoadError, match=r"lora\.gguf: a LoRA adapter and not a model; .* --expert-lora, --drafter-lora"):
            load(path)


def test_a_later_part_of_a_divided_model_says_which_file_to_name(tmp_path: Path) -> None:
    whole = textless_model(tmp_path / "m.gguf").read_bytes()
    for number in (1, 2):
        (tmp_path / f"big-0000{number}-of-00002.gguf").write_bytes(whole)
    for load in (LlamaModel, lambda path: dry_run_models({"expert": path})):
        with pytest.raises(ModelLoadError, match=r"big-00002-of-00002\.gguf: .*, but not the first; name big-00001-of-00002\.gguf$"):
            load(tmp_path / "big-00002-of-00002.gguf")


def test_a_later_part_under_another_name_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=r"renamed\.gguf: .*, but not the first; name the first$"):
        LlamaModel(path)


def test_the_name_of_a_repository_is_no_file_and_says_how_to_fetch_one() -> None:
    with pytest.raises(
        ModelLoadError, match=r"^Qwen/Qwen2\.5-0\.5B-Instruct-GPTQ-Int4: no such file; .* only files in GGUF form .* pull'$"
    ):
        LlamaModel("Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4")
    for name in ("here/absent.gguf", "/a/b", "../a", "absent"):
        with pytest.raises(ModelLoadError, match="no such file; check the path"):
            LlamaModel(name)


def test_a_closed_model_says_so_and_may_be_closed_again(files: SimpleNamespace, freed: list[tuple[str, int]]) -> None:
    model = LlamaModel(files.text)
    assert model.tokenizer.has_text
    assert not model.closed
    model.close()
    model.close()
    assert model.closed
    assert [kind for kind, _ in freed] == ["llama_model_free"]
    for use in (
        lambda: model.tokenizer.tokenize("a", add_special=False, parse_special=False),
        lambda: model.tokenizer.is_end(0),
        lambda: LlamaSession(LlamaContext(model, n_ctx=8)),
    ):
        with pytest.raises(SessionError, match=r"text\.gguf: this model is closed"):
            use()


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["llama_model_get_vocab", "llama_vocab_n_tokens", "llama_model_n_ctx_train"])
def test_a_model_that_fails_half_way_frees_its_weights_once(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]], fails: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp, fails, fail)
    with pytest.raises(KeyboardInterrupt):
        LlamaModel(files.ids)
    gc.collect()
    assert [kind for kind, _ in made] == ["llama_model_free"]
    assert freed == made


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"absent\.gguf: no such file"):
        LlamaModel(tmp_path / "absent.gguf")


@pytest.mark.parametrize("name", ["x" * 300 + ".gguf", "~no-such-user-here/model.gguf", "nul\0.gguf", "file.gguf/model.gguf"])
def test_a_path_that_no_file_can_have_is_a_load_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError):
        LlamaModel(name if name.startswith("~") else tmp_path / name)


def test_an_empty_file_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"empty\.gguf: an empty file"):
        LlamaModel(tmp_path / "empty.gguf")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"a folder; name the \.gguf file itself"):
        LlamaModel(tmp_path)


def test_a_file_that_may_not_be_read_is_a_load_error(files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer is given here, because a test that runs as root may read everything."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelLoadError, match=r"ids\.gguf: cannot be read \(Permission denied\); check its name and permissions"):
        LlamaModel(files.ids)


@pytest.mark.parametrize("content", [b"GG", b"PK\x03\x04weights", b"# text\n", b"\0" * 100])
def test_a_file_that_does_not_begin_as_gguf_says_how_it_begins(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as error:
        LlamaModel(path)
    assert f"{path}: not a GGUF file: it begins with {content[:4]!r}" in str(error.value)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_cut_off_anywhere_is_a_load_error_that_names_it(
    files: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = files.text.read_bytes()
    length = data.draw(st.integers(4, 200) | st.integers(200, len(whole) - 1) | st.just(len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(whole[:length])
    with pytest.raises(ModelLoadError) as error:
        LlamaModel(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "cut off" in str(error.value)


@pytest.mark.slow
def test_an_embedding_model_is_refused(tmp_path: Path, made: list[tuple[str, int]], freed: list[tuple[str, int]]) -> None:
    path = embedding_model(tmp_path / "unusable.gguf")
    with pytest.raises((ModelLoadError, SessionError), match=r"unusable\.gguf: "):
        LlamaSession(LlamaContext(LlamaModel(path), n_ctx=32, n_threads=1)).extend([5, 6], 1)
    gc.collect()
    assert made
    assert sorted(freed) == sorted(made)


def test_a_path_may_be_text_and_begin_at_home(files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(files.ids.parent))
    model = LlamaModel("~/ids.gguf")
    assert model.path == files.ids
    model.close()


def test_progress_runs_from_0_to_1_and_never_back(files: SimpleNamespace) -> None:
    seen: list[float] = []
    LlamaModel(files.text, on_progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[0] >= 0
    assert seen[-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
@pytest.mark.parametrize("when", ["first", "last"])
def test_an_exception_while_loading_reaches_the_caller_and_leaves_nothing_loaded(
    files: SimpleNamespace, made: list[tuple[str, int]], freed: list[tuple[str, int]], error: BaseException, when: str
) -> None:
    def stop(fraction: float) -> None:
        if when == "first" or fraction == 1:
            raise error

    with pytest.raises(type(error)) as seen:
        LlamaModel(files.text, on_progress=stop)
    assert seen.value is error
    assert freed == made


def test_on_progress_is_not_asked_again_after_it_raised(files: SimpleNamespace) -> None:
    calls: list[float] = []

    def stop(fraction: float) -> None:
        calls.append(fraction)
        raise KeyError(fraction)

    with pytest.raises(KeyError):
        LlamaModel(files.text, on_progress=stop)
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("when", ["first", "last"])
def test_ctrl_c_while_loading_interrupts_and_leaves_nothing_loaded(
    files: SimpleNamespace, made: list[tuple[str, int]], freed: list[tuple[str, int]], when: str
) -> None:
    def press(fraction: float) -> None:
        if when == "first" or fraction == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        LlamaModel(files.text, on_progress=press)
    assert freed == made
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_inside_llama_cpp_interrupts_and_frees_the_finished_model(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, int]], freed: list[tuple[str, int]]
) -> None:
    real = llama_cpp.llama_model_load_from_file

    def load(path: bytes, params: object) -> int | None:
        handle = real(path, params)
        os.kill(os.getpid(), signal.SIGINT)
        return handle

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    with pytest.raises(KeyboardInterrupt):
        LlamaModel(files.text)
    assert [kind for kind, _ in made] == ["llama_model_free"]
    assert freed == made


def test_a_thread_may_load_a_model(files: SimpleNamespace) -> None:
    """Signal handlers belong to the main thread."""
    loaded: list[LlamaModel] = []
    thread = threading.Thread(target=lambda: loaded.append(LlamaModel(files.ids)))
    thread.start()
    thread.join()
    assert loaded[0].n_vocab == 96
    loaded[0].close()


AVX512 = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "


AMX = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "


@pytest.mark.parametrize(
    ("info", "repacked", "message"), [(AVX512, True, "repacking is on"), (AMX, False, "repacking is off, because .* AMX")]
)
def test_weights_are_repacked_unless_the_build_has_amx_and_the_log_says_which(
    files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, info: str, repacked: bool, message: str
) -> None:
    real, given_params = llama_cpp.llama_model_load_from_file, []

    def load(path: bytes, params: llama_cpp.llama_model_params) -> int | None:
        given_params.append(bool(params.use_extra_bufts))
        return real(path, params)

    monkeypatch.setattr(parameters, "system_info", lambda: info)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    with caplog.at_level(logging.INFO, logger="speccascade_local"):
        LlamaModel(files.text).close()
    assert given_params == [repacked]
    assert re.search(message, caplog.text)


def test_a_model_reports_the_facts_of_its_file(model: LlamaModel, ids_model: LlamaModel, files: SimpleNamespace) -> None:
    assert (model.path, model.n_vocab, model.n_ctx_train) == (files.text, 263, 2048)
    assert model.chat_template == CHATML
    assert ids_model.chat_template is None
    assert "llama" in model.description
    assert "F32" in model.description

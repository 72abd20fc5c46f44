from __future__ import annotations

import gc
import os
import signal

# Before llama.cpp is loaded: its threads sleep while they wait, or the suite crawls beside any other work on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Of several processes with tests each has one core; models as small as these are fastest so.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import llama_cpp
import pytest
from gguf_files import CHATML, text_model, textless_model
from hypothesis import settings

import speccascade_local as sc
from speccascade_local.llama.model import LlamaModel

# A shell starts background jobs with Ctrl-C ignored, and what they start inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine may be slow or busy: how long an example takes is never a reason to fail.
# In CI the examples are the same every time, so that a red run is the change's doing; everywhere else they explore.
settings.register_profile("patient", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("patient")
# Without the slow tests the others take fewer examples too, unless --hypothesis-profile asks for all.
settings.register_profile("quick", settings.get_profile("patient"), max_examples=10)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "not slow" and not config.getoption("--hypothesis-profile"):
        settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own cache, nor does a process that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def demo() -> Iterator[sc.Runtime]:
    """The bundled pair, loaded once; on one thread, which is the fastest for models this small.

    Tests that count evaluations call ``demo.reset()`` first.
    """
    with sc.load(n_threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("gguf")
    return SimpleNamespace(text=text_model(folder / "text.gguf", chat_template=CHATML), ids=textless_model(folder / "ids.gguf"))


@pytest.fixture(scope="module")
def model(files: SimpleNamespace) -> Iterator[LlamaModel]:
    model = LlamaModel(files.text)
    yield model
    model.close()


@pytest.fixture(scope="module")
def ids_model(files: SimpleNamespace) -> Iterator[LlamaModel]:
    model = LlamaModel(files.ids)
    yield model
    model.close()


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is freed from here on, in order, as (kind, address)."""
    gc.collect()  # what earlier tests have left behind does not count
    record: list[tuple[str, int]] = []
    for kind in ("llama_free", "llama_model_free"):
        real = getattr(llama_cpp, kind)

        def free(handle: object, kind: str = kind, real: Callable[[object], None] = real) -> None:
            record.append((kind, handle if isinstance(handle, int) else 0))
            real(handle)

        monkeypatch.setattr(llama_cpp, kind, free)
    return record


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is made from here on, as the entries that ``freed`` should have for it."""
    record: list[tuple[str, int]] = []
    for maker, kind in (("llama_model_load_from_file", "llama_model_free"), ("llama_init_from_model", "llama_free")):
        real = getattr(llama_cpp, maker)

        def make(*arguments: object, kind: str = kind, real: Callable[..., int | None] = real) -> int | None:
            handle = real(*arguments)
            if handle:
                record.append((kind, handle))
            return handle

        monkeypatch.setattr(llama_cpp, maker, make)
    return record

"""An expert on other machines: real servers of llama.cpp on this one where the build has RPC, and what is said where it has not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

import speccascade_local as sc
from speccascade_local.common.endpoints import Endpoint
from speccascade_local.common.errors import ModelLoadError, SessionError, SettingError
from speccascade_local.llama import rpc
from speccascade_local.llama.devices import Device
from speccascade_local.llama.rpc_process import Server
from speccascade_local.machine.dry_run import plan_models
from speccascade_local.machine.memory import choose_layers, memory_need, require_fit
from speccascade_local.models import catalog
from speccascade_local.models.gguf_header import layers_of
from speccascade_local.models.placement import Placement

COMMAND = [sys.executable, "-m", "speccascade_local"]
QUESTION = [{"role": "user", "content": "Who is Ada Lovelace?"}]
MISSING = 'this build of llama.cpp has no RPC; rebuild it with: CMAKE_ARGS="-DGGML_RPC=on" '
needs_rpc = pytest.mark.skipif(not rpc.is_supported(), reason="this build of llama.cpp has no RPC (-DGGML_RPC=on)")
lacks_rpc = pytest.mark.skipif(rpc.is_supported(), reason="this build of llama.cpp has RPC")


def speccascade(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def spread_over(*servers: object) -> dict[str, Placement]:
    return {"expert": Placement(rpc=tuple(str(getattr(each, "endpoint", each)) for each in servers))}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with contextlib.ExitStack() as running:
        first, second = (running.enter_context(Server(Endpoint("127.0.0.1", free_port()), ["CPU"], threads=1)) for _ in range(2))
        yield first, second


# ---------------------------------------------------------------- any build


@pytest.mark.slow
@pytest.mark.parametrize("verb", [["run", "--rpc", "127.0.0.1:50052", "Hello"], ["rpc-serve"]])
@lacks_rpc
def test_a_build_without_rpc_is_refused_with_the_command_that_builds_it(verb):
    done = speccascade(*verb)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {MISSING}{sys.executable} -m pip install ")
    assert done.stderr.count("\n") == 1
    with pytest.raises(SettingError, match="has no RPC"):
        Server(Endpoint("127.0.0.1", 50052), ["CPU"], threads=1)


def test_a_build_without_rpc_is_refused_also_where_this_one_has_it(monkeypatch):
    monkeypatch.setattr(rpc.llama_cpp, "llama_supports_rpc", lambda: False)
    with pytest.raises(SettingError, match=r"-DGGML_RPC=on"):
        rpc.connect(["127.0.0.1:50052"])
    assert rpc.connect([]) == ()


@pytest.mark.parametrize("servers", [["127.0.0.1"], ["127.0.0.1:1", "127.0.0.1:1"]])
def test_an_address_is_checked_before_anything_is_loaded(servers, monkeypatch):
    monkeypatch.setattr("speccascade_local.runtime.load.LlamaModel", None)
    with pytest.raises(SettingError, match=r"HOST:PORT of an RPC server|named twice"):
        sc.load(placement=spread_over(*servers))


def test_where_nobody_answers_llama_cpp_is_not_asked(monkeypatch):
    """It would end the process."""
    monkeypatch.setattr(rpc.llama_cpp, "llama_supports_rpc", lambda: True)
    monkeypatch.setattr(rpc, "_devices_of", lambda endpoint: pytest.fail("asked"))
    with pytest.raises(SettingError, match="connection refused"):
        sc.load(placement=spread_over(f"127.0.0.1:{free_port()}"))


def test_a_model_that_drafts_is_not_spread():
    with pytest.raises(SettingError, match="rpc is given for the drafter"):
        sc.load(placement=Placement(rpc=("127.0.0.1:50052",)))


def test_memory_of_other_machines_is_the_experts_alone():
    pair = catalog.bundled_pair()
    models = plan_models(pair.files, n_ctx=512, placements=dict.fromkeys(pair.files, Placement()))
    layers = {role: layers_of(path) for role, path in pair.files.items()}
    placements = {"drafter": Placement(), "expert": Placement(rpc=("a:1", "b:1"))}
    one = models["expert"].weights // 6

    def with_free(*free: int) -> list[Device]:
        return [Device(f"RPC{i}", f"{name}:1", "gpu", size, size, 0) for i, (name, size) in enumerate(zip("abc", free))]

    for free, expected in (((10**9, 10**9, 0), -1), ((10**9, 0, 0), -1), ((0, 0, 10**9), 0), ((0, 0, 0), 0)):
        placed = choose_layers(placements, models, layers, 512, with_free(*free))
        assert (placed["drafter"].gpu_layers, placed["expert"].gpu_layers) == (0, expected)
    some = choose_layers(placements, models, layers, 512, with_free(2 * one, 2 * one))["expert"].gpu_layers
    assert 0 < some < 6
    needs = {"expert": memory_need(models["expert"], 512, layers["expert"], -1)}
    with pytest.raises(ModelLoadError, match="of memory on RPC0 and RPC1"):
        require_fit(needs, placements, 512, 10**9, with_free(one, one, 10**9))
    require_fit(needs, placements, 512, 10**9, with_free(10**9, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "machine"], "--host 'machine' is not an IPv4 address"),
        (["--host", "::1"], "--host '::1' is not an IPv4 address"),
        (["--port", "0"], "--port is 0; it must be a whole number from 1 to 65535"),
        (["--port", "65536"], "--port is 65536"),
    ],
)
def test_the_address_is_checked_first(arguments, message):
    done = speccascade("rpc-serve", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")


# ---------------------------------------------------------------- a build with it


@needs_rpc
def test_an_expert_spread_over_two_servers_writes_the_same_text(servers, demo):
    demo.reset()
    own = demo.chat(QUESTION, rule="strict", temperature=0, block_size=5)
    with sc.load(placement=spread_over(*servers), n_threads=1, profile=False) as runtime:
        assert runtime.models["expert"].placement.rpc == tuple(str(each.endpoint) for each in servers)
        assert runtime.models["drafter"].placement.rpc == ()
        spread = runtime.chat(QUESTION, rule="strict", temperature=0, block_size=5)
    assert (spread.text, spread.token_ids) == (own.text, own.token_ids)
    assert spread.stats.accepted > 0


@needs_rpc
def test_a_pair_in_models_yaml_names_its_machines(servers, demo, tmp_path):
    models = tmp_path / "models.yaml"
    named = ", ".join(f"'{each.endpoint}'" for each in servers)
    models.write_text(f"pairs: {{far: {{drafter: 'bundled:drafter.gguf', expert: 'bundled:expert.gguf', rpc: [{named}]}}}}")
    demo.reset()
    own = demo.chat(QUESTION, rule="strict", temperature=0, block_size=5)
    with sc.load("far", models=models, n_threads=1, profile=False, allow_code=True) as runtime:
        assert runtime.models["expert"].placement.rpc == tuple(str(each.endpoint) for each in servers)
        assert runtime.chat(QUESTION, rule="strict", temperature=0, block_size=5).text == own.text


@needs_rpc
def test_both_servers_hold_weights(servers, caplog):
    with caplog.at_level("DEBUG", logger="speccascade_local"), sc.load(placement=spread_over(*servers), profile=False):
        lines = [record.getMessage() for record in caplog.records]
    for each in servers:
        assert any(f"[{each.endpoint}] model buffer size" in line for line in lines)
    placed = [line.split()[7].rstrip(",") for line in lines if "assigned to device RPC" in line]
    assert len(placed) == 6
    assert len(set(placed)) == 2


@needs_rpc
def test_a_server_that_goes_away_ends_the_program_with_one_line_and_no_core_dump():
    asking = f"""
import sys, speccascade_local as sc
from speccascade_local.models.placement import Placement
with sc.load(placement={{"expert": Placement(rpc=(sys.argv[1],))}}, n_threads=1, profile=False) as runtime:
    for chunk in runtime.stream(runtime.chat_ids({QUESTION}), rule="strict", block_size=2, temperature=0):
        print("written", flush=True)
        sys.stdin.readline()
"""
    with Server(Endpoint("127.0.0.1", free_port()), ["CPU"], threads=1) as server:
        command = [sys.executable, "-c", asking, str(server.endpoint)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, text=True, **pipes) as client:
            assert client.stdout.readline() == "written\n"
            server.close()
            _, message = client.communicate("\n" * 100, timeout=60)
    assert client.returncode == 1
    assert message.startswith("error: llama.cpp aborted: ")
    assert "is every RPC server still running?" in message
    assert message.count("\n") == 1


@needs_rpc
def test_a_port_in_use_and_an_address_of_another_machine_are_refused():
    listens = "another program listens there; choose another --port"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingError, match=listens):
        Server(Endpoint("127.0.0.1", taken.getsockname()[1]), ["CPU"], threads=1)
    with pytest.raises(SettingError, match="not an address of this machine"):
        Server(Endpoint("192.0.2.1", free_port()), ["CPU"], threads=1)
    with pytest.raises(SettingError, match="device is 'GPU9'"):
        Server(Endpoint("127.0.0.1", free_port()), ["GPU9"], threads=1)


@needs_rpc
def test_a_server_that_dies_is_reported_with_its_signal():
    with Server(Endpoint("127.0.0.1", free_port()), ["CPU"], threads=1) as server:
        os.kill(server.process_id, signal.SIGSEGV)
        with pytest.raises(SessionError, match=rf"at {server.endpoint} ended by SIGSEGV: .*Start it again"):
            server.wait()


@needs_rpc
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_the_program_that_started_it(by):
    port = free_port()
    with subprocess.Popen(
        [*COMMAND, "rpc-serve", "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == f"serving at 127.0.0.1:{port}; end with Ctrl-C\n"
        assert parent.stdout.readline().startswith("  CPU: ")
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(by)
        parent.wait(30)
        assert parent.stderr.read() == ("interrupted\n" if by is signal.SIGINT else "")
    assert parent.returncode == (130 if by is signal.SIGINT else -by)
    end = time.monotonic() + 30
    while psutil.pid_exists(child.pid) and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


@needs_rpc
def test_other_machines_are_let_in_only_with_the_option_and_a_warning():
    port = free_port()
    done = speccascade("rpc-serve", "--host", "0.0.0.0", "--port", port)
    assert done.returncode == 1
    assert "has no password and no encryption" in done.stderr
    assert "allow it with --open-to-network" in done.stderr
    command = [*COMMAND, "rpc-serve", "--host", "0.0.0.0", "--port", str(port), "--open-to-network"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr.readline().startswith("warning: --host 0.0.0.0 is open to other machines")
        assert parent.stdout.readline() == f"serving at 0.0.0.0:{port}; end with Ctrl-C\n"
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=30)


@needs_rpc
def test_a_profile_of_a_spread_expert_is_kept_apart_from_that_of_a_local_one(servers):
    with sc.load(placement=spread_over(servers[0])) as spread, sc.load() as local:
        different = {name for name, value in spread.profile().key.items() if local.profile().key[name] != value}
    assert len(different) == 1
    assert "expert" in different.pop()


@needs_rpc
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--device", "CPU9"], "device is 'CPU9'; llama.cpp has"), (["--threads", "0"], "--threads is 0;")],
)
def test_devices_and_threads_are_checked_first(arguments, message):
    done = speccascade("rpc-serve", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")

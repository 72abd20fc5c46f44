"""The arms of the benchmark against peers: how our pair, llama-cpp-python and llama-server are asked one prompt."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

import speccascade_local as sc
from speccascade_local.llama.backend import extra_buffers_are_safe, system_info

BASE, PYTHON = "expert alone (ours)", "llama-cpp-python Llama"
START_S, ANSWER_S = 600.0, 3600.0
Record = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One answer and its price. ``token_ids`` with the end token; prompt_s and decode_s by the engine's own clocks, wall_s by ours."""

    text: str
    token_ids: list[int]
    wall_s: float
    prompt_s: float
    decode_s: float
    drafted: int
    accepted: int
    expert_calls: int


@dataclass(frozen=True)
class Request:
    """What every arm is asked."""

    prompt: list[int]
    temperature: float
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Arm:
    """One contender: how it is asked, and what rows say of it."""

    name: str
    ask: Callable[[Request], Answer]
    engine: str
    rule: str | None = None
    alpha: str | None = None
    block_size: int | str | None = None

    def described(self) -> Record:
        return {"arm": self.name, "engine": self.engine, "rule": self.rule, "alpha": self.alpha, "block_size": self.block_size}


def our_arm(runtime: sc.Runtime, rule: str, length: int | str) -> Arm:
    def ask(request: Request) -> Answer:
        runtime.reset()
        begun = time.perf_counter()
        reply = runtime.generate(
            request.prompt,
            rule=rule,
            block_size=length,  # type: ignore[arg-type]  # a length may be a word
            temperature=request.temperature,
            seed=request.seed if isinstance(length, int) else None,  # a call with a seed ignores what earlier calls taught
            max_tokens=request.max_tokens,
            fidelity=False,
        )
        wall_s = time.perf_counter() - begun
        stats = reply.stats
        return Answer(
            reply.text, reply.token_ids, wall_s, stats.ttft_s, wall_s - stats.ttft_s, stats.drafted, stats.accepted, stats.expert_calls
        )

    name, _, alpha = rule.partition(":")
    title = BASE if length == 0 else f"{'strict' if rule == 'strict' else f'cascade {rule}'} (ours), {shown_length(length)}"
    return Arm(title, ask, "ours", name, alpha or None, length)


def shown_length(length: int | str) -> str:
    return f"blocks of {length}" if isinstance(length, int) else f"{length} blocks"


def python_arm(expert: Path, runtime: sc.Runtime, threads: int, resources: ExitStack) -> Arm:
    """The high-level class of llama-cpp-python, by its leanest public way: ``generate``."""
    model = llama_cpp.Llama(str(expert), n_gpu_layers=-1, n_ctx=runtime.n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False)
    resources.callback(model.close)

    def ask(request: Request) -> Answer:
        model.reset()  # it would reuse the common beginning with the prompt before
        model.set_seed(request.seed)
        ids: list[int] = []
        first = begun = time.perf_counter()
        sampled = model.generate(request.prompt, temp=request.temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
        for token in sampled:
            if not ids:
                first = time.perf_counter()
            ids.append(token)
            if runtime._model.tokenizer.is_end(token) or len(ids) == request.max_tokens:
                break
        text = model.detokenize(ids[:-1] if runtime._model.tokenizer.is_end(ids[-1]) else ids).decode(errors="replace")
        end = time.perf_counter()
        return Answer(text, ids, end - begun, first - begun, end - first, 0, 0, len(ids))

    return Arm(PYTHON, ask, "llama-cpp-python")


class Server:
    """A llama-server process over the pair. fresh: restart it before each answer, because it would remember earlier ones."""

    def __init__(self, binary: Path, options: Sequence[str], log: Path, *, fresh: bool) -> None:
        self.binary, self.options, self.log, self.fresh = binary, options, log, fresh
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with self.log.open("wb") as log:
            command = [str(self.binary), *self.options, "--host", "127.0.0.1", "--port", str(self.port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._fail("does not start")
            time.sleep(0.05)
        # The first evaluations of a process are slow; too short for an n-gram to be remembered.
        self._post({"prompt": [1, 2, 3], "n_predict": 2, "cache_prompt": False, "temperature": 0.0})

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def ask(self, request: Request) -> Answer:
        if self.fresh or self.process is None:
            self.stop()
            self.start()
        wanted = {
            "prompt": request.prompt,
            "n_predict": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "cache_prompt": False,
            "return_tokens": True,
            "samplers": ["temperature"],
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
        }
        got, wall_s = self._post(wanted)
        timings, ids = got["timings"], got["tokens"]
        if timings["cache_n"] != 0 or timings["prompt_n"] != len(request.prompt) or timings["predicted_n"] != len(ids):
            self._fail(f"did not answer cold and whole: {len(request.prompt)} tokens asked, {len(ids)} returned, timings {timings}")
        drafted, accepted = timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)
        # Each evaluation yields what it accepts and one token more, the reading of the prompt included.
        calls = max(1, len(ids) - accepted)
        return Answer(got["content"], ids, wall_s, timings["prompt_ms"] / 1000, timings["predicted_ms"] / 1000, drafted, accepted, calls)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def _post(self, wanted: Record) -> tuple[Record, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.connect()  # not counted
            body = json.dumps(wanted)
            begun = time.perf_counter()
            connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
            wall_s = time.perf_counter() - begun
        except OSError as error:
            self._fail(f"broke off ({error})")
        finally:
            connection.close()
        if response.status != http.client.OK:
            self._fail(f"refused a request: {response.status} {data.decode(errors='replace')[:300]}")
        return json.loads(data), wall_s

    def _fail(self, what: str) -> None:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
        sys.exit(f"{self.binary.name} {' '.join(self.options)}: {what}. Its log ends:\n{tail}")


def server_options(spec: str, pair: Path, runtime: sc.Runtime, threads: int) -> list[str]:
    """How a server is started for ``none``, ``draft-simple:N`` or ``ngram-mod[:MATCH:MIN:MAX]``, in all else as our runtime is."""
    flash = "auto" if llama_cpp.llama_supports_gpu_offload() else "off"  # as our sessions do
    options = ["-m", str(pair / "expert.gguf"), "-c", str(runtime.n_ctx), "-np", "1", "-t", str(threads), "-tb", str(threads), "-fa", flash]
    options += ["-fit", "off", "--cache-ram", "0", "--no-cache-idle-slots", "--no-ui"]
    if not extra_buffers_are_safe(system_info()):
        options.append("--no-repack")
    kind, *numbers = spec.split(":")
    if kind == "draft-simple" and len(numbers) == 1:
        options += ["-md", str(pair / "drafter.gguf"), "--spec-type", kind, "--spec-draft-n-max", *numbers]
    elif kind == "ngram-mod" and len(numbers) in (0, 3):
        options += ["--spec-type", kind]
        for name, number in zip(("match", "min", "max"), numbers):
            options += [f"--spec-ngram-mod-n-{name}", number]
    elif spec != "none":
        sys.exit(f"--server-specs: {spec!r} is none of none, draft-simple:N, ngram-mod, ngram-mod:MATCH:MIN:MAX")
    return options


def server_arm(binary: Path, spec: str, options: Sequence[str], log: Path, resources: ExitStack) -> Arm:
    kind, *numbers = spec.split(":")
    server = Server(binary, options, log, fresh=kind == "ngram-mod")
    resources.callback(server.stop)
    title = "llama-server" if kind == "none" else " ".join(["llama-server", kind, *numbers])
    return Arm(title, server.ask, "llama-server", spec, block_size=int(numbers[-1]) if numbers else None)

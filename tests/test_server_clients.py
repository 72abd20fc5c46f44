"""Clients that go away, read nothing, come all at once or speak of one conversation; and what ends a server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gguf_files import CHATML, IM_START, text_model
from serving import PATIENCE_S, QUESTION, events, serving, wait_until

import speccascade_local as sc
from speccascade_local.server import engine as engine_module
from speccascade_local.server import listening, streams


@pytest.fixture
def slow(monkeypatch):
    """Decoding that goes on block by block only when it is let, and counts them."""
    gate = Gate()
    real = engine_module.answer

    def answer(*given):
        for chunk in real(*given):
            gate.wait()
            yield chunk

    monkeypatch.setattr(engine_module, "answer", answer)
    yield gate
    gate.open()


class Gate:
    def __init__(self):
        self.blocks, self._allowed = 0, threading.Semaphore(0)
        self._opened = False

    def wait(self):
        if not self._opened:
            assert self._allowed.acquire(timeout=PATIENCE_S)
        self.blocks += 1

    def let(self, blocks):
        for _ in range(blocks):
            self._allowed.release()

    def open(self):
        self._opened = True
        self.let(1000)


def request(**fields):
    body = json.dumps({"model": "demo", "messages": QUESTION, "temperature": 0, "speccascade": {"block_size": 1}, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def running(served):
    return served.engine.counts()["demo"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("rude", [True, False], ids=["reset", "closed"])
def test_a_client_that_goes_away_ends_the_decoding_within_a_block(slow, stream, rude):
    with serving(slots=1) as served:
        connection = served.connect()
        connection.sendall(request(stream=stream))
        slow.let(2)
        wait_until(lambda: slow.blocks == 2, "two blocks")
        if stream:
            assert connection.recv(10)
        if rude:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        (job,) = served.engine._lanes["demo"].running
        connection.close()
        wait_until(lambda: job.cancelled, "cancelled")
        slow.let(1)
        wait_until(lambda: running(served) == (0, 0), "nobody is answered")
        assert slow.blocks <= 3
        slow.open()
        assert served.chat().status_code == 200


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(slow):
    with serving(slots=1) as served:
        first, second = served.connect(), served.connect()
        first.sendall(request(stream=True))
        wait_until(lambda: running(served) == (1, 0), "the first is answered")
        second.sendall(request())
        wait_until(lambda: running(served) == (1, 1), "the second waits")
        second.close()
        wait_until(lambda: running(served) == (1, 0), "nobody waits")
        first.close()
        slow.open()
        wait_until(lambda: running(served) == (0, 0), "nobody is answered")


def test_past_its_bound_the_queue_says_when_to_come_back(slow):
    with serving(slots=1, queue=1) as served, served.connect() as first, served.connect() as second:
        first.sendall(request(stream=True))
        wait_until(lambda: running(served) == (1, 0), "the first is answered")
        second.sendall(request())
        wait_until(lambda: running(served) == (1, 1), "the second waits")
        for stream in (False, True):
            third = served.chat(stream=stream)
            assert third.status_code == 429
            assert int(third.headers["retry-after"]) >= 1
            assert third.json()["error"]["type"] == "rate_limit_error"
        slow.open()
        wait_until(lambda: running(served) == (0, 0), "nobody is left")
        assert served.chat().status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_told_so(slow, stream):
    with serving(slots=1, timeout_s=0.3) as served:
        response = served.chat(stream=stream)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        slow.let(1)
        wait_until(lambda: running(served) == (0, 0), "nobody is answered")
        slow.open()


def test_who_reads_slowly_holds_nobody_up():
    with serving(slots=1) as served, served.connect() as lazy:
        expected = served.chat().json()["choices"]
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        options = {"logprobs": True, "top_logprobs": 20, "temperature": 3.0, "max_tokens": 400, "n": 8}
        lazy.sendall(request(stream=True, **options))
        wait_until(lambda: running(served)[0] == 1, "the lazy one is answered")
        assert served.chat().json()["choices"] == expected


def test_who_never_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(streams, "READ_WITHIN_S", 0.3)
    with serving(slots=1) as served, served.connect() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        options = {"logprobs": True, "top_logprobs": 20, "temperature": 3.0, "max_tokens": 400, "n": 16}
        deaf.sendall(request(stream=True, **options))
        wait_until(lambda: running(served)[0] == 1, "it is answered")
        wait_until(lambda: running(served) == (0, 0), "it is given up")


def test_two_requests_of_one_conversation_are_both_answered():
    def ask(served, question):
        return served.chat(messages=[{"role": "user", "content": question}], prompt_cache_key="one", max_tokens=30)

    questions = ["Who is Ada Lovelace?", "Who is Alan Turing?", "Who is Ada Lovelace?", "What is 2 plus 2?"]
    with serving(slots=2) as served, ThreadPoolExecutor(4) as pool:
        alone = [served.chat(messages=[{"role": "user", "content": each}], max_tokens=30).json()["choices"] for each in questions]
        together = [answer.json()["choices"] for answer in pool.map(lambda question: ask(served, question), questions)]
    assert together == alone


def test_many_at_once_get_what_each_gets_alone():
    questions = ["Who is Ada Lovelace?", "Who is Alan Turing?", "Who is Marie Curie?", "What is 3 plus 4?"] * 4

    def ask(question, stream):
        response = served.chat(messages=[{"role": "user", "content": question}], stream=stream, max_tokens=30)
        if not stream:
            return response.json()["choices"][0]["message"]["content"]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events(response.text))

    with serving(slots=4) as served, ThreadPoolExecutor(8) as pool:
        alone = {question: ask(question, False) for question in dict.fromkeys(questions)}
        assert list(pool.map(ask, questions, [True, False] * 8)) == [alone[question] for question in questions]


def test_a_connection_that_says_nothing_is_closed(monkeypatch):
    monkeypatch.setattr(listening, "HEAD_WITHIN_S", 0.2)
    with serving() as served:
        for begun in (b"", b"GET /health HTT"):
            with served.connect() as connection:
                connection.sendall(begun)
                assert connection.recv(10) == b""


# ---------------------------------------------------------------- the verb


#: Python runs it before anything else; see tests/test_no_network.py.
ASKS_NOBODY = """\
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        print(f"network: {event} {arguments!r}", file=sys.stderr)

sys.addaudithook(refuse)
"""


def started(*options, path=""):
    """``speccascade serve`` in a process of its own, and where it listens. path: where its modules are looked for first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "speccascade_local", "serve", "--port", "0", "--threads", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(path), os.environ.get("PYTHONPATH"))))},
    )
    line = process.stdout.readline()
    address = re.search(r"http://[\d.]+:\d+", line)
    assert address, f"{line}{process.stderr.read()} {process.wait()}"
    return process, address[0]


def test_a_server_asks_nobody(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ASKS_NOBODY)
    process, url = started(path=tmp_path)
    with process:
        body = {"model": "demo", "messages": QUESTION, "max_tokens": 8}
        assert httpx.post(url + "/v1/chat/completions", json=body, timeout=PATIENCE_S).status_code == 200
        process.terminate()
        assert process.stderr.read() == "stopped\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_a_stream_that_runs(sent):
    process, url = started()
    with process:
        body = {"model": "demo", "messages": QUESTION, "stream": True, "temperature": 5.0, "n": 16, "logit_bias": {}}
        with httpx.stream("POST", url + "/v1/chat/completions", json=body, timeout=PATIENCE_S) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data:")
            process.send_signal(sent)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" or "closing" in rest[-1]
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == "stopped\n"


def test_a_killed_server_leaves_its_port_and_nothing_to_clean():
    process, url = started()
    with process:
        port = url.rpartition(":")[2]
        body = {"model": "demo", "messages": QUESTION, "stream": True, "temperature": 5.0, "n": 16}
        with contextlib.suppress(httpx.HTTPError), httpx.stream("POST", url + "/v1/chat/completions", json=body) as response:
            raw = response.iter_raw()
            next(raw)
            process.kill()
            assert b"[DONE]" not in b"".join(raw)
    again, url = started("--port", port)
    with again:
        assert url.endswith(port)
        assert httpx.get(url + "/health", timeout=PATIENCE_S).status_code == 200
        again.terminate()
        assert again.wait(PATIENCE_S) == 0


# --------------------------------------------------------------------------- what is seen is what stops


@pytest.fixture(scope="module")
def talks_in_control_tokens(tmp_path_factory: pytest.TempPathFactory):
    """A server of a model that likes a control token, has a BOS, and a template with a mind of its own."""
    source = "{% if messages[0].content == '!' %}{{ raise_exception('\x1b[2J' ~ '/home/me/x ' * 100000) }}{% endif %}" + CHATML
    path = text_model(tmp_path_factory.mktemp("served") / "m.gguf", add_bos=True, chat_template=source)
    with sc.load(drafter="ngram", expert=path, n_ctx=256, n_threads=1, timelines=2) as runtime, serving({"m": runtime}) as served:
        yield served


def test_a_stop_string_that_is_a_control_token_stops_over_http(talks_in_control_tokens):
    asked = {"model": "m", "prompt": "ab", "temperature": 0, "max_tokens": 4, "logit_bias": {str(IM_START): 100}}
    whole = talks_in_control_tokens.post("/v1/completions", asked).json()
    assert (whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == ("", "length")
    for stop in ("<|im_start|>", ["x", "<|im_start|>"]):
        got = talks_in_control_tokens.post("/v1/completions", {**asked, "stop": stop}).json()
        assert (got["choices"][0]["text"], got["choices"][0]["finish_reason"]) == ("", "stop")
        assert got["usage"]["completion_tokens"] == 1
    two = talks_in_control_tokens.post("/v1/completions", {**asked, "stop": "<|im_start|><|im_start|>"}).json()
    assert two["usage"]["completion_tokens"] == 2


def test_a_prompt_that_begins_with_the_bos_has_one_over_http(talks_in_control_tokens):
    sizes = [
        talks_in_control_tokens.post("/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
        for prompt in ("ab", "<|im_start|>ab")
    ]
    assert sizes == [3, 3]


def test_a_last_message_of_the_assistants_is_continued_over_http(talks_in_control_tokens):
    runtime = talks_in_control_tokens.engine.pairs["m"]
    begun = [*QUESTION, {"role": "assistant", "content": "She was "}]
    got = talks_in_control_tokens.post("/v1/chat/completions", {"model": "m", "messages": begun, "max_tokens": 2}).json()
    assert got["usage"]["prompt_tokens"] == len(runtime.chat_ids(begun)) < len(runtime.chat_ids(begun, continues=False))


def test_what_a_template_says_is_cut_short_over_http(talks_in_control_tokens):
    asked = {"model": "m", "messages": [{"role": "user", "content": "!"}]}
    got = talks_in_control_tokens.post("/v1/chat/completions", asked)
    assert got.status_code == 400
    message = got.json()["error"]["message"]
    assert "\x1b" not in message
    assert message.endswith("use a raw prompt (--raw)")
    assert len(message) < 700

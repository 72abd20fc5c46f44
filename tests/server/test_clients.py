"""Clients that disconnect, do not read, come all at once or share a conversation; and how a server ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from gguf_files import CHATML, IM_START, text_model
from serving import PATIENCE_S, QUESTION, events, serving, wait_until

import speccascade_local as sc
from speccascade_local.server import engine as engine_module
from speccascade_local.server import streams
from speccascade_local.server.http import connections, listen, log_limit, policy


@pytest.fixture
def slow(monkeypatch):
    """Decoding that waits at a gate before each block, and counts blocks."""
    gate = Gate()
    real = engine_module.answer

    def answer(*given, **more):
        for chunk in real(*given, **more):
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


@pytest.mark.slow
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
        wait_until(lambda: running(served) == (0, 0), "no request is left")
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
        wait_until(lambda: running(served) == (1, 0), "the queue is empty")
        first.close()
        slow.open()
        wait_until(lambda: running(served) == (0, 0), "no request is left")


def test_a_full_queue_says_when_to_retry(slow):
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
        wait_until(lambda: running(served) == (0, 0), "no request is left")
        assert served.chat().status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_gets_a_timeout_error(slow, stream):
    with serving(slots=1, timeout_s=0.3) as served:
        response = served.chat(stream=stream)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        slow.let(1)
        wait_until(lambda: running(served) == (0, 0), "no request is left")
        slow.open()


def test_a_slow_reader_blocks_no_other_client():
    with serving(slots=1) as served, served.connect() as lazy:
        expected = served.chat().json()["choices"]
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        options = {"logprobs": True, "top_logprobs": 20, "temperature": 3.0, "max_tokens": 400, "n": 8}
        lazy.sendall(request(stream=True, **options))
        wait_until(lambda: running(served)[0] == 1, "the lazy one is answered")
        assert served.chat().json()["choices"] == expected


def test_a_client_that_never_reads_is_dropped(monkeypatch):
    monkeypatch.setattr(streams, "READ_WITHIN_S", 0.3)
    with serving(slots=1) as served, served.connect() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        options = {"logprobs": True, "top_logprobs": 20, "temperature": 3.0, "max_tokens": 400, "n": 16}
        deaf.sendall(request(stream=True, **options))
        wait_until(lambda: running(served)[0] == 1, "it is answered")
        wait_until(lambda: running(served) == (0, 0), "it is given up")


@pytest.mark.slow
def test_two_requests_of_one_conversation_are_both_answered():
    def ask(served, question):
        return served.chat(messages=[{"role": "user", "content": question}], prompt_cache_key="one", max_tokens=30)

    questions = ["Who is Ada Lovelace?", "Who is Alan Turing?", "Who is Ada Lovelace?", "What is 2 plus 2?"]
    with serving(slots=2) as served, ThreadPoolExecutor(4) as pool:
        alone = [served.chat(messages=[{"role": "user", "content": each}], max_tokens=30).json()["choices"] for each in questions]
        together = [answer.json()["choices"] for answer in pool.map(lambda question: ask(served, question), questions)]
    assert together == alone


@pytest.mark.slow
def test_concurrent_requests_get_the_same_replies_as_alone():
    questions = ["Who is Ada Lovelace?", "Who is Alan Turing?", "Who is Marie Curie?", "What is 3 plus 4?"] * 4

    def ask(question, stream):
        response = served.chat(messages=[{"role": "user", "content": question}], stream=stream, max_tokens=30)
        if not stream:
            return response.json()["choices"][0]["message"]["content"]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events(response.text))

    with serving(slots=4) as served, ThreadPoolExecutor(8) as pool:
        alone = {question: ask(question, False) for question in dict.fromkeys(questions)}
        assert list(pool.map(ask, questions, [True, False] * 8)) == [alone[question] for question in questions]


# ---------------------------------------------------------------- connections


HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


def read_answer(connection):
    """Return one whole response that has a length."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1) or pytest.fail(f"closed after {answer!r}")
    length = int(re.search(rb"content-length: (\d+)", answer)[1])
    for _ in range(length):
        answer += connection.recv(1) or pytest.fail(f"closed after {answer!r}")
    return answer


def is_closed(connection):
    with contextlib.suppress(ConnectionError):
        return connection.recv(10) == b""
    return True


@pytest.mark.slow
@pytest.mark.parametrize("begun", [b"", b"G", b"GET /health HTT"])
@pytest.mark.parametrize("first", [True, False])
def test_a_head_that_does_not_come_whole_closes_the_connection(monkeypatch, begun, first):
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.2)
    monkeypatch.setattr(listen, "BETWEEN_S", 0.2)
    with serving() as served, served.connect() as connection:
        if not first:
            connection.sendall(HEALTH)
            assert b"200 OK" in read_answer(connection)
        connection.sendall(begun)
        assert is_closed(connection)


@pytest.mark.slow
def test_single_bytes_do_not_keep_a_connection_open(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.3)
    with serving() as served, served.connect() as connection:
        connection.sendall(HEALTH)
        assert b"200 OK" in read_answer(connection)
        for byte in HEALTH[:15]:
            with contextlib.suppress(ConnectionError):
                connection.sendall(bytes([byte]))
            time.sleep(0.05)
        assert is_closed(connection)


def test_the_rest_of_a_refused_body_is_not_awaited(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.2)
    with serving() as served, served.connect() as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        assert b"415" in read_answer(connection)
        assert is_closed(connection)


def test_a_slow_client_gets_its_responses_in_order():
    """Heads in pieces, several requests at once, and pauses."""
    with serving() as served, served.connect() as connection:
        for piece in (HEALTH[:1], HEALTH[1:20], HEALTH[20:] + HEALTH + HEALTH[:5]):
            connection.sendall(piece)
            time.sleep(0.1)
        assert [b"200 OK" in read_answer(connection) for _ in range(2)] == [True, True]
        connection.sendall(HEALTH[5:])
        assert b"200 OK" in read_answer(connection)


def half_open(served, begun):
    connection = served.connect()
    connection.sendall(HEALTH)
    assert b"200 OK" in read_answer(connection)
    connection.sendall(begun)
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("begun", [b"", b"G", request()[:-1]], ids=["idle", "a byte", "no whole body"])
def test_clients_that_only_hold_connections_keep_none_out(begun):
    """More connections than one client may have."""
    with serving() as served, contextlib.ExitStack() as opened:
        held = [opened.enter_context(half_open(served, begun)) for _ in range(connections.MAX_PER_PEER + 10)]
        answers = [served.get("/health") for _ in range(20)]
        assert [answer.status_code for answer in answers] == [200] * 20
        assert is_closed(held[0])
        held[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            held[-1].recv(1)


def test_who_waits_for_an_answer_keeps_the_connection_and_too_many_are_told(slow, monkeypatch):
    monkeypatch.setattr(connections, "MAX_PER_PEER", 4)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 6)
    monkeypatch.setattr(listen, "MAX_CONNECTIONS", 6)
    with serving(slots=1) as served, contextlib.ExitStack() as opened:
        waiting = []
        for number in range(1, 7):
            waiting.append(opened.enter_context(served.connect()))
            waiting[-1].sendall(request(max_tokens=2))
            wait_until(lambda number=number: sum(running(served)) == number, "it is in the queue")
        refused = served.get("/health")
        assert (refused.status_code, refused.headers["retry-after"], refused.json()["error"]["code"]) == (503, "1", "too_many_connections")
        assert refused.headers["x-content-type-options"] == "nosniff"
        slow.open()
        assert all(b"200 OK" in read_answer(connection) for connection in waiting)
        assert served.get("/health").status_code == 200


class NoEngine:
    def close(self, within_s):
        pass


async def large(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"30000000")]})
    await send({"type": "http.response.body", "body": bytes(30_000_000)})


@pytest.mark.slow
@pytest.mark.parametrize("head", [HEALTH, HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")], ids=["kept", "closed"])
def test_an_unread_response_is_dropped(monkeypatch, head):
    monkeypatch.setattr(connections, "UNREAD_WITHIN_S", 0.2)
    monkeypatch.setattr(listen, "BETWEEN_S", 0.2)
    listens = listen.bind("127.0.0.1", 0)
    server = listen.Server(large, NoEngine())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listens]})
    thread.start()
    try:
        with socket.create_connection(listens.getsockname(), timeout=PATIENCE_S) as deaf:
            deaf.sendall(head)
            assert deaf.recv(10)
            wait_until(lambda: not server.server_state.connections, "its connection is gone")
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_network_is_one_peer(address, peer):
    assert policy.peer_of(address) == peer


def read_after_half_close(served, sent):
    with served.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_half_closed_client_gets_its_response(slow, stream):
    with serving(slots=1) as served, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(read_after_half_close, served, request(stream=stream))
        wait_until(lambda: running(served) == (1, 0), "it is answered")
        with pytest.raises(TimeoutError):
            answer.result(0.5)
        slow.open()
        interim, _, rest = answer.result(PATIENCE_S).rpartition(b"HTTP/1.1 200 OK\r\n")
        assert set(interim.split(b"\r\n\r\n")) == {b"HTTP/1.1 100 Continue", b""}
        assert (b"[DONE]" if stream else b"chat.completion") in rest


def test_pipelined_requests_before_a_half_close_are_all_answered():
    with serving() as served:
        assert read_after_half_close(served, HEALTH * 3).count(b"200 OK") == 3
        assert read_after_half_close(served, HEALTH[:-2]) == b""


# ---------------------------------------------------------------- the log


def test_strangers_write_little_into_the_log(caplog):
    with serving() as served:
        for sent in (b"no HTTP\r\n\r\n", HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")):
            for _ in range(log_limit.MOST + 15):
                with served.connect() as connection:
                    connection.sendall(sent)
                    assert connection.recv(10)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 * log_limit.MOST
    assert not [line for line in lines if "WebSocket" in line]


def test_what_was_not_logged_is_counted(monkeypatch):
    now = 100.0
    monkeypatch.setattr(log_limit.time, "monotonic", lambda: now)
    limit = log_limit.LogLimit()

    def written(message="refused %s"):
        record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, message, ("it",), None)
        return record.getMessage() if limit.filter(record) else None

    assert [written() for _ in range(log_limit.MOST + 3)] == ["refused it"] * log_limit.MOST + [None] * 3
    assert written("another %s") == "another it"
    now += log_limit.PER_S
    assert written() == "refused it (3 more of these were not logged)"
    assert written() == "refused it"


# ---------------------------------------------------------------- the verb


#: Python runs it first; see tests/cli/test_no_network.py.
NO_NETWORK = """\
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        print(f"network: {event} {arguments!r}", file=sys.stderr)

sys.addaudithook(refuse)
"""


def start_server(*options, path=""):
    """Start ``speccascade serve`` in a new process. Return it and its URL. ``path`` is searched first for modules."""
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


@pytest.mark.slow
def test_a_server_uses_no_network(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    process, url = start_server(path=tmp_path)
    with process:
        body = {"model": "demo", "messages": QUESTION, "max_tokens": 8}
        assert httpx.post(url + "/v1/chat/completions", json=body, timeout=PATIENCE_S).status_code == 200
        process.terminate()
        assert process.stderr.read() == "stopped\n"


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_a_stream_that_runs(sent):
    process, url = start_server()
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


SLOW_RULE = """\
import subprocess, sys, time

class Slow:
    def __init__(self):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open("CHILD", "w").write(str(child.pid))

    def defer(self, evidence):
        time.sleep(600)
        return False
"""


@pytest.fixture
def stuck(tmp_path):
    """A server with a reply that cannot be cancelled: its process, a stream of the reply, and a child process."""
    (tmp_path / "slow_rule.py").write_text(SLOW_RULE.replace("CHILD", str(tmp_path / "child")))
    process, url = start_server("--rule", "slow=slow_rule:Slow()", path=tmp_path)
    host, port = url.removeprefix("http://").split(":")
    with process, socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(request(model="demo@slow", stream=True, speccascade={"block_size": 2}))
            answering = 'vllm:num_requests_running{model_name="demo"} 1.0'
            wait_until(lambda: answering in httpx.get(url + "/metrics").text, "it is answered")
            yield process, connection, psutil.Process(int((tmp_path / "child").read_text()))
        finally:
            process.kill()


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE or process.wait(PATIENCE_S) is None
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
def test_a_signal_ends_the_process_whatever_a_rule_does(stuck):
    process, answered, child = stuck
    process.send_signal(signal.SIGTERM)
    assert b"closing" in b"".join(iter(lambda: answered.recv(4096), b"")), "its client gets an error"
    assert process.wait(PATIENCE_S) == 1
    (line,) = process.stderr.read().splitlines()
    assert line.startswith("the server did not end within 4.5 s; killing it while these still run: ")
    assert "answers of demo (in defer, slow_rule.py:9)" in line
    assert has_ended(child)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_process_at_once(stuck):
    process, _, child = stuck
    for _ in range(2):  # a signal that repeats before it is handled counts once
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert process.wait(PATIENCE_S) == 130
    assert process.stderr.read() == ""
    assert has_ended(child)


@pytest.mark.slow
def test_a_killed_server_frees_its_port():
    process, url = start_server()
    with process:
        port = url.rpartition(":")[2]
        body = {"model": "demo", "messages": QUESTION, "stream": True, "temperature": 5.0, "n": 16}
        with contextlib.suppress(httpx.HTTPError), httpx.stream("POST", url + "/v1/chat/completions", json=body) as response:
            raw = response.iter_raw()
            next(raw)
            process.kill()
            assert b"[DONE]" not in b"".join(raw)
    again, url = start_server("--port", port)
    with again:
        assert url.endswith(port)
        assert httpx.get(url + "/health", timeout=PATIENCE_S).status_code == 200
        again.terminate()
        assert again.wait(PATIENCE_S) == 0


# --------------------------------------------------------------------------- control tokens and templates


@pytest.fixture(scope="module")
def talks_in_control_tokens(tmp_path_factory: pytest.TempPathFactory):
    """A server of a model with a control token, a BOS, and a template that can raise."""
    source = "{% if messages[0].content == '!' %}{{ raise_exception('\x1b[2J' ~ '/home/me/x ' * 100000) }}{% endif %}" + CHATML
    path = text_model(tmp_path_factory.mktemp("served") / "m.gguf", add_bos=True, chat_template=source)
    with sc.load(drafter="ngram", expert=path, n_ctx=256, n_threads=1, timelines=2) as runtime, serving({"m": runtime}) as served:
        yield served


@pytest.mark.slow
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


def test_the_assistants_last_message_is_continued_over_http(talks_in_control_tokens):
    runtime = talks_in_control_tokens.engine.pairs["m"]
    begun = [*QUESTION, {"role": "assistant", "content": "She was "}]
    got = talks_in_control_tokens.post("/v1/chat/completions", {"model": "m", "messages": begun, "max_tokens": 2}).json()
    assert got["usage"]["prompt_tokens"] == len(runtime.chat_ids(begun)) < len(runtime.chat_ids(begun, continues=False))


def test_a_template_error_is_shortened_over_http(talks_in_control_tokens):
    asked = {"model": "m", "messages": [{"role": "user", "content": "!"}]}
    got = talks_in_control_tokens.post("/v1/chat/completions", asked)
    assert got.status_code == 400
    message = got.json()["error"]["message"]
    assert "\x1b" not in message
    assert message.endswith("use a raw prompt (--raw)")
    assert len(message) < 700

"""host:port as users write it, and servers that answer, or do not, in every way."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.common.endpoints import MAX_SERVERS, Endpoint, greet, is_loopback, parse_endpoint, parse_endpoints
from speccascade_local.common.errors import SettingError

names = st.from_regex(r"[a-z0-9](?:[a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
ports = st.integers(1, 65535)


@given(names, ports)
def test_what_is_parsed_is_written_the_same(host, port):
    assert parse_endpoint(f"{host}:{port}") == Endpoint(host, port)
    assert str(parse_endpoint(f"{host.upper()}:{port}")) == f"{host}:{port}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":50052",
        "host:port",
        "host:0",
        "host:65536",
        "host:-1",
        "host:1.5",
        "http://host:80",
        "ho st:80",
        "host:80 ",
        "[::1]:50052",
        "::1:50052",
        "host:123456",
        "host:80,other:80",
        "-host:80",
        "host:٣",
        "host\n:80",
        "host:80\n",
    ],
)
def test_anything_else_is_refused_with_what_was_seen(text):
    with pytest.raises(SettingError, match=r"HOST:PORT of an RPC server|must be a whole number") as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value)


def test_an_ipv6_address_is_reported_why():
    with pytest.raises(SettingError, match="IPv4 only"):
        parse_endpoint("fe80::1:50052")


def test_a_server_is_named_once_and_there_are_not_more_than_llama_cpp_takes():
    assert parse_endpoints([]) == ()
    with pytest.raises(SettingError, match="a:1 is named twice"):
        parse_endpoints(["a:1", "b:1", "A:1"])
    assert len(parse_endpoints(f"a:{port}" for port in range(1, MAX_SERVERS + 1))) == MAX_SERVERS
    with pytest.raises(SettingError, match="16 at most"):
        parse_endpoints(f"a:{port}" for port in range(1, MAX_SERVERS + 2))


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("0.0.0.0", False), ("192.168.1.7", False), ("example", False)],
)
def test_only_loopback_is_this_machine_alone(host, alone):
    assert is_loopback(host) is alone


@pytest.fixture
def listening() -> Iterator[Callable[[Callable[[socket.socket], object]], Endpoint]]:
    """Starts a server that treats its one client as ``treat`` does."""
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(treat: Callable[[socket.socket], object]) -> Endpoint:
        def serve() -> None:
            client, _ = server.accept()
            with client:
                treat(client)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return Endpoint("127.0.0.1", server.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(10)
    server.close()


def hello(client: socket.socket) -> tuple[int, bytes]:
    command, size = struct.unpack("<BQ", client.recv(9, socket.MSG_WAITALL))
    return command, client.recv(size, socket.MSG_WAITALL)


def test_a_server_tells_its_version(listening):
    asked = []

    def treat(client):
        asked.append(hello(client))
        for byte in struct.pack("<Q", 28) + bytes([7, 1, 2, 0]) + bytes(24):  # however slowly it comes
            client.sendall(bytes([byte]))

    assert greet(listening(treat)) == "7.1.2"
    assert asked == [(14, bytes(24))]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x1c", struct.pack("<Q", 28) + b"\x07\x00", struct.pack("<Q", 3) + b"\x02\x00\x00"],
    ids=["http", "nothing", "cut off in the length", "cut off in the answer", "an old version"],
)
def test_what_is_no_rpc_server_is_reported(listening, answer):
    def treat(client):
        hello(client)
        client.sendall(answer)

    with pytest.raises(SettingError, match=r"127\.0\.0\.1:\d+: the answer is not that of an RPC server"):
        greet(listening(treat))


def test_a_server_that_is_busy_is_told(listening):
    done = threading.Event()
    endpoint = listening(lambda client: done.wait(10))
    try:
        with pytest.raises(SettingError, match="one client at a time: is another one using it"):
            greet(endpoint, timeout_s=0.2)
    finally:
        done.set()


def test_where_no_server_listens_the_command_that_starts_one_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SettingError, match=f"connection refused; start one there with: speccascade rpc-serve --host ADDRESS --port {port}"):
        greet(Endpoint("127.0.0.1", port))


def test_a_name_that_is_unknown_is_reported():
    with pytest.raises(SettingError, match="unknown host"):
        greet(Endpoint("nobody.invalid", 50052))


def test_a_machine_that_says_nothing_is_not_waited_for_long(monkeypatch):
    def silent(*_, **__):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(SettingError, match=r"no connection within 5 s; is the machine on"):
        greet(Endpoint("192.0.2.1", 50052))

"""Safe by default, line by line: who may ask, from where, how much at once, and what an error tells."""

from __future__ import annotations

import httpx
import pytest
from serving import QUESTION, serving

import speccascade_local as sc
from speccascade_local.errors import CatalogError, SettingError
from speccascade_local.server import app, security
from speccascade_local.server.refusals import refusal_of, without_paths
from speccascade_local.server.security import Policy, api_key

KEY = "a-key-of-more-than-sixteen-characters"
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def served():
    with serving() as it:
        yield it


@pytest.fixture(scope="module")
def guarded():
    with serving(policy=Policy(api_key=KEY, origins=("https://chat.example.org",), names=("box.lan",))) as it:
        yield it


def code(response):
    return response.json()["error"]["code"]


# ---------------------------------------------------------------- where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_another_machine_needs_a_key(host):
    with pytest.raises(SettingError, match="API key"):
        Policy(host)
    Policy(host, KEY)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1"])
def test_this_machine_needs_none(host):
    Policy(host)


# ---------------------------------------------------------------- the key


@pytest.mark.parametrize("header", [None, "", KEY, "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer \xe4"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/api/pairs", "/openapi.json", "/nothing"])
def test_without_the_key_nothing_is_told(guarded, header, path):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    response = guarded.get(path, headers=headers)
    assert response.status_code == 401
    assert code(response) == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_with_the_key_everything_is(guarded):
    for scheme in ("Bearer", "bearer"):
        assert guarded.get("/v1/models", headers={"authorization": f"{scheme} {KEY}"}).status_code == 200
    assert guarded.get("/health").status_code == 200


def test_every_key_takes_the_same_comparison(monkeypatch):
    compared = []
    monkeypatch.setattr(security.hmac, "compare_digest", lambda one, other: compared.append((len(one), len(other))) or one == other)
    policy = Policy(api_key=KEY)
    assert policy.admits(KEY)
    for wrong in (None, "", "a", KEY[:-1], KEY + "x", "\udcff"):
        assert not policy.admits(wrong)
    assert set(compared) == {(32, 32)}


def test_where_a_key_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("SPECCASCADE_API_KEY", raising=False)
    assert api_key(None) is None
    monkeypatch.setenv("SPECCASCADE_API_KEY", KEY)
    assert api_key(None) == KEY
    file = tmp_path / "key"
    file.write_text("another-key-that-is-long\n")
    assert api_key(file) == "another-key-that-is-long"
    for bad in ("short", "", "with blanks in between them", "ümlaut" * 5):
        file.write_text(bad)
        with pytest.raises(SettingError, match="at least 16"):
            api_key(file)
    with pytest.raises(CatalogError):
        api_key(tmp_path / "nothing")
    monkeypatch.setenv("SPECCASCADE_API_KEY", "")
    with pytest.raises(SettingError):
        api_key(None)


# ---------------------------------------------------------------- DNS rebinding, and other websites


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.7", "", "[::1", "a b"]
)
def test_a_request_for_another_host_is_refused(served, host):
    response = served.get("/v1/models", headers={"host": host.format(port=served.port)})
    assert response.status_code in (400, 403)
    assert "demo" not in response.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_a_request_for_this_one_is_answered(served, host):
    assert served.get("/v1/models", headers={"host": host.format(port=served.port)}).status_code == 200


def test_further_names_are_answered_where_they_were_given(guarded):
    headers = {"authorization": f"Bearer {KEY}"}
    assert guarded.get("/v1/models", headers={**headers, "host": "box.lan:8080"}).status_code == 200
    assert guarded.get("/v1/models", headers={**headers, "host": "other.lan"}).status_code == 403


def test_an_address_will_do_where_other_machines_ask():
    assert Policy("0.0.0.0", KEY).knows("192.168.1.7:8080")
    assert not Policy("0.0.0.0", KEY).knows("evil.example")
    assert not Policy().knows("192.168.1.7:8080")


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost.evil.example", "http://127.0.0.1:1", ""])
def test_another_websites_page_is_refused(served, origin):
    response = served.post("/v1/chat/completions", {"model": "demo", "messages": QUESTION}, headers={"origin": origin})
    assert (response.status_code, code(response)) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in response.headers


def test_its_own_page_may_ask(served):
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 2}
    assert served.post("/v1/chat/completions", body, headers={"origin": served.url}).status_code == 200


def test_no_cors_unless_asked_for(served, guarded):
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}

    def preflight(where, origin):
        return httpx.options(where.url + "/v1/chat/completions", headers={"origin": origin, **asking})

    assert "access-control-allow-origin" not in preflight(served, EVIL).headers
    assert preflight(served, EVIL).status_code == 403
    assert "access-control-allow-origin" not in preflight(guarded, EVIL).headers
    allowed = preflight(guarded, "https://chat.example.org")
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://chat.example.org")
    headers = {"authorization": f"Bearer {KEY}", "origin": "https://chat.example.org"}
    answer = guarded.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://chat.example.org")
    assert guarded.get("/v1/models", headers={**headers, "origin": EVIL}).status_code == 403


@pytest.mark.parametrize("origin", ["*", "example.org", "https://example.org/path", "ftp://example.org", "null"])
def test_an_origin_that_is_none_is_refused_at_the_start(origin):
    with pytest.raises(SettingError, match="not an origin"):
        Policy(origins=(origin,))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_what_a_browser_sends_unasked_is_not_read(served, kind):
    response = served.post("/v1/chat/completions", {"model": "demo", "messages": QUESTION}, headers={"content-type": kind})
    assert response.status_code == 415


# ---------------------------------------------------------------- limits


def test_a_body_is_bounded_with_and_without_a_length(served):
    big = b" " * (security.MAX_BODY + 1)
    assert served.post("/v1/chat/completions", big).status_code == 413
    parts = httpx.post(served.url + "/tokenize", content=(big[: 2**16] for _ in range(70)), headers={"content-type": "application/json"})
    assert parts.status_code == 413


def test_headers_are_bounded(served):
    assert served.get("/health", headers={f"x-{i}": "1" for i in range(security.MAX_HEADERS)}).status_code == 431
    with served.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * (4 * security.MAX_HEAD))
        assert connection.recv(100).startswith(b"HTTP/1.1 4")


def test_a_body_that_does_not_come_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(security, "BODY_WITHIN_S", 0.2)
    with served.connect() as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


# ---------------------------------------------------------------- files and errors


@pytest.fixture
def page(tmp_path, monkeypatch):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<p>the page")
    (folder / "app.js").write_text("// its program")
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    monkeypatch.setattr(app, "PAGE", folder)
    with serving(policy=Policy(api_key=KEY)) as it:
        yield it


def test_the_page_is_served_without_a_key_and_loads_nothing_from_elsewhere(page):
    response = page.get("/")
    assert (response.status_code, response.text) == (200, "<p>the page")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert page.get("/static/app.js").text == "// its program"


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "%2fetc/passwd", "/etc/passwd", "%00", "", ".", "link.txt", "a" * 5000],
)
def test_no_file_but_the_pages_own_is_served(page, path):
    with page.connect() as connection:
        connection.sendall(f"GET /static/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"secret" not in answer.split(b"\r\n\r\n")[1].replace(b"secret.txt", b"")
    assert b"root:" not in answer


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/home/me/models/a.gguf: no such file", "(a path): no such file"),
        ("cannot start '/usr/bin/python3'", "cannot start '(a path)'"),
        (r"C:\models\a.gguf is gone", "(a path) is gone"),
        ("1/2 of them, and/or POST /tokenize", "1/2 of them, and/or POST /tokenize"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
    ],
)
def test_an_error_tells_no_path(said, told):
    assert without_paths(said) == told
    for kind in (sc.PromptError, sc.SessionError, sc.ModelLoadError):
        assert str(refusal_of(kind(said))) == told


def test_what_nobody_foresaw_is_told_in_a_sentence_without_details(served, monkeypatch, caplog):
    def failing(*_, **__):
        raise ZeroDivisionError("secret of /home/me")

    monkeypatch.setattr(served.engine, "submit", failing)
    response = served.chat()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "ZeroDivisionError" not in response.text
    assert "secret" in caplog.text

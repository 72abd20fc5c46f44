"""Safe by default: who may ask, from where, how much, and what errors reveal."""

from __future__ import annotations

import json

import httpx
import pytest
from serving import QUESTION, serving

import speccascade_local as sc
from speccascade_local.common.errors import CatalogError, SettingError
from speccascade_local.server import app
from speccascade_local.server.errors import refusal_of, without_paths
from speccascade_local.server.http import policy, security
from speccascade_local.server.http.policy import Policy, api_keys, origins_of

KEY = "a-key-of-more-than-sixteen-characters"
OTHER_KEY = "another-key-that-is-long-enough"
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def served():
    with serving() as it:
        yield it


@pytest.fixture(scope="module")
def guarded():
    with serving(policy=Policy(api_keys=(KEY,), origins=("https://chat.example.org",), names=("box.lan",))) as it:
        yield it


def code(response):
    return response.json()["error"]["code"]


# ---------------------------------------------------------------- the address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_another_machine_needs_a_key(host):
    with pytest.raises(SettingError, match="API key"):
        Policy(host)
    Policy(host, (KEY,))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1"])
def test_this_machine_needs_none(host):
    Policy(host)


# ---------------------------------------------------------------- the key


@pytest.mark.slow
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
        for path in ("/v1/models", "/metrics", "/api/pairs", "/openapi.json"):
            assert guarded.get(path, headers={"authorization": f"{scheme} {KEY}"}).status_code == 200
    assert guarded.get("/health").status_code == 200


def test_every_key_takes_the_same_comparison(monkeypatch):
    compared = []
    monkeypatch.setattr(policy.hmac, "compare_digest", lambda one, other: compared.append((len(one), len(other))) or one == other)
    two = Policy(api_keys=(KEY, OTHER_KEY))
    given = (KEY, OTHER_KEY, None, "", "a", KEY[:-1], KEY + "x", "\udcff")
    assert [two.key_number(each) for each in given] == [0, 1, *[None] * 6]
    assert compared == [(32, 32)] * 2 * len(given)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("SPECCASCADE_API_KEY", raising=False)
    assert api_keys(None) == ()
    monkeypatch.setenv("SPECCASCADE_API_KEY", KEY)
    assert api_keys(None) == (KEY,)
    file = tmp_path / "key"
    file.write_text("another-key-that-is-long\n")
    assert api_keys(file) == ("another-key-that-is-long",)
    file.write_text(f"\ufeff# of the office\r\n{KEY}\r\n\r\n  {OTHER_KEY}\n{KEY}\n", encoding="utf-8")
    assert api_keys(file) == (KEY, OTHER_KEY)
    for bad in ("short", "", "# no key\n", "with blanks in between them", "ümlaut" * 5):
        file.write_text(bad)
        with pytest.raises(SettingError, match=r"line 1, .* at least 16"):
            api_keys(file)
    file.write_text(f"{KEY}\nshort\n")
    with pytest.raises(SettingError, match="line 2, holds a key of 5 characters"):
        api_keys(file)
    file.write_text("x" * 2**20 + "\n")
    with pytest.raises(CatalogError, match="larger than"):
        api_keys(file)
    with pytest.raises(CatalogError):
        api_keys(tmp_path / "nothing")
    monkeypatch.setenv("SPECCASCADE_API_KEY", "")
    with pytest.raises(SettingError):
        api_keys(None)


# ---------------------------------------------------------------- DNS rebinding, and other websites


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.1.7",
        "",
        "[::1",
        "a b",
        "localhost/evil",
        "localhost?.evil",
        "localhost#.evil",
        "evil@localhost",
        "localhost:",
        "localhost:80:80",
        "localhost\\.evil",
        "local%68ost",
        "[::1]evil",
    ],
)
def test_a_request_for_another_host_is_refused(served, host):
    response = served.get("/v1/models", headers={"host": host.format(port=served.port)})
    assert response.status_code in (400, 403)
    assert "demo" not in response.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_a_request_for_this_host_is_answered(served, host):
    assert served.get("/v1/models", headers={"host": host.format(port=served.port)}).status_code == 200


def test_allowed_host_names_are_answered(guarded):
    headers = {"authorization": f"Bearer {KEY}"}
    assert guarded.get("/v1/models", headers={**headers, "host": "box.lan:8080"}).status_code == 200
    assert guarded.get("/v1/models", headers={**headers, "host": "other.lan"}).status_code == 403


def test_any_address_is_a_host_name_where_other_machines_ask():
    assert Policy("0.0.0.0", (KEY,)).is_own_host("192.168.1.7:8080")
    assert not Policy("0.0.0.0", (KEY,)).is_own_host("evil.example")
    assert not Policy().is_own_host("192.168.1.7:8080")


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


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "",
            "example.org",
            "https://example.org/path",
            "https://me@example.org",
            "https://",
            "app:obsidian.md",
            "app://a b",
            "http://a:port",
        ),
        *("ftp://example.org", "file://", "file://localhost", "blob://x", "data://x", "javascript://x", "wss://example.org"),
    ],
)
def test_an_invalid_origin_is_refused_at_the_start(origin):
    with pytest.raises(SettingError, match="not an origin"):
        Policy(origins=(origin,))


APPLICATIONS = ["app://obsidian.md", "tauri://localhost", "vscode-file://vscode-app", "capacitor://localhost", "chrome-extension://abcdef"]


def test_pages_of_applications_that_were_allowed_may_ask():
    with serving(policy=Policy(origins=origins_of([*APPLICATIONS, "null", "https://Chat.Example.org:443/"]))) as served:
        for origin in (*APPLICATIONS, "null", "https://chat.example.org"):
            asking = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-stainless-lang"}
            allowed = httpx.options(served.url + "/v1/chat/completions", headers={"origin": origin, **asking})
            assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
            answer = served.get("/v1/models", headers={"origin": origin})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        for origin in ("app://obsidian.md.evil.example", "app://other", EVIL):
            assert served.get("/v1/models", headers={"origin": origin}).status_code == 403


def test_any_website_may_ask_only_where_a_key_is_needed():
    with pytest.raises(SettingError, match=r"every website .* no API key"):
        Policy(origins=("*",))
    assert Policy(api_keys=(KEY,), origins=("*",)).allows_origin(EVIL)


@pytest.mark.parametrize("name", ["http://box.lan", "box.lan:8080", "box.lan/", ""])
def test_an_invalid_host_name_is_refused_at_the_start(name):
    with pytest.raises(SettingError, match="--allow-host"):
        Policy(names=(name,))
    Policy(names=("box.lan", "Host.Docker.Internal", "::1", "my_service"))


def test_the_refusal_of_a_host_names_the_option(served):
    message = served.get("/v1/models", headers={"host": "host.docker.internal:8080"}).json()["error"]["message"]
    assert "--allow-host host.docker.internal" in message


# ---------------------------------------------------------------- caches of other clients


def cached(served, prompt, **fields):
    key = fields.pop("key", None)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    body = {"model": "demo", "prompt": prompt, "max_tokens": 2, "temperature": 0, **fields}
    return served.post("/v1/completions", body, headers=headers).json()["usage"]["prompt_tokens_details"]["cached_tokens"]


SECRET, GUESS = "My password is Emma Young lives in Oakfield", "My password is Emma Young lives in Oakfield now"


def test_several_keys_share_nothing_that_was_read():
    with serving(slots=2, policy=Policy(api_keys=(KEY, OTHER_KEY))) as served:
        cached(served, SECRET, key=KEY, prompt_cache_key="same")
        assert cached(served, GUESS, key=OTHER_KEY, prompt_cache_key="same") == 0
        assert cached(served, GUESS, key=KEY) > 5
        assert cached(served, SECRET, key=OTHER_KEY) > 5
        assert cached(served, SECRET, key=OTHER_KEY, cache_salt="x") == 0


def test_what_was_read_is_shared_by_all_where_one_key_or_none_is_needed(served):
    cached(served, SECRET, prompt_cache_key="a")
    assert cached(served, GUESS, prompt_cache_key="b") > 5
    assert cached(served, GUESS, cache_salt="x") == 0
    assert cached(served, GUESS + "!", cache_salt="x") > 5


def test_only_a_seed_from_the_client_disables_the_caches(served):
    cached(served, SECRET)
    assert cached(served, GUESS) > 5
    assert cached(served, GUESS, seed=1) == 0  # so that the reply is the same, warm and cold


def test_a_private_server_shares_within_one_prompt_cache_key_only():
    with serving(slots=2, policy=Policy(private=True)) as served:
        cached(served, SECRET, prompt_cache_key="a")
        assert [cached(served, GUESS), cached(served, GUESS), cached(served, GUESS, prompt_cache_key="")] == [0, 0, 0]
        assert cached(served, SECRET, prompt_cache_key="a") == 0, "other requests took both slots"
        assert cached(served, GUESS, prompt_cache_key="b") == 0
        assert cached(served, GUESS, prompt_cache_key="a") > 5


# ---------------------------------------------------------------- headers and HTTP


@pytest.mark.parametrize(
    "path", ["/", "/static/index.html", "/static/app.js", "/health", "/v1/models", "/metrics", "/nothing", "/static/none"]
)
def test_every_response_has_the_protective_headers(guarded, path):
    for headers in ({"authorization": f"Bearer {KEY}"}, {"host": "evil.example"}):
        answer = guarded.get(path, headers=headers)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        if answer.headers["content-type"] == "application/json":
            assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["origin", "authorization", "content-type"])
def test_a_repeated_header_is_refused(served, name):
    values = {"origin": served.url, "authorization": f"Bearer {KEY}", "content-type": "application/json"}
    headers = [*values.items(), (name, values[name])]
    response = httpx.post(served.url + "/tokenize", content=b'{"content": "a"}', headers=headers)
    assert (response.status_code, response.json()["error"]["message"]) == (
        400,
        f"the request has more than one {name} header; send it once",
    )


def test_a_packed_body_is_refused_by_its_encoding(served):
    response = served.post("/tokenize", b"\x1f\x8b\x08", headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert "'gzip'" in response.json()["error"]["message"]


def test_invalid_http_gets_the_error_object(served):
    with served.connect() as connection:
        connection.sendall(b"SSH-2.0-x\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-content-type-options: nosniff" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_content_types_without_a_preflight_are_refused(served, kind):
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
    with serving(policy=Policy(api_keys=(KEY,))) as it:
        yield it


def test_the_page_is_served_without_a_key_and_loads_nothing_from_elsewhere(page):
    response = page.get("/")
    assert (response.status_code, response.text) == (200, "<p>the page")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert page.get("/static/app.js").text == "// its program"


@pytest.mark.slow
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
    ("message", "expected"),
    [
        ("/home/me/models/a.gguf: no such file", "(a path): no such file"),
        ("cannot start '/usr/bin/python3'", "cannot start '(a path)'"),
        (r"C:\models\a.gguf is gone", "(a path) is gone"),
        ("1/2 of them, and/or POST /tokenize", "1/2 of them, and/or POST /tokenize"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
    ],
)
def test_errors_hide_paths(message, expected):
    assert without_paths(message) == expected
    for kind in (sc.PromptError, sc.SessionError, sc.ModelLoadError):
        assert str(refusal_of(kind(message))) == expected


def test_an_unexpected_error_hides_its_details(served, monkeypatch, caplog):
    def failing(*_, **__):
        raise ZeroDivisionError("secret of /home/me")

    monkeypatch.setattr(served.engine, "submit", failing)
    response = served.chat()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "ZeroDivisionError" not in response.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("keys", "asks", "client"),
    [
        ((), (None, "127.0.0.1"), None),
        ((KEY,), (0, "::1"), None),
        ((KEY,), (0, ""), None),
        ((KEY,), (0, "192.0.2.7"), (None, "192.0.2.7")),
        ((KEY, OTHER_KEY), (1, "127.0.0.1"), (1, "")),
        ((KEY, OTHER_KEY), (0, "2001:db8::1:2"), (0, "2001:db8::/64")),
    ],
)
def test_clients_are_distinguished_by_key_or_address(keys, asks, client):
    assert Policy(api_keys=keys).client(*asks) == client

"""The documentation site: it builds without a complaint, and asks no other host for anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
#: Attributes that make a browser fetch something; links to follow are none.
FETCHED = {
    *(("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "src"), ("source", "srcset"), ("video", "src"), ("audio", "src")),
    *(("iframe", "src"), ("embed", "src"), ("object", "data"), ("use", "href"), ("image", "href"), ("link", "href"), ("video", "poster")),
}
#: Kinds of links that a browser does not fetch.
NOT_FETCHED = {"canonical", "alternate", "next", "prev", "license"}


class Fetches(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and set((given.get("rel") or "").split()) & NOT_FETCHED:
            return
        self.found += [value for name, value in attrs if value and (tag, name.removeprefix("xlink:")) in FETCHED]
        self.found += in_css(given.get("style") or "")


def in_css(text: str) -> list[str]:
    return re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)


def elsewhere(path: Path) -> list[str]:
    """Addresses on other hosts that a file of the site fetches from."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        found = in_css(text)
    else:
        page = Fetches()
        page.feed(text)
        found = page.found + [address for style in re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL) for address in in_css(style)]
    return [address for address in found if urlsplit(address.strip()).netloc]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "scripts" / "docs" / "site.yml"), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_every_document_has_its_page_and_its_place_in_the_menu(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for document in (ROOT / "docs").glob("*.md"):
        assert (site / document.with_suffix(".html").name).exists()
        assert document.stem == "index" or f'href="{document.stem}.html"' in home, document.name


@pytest.mark.slow
def test_what_documents_link_to_outside_their_folder_is_part_of_it(site):
    assert "CONTRIBUTING" in (site / "architecture.html").read_text(encoding="utf-8")
    assert (site / "repository" / "CONTRIBUTING.html").exists()
    assert (site / "repository" / "models.yaml").read_bytes() == (ROOT / "models.yaml").read_bytes()


def test_no_page_asks_another_host(site):
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > 40
    assert {path.name: found for path in files if (found := elsewhere(path))} == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://unpkg.com/x.js">',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img alt="" src="http://example.org/a.png">',
        '<p style="background: url(https://example.org/a.png)">',
        "<style>@import 'https://example.org/a.css';</style>",
    ],
)
def test_asking_another_host_would_be_noticed(tmp_path, text):
    page = tmp_path / "page.html"
    page.write_text(f'<a href="https://example.org">{text}</a><link rel="canonical" href="https://example.org">', encoding="utf-8")
    assert len(elsewhere(page)) == 1


def asked(address: str, folder: Path) -> set[str]:
    """What a page makes the browser ask other hosts for, by the browser's own log; what it asks for itself is left out."""
    log = folder / "log.json"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}"]
    command = [str(BROWSER), *options, f"--log-net-log={log}", "--dump-dom", address]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    by_pages = {each["url"] for each in events if each.get("initiator", "not an origin") != "not an origin" and "url" in each}
    return {url for url in by_pages if urlsplit(url).scheme not in ("file", "data", "blob")}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_asks_no_other_host_either(site, tmp_path):
    """Scripts could ask too, which no reading of the pages shows."""
    asking = tmp_path / "asking.html"
    asking.write_text('<script>fetch("https://example.invalid/x.json")</script>', encoding="utf-8")
    assert asked(asking.as_uri(), tmp_path) == {"https://example.invalid/x.json"}
    assert asked((site / "faq.html").as_uri(), tmp_path) == set()

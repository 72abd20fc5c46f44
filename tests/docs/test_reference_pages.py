"""The reference pages are what the code says of itself, and documents name no option that is not there."""

from __future__ import annotations

import re

import pytest
from openapi import http
from reference import DOCS, options_of, prose, sections
from typer.testing import CliRunner

import speccascade_local as sc
from speccascade_local.cli.app import VERBS, app
from speccascade_local.runtime.settings import Settings

DOCUMENTS = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]
EVERYWHERE = {"--help"}


def names(verb: str) -> set[str]:
    return {name for option in options_of(verb) for name in re.findall(r"--[a-z][a-z0-9-]*", option.names)}


@pytest.mark.parametrize("name", sections())
def test_the_committed_page_is_the_current_one(name):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert f"<!-- {name} -->\n{sections()[name]}<!-- /{name} -->" in page, "run: python scripts/docs/reference.py"


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_has_the_options_that_the_help_has(verb):
    result = CliRunner().invoke(app, [verb, "--help"])
    options = set(re.findall(r"^│ +(?:\* +)?(--[a-z][a-z0-9-]*)", result.stdout, re.MULTILINE))
    first = {re.findall(r"--[a-z][a-z0-9-]*", option.names)[0] for option in options_of(verb) if "--" in option.names}
    assert options - EVERYWHERE == first


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_verbs_and_options_that_are_there(document):
    text = document.read_text(encoding="utf-8")
    for verb, rest in re.findall(r"(?:^|[`$( ])speccascade ([a-z][a-z-]+)([^`\n#|;]*)", text, re.MULTILINE):
        if verb not in VERBS:
            assert verb not in rest, verb
            continue
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]+", rest)) <= names(verb) | EVERYWHERE, f"speccascade {verb}{rest}"


def test_every_public_name_and_setting_has_its_place():
    page = sections()["python"]
    for name in sc.__all__:
        assert f"## {name}\n" in page
    for name in Settings.__dataclass_fields__:
        assert f"| `{name}` |" in page
    assert "<function" not in page
    assert "<factory>" not in page


def test_an_openapi_document_is_described_field_by_field():
    document = {
        "paths": {
            "/v1/things": {
                "post": {
                    "summary": "Make one.",
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                    "responses": {"200": {"description": "Made."}, "400": {"$ref": "#/components/responses/Bad"}},
                },
                "get": {
                    "parameters": [{"name": "n", "schema": {"type": "integer", "default": 3}}],
                    "responses": {"200": {"description": "All."}, "400": {"$ref": "#/components/responses/Bad"}},
                },
            }
        },
        "components": {
            "responses": {"Bad": {"description": "Wrong | refused."}},
            "schemas": {
                "Thing": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "description": "Its name."},
                        "size": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]},
                        "kind": {"enum": ["a", "b"], "default": "a"},
                        "more": {"anyOf": [{"$ref": "#/components/schemas/More"}, {"type": "null"}]},
                    },
                },
                "More": {"type": "object", "properties": {"deep": {"type": "array", "items": {"type": "string"}}}},
            },
        },
    }
    page = http(document, {"size": "Its size.", "n": "How many."})
    assert page.index("## POST /v1/things") < page.index("## GET /v1/things")
    assert page.index("## GET /v1/things") < page.index("## Errors") < page.index("| 400 |")
    assert page.count("| 400 |") == 1
    for line in (
        "| 200 | Made. |",
        "| `name` | string | required | Its name. |",
        "| `size` | number, 0 or more |  | Its size. |",
        '| `kind` | `"a"`, `"b"` | `"a"` |  |',
        "| `more.deep` | array of string |  |  |",
        "| 400 | Wrong \\| refused. |",
        "| `n` | integer | `3` | How many. |",
    ):
        assert line in page


def test_each_field_of_a_request_has_a_meaning():
    rows = [line for line in sections()["http"].splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


def test_a_docstring_in_google_style_becomes_lists():
    def example() -> None:
        """Return nothing.

        Args:
            first: the first, which
                takes two lines.
            second, third: both.

        Raises:
            ValueError: it is wrong.

        """

    assert prose(example) == (
        "Return nothing.\n\nParameters:\n\n- `first`: the first, which takes two lines.\n- `second, third`: both.\n\n"
        "Raises:\n\n- `ValueError`: it is wrong."
    )

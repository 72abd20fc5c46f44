"""Write the JSON schema of models.yaml, and in docs/models.md the table of pairs and a transcript of a pull.

    python scripts/docs/models.py

The transcript is real: the commands fetch the bundled models from a hub on this machine (tests/support/local_hub.py), over a connection
that drops once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sections import write_section

from speccascade_local.models import catalog
from speccascade_local.models.catalog_schema import CatalogFile

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

from local_hub import LocalHub  # noqa: E402

SCHEMA = ROOT / "speccascade_local" / "models.schema.json"
PAGE = ROOT / "docs" / "models.md"
DEMO = ROOT / "speccascade_local" / "demo"
MODELS = """\
pairs:
  mine:
    drafter: {hub: me/demo, file: drafter.gguf}
    expert: {hub: me/demo, file: expert.gguf}
    rule: strict
"""
ASK = "run mine 'Who is Ada Lovelace?'"
COMMANDS = (ASK, "pull mine", "pull mine", ASK, "pull qwen3-9b")


def schema() -> str:
    """Return the JSON schema of models.yaml, for editors."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **CatalogFile.model_json_schema()}
    return json.dumps(document, indent=1) + "\n"


def table() -> str:
    """Return a table of the packaged pairs on the hub, a line each."""
    lines = ["| pair | drafter | expert | to fetch | context | license |", "|---|---|---|---|---|---|"]
    for pair in catalog.read_file(catalog.packaged_file()).values():
        if pair.seen_in is None:
            continue
        files = [f"[{model.file}](https://huggingface.co/{model.hub})" for model in pair.models.values()]
        size = sum(model.size or 0 for model in pair.models.values())
        licences = ", ".join(dict.fromkeys(model.licence or "?" for model in pair.models.values()))
        context = f"{pair.context:,}" if pair.context else "unknown"
        lines.append(f"| `{pair.name}` | {files[0]} | {files[1]} | {size / 1e9:.1f} GB | {context} | {licences} |")
    return "\n".join(lines) + "\n"


def transcript(commands: Sequence[str] = COMMANDS) -> str:
    """Return what the commands print, run in an empty folder, without the paths of this machine."""
    data = {name: (DEMO / name).read_bytes() for name in ("drafter.gguf", "expert.gguf")}
    with LocalHub({"me/demo": data}) as hub, tempfile.TemporaryDirectory() as folder:
        hub.drop_after = [len(data["drafter.gguf"]), 2_000_000]
        (Path(folder) / "models.yaml").write_text(MODELS, encoding="utf-8")
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": f"{folder}/hf",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }
        lines = ["$ cat models.yaml", *MODELS.splitlines()]
        for command in commands:
            lines.append(f"$ speccascade {command}")
            shell = f"{sys.executable} -m speccascade_local {command} 2>&1"
            done = subprocess.run(shell, shell=True, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            lines += done.stdout.replace(folder, "~").replace(str(ROOT), "...").replace(hub.address, "http://hub").splitlines()
        lines.append(f"# the hub sent {hub.sent:,} bytes of {sum(map(len, data.values())):,}")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def main() -> None:
    SCHEMA.write_text(schema(), encoding="utf-8")
    write_section(PAGE, "catalog", table())
    write_section(PAGE, "pull", transcript())


if __name__ == "__main__":
    main()

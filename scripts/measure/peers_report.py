"""The report of the benchmark against peers: tables, notes and the picture, from its rows alone."""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from peers_arms import BASE, Record

from speccascade_local.bench.export import markdown_table, points
from speccascade_local.bench.intervals import Estimate, quality_change, speed_ratio

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts" / "docs"))

from sections import write_section  # noqa: E402

README = ROOT / "README.md"
Table = list[list[str]]


def key(row: Record) -> tuple[str, str, float, int]:
    return row["arm"], row["prompt_id"], row["temperature"], row["pass"]


REQUIRED: dict[str, type | tuple[type, ...]] = {
    "arm": str, "engine": str, "prompt_id": str, "family": str, "temperature": (int, float), "pass": int, "tokens": int, "right": bool,
    "token_ids": list, "wall_s": (int, float), "prompt_s": (int, float), "decode_s": (int, float), "expert_calls": int,
}  # fmt: skip


def read_rows(path: Path) -> tuple[list[Record], list[str]]:
    """Return the rows of a file, gzipped or not, and a complaint about each other line: half written, or from elsewhere."""
    rows, complaints = [], []
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        sys.exit(f"{path}: not a whole gzip file ({error}); gzip the rows again, or name the file that they were written to")
    for number, line in enumerate(data.decode(errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            complaints.append(f"{path}, line {number}: not JSON (cut off?): {line[:60]!r}")
            continue
        wrong = [name for name, kind in REQUIRED.items() if not isinstance(row, dict) or not isinstance(row.get(name), kind)]
        if wrong:
            complaints.append(f"{path}, line {number}: no row of this benchmark: {', '.join(wrong)} missing or of the wrong kind")
        else:
            rows.append(row)
    return rows, complaints


@dataclass(frozen=True)
class Measured:
    """One arm at one temperature: its rows by prompt, one row for each pass."""

    name: str
    rows: dict[str, list[Record]]

    def all(self) -> list[Record]:
        return [row for rows in self.rows.values() for row in rows]

    @property
    def about(self) -> Record:
        return self.all()[0]

    def rate(self, clock: str) -> float:
        """Tokens per second: of all prompts together, the median of the passes."""
        passes: dict[int, list[Record]] = defaultdict(list)
        for row in self.all():
            passes[row["pass"]].append(row)
        return float(np.median([sum(row["tokens"] for row in rows) / sum(row[clock] for row in rows) for rows in passes.values()]))

    def rates(self, clock: str, family: str | None = None) -> dict[str, float]:
        """Tokens per second of each prompt, the median of its passes."""
        return {
            prompt: float(np.median([row["tokens"] / max(row[clock], 1e-6) for row in rows]))
            for prompt, rows in self.rows.items()
            if family in (None, rows[0]["family"])
        }

    def times(self, other: Measured, clock: str, family: str | None = None) -> Estimate:
        """How many times as fast as ``other``: the geometric mean of the ratios of each prompt."""
        mine, theirs = self.rates(clock, family), other.rates(clock, family)
        return speed_ratio([1 / theirs[prompt] for prompt in mine], [1 / rate for rate in mine.values()])

    def accuracies(self) -> dict[str, float]:
        return {prompt: float(np.mean([row["right"] for row in rows])) for prompt, rows in self.rows.items()}

    def more_accurate(self, other: Measured) -> Estimate:
        """Accuracy less that of ``other``."""
        mine, theirs = self.accuracies(), other.accuracies()
        return quality_change(list(mine.values()), [theirs[prompt] for prompt in mine])

    def tokens_per_call(self) -> float:
        return float(sum(row["tokens"] for row in self.all()) / sum(row["expert_calls"] for row in self.all()))

    def same_text(self, other: Measured) -> int:
        """Prompts whose ids are those of ``other`` in every pass."""
        pairs = {prompt: zip(rows, other.rows[prompt]) for prompt, rows in self.rows.items()}
        return sum(all(a["token_ids"] == b["token_ids"] for a, b in rows) for rows in pairs.values())


@dataclass(frozen=True)
class Results:
    """All that can be compared in a file: by temperature, the arms in their first order. left_out: rows of prompts that an arm lacks."""

    by_temperature: dict[float, dict[str, Measured]]
    left_out: int
    setup: Record
    commits: list[str]

    @classmethod
    def of(cls, rows: Sequence[Record]) -> Results:
        """Only prompts that every arm of the file has answered in a pass are compared. Exits if there are none, or no expert alone."""
        latest = {key(row): row for row in rows}
        arms = list(dict.fromkeys(row["arm"] for row in rows))
        if BASE not in arms:
            sys.exit(f"no rows of {BASE!r}, with which all others are compared")
        groups: dict[tuple[float, str, int], dict[str, Record]] = defaultdict(dict)
        for row in latest.values():
            groups[row["temperature"], row["prompt_id"], row["pass"]][row["arm"]] = row
        whole = {place: group for place, group in groups.items() if len(group) == len(arms)}
        if not whole:
            sys.exit("no prompt has been answered by every arm yet")
        found: dict[float, dict[str, Measured]] = {}
        for (temperature, prompt, _), group in sorted(whole.items()):
            _charge_first_drafts(group)
            measured = found.setdefault(temperature, {arm: Measured(arm, {}) for arm in arms})
            for arm, row in group.items():
                measured[arm].rows.setdefault(prompt, []).append(row)
        compared = len(whole) * len(arms)
        return cls(found, len(latest) - compared, rows[-1], sorted({str(row.get("commit")) for row in rows}))


def _charge_first_drafts(group: dict[str, Record]) -> None:
    """Our first batch reads the prompt and checks a draft at once. What it takes beyond the expert alone's reading counts as decoding."""
    for row in group.values():
        if row["engine"] == "ours":
            row["prompt_s"] = group[BASE]["prompt_s"]
            row["decode_s"] = max(row["wall_s"] - row["prompt_s"], 1e-3)


def best(arms: Sequence[Measured], clock: str, family: str | None = None) -> Measured:
    """The fastest, chosen afterwards on the same prompts, which flatters it: before the run the best setting is not known."""
    return max(arms, key=lambda arm: float(np.mean(np.log(list(arm.rates(clock, family).values())))))


def servers(arms: dict[str, Measured]) -> list[Measured]:
    return [arm for arm in arms.values() if arm.about["engine"] == "llama-server"]


def fixed_and_other(arms: dict[str, Measured]) -> Iterator[tuple[Measured, list[Measured]]]:
    """Each of our arms that chooses its lengths itself, with those of the same rule and a fixed length."""
    ours = [arm for arm in arms.values() if arm.about["engine"] == "ours" and arm.about["block_size"] != 0]
    for arm in ours:
        same = [other for other in ours if all(other.about[name] == arm.about[name] for name in ("rule", "alpha"))]
        fixed = [other for other in same if isinstance(other.about["block_size"], int)]
        if isinstance(arm.about["block_size"], str) and fixed:
            yield arm, fixed


def main_table(arms: dict[str, Measured]) -> Table:
    base, peers = arms[BASE], servers(arms)
    header = ["arm", "tok/s", "× expert alone", "tok/s end to end", "× expert alone, end to end"]
    header += ["× best server", "× best server, end to end"] if peers else []
    table = [[*header, "tokens per expert call", "right %", "less the expert's"]]
    for arm in arms.values():
        cells = [arm.name]
        for clock in ("decode_s", "wall_s"):
            cells += [f"{arm.rate(clock):.2f}", "1" if arm is base else str(arm.times(base, clock))]
        for clock in ("decode_s", "wall_s") if peers else ():
            rival = best(peers, clock)
            cells.append("1 (the best)" if arm is rival else str(arm.times(rival, clock)))
        cells += [f"{arm.tokens_per_call():.2f}", f"{100 * np.mean(list(arm.accuracies().values())):.1f}"]
        table.append([*cells, "" if arm is base else points(arm.more_accurate(base))])
    return table


def families_of(arms: dict[str, Measured]) -> list[str]:
    return list(dict.fromkeys(row["family"] for row in arms[BASE].all()))


def family_table(arms: dict[str, Measured]) -> Table:
    """Decoding speed against the expert alone."""
    families = families_of(arms)
    rows = [[arm.name, *(f"{arm.times(arms[BASE], 'decode_s', family).value:.2f}" for family in families)] for arm in arms.values()]
    return [["× expert alone in", *families], *rows]


def auto_table(arms: dict[str, Measured]) -> Table:
    """Arms that choose lengths themselves against the best fixed length of the same rule, in all and in each family alone."""
    columns = [None, *families_of(arms)]
    table = [["× its best fixed length in", "all", *families_of(arms)]]
    for arm, fixed in fixed_and_other(arms):
        rivals = [(family, best(fixed, "decode_s", family)) for family in columns]
        cells = [f"{arm.times(rival, 'decode_s', family)} (of {rival.about['block_size']})" for family, rival in rivals]
        table.append([arm.name, *cells])
    return table if len(table) > 1 else []


def agreement(arms: dict[str, Measured]) -> str:
    """At temperature 0: who wrote what the expert alone wrote, among those who promise to."""
    exact = [arm for arm in arms.values() if arm.name != BASE and (arm.about["engine"] != "ours" or arm.about["rule"] == "strict")]
    n = len(arms[BASE].rows)
    return "; ".join(f"{arm.name} {arm.same_text(arms[BASE])} of {n}" for arm in exact)


def aligned(table: Table) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table)


def sections(results: Results) -> Iterator[tuple[str, Table]]:
    for temperature, arms in results.by_temperature.items():
        passes = len(next(iter(arms[BASE].rows.values())))
        yield f"Temperature {temperature:g}: {len(arms[BASE].rows)} prompts, {passes} passes", main_table(arms)
        yield f"By family, temperature {temperature:g} (tok/s)", family_table(arms)
        if auto := auto_table(arms):
            yield f"Lengths chosen on the way against the best fixed one, chosen afterwards; temperature {temperature:g} (tok/s)", auto


def notes(results: Results) -> list[str]:
    setup = results.setup
    quantization = setup.get("quantization") or {}
    lines = [
        f"{setup.get('models')}: expert {quantization.get('expert')}, drafter {quantization.get('drafter')}.",
        f"{setup.get('machine')}; {setup.get('threads')} threads; llama-cpp-python {setup.get('llama_cpp_python')}; "
        f"llama-server {setup.get('llama_server')}; {setup.get('system_info')}.",
        f"At most {setup.get('max_tokens')} tokens, context {setup.get('n_ctx')}, commit {', '.join(results.commits)}.",
        "tok/s: all tokens over all seconds, the median of the passes; without further word of decoding, prompts not counted, by each "
        "engine's own clock; end to end by the asker's clock.",
        "×: geometric mean of the ratios of single prompts [95 % interval, paired bootstrap over prompts]. The best server is chosen "
        "afterwards among all server arms, for decoding and for end to end apart.",
        "Right: exact match, word problems by their number; less the expert's: percentage points [95 % interval, likewise].",
        "Expert calls of llama-server: tokens less accepted drafts, which is what its timings allow.",
    ]
    if 0.0 in results.by_temperature:
        lines.append(f"The expert alone's very text at temperature 0, in every pass: {agreement(results.by_temperature[0.0])}.")
    lines.append(
        "Our decoding is the whole time less what the expert alone took to read that prompt in that pass: first drafts are not free."
    )
    lines.append("Automatic lengths are asked without a seed, so that they learn from one answer to the next, as they do for a user.")
    if results.left_out:
        lines.append(f"{results.left_out} rows are left out, because not every arm has answered that prompt in that pass.")
    return lines


def short_table(results: Results) -> Table:
    """For a first look: decoding speed of each arm, at each temperature, against the expert alone."""
    header, rows = ["arm"], [[name] for name in next(iter(results.by_temperature.values()))]
    for temperature, arms in results.by_temperature.items():
        header += [f"tok/s, T = {temperature:g}", "× expert alone", "right %"]
        for row, arm in zip(rows, arms.values()):
            ratio = "1" if arm.name == BASE else str(arm.times(arms[BASE], "decode_s"))
            row += [f"{arm.rate('decode_s'):.1f}", ratio, f"{100 * np.mean(list(arm.accuracies().values())):.1f}"]
    return [header, *rows]


def report(rows: Sequence[Record]) -> tuple[str, str]:
    """All results as plain text, and the README's part of them as Markdown."""
    results = Results.of(rows)
    parts = [*(f"{title}\n{aligned(table)}" for title, table in sections(results)), "\n".join(notes(results))]
    return "\n\n".join(parts) + "\n", markdown_table(short_table(results)) + "\n"


#: Fill and hatch by engine: distinct in grayscale and by the hatch alone.
LOOKS = {"ours": ("0.25", ""), "llama-server": ("0.75", "//"), "llama-cpp-python": ("1.0", "..")}


def picture(rows: Sequence[Record]) -> Figure:
    """Decoding speed of every arm, a panel for each temperature; the dashed line is the expert alone."""
    found = Results.of(rows).by_temperature
    names = list(next(iter(found.values())))
    figure = Figure(figsize=(3.2 + 3.2 * len(found), 0.8 + 0.24 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (temperature, arms) in zip(panels, found.items()):
        rates = [arm.rate("decode_s") for arm in arms.values()]
        for i, (arm, rate) in enumerate(zip(arms.values(), rates)):
            fill, hatch = LOOKS[arm.about["engine"]]
            axes.barh(i, rate, 0.75, color=fill, hatch=hatch, edgecolor="0.1", linewidth=0.6)
            axes.text(rate, i, f" {rate:.1f}", va="center", fontsize=7)
        axes.axvline(arms[BASE].rate("decode_s"), color="0.1", linestyle="--", linewidth=0.8)
        axes.set_xlim(0, 1.15 * max(rates))
        axes.set_title(f"temperature {temperature:g}", fontsize=9)
        axes.set_xlabel("tokens per second, decoding")
        axes.set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    return figure


def write_report(path: Path, *, update_readme: bool) -> None:
    """Print the table; write it beside the rows as .txt, and the picture as .svg."""
    if not path.exists():
        sys.exit(f"{path}: no such file; a run without --report makes it")
    rows, complaints = read_rows(path)
    print(*complaints, sep="\n", end="\n" if complaints else "", file=sys.stderr)
    if not rows:
        sys.exit(f"{path}: no rows of this benchmark")
    text, markdown = report(rows)
    print(text)
    beside = path.with_suffix("") if path.suffix == ".gz" else path
    beside.with_suffix(".txt").write_text(text, encoding="utf-8")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speccascade", "hatch.linewidth": 0.6}):
        picture(rows).savefig(beside.with_suffix(".svg"), metadata={"Date": None})
    if update_readme:
        svg, txt = (os.path.relpath(beside.with_suffix(suffix).resolve(), README.parent) for suffix in (".svg", ".txt"))
        section = (
            f"![Tokens per second of every arm, as bars]({svg})\n\n{markdown}\n"
            "tok/s: all tokens over all seconds of decoding, the median of the passes; ×: geometric mean over prompts [95 % interval]. "
            f"[All figures, by family, and how they were made]({txt})\n"
        )
        write_section(README, "peers", section)

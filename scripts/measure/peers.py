"""The benchmark against peers: our expert alone, strict and cascades beside llama-cpp-python and llama.cpp's own server.

    python scripts/measure/scale_pair.py PAIR                          # cost-scaled demonstration models
    python scripts/measure/peers.py --pair PAIR --llama-server PATH/llama-server      # hours; --resume goes on after a break
    python scripts/measure/peers.py --report docs/results/peers.jsonl.gz --update-page   # table, picture and page; measures nothing

All arms answer one prompt before the next is asked, and the arm that begins changes from prompt to prompt, so that a slow moment of the
machine falls on all. Everyone gets the same files, token ids, temperature, number of tokens, threads and context, starts each prompt
cold, and stops at the end of generation only. A row is written and flushed after each answer.

Not the same, and said: ours and the server draw other random numbers from one seed, so texts above temperature 0 differ; the server
drafts greedily there, ours draws drafts. Our account of every token (``fidelity``) is off in all our arms, because peers keep none.
ngram-mod remembers texts of earlier requests, so its server is started anew, and warmed up, before each answer; that is not counted.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import speccascade_local as sc
from speccascade_local.bench.export import markdown_table, points
from speccascade_local.bench.intervals import Estimate, quality_change, speed_ratio
from speccascade_local.bench.questions import HELD_OUT, Question, Turn, built_in_questions
from speccascade_local.bench.rows import commit
from speccascade_local.common.errors import SpeccascadeError
from speccascade_local.llama.backend import extra_buffers_are_safe, physical_cores, system_info
from speccascade_local.tokens.chat_template import Message

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "scripts" / folder) for folder in ("demo_pair", "docs")]

from questions import FAMILIES  # noqa: E402
from sections import write_section  # noqa: E402

PAGE = ROOT / "docs" / "benchmarking.md"
COPIED = ("qa", "code", "translate")  # where answers are long enough for a copy to matter
BASE, PYTHON = "expert alone (ours)", "llama-cpp-python Llama"
OURS = "strict/7,strict/15,strict/auto,token_v3:0.8/7,token_v3:0.8/auto"
#: ``ngram-mod`` by its own defaults wants 24 known tokens and 48 to copy, more than most answers have; 8:2:16 gives it a fair chance.
SERVERS = "none,draft-simple:3,draft-simple:7,draft-simple:15,ngram-mod:8:2:16"
START_S, ANSWER_S = 600.0, 3600.0

Record = dict[str, Any]
Table = list[list[str]]


# --------------------------------------------------------------------------- what is asked


def chosen(known: Sequence[Question], per_family: int, repeats: Callable[[list[Message], str], bool]) -> list[Question]:
    """So many questions of each family and so many copies, one of each in turn; always the same for the same file.

    In a copy the conversation holds the answer already. ``repeats`` says whether a model asked a question again gives the answer that it
    was told the first time: only such copies count.
    """
    rng = random.Random(0)
    shuffled = {family: [i for i, question in enumerate(known) if question.family == family] for family in FAMILIES}
    for places in shuffled.values():
        rng.shuffle(places)
    groups = [[_named(known[i], f"{family}-{i}") for i in places[:per_family]] for family, places in shuffled.items()]
    copies: list[Question] = []
    for i in (i for turn in zip(*(shuffled[family][per_family:] for family in COPIED)) for i in turn):
        if len(copies) == per_family:
            break
        asked, answer = known[i].conversation, max(known[i].reference, key=len)
        if repeats([*asked, {"role": "assistant", "content": answer}, *asked], answer):
            said = [Turn(role="assistant", content=answer)]
            turns = [Turn.model_validate(turn) for turn in asked]
            copies.append(_named(known[i], f"copy-{i}", family="copy", prompt=None, messages=(*turns, *said, *turns)))
    groups.append(copies)
    if any(len(group) < per_family for group in groups):
        sys.exit(f"--per-family {per_family} is more than {HELD_OUT.name} has to choose from")
    return [question for turn in zip(*groups) for question in turn]


def _named(question: Question, name: str, **changes: Any) -> Question:
    return question.model_copy(update={"id": name, **changes})


def questions(per_family: int, max_tokens: int) -> list[Question]:
    """The benchmark's questions; the bundled pair, which answers as the cost-scaled one, says what is repeated."""
    with sc.load(n_threads=1) as bundled:

        def repeats(messages: list[Message], answer: str) -> bool:
            reply = bundled.generate(bundled.chat_ids(messages), rule="strict", block_size=0, max_tokens=max_tokens)
            return reply.text.strip() == answer.strip()

        return chosen(built_in_questions(), per_family, repeats)


# --------------------------------------------------------------------------- who answers


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
    """What everyone is told."""

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
            seed=request.seed if isinstance(length, int) else None,  # a call with a seed would not look at what earlier calls have taught
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
    """A llama-server process over the pair. fresh: it forgets what it was asked only by starting anew, which is done before each answer."""

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


# --------------------------------------------------------------------------- measuring


def key(row: Record) -> tuple[str, str, float, int]:
    return row["arm"], row["prompt_id"], row["temperature"], row["pass"]


def planned(arms: Sequence[Arm], asked: Sequence[Question], temperatures: Sequence[float], passes: int) -> Iterator[tuple[Any, ...]]:
    """Everything to be measured, in order: within a prompt all arms, the first of them another one each time."""
    turn = 0
    for number in range(passes):
        for temperature in temperatures:
            for place, question in enumerate(asked):
                for i in range(len(arms)):
                    yield arms[(turn + i) % len(arms)], question, place, temperature, number
                turn += 1


def same_setup(rows: Sequence[Record], setup: Record, path: Path) -> None:
    """Refuse to go on with a file that was measured otherwise; only the commit may have moved on, and each row tells its own."""
    for name, value in setup.items():
        if name != "commit" and any(row.get(name) != value for row in rows):
            other = next(row.get(name) for row in rows if row.get(name) != value)
            sys.exit(f"{path}: measured with {name} = {other!r}, now it is {value!r}; go on with the same, or give another --out")


def measure(options: argparse.Namespace) -> None:
    """Fill options.out."""
    done = earlier_rows(options.out, resume=options.resume)
    asked = questions(options.per_family, options.max_tokens)[: options.limit]
    with ExitStack() as resources:
        files = {name: options.pair / f"{name}.gguf" for name in ("drafter", "expert")}
        runtime = resources.enter_context(sc.load(**files, n_threads=options.threads))
        setup = described_setup(options, runtime, files)
        same_setup(done, setup, options.out)
        logs = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="bench-peers-")))
        arms = all_arms(options, runtime, logs, resources)
        prompts = {question.id: runtime.chat_ids(question.conversation) for question in asked}
        for arm in arms:  # the first evaluations of a process are slow; they count for nobody, and show at once what cannot be asked
            arm.ask(Request(prompts[asked[0].id], 0.0, 0, 2))
        seen = {key(row) for row in done}
        everything = list(planned(arms, asked, options.temperatures, options.passes))
        columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        file = resources.enter_context(options.out.open("a", encoding="utf-8"))
        progress = resources.enter_context(Progress(*columns, console=Console(stderr=True), auto_refresh=False))
        step = progress.add_task("", total=len(everything))
        for arm, question, place, temperature, number in everything:
            progress.update(step, description=arm.name, refresh=True)  # only between answers: drawing costs time that someone would lose
            row: Record = {**arm.described(), "prompt_id": question.id, "temperature": temperature, "pass": number}
            if key(row) not in seen:
                seed = options.seed + 1000 * number + place
                load = os.getloadavg()[0]
                answer = arm.ask(Request(prompts[question.id], temperature, seed, options.max_tokens))
                right = question.is_right(answer.text)
                row |= {"family": question.family, "seed": seed, "right": right, "tokens": len(answer.token_ids), **asdict(answer)}
                row |= {"prompt_tokens": len(prompts[question.id]), "load_before": load, **setup}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            progress.update(step, advance=1, refresh=True)


def all_arms(options: argparse.Namespace, runtime: sc.Runtime, logs: Path, resources: ExitStack) -> list[Arm]:
    arms = [our_arm(runtime, "strict", 0)]
    if extra_buffers_are_safe(system_info()):
        arms.append(python_arm(options.pair / "expert.gguf", runtime, options.threads, resources))
    else:
        print(f"{PYTHON} is left out: it cannot switch weight repacking off, and crashes on this CPU with it", file=sys.stderr)
    for i, spec in enumerate(options.server_specs):
        flags = server_options(spec, options.pair, runtime, options.threads)
        arms.append(server_arm(options.llama_server, spec, flags, logs / f"{i}.log", resources))
    return arms + [our_arm(runtime, rule, length) for rule, length in options.ours]


def described_setup(options: argparse.Namespace, runtime: sc.Runtime, files: dict[str, Path]) -> Record:
    version = subprocess.run([options.llama_server, "--version"], capture_output=True, text=True) if options.server_specs else None
    name = gguf.GGUFReader(files["expert"]).fields.get("general.name")
    return {
        "models": name.contents() if name else "unnamed models",
        "quantization": {role: session.model.description for role, session in (("drafter", runtime._drafter), ("expert", runtime._expert))},
        "files": {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in files.items()},
        "machine": f"{cpu_name()}, {physical_cores()} physical cores",
        "llama_cpp_python": llama_cpp.__version__,
        "llama_server": (version.stdout + version.stderr).strip().splitlines()[0] if version else None,
        "system_info": system_info(),
        "threads": options.threads,
        "n_ctx": runtime.n_ctx,
        "max_tokens": options.max_tokens,
        "first_seed": options.seed,
        "commit": commit(),
    }


def cpu_name() -> str:
    """The processor's own name where Linux tells it, else the architecture."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


# --------------------------------------------------------------------------- rows

REQUIRED: dict[str, type | tuple[type, ...]] = {
    "arm": str, "engine": str, "prompt_id": str, "family": str, "temperature": (int, float), "pass": int, "tokens": int, "right": bool,
    "token_ids": list, "wall_s": (int, float), "prompt_s": (int, float), "decode_s": (int, float), "expert_calls": int,
}  # fmt: skip


def read_rows(path: Path) -> tuple[list[Record], list[str]]:
    """The rows of a file, gzipped or not, and a complaint about each line that is none: half written, or from elsewhere."""
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


def earlier_rows(path: Path, *, resume: bool) -> list[Record]:
    """What an earlier run has written; a half-written last line is closed, so that the next row begins its own."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    if not resume:
        sys.exit(f"{path} is there already; --resume goes on with it, --out names another")
    rows, complaints = read_rows(path)
    print(*complaints, sep="\n", end="\n" if complaints else "", file=sys.stderr)
    if not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    return rows


# --------------------------------------------------------------------------- figures


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
    """Everything comparable in a file: by temperature, the arms in the order in which they first came. left_out: rows without company."""

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
    """The fastest, chosen afterwards on the same prompts, which flatters it: fixed settings are not known beforehand."""
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
    """Arms that choose lengths themselves against the best fixed length of the same rule, in all and in each family by itself."""
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


# --------------------------------------------------------------------------- shown


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
    told = [
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
        told.append(f"The expert alone's very text at temperature 0, in every pass: {agreement(results.by_temperature[0.0])}.")
    told.append(
        "Our decoding is the whole time less what the expert alone took to read that prompt in that pass: first drafts are not free."
    )
    told.append("Automatic lengths are asked without a seed, so that they learn from one answer to the next, as they do for a user.")
    if results.left_out:
        told.append(f"{results.left_out} rows are left out, because not every arm has answered that prompt in that pass.")
    return told


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
    """All results as plain text, and the part of them for docs/benchmarking.md as Markdown."""
    results = Results.of(rows)
    parts = [*(f"{title}\n{aligned(table)}" for title, table in sections(results)), "\n".join(notes(results))]
    return "\n\n".join(parts) + "\n", markdown_table(short_table(results)) + "\n"


#: Fill and hatch by engine: told apart in greyscale and by the hatch alone.
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


def write_report(path: Path, *, update_page: bool) -> None:
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
    if update_page:
        svg, txt = (os.path.relpath(beside.with_suffix(suffix).resolve(), PAGE.parent) for suffix in (".svg", ".txt"))
        section = (
            f"![Tokens per second of every arm, as bars]({svg})\n\n{markdown}\n"
            "tok/s: all tokens over all seconds of decoding, the median of the passes; ×: geometric mean over prompts [95 % interval]. "
            f"[All figures, by family, and how they were made]({txt})\n"
        )
        write_section(PAGE, "peers", section)


# --------------------------------------------------------------------------- the command


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def split(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",") if part]

    return split


def parsed_arm(text: str) -> tuple[str, int | str]:
    rule, _, length = text.rpartition("/")
    return rule, int(length) if length.isdecimal() else length


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pair", type=Path, help="folder with drafter.gguf and expert.gguf, such as scripts/measure/scale_pair.py writes")
    add("--llama-server", type=Path, help="the program, built from the llama.cpp of the installed llama-cpp-python")
    add("--threads", type=int, default=physical_cores(), help="of everyone; default the physical cores (%(default)s)")
    add("--temperatures", type=listed(float), default="0,1", help="default %(default)s")
    add("--passes", type=int, default=3, help="how often everything is asked; default %(default)s")
    add("--max-tokens", type=int, default=96, help="default %(default)s")
    add("--per-family", type=int, default=8, help="questions of each family, and as many copies; default %(default)s")
    add("--limit", type=int, help="only so many questions; the families take turns")
    add("--ours", type=listed(parsed_arm), default=OURS, help="rule/block size of each of our arms; default %(default)s")
    add("--server-specs", type=listed(str), default=SERVERS, help="arms of llama-server; default %(default)s")
    add("--seed", type=int, default=0, help="of the first prompt in the first pass; default %(default)s")
    add("--out", type=Path, default=ROOT / "docs" / "results" / "peers.jsonl", help="rows; .txt and .svg are written beside them")
    add("--resume", action="store_true", help="go on with a file that is there, skipping what it has")
    add("--report", type=Path, metavar="FILE.jsonl[.gz]", help="make table and picture from this file and measure nothing")
    add("--update-page", action="store_true", help="write the section about peers in docs/benchmarking.md")
    options = parser.parse_args(argv)
    if options.report is None and options.pair is None:
        parser.error("--pair says which models are measured (or --report which file is told of)")
    if options.report is None and options.server_specs and options.llama_server is None:
        parser.error("--llama-server says where the program is (--server-specs '' leaves the server out)")
    if options.report is None and options.out.suffix == ".gz":
        parser.error(f"--out {options.out}: rows are written as they come, gzip them afterwards; leave .gz away")
    for name in ("threads", "passes", "max_tokens", "per_family", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return options


def main() -> None:
    options = arguments()
    if options.report is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else a killed run would leave its servers behind
        try:
            measure(options)
        except (SpeccascadeError, OSError) as error:
            sys.exit(f"error: {error}")
    write_report(options.report or options.out, update_page=options.update_page)


if __name__ == "__main__":
    main()

"""The benchmark against peers: what it makes of rows, without models and servers of its own."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import peers
import peers_arms
import peers_report
import pytest
from peers import planned
from peers_arms import BASE, Answer, Arm
from peers_report import Results, key
from sections import write_section

from speccascade_local.bench.export import points
from speccascade_local.bench.questions import Question, built_in_questions
from speccascade_local.tokens.chat_template import Message

FAMILIES = ("reason", "qa", "copy")
PLAIN, DRAFTING = "llama-server", "llama-server draft-simple 7"
STRICT, STRICT_15 = "strict (ours), blocks of 7", "strict (ours), blocks of 15"
AUTO = "strict (ours), auto blocks"
#: Tokens per second of decoding by arm, and what a row says of it.
ARMS: dict[str, tuple[float, dict[str, Any]]] = {
    BASE: (10.0, {"engine": "ours", "rule": "strict", "alpha": None, "block_size": 0}),
    PLAIN: (11.0, {"engine": "llama-server", "rule": "none", "alpha": None, "block_size": None}),
    DRAFTING: (16.0, {"engine": "llama-server", "rule": "draft-simple:7", "alpha": None, "block_size": 7}),
    STRICT: (15.0, {"engine": "ours", "rule": "strict", "alpha": None, "block_size": 7}),
    STRICT_15: (12.0, {"engine": "ours", "rule": "strict", "alpha": None, "block_size": 15}),
    AUTO: (18.0, {"engine": "ours", "rule": "strict", "alpha": None, "block_size": "auto"}),
    "cascade token_v3:0.8 (ours), blocks of 7": (20.0, {"engine": "ours", "rule": "token_v3", "alpha": "0.8", "block_size": 7}),
}
SETUP = {"models": "cost-scaled demonstration model", "quantization": {"expert": "E", "drafter": "D"}, "commit": "abc", "threads": 2}


def made(prompts: int = 24, passes: int = 3, temperatures: tuple[float, ...] = (0.0,), noise: float = 0.1) -> list[dict[str, Any]]:
    """Rows whose speeds are known but for noise, of the prompt (which all share) and of the answer."""
    rng = random.Random(4)
    rows = []
    for number in range(passes):
        for temperature in temperatures:
            for i in range(prompts):
                slow = rng.lognormvariate(0, 0.5)
                for name, (speed, about) in ARMS.items():
                    tokens = rng.randint(20, 60)
                    decode_s = tokens / speed * slow * rng.lognormvariate(0, noise)
                    rows.append(
                        {
                            **{"arm": name, **about, "prompt_id": f"p{i}", "family": FAMILIES[i % 3], "temperature": temperature},
                            **{"pass": number, "tokens": tokens, "token_ids": [i, 7], "right": i % 4 > 0, "expert_calls": tokens},
                            **{"wall_s": decode_s + 1, "prompt_s": 1.0, "decode_s": decode_s, **SETUP},
                        }
                    )
    return rows


def arms_of(rows: list[dict[str, Any]]) -> dict[str, peers_report.Measured]:
    return Results.of(rows).by_temperature[0.0]


# --------------------------------------------------------------------------- statistics


def test_without_noise_ratios_are_exact_and_intervals_have_no_width():
    arms = arms_of(made(noise=0.0))
    for name, (speed, _) in ARMS.items():
        found = arms[name].times(arms[BASE], "decode_s")
        assert (found.value, found.low, found.high) == pytest.approx((speed / 10,) * 3)


def test_a_paired_interval_does_not_widen_with_what_prompts_share():
    arms = arms_of(made())
    found = arms[DRAFTING].times(arms[BASE], "decode_s")
    assert found.low <= 1.6 <= found.high
    assert found.high / found.low < 1.15  # prompts differ by much more than that


def test_rates_are_all_tokens_over_all_seconds_and_the_median_of_the_passes():
    rows = [row for row in made(prompts=2, noise=0.0) if row["arm"] == BASE]
    for row in rows:
        row |= {"tokens": 10 if row["prompt_id"] == "p0" else 30, "decode_s": 1.0, "wall_s": 2.0}
        if row["pass"] == 2:  # a pass in which the machine was busy
            row |= {"decode_s": 50.0, "wall_s": 60.0}
    arm = arms_of(rows)[BASE]
    assert arm.rate("decode_s") == 20.0
    assert arm.rate("wall_s") == 10.0
    assert arm.rates("decode_s") == {"p0": 10.0, "p1": 30.0}


def test_accuracy_is_compared_prompt_by_prompt():
    rows = made(prompts=20, passes=1)
    for row in rows:
        row["right"] = row["arm"] == BASE or row["prompt_id"] not in ("p1", "p2")
    arms = arms_of(rows)
    less = arms[STRICT].more_accurate(arms[BASE])
    assert less.value == pytest.approx(-0.1)
    assert less.low < -0.1 < less.high < 0.1
    assert points(arms[AUTO].more_accurate(arms[STRICT])) == "+0.0 [-16.1, +16.1]", "20 ties are no proof that the two are equal"


# --------------------------------------------------------------------------- who is compared with whom


def test_the_best_server_is_chosen_among_all_server_arms_of_the_run():
    arms = arms_of(made())
    assert peers_report.best(peers_report.servers(arms), "decode_s").name == DRAFTING
    header, *table = peers_report.main_table(arms)
    column = header.index("× best server")
    assert {row[0] for row in table if row[column] == "1 (the best)"} == {DRAFTING}


def test_a_run_without_servers_has_no_such_columns():
    rows = [row for row in made() if row["engine"] != "llama-server"]
    assert "best server" not in " ".join(peers_report.main_table(arms_of(rows))[0])


def test_chosen_lengths_are_held_against_the_best_fixed_length_of_the_same_rule():
    rows = made(noise=0.0)
    for row in rows:
        if row["arm"] == STRICT_15 and row["family"] == "copy":  # long blocks pay where answers are copied
            row["decode_s"] /= 2
            row["wall_s"] = row["decode_s"] + row["prompt_s"]
    header, *table = peers_report.auto_table(arms_of(rows))
    assert [row[0] for row in table] == [AUTO]
    cells = dict(zip(header, table[0]))
    assert cells["reason"] == "1.20 [1.20, 1.20] (of 7)"
    assert cells["copy"] == "0.75 [0.75, 0.75] (of 15)"


def test_texts_are_held_against_the_expert_alone_at_temperature_0():
    rows = made()
    next(row for row in rows if row["arm"] == DRAFTING and row["prompt_id"] == "p3" and row["pass"] == 1)["token_ids"] = [0]
    text = peers_report.agreement(arms_of(rows))
    assert f"{DRAFTING} 23 of 24" in text
    assert f"{STRICT} 24 of 24" in text
    assert "cascade" not in text


def test_only_prompts_that_every_arm_has_answered_are_compared():
    rows = made(passes=1)[:-3]  # interrupted
    results = Results.of(rows)
    assert len(results.by_temperature[0.0][BASE].rows) == 23
    assert results.left_out == len(ARMS) - 3
    assert "4 rows are left out" in peers_report.report(rows)[0]


@pytest.mark.parametrize(
    ("rows", "reason"), [(made()[1:2], "no rows of 'expert alone"), (made(prompts=1)[:3] + made()[10:11], "every arm")]
)
def test_what_cannot_be_compared_is_refused(rows, reason):
    with pytest.raises(SystemExit, match=reason):
        Results.of(rows)


# --------------------------------------------------------------------------- report


def test_the_report_names_every_arm_and_temperature_in_text_and_markdown(tmp_path, capsys):
    path = tmp_path / "peers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made(temperatures=(0.0, 1.0))))
    peers_report.write_report(path, update_readme=False)
    text, markdown = path.with_suffix(".txt").read_text(), peers_report.report(peers_report.read_rows(path)[0])[1]
    assert capsys.readouterr().out.strip() == text.strip()
    svg = path.with_suffix(".svg").read_text()
    for name in ARMS:
        assert text.count(f"\n{name} ") >= 4  # table and families, twice
        assert f"| {name} |" in markdown
        assert name in svg
    for temperature in ("0", "1"):
        assert f"Temperature {temperature}: 24 prompts, 3 passes" in text
        assert f"tok/s, T = {temperature} |" in markdown
    assert "cost-scaled demonstration model" in text
    assert "first drafts are not free" in text
    tables = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in tables)


def test_our_first_draft_counts_as_decoding_and_only_what_the_expert_alone_reads_as_prompt():
    rows = made(passes=1)
    for row in rows:
        if row["engine"] == "ours" and row["arm"] != BASE:
            row |= {"prompt_s": row["wall_s"], "decode_s": 0.0}  # an answer that came whole in its first block
    charged = arms_of(rows)
    plain = arms_of(made(passes=1))
    for name, arm in charged.items():
        assert arm.rate("decode_s") == pytest.approx(plain[name].rate("decode_s"))


def test_only_what_lies_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- peers -->old<!-- /peers -->\nb", encoding="utf-8")
    write_section(page, "peers", "new\\1\n")
    assert page.read_text(encoding="utf-8") == "a\n<!-- peers -->\nnew\\1\n<!-- /peers -->\nb"
    with pytest.raises(SystemExit, match=r"page\.md has no <!-- other -->"):
        write_section(page, "other", "new")


def test_a_file_that_is_not_there_or_empty_is_told(tmp_path):
    with pytest.raises(SystemExit, match="no such file"):
        peers_report.write_report(tmp_path / "none.jsonl", update_readme=False)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SystemExit, match="no rows"):
        peers_report.write_report(tmp_path / "empty.jsonl", update_readme=False)


# --------------------------------------------------------------------------- rows and resuming


def test_lines_that_are_no_rows_are_told_and_the_others_are_read(tmp_path):
    path = tmp_path / "peers.jsonl"
    good = [json.dumps(row) for row in made(prompts=1, passes=1)]
    path.write_text("\n".join([good[0], '{"arm": "x"}', "[1]", *good[1:], good[0][:80]]))
    rows, complaints = peers_report.read_rows(path)
    assert len(rows) == len(ARMS)
    assert [complaint.split(": ")[0] for complaint in complaints] == [f"{path}, line {n}" for n in (2, 3, len(good) + 3)]
    assert "no row of this benchmark" in complaints[0]
    assert "not JSON" in complaints[2]


def test_a_gzipped_file_tells_the_same_and_one_that_is_cut_off_is_refused(tmp_path, capsys):
    plain, packed = tmp_path / "plain" / "peers.jsonl", tmp_path / "packed" / "peers.jsonl.gz"
    for path in (plain, packed):
        path.parent.mkdir()
    plain.write_text("".join(json.dumps(row) + "\n" for row in made()))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    printed = []
    for path in (plain, packed):
        peers_report.write_report(path, update_readme=False)
        printed.append(capsys.readouterr().out)
        assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, "peers.svg", "peers.txt"])
    assert printed[0] == printed[1] != ""
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="not a whole gzip file"):
        peers_report.write_report(packed, update_readme=False)


def test_a_file_that_is_there_is_gone_on_with_only_if_asked(tmp_path, capsys):
    path = tmp_path / "deep" / "peers.jsonl"
    assert peers.earlier_rows(path, resume=False) == []
    path.write_text(json.dumps(made()[0]) + '\n{"cut')
    with pytest.raises(SystemExit, match="--resume"):
        peers.earlier_rows(path, resume=False)
    assert len(peers.earlier_rows(path, resume=True)) == 1
    assert "line 2: not JSON" in capsys.readouterr().err
    assert path.read_bytes().endswith(b"\n")  # the next row begins a line of its own


def test_rows_of_another_setup_are_refused_but_for_the_commit():
    rows = [{"threads": 2, "commit": "a"}]
    peers.same_setup(rows, {"threads": 2, "commit": "b"}, Path("f"))
    with pytest.raises(SystemExit, match="f: measured with threads = 2, now it is 4"):
        peers.same_setup(rows, {"threads": 4, "commit": "b"}, Path("f"))


@pytest.mark.slow
def test_a_resumed_run_asks_only_what_is_missing(tmp_path, monkeypatch, demo):
    asked: list[tuple[str, int]] = []

    def arm(name: str) -> Arm:
        def ask(request: peers_arms.Request) -> Answer:
            if request.max_tokens > 2:  # warm-ups are not counted
                asked.append((name, request.seed))
            return Answer("text", [1, 2], 2.0, 1.0, 1.0, 0, 0, 2)

        return Arm(name, ask, "ours", "strict", None, 0)

    monkeypatch.setattr(peers, "all_arms", lambda *_: [arm(BASE), arm("another")])
    out = tmp_path / "peers.jsonl"
    folder = Path(demo.pair.expert).parent
    line = ["--pair", str(folder), "--out", str(out), "--server-specs", "", "--limit", "2", "--passes", "2", "--per-family", "1"]
    line += ["--temperatures", "0", "--threads", "1"]
    peers.measure(peers.arguments(line))
    everything = list(asked)
    lines = out.read_text().splitlines()
    assert len(everything) == len(lines) == 8
    assert [name for name, _ in everything] == [BASE, "another", "another", BASE] * 2  # the one that begins changes
    out.write_text("\n".join(lines[:5]) + "\n" + lines[5][:40])  # killed while writing
    asked.clear()
    peers.measure(peers.arguments([*line, "--resume"]))
    assert asked == everything[5:]
    rows, complaints = peers_report.read_rows(out)
    assert len({key(row) for row in rows}) == len(rows) == 8
    assert len(complaints) == 1
    fields = {
        "machine",
        "threads",
        "seed",
        "files",
        "quantization",
        "commit",
        "system_info",
        "llama_cpp_python",
        "rule",
        "alpha",
        "block_size",
    }
    assert fields <= rows[0].keys()


# --------------------------------------------------------------------------- what is asked


def test_every_arm_begins_equally_often():
    arms = [Arm(str(i), lambda request: pytest.fail("not asked"), "ours") for i in range(4)]
    asked = [Question(id=str(i), family="qa", prompt="?", reference=("!",)) for i in range(4)]
    begins = [arm.name for arm, *_ in list(planned(arms, asked, [0.0], 1))[::4]]
    assert begins == ["0", "1", "2", "3"]


def test_questions_are_the_same_each_time_and_copies_hold_their_answer():
    tasks = built_in_questions()
    offered: list[str] = []

    def repeats(messages: list[Message], answer: str) -> bool:
        offered.append(answer)
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        return len(offered) > 3

    questions = peers.chosen(tasks, 3, repeats)
    offered.clear()
    assert [question.id for question in questions] == [question.id for question in peers.chosen(tasks, 3, repeats)]
    assert [question.family for question in questions[:6]] == ["reason", "translate", "summarize", "code", "qa", "copy"]
    assert len({question.id for question in questions}) == 18
    copies = [question for question in questions if question.family == "copy"]
    assert all(question.conversation[0] == question.conversation[2] for question in copies)
    assert not {question.conversation[0]["content"] for question in copies} & {q.prompt for q in questions if q.family != "copy"}
    assert all(question.is_right(question.conversation[1]["content"]) for question in copies)


def test_more_questions_than_there_are_is_refused():
    with pytest.raises(SystemExit, match="--per-family 90"):
        peers.chosen(built_in_questions(), 90, lambda messages, answer: False)


def test_servers_are_told_apart_and_nonsense_is_refused(demo, tmp_path):
    def flags(spec: str) -> str:
        return " ".join(peers_arms.server_options(spec, tmp_path, demo, 2))

    assert "--spec-type" not in flags("none")
    assert flags("draft-simple:7").endswith("drafter.gguf --spec-type draft-simple --spec-draft-n-max 7")
    assert flags("ngram-mod").endswith("--spec-type ngram-mod")
    assert "--spec-ngram-mod-n-match 8 --spec-ngram-mod-n-min 2 --spec-ngram-mod-n-max 16" in flags("ngram-mod:8:2:16")
    with pytest.raises(SystemExit, match="'draft'"):
        flags("draft")


@pytest.mark.parametrize("line", [[], ["--pair", "x"], ["--pair", "x", "--server-specs", "", "--passes", "0"]])
def test_what_is_missing_from_the_command_is_told(line, capsys):
    with pytest.raises(SystemExit):
        peers.arguments(line)
    assert "usage:" in capsys.readouterr().err

"""The verbs and options about methods, as users meet them: real processes and files."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
from command_line import QUESTION, output_of, speccascade
from PIL import Image

import speccascade_local as sc
from speccascade_local.bench.questions import read_questions
from speccascade_local.rules import registry
from speccascade_local.rules.calibrated import Calibration

DEMO = Path(sc.__file__).parent / "demo"


def replied(*arguments, cwd: Path | None = None) -> dict:
    return json.loads(output_of("run", "--json", *arguments, QUESTION, cwd=cwd))


def ask(demo: sc.Runtime, **settings) -> sc.Reply:
    demo.reset()
    return demo.chat([{"role": "user", "content": QUESTION}], **{"block_size": 5} | settings)


# --------------------------------------------------------------------------- rules


def test_rules_in_json_is_the_table_of_all_methods():
    assert json.loads(output_of("rules", "--json")) == [registry.describe(method) for method in registry.METHODS.values()]


def test_rules_shows_every_method_with_every_field_and_each_example_can_be_run():
    text = output_of("rules", COLUMNS="200")
    paragraphs = [re.sub(r"\s+", " ", paragraph) for paragraph in text.strip().split("\n\n")]
    assert len(paragraphs) == len(registry.METHODS)
    for paragraph, method in zip(paragraphs, registry.METHODS.values(), strict=True):
        for name, value in registry.describe(method).items():
            assert value in paragraph
            assert name == "method" or name in paragraph
    assert "\x1b" not in text


# --------------------------------------------------------------------------- the options of run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--strict-first", "3"], {"strict_first": 3}),
        (["--rule", "chow:1", "--thinking-rule", "strict"], {"rule": "chow:1", "thinking_rule": "strict"}),
        (["--verification", "block", "--temperature", "1"], {"verification": "block", "temperature": 1}),
        (["--bonus", "cascade"], {"bonus": "cascade"}),
        (["--presence-penalty", "1.5"], {"presence_penalty": 1.5}),
        (["--frequency-penalty", "2"], {"frequency_penalty": 2}),
        (["--repetition-penalty", "2"], {"repetition_penalty": 2}),
        (["--logit-bias", "33=-100", "--logit-bias", "14=5"], {"logit_bias": {33: -100, 14: 5}}),
        (["--rule", "chow_quantile:-1,0.5"], {"rule": "chow_quantile:-1,0.5"}),
        (["--rule", "token_cascade:0.01"], {"rule": "token_cascade:0.01"}),
        (["--logprobs", "2"], {"logprobs": 2}),
        (["--logprobs", "2", "--model-logprobs"], {"logprobs": 2, "model_logprobs": True}),
        (["--logprobs", "2", "--logprobs-of", "raw"], {"logprobs": 2, "logprobs_of": "raw"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_option_does_what_the_setting_of_its_name_does(demo, options, settings):
    by_option = replied("--seed", "3", "--block-size", "5", *options)
    reply = ask(demo, seed=3, **settings)
    assert {name: by_option[name] for name in reply.as_dict()} == json.loads(json.dumps(reply.as_dict()))


@pytest.mark.slow
def test_each_option_changes_the_reply():
    """Each changes what is written, or by whom."""
    usual = ["--rule", "chow:0.3", "--temperature", "1.5", "--seed", "0", "--block-size", "5"]
    plain = replied(*usual)
    for options in (
        ["--strict-first", "3"], ["--presence-penalty", "2"], ["--frequency-penalty", "2"], ["--repetition-penalty", "3"],
        ["--logit-bias", f"{plain['token_ids'][0]}=-100"], ["--bonus", "cascade"], ["--verification", "block"],
    ):  # fmt: skip
        changed = replied(*usual, *options)
        assert (changed["token_ids"], changed["origins"]) != (plain["token_ids"], plain["origins"]), options


@pytest.mark.slow
def test_log_probabilities_are_per_token_and_those_of_both_models_optional():
    reply = replied("--logprobs", "3", "--model-logprobs", "--temperature", "1", "--seed", "1", "--rule", "strict")
    for name in ("logprobs", "expert_logprobs", "drafter_logprobs"):
        assert len(reply[name]) == len(reply["token_ids"])
        for place in filter(None, reply[name]):
            found = [candidate["logprob"] for candidate in place["top"]]
            assert len(found) == 3
            assert found == sorted(found, reverse=True)
            assert sum(map(math.exp, found)) <= 1 + 1e-9
    short = replied("--logprobs", "1", "--max-tokens", "3")
    assert {len(place["top"]) for place in short["logprobs"]} == {1}
    assert "expert_logprobs" not in short
    assert "logprobs" in replied("--max-tokens", "1", "--logprobs", "0")


@pytest.mark.slow
def test_an_answer_follows_the_grammar_in_a_file(tmp_path):
    path = tmp_path / "years.gbnf"
    path.write_text('root ::= "In " [0-9] [0-9] [0-9] [0-9] "."\n', encoding="utf-8")
    for rule in ("strict", "never", "token_cascade:0.2", "margin:1"):
        assert re.fullmatch(r"In \d{4}\.\n", output_of("run", "--grammar", path, "--rule", rule, QUESTION))
    assert replied("--grammar", path)["settings"]["grammar"] == path.read_text(encoding="utf-8")


def test_an_answer_follows_the_json_schema_in_a_file(tmp_path):
    path = tmp_path / "schema.json"
    schema = {"type": "object", "properties": {"known": {"type": "boolean"}}, "required": ["known"], "additionalProperties": False}
    path.write_text(json.dumps(schema), encoding="utf-8")
    for rule in ("token_v3:0.8", "chow_sum:1"):
        found = json.loads(output_of("run", "--json-schema", path, "--rule", rule, QUESTION))
        assert list(found) == ["known"]
        assert isinstance(found["known"], bool)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--verification", "rows", "Hi"], "verification is 'rows'; it must be 'token' or 'block'"),
        (["run", "--bonus", "none", "Hi"], "bonus is 'none'; it must be 'expert' or 'cascade'"),
        (["run", "--strict-first", "-1", "Hi"], "strict_first is -1"),
        (["run", "--thinking-rule", "tokn_v3:0.3", "Hi"], "did you mean 'token_v3'"),
        (["run", "--rule", "margin:0.5", "--verification", "block", "Hi"], "margin:0.5 has none"),
        (["run", "--rule", "margin:0.5", "--strict-first", "2", "Hi"], "margin:0.5 does not; choose another"),
        (["run", "--rule", "token_cascade:0.5", "--bonus", "cascade", "Hi"], "token_cascade:0.5 has none"),
        (["run", "--rule", "calibrated:none.json", "Hi"], "none.json: cannot be read (No such file or directory)"),
        (["run", "--logprobs", "2", "Hi"], "add --json"),
        (["run", "--json", "--model-logprobs", "Hi"], "set logprobs to a number too"),
        (["run", "--json", "--logprobs-of", "raw", "Hi"], "set logprobs to a number too"),
        (["run", "--json", "--logprobs", "2", "--logprobs-of", "model", "Hi"], "it must be 'drawn' or 'raw'"),
        (["run", "--presence-penalty", "3", "Hi"], "presence_penalty is 3.0"),
        (["run", "--logit-bias", "5", "Hi"], "--logit-bias '5' is not ID=BIAS, such as 42=-5"),
        (["run", "--logit-bias", "5000=1", "Hi"], "logit_bias names token id 5000; the ids that both models have are 0 to 1023"),
        (["run", "--grammar", "none.gbnf", "Hi"], "none.gbnf: cannot be read"),
        (["run", "--grammar", "bad.gbnf", "Hi"], "not valid GBNF"),
        (["run", "--json-schema", "bad.gbnf", "Hi"], "not valid JSON"),
        (["run", "--grammar", "good.gbnf", "--json-schema", "schema.json", "Hi"], "omit the other"),
        (["calibrate", "--questions", "bad.jsonl", "--out", "cal.json"], "question question-2 has no reference"),
        (["calibrate", "--questions", "few.jsonl", "--out", "cal.json"], "1 judged answers are too few"),
        (["calibrate", "copied", "--questions", "enough.jsonl", "--out", "cal.json"], "the drafter is ngram; name a drafter file"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_error(tmp_path, arguments, said):
    line = '{"prompt": "Hi", "reference": ["x"]}\n'
    files = {"bad.gbnf": 'root ::= "', "good.gbnf": 'root ::= "a"', "schema.json": "{}", "few.jsonl": line, "enough.jsonl": 60 * line}
    files |= {"models.yaml": "pairs: {copied: {drafter: ngram, expert: bundled:expert.gguf}}\n"}
    for name, text in (files | {"bad.jsonl": line + '{"prompt": "Hi"}'}).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = speccascade(*arguments, cwd=tmp_path)
    error = done.stderr.decode()
    assert (done.returncode, done.stdout, error.count("\n")) == (1, b"", 1)
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "cal.json").exists()


@pytest.mark.parametrize("missing", ["--questions", "--out"])
def test_calibrate_needs_its_two_files(missing):
    given = {"--questions": "a", "--out": "b"}
    done = speccascade("calibrate", *(word for name, value in given.items() if name != missing for word in (name, value)))
    assert done.returncode == 2
    assert missing in done.stderr.decode()


# --------------------------------------------------------------------------- calibrate, and what uses it


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """A folder with what `speccascade calibrate` writes for the bundled pair and some of its held-out questions."""
    folder = tmp_path_factory.mktemp("calibrated")
    lines = (DEMO / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[::8]
    (folder / "asked.jsonl").write_text("\n".join(lines), encoding="utf-8")
    arguments = ["--questions", "asked.jsonl", "--out", "cal.json", "--picture", "cal.png", "--target", "0.9", "--seed", "1"]
    (folder / "output.txt").write_text(output_of("calibrate", *arguments, cwd=folder), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_calibrate_writes_what_it_says(calibrated):
    found, text = Calibration.load(calibrated / "cal.json"), (calibrated / "output.txt").read_text(encoding="utf-8")
    n = len(read_questions(calibrated / "asked.jsonl"))
    assert (found.calibrated_on, found.chosen_on, len(found.validation)) == (n // 3, n // 3, n // 3)
    assert found.target_accuracy == 0.9
    low, high = found.accuracy_interval
    assert found.expert_accuracy > found.drafter_accuracy
    assert 0 < found.kept < 1
    for said in (
        f"fitted on {found.calibrated_on} answers; the threshold is chosen on {found.chosen_on} others",
        f"measured on the remaining {len(found.validation)} answers",
        f"with probability above {found.threshold:.3f}",
        f"the drafter answers {found.kept:.1%} alone",
        f"right answers {found.accuracy:.1%} [{low:.1%}, {high:.1%}], target 90.0%",
        f"the expert alone {found.expert_accuracy:.1%}, the drafter alone {found.drafter_accuracy:.1%}",
        "use it with: --rule calibrated:cal.json",
    ):
        assert said in text
    with Image.open(calibrated / "cal.png") as image:
        assert image.format == "PNG"


@pytest.mark.slow
def test_a_calibration_routes_the_answers_of_run_as_it_says(calibrated, demo):
    rule, settings = registry.parse(f"calibrated:{calibrated / 'cal.json'}"), {"max_tokens": 256}
    decided = set()
    for task in read_questions(calibrated / "asked.jsonl")[::12]:
        reply = json.loads(output_of("run", "--json", "--rule", "calibrated:cal.json", task.prompt, cwd=calibrated))
        demo.reset()
        margin = demo.chat([{"role": "user", "content": task.prompt}], rule="margin:0", **settings).confidence
        assert reply["confidence"] == pytest.approx(1 - rule.calibration.error_at(1 - margin), abs=1e-6)
        assert set(reply["origins"]) == ({"accepted"} if reply["confidence"] >= rule.threshold else {"expert"})
        decided |= set(reply["origins"])
    assert decided == {"accepted", "expert"}


@pytest.mark.slow
def test_compare_shows_a_calibration_beside_the_other_ways(calibrated):
    rows = json.loads(output_of("compare", "--json", "--rule", "calibrated:cal.json", QUESTION, cwd=calibrated))["rows"]
    (row,) = [row for row in rows if "calibrated" in row["arm"]]
    assert row["rule"] == "calibrated:cal.json"
    assert row["confidence"] is not None
    kept = {row["arm"]: row["text"] for row in rows}["drafter alone" if set(row["origins"]) == {"accepted"} else "expert alone"]
    assert row["text"] == kept
    shown = output_of("compare", "--rule", "calibrated:cal.json", QUESTION, cwd=calibrated)
    assert re.search(r"drafter's confidence [\d.]+, threshold [\d.]+: (keeps the drafter's answer|discards it)", shown)


@pytest.mark.slow
def test_a_pair_may_have_a_calibration_of_its_own_beside_its_models_yaml(calibrated, tmp_path):
    pair = "pairs:\n  mine:\n    drafter: bundled:drafter.gguf\n    expert: bundled:expert.gguf\n    rule: calibrated:cal.json\n"
    (calibrated / "models.yaml").write_text(pair, encoding="utf-8")
    reply = json.loads(output_of("run", "--json", "--models", calibrated / "models.yaml", "mine", QUESTION, cwd=tmp_path))
    assert reply["rule"] == f"calibrated:{calibrated / 'cal.json'}"
    assert reply["confidence"] is not None
    assert f"calibrated:{calibrated / 'cal.json'}" in output_of("models", "--models", calibrated / "models.yaml", cwd=tmp_path)


@pytest.mark.slow
def test_a_pair_that_names_a_calibration_which_is_not_there_yet_can_be_calibrated(calibrated, tmp_path):
    pair = "pairs:\n  mine:\n    drafter: bundled:drafter.gguf\n    expert: bundled:expert.gguf\n    rule: calibrated:mine.json\n"
    (tmp_path / "models.yaml").write_text(pair, encoding="utf-8")
    assert speccascade("run", "mine", QUESTION, cwd=tmp_path).returncode == 1
    output_of("calibrate", "mine", "--questions", calibrated / "asked.jsonl", "--target", "0.5", "--out", "mine.json", cwd=tmp_path)
    assert output_of("run", "mine", QUESTION, cwd=tmp_path)


@pytest.mark.slow
def test_compare_leaves_out_what_does_not_go_with_the_settings():
    table = output_of("compare", "--all", "--thinking-rule", "decision_tokens:1", QUESTION)
    assert "chow:0.2" in table
    assert "decision_tokens" not in table


@pytest.mark.slow
def test_a_calibration_of_other_files_is_refused(calibrated):
    done = speccascade(
        "run", "--drafter", DEMO / "expert.gguf", "--expert", DEMO / "expert.gguf", "--rule", "calibrated:cal.json", "Hi", cwd=calibrated
    )
    assert done.returncode == 1
    assert "cal.json: this calibration is for another pair: its drafter is not expert.gguf" in done.stderr.decode()


@pytest.mark.slow
def test_a_target_that_no_threshold_reaches_is_refused_and_nothing_is_written(calibrated):
    lines = [json.dumps({"prompt": task.prompt, "reference": ["never said"]}) for task in read_questions(calibrated / "asked.jsonl")[:60]]
    (calibrated / "hard.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = speccascade(
        "calibrate", "--questions", "hard.jsonl", "--out", "hard.json", "--target", "0.5", "--max-tokens", "3", cwd=calibrated
    )
    assert done.returncode == 1
    assert "no threshold reaches an accuracy of 0.500 on the 20 answers" in done.stderr.decode()
    assert not (calibrated / "hard.json").exists()


# --------------------------------------------------------------------------- rules of the user's own in models.yaml


MINE = """
from pathlib import Path
Path("ran").touch()

class Sure:
    def __init__(self, alpha):
        self.alpha = alpha
    def defer(self, evidence):
        return evidence.drafter_max < 1 - self.alpha
"""


@pytest.mark.slow
def test_listing_pairs_runs_no_code_and_answering_with_one_does(tmp_path):
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    rule = "mine:Sure(0.3)"
    pair = f"pairs:\n  mine:\n    drafter: bundled:drafter.gguf\n    expert: bundled:expert.gguf\n    rule: {rule}\n"
    (tmp_path / "models.yaml").write_text(pair, encoding="utf-8")
    assert re.search(rf"^mine +{re.escape(rule)} ", output_of("models", cwd=tmp_path), re.MULTILINE)
    assert speccascade("run", "demo", "Hi", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "ran").exists()
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    own, chow = (
        json.loads(output_of("run", "--json", "--seed", "0", *arguments, QUESTION, cwd=tmp_path, PYTHONPATH=paths))
        for arguments in (["--allow-code", "mine"], ["--rule", "chow:0.3"])
    )
    assert (tmp_path / "ran").exists()
    assert own.pop("settings")["rule"] == own["rule"] == rule
    del chow["settings"]
    assert own | {"rule": "chow:0.3", "pair": "demo"} == chow


# --------------------------------------------------------------------------- compare --all


@pytest.mark.slow
def test_compare_all_has_one_row_for_every_method_and_the_control():
    rows = json.loads(output_of("compare", "--all", "--json", QUESTION))["rows"]
    arms = {row["arm"]: row for row in rows}
    asked = {row["rule"] for row in rows}
    shown = {method.split(":")[0] for method in asked}
    assert shown == set(registry.METHODS) - {"calibrated"}
    assert {arm for arm in arms if "min-p" in arm} == {"expert min-p 0.2", "strict min-p 0.2"}
    assert {arms[arm]["text"] for arm in ("strict", "strict block", "expert alone")} == {arms["expert alone"]["text"]}
    assert all((row["confidence"] is None) == (row["rule"].split(":")[0] not in registry.ROUTES) for row in rows)


@pytest.mark.slow
def test_compare_all_shows_each_text_once_under_all_that_wrote_it():
    text = output_of("compare", "--all", QUESTION, COLUMNS="120")
    table = text[text.rindex("speed-up") :]
    answers = [line for line in text[: -len(table)].splitlines() if "Lovelace" in line and not line.startswith("drafts")]
    assert len(answers) == len(set(answers)) >= 2
    for spec in set(registry.examples()) - {"never"}:  # that is the drafter alone
        assert spec in re.sub(r"\n *", "", table)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--temperature", "1"], ["--block-size", "0", "--max-tokens", "1"]], ids=" ".join)
def test_compare_all_leaves_out_what_means_nothing_under_the_settings(options):
    rows = json.loads(output_of("compare", "--all", "--json", *options, QUESTION))["rows"]
    assert len(rows) > 20
    assert any(row["rule"].startswith("fly") for row in rows) == (options[0] != "--temperature")

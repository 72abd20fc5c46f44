"""The user's own rules: the worked example of the documentation, and everything that can be wrong with one."""

from __future__ import annotations

import json
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from command_line import as_text

import speccascade_local as sc
from speccascade_local import target_probs
from speccascade_local.models.catalog import bundled_pair
from speccascade_local.rules.evidence import Place
from speccascade_local.rules.registry import is_custom, parse
from speccascade_local.rules.token_rules import TokenV3
from speccascade_local.rules.user_rule import CustomRule, CustomTarget
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
HELD_OUT = [json.loads(line) for line in (Path(sc.__file__).parent / "demo" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
REASONING = [task["prompt"] for task in HELD_OUT if task["family"] == "reason"]
SPEC = "my_rules:TrustDigits(0.3)"
ROWS = np.log(np.array([0.5, 0.3, 0.2])), np.log(np.array([0.1, 0.6, 0.3]))


@pytest.fixture
def examples(monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Writes a module of the user's, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> None:
        (tmp_path / "mine.py").write_text(source)

    yield write
    sys.modules.pop("mine", None)


def ask(demo: sc.Runtime, prompt: str, rule, **settings) -> sc.Reply:
    demo.reset()
    return demo.chat([{"role": "user", "content": prompt}], rule=rule, max_tokens=48, **{"block_size": 5} | settings)


# ---------------------------------------------------------------------------------------------- the worked example


@pytest.mark.slow
def test_the_example_keeps_every_drafted_digit_where_strict_drops_some(demo, examples):
    from my_rules import TrustDigits, is_number

    dropped = {}
    for name, rule in (("own", TrustDigits(0.3)), ("strict", "strict")):
        replies = [ask(demo, prompt, rule, temperature=1.0, seed=seed) for seed, prompt in enumerate(REASONING[:40])]
        rejected = [token.dropped[0] for reply in replies for token in reply.tokens if token.dropped]
        dropped[name] = sum(map(is_number, rejected))
        if name == "own":
            kept = [token.origin for reply in replies for token in reply.tokens if is_number(token.text)]
            assert set(kept) <= {"accepted", "bonus", "corrected"}  # no digit needed the strict coin
            assert kept.count("accepted") > 300
    assert dropped["own"] == 0
    assert dropped["strict"] > 10


@pytest.mark.slow
def test_the_example_leaves_names_to_the_expert_and_judges_the_rest_as_token_v3_does(demo, examples):
    from my_rules import TrustDigits, is_name, is_number

    prompts = [task["prompt"] for task in HELD_OUT if task["family"] == "qa"][:12]
    for prompt in prompts:
        for token in ask(demo, prompt, TrustDigits(0.9)).tokens:
            assert not (is_name(token.text) and token.origin == "accepted")
            assert not (is_number(token.text) and token.origin == "matched")
    vocabulary = demo._loaded.vocabulary
    other = ~(vocabulary.where(is_name) | vocabulary.where(is_number))
    rng = np.random.default_rng(0)
    rows = [Rows.of(2 * rng.normal(size=(1, demo.n_vocab))) for _ in range(2)]
    evidence = sc.Evidence(*rows, Sampler(), Place(vocabulary=vocabulary))
    mine, theirs = TrustDigits(0.4).defer(evidence)[0], TokenV3(0.4).defer(evidence)[0]
    np.testing.assert_array_equal(mine[other], theirs[other])


@pytest.mark.parametrize(("text", "number", "name"), [("7", 1, 0), (" 42", 1, 0), ("Ada", 0, 1), (" Ada", 0, 1), ("ada", 0, 0), ("", 0, 0),
                                                      ("4x", 0, 0), (" ", 0, 0), ("\ufffd", 0, 0)])  # fmt: skip
def test_the_example_recognizes_numbers_and_names_by_their_texts(examples, text, number, name):
    from my_rules import is_name, is_number

    assert (is_number(text), is_name(text)) == (number, name)


def test_an_object_and_its_text_are_the_same_rule(demo, examples):
    from my_rules import TrustDigits

    replies = [
        ask(demo, REASONING[0], rule, temperature=1.0, seed=3) for rule in (TrustDigits(0.3), SPEC, "my_rules:TrustDigits(alpha=0.3)")
    ]
    assert len({tuple(reply.token_ids) for reply in replies}) == 1
    assert [str(reply.rule) for reply in replies] == ["my_rules:TrustDigits(alpha=0.3)", SPEC, "my_rules:TrustDigits(alpha=0.3)"]
    assert parse(str(replies[0].rule)) == replies[0].rule == parse(TrustDigits(0.3))
    assert hash(parse(SPEC)) == hash(parse(SPEC))
    assert replies[0].rule.trade == TrustDigits.trade


def test_the_command_line_and_models_yaml_take_the_example_by_its_text(demo, examples, tmp_path):
    pair = bundled_pair()
    named = f"pairs: {{mine: {{drafter: '{pair.drafter}', expert: '{pair.expert}', rule: '{SPEC}'}}}}"
    (tmp_path / "models.yaml").write_text(named)
    mine = ["run", "mine", REASONING[0], "--allow-code", "--models", str(tmp_path / "models.yaml")]
    expected = ask(demo, REASONING[0], SPEC)
    for arguments in (["run", REASONING[0], "--rule", SPEC], mine):
        done = as_text(*arguments, "--json", "--max-tokens", "48", "--threads", "1", "--block-size", "5", cwd=EXAMPLES)
        assert (done.returncode, done.stderr) == (0, "")
        shown = json.loads(done.stdout)
        assert (shown["rule"], shown["token_ids"]) == (SPEC, expected.token_ids)


def test_a_users_rule_can_be_combined(demo, examples):
    guarded = ask(demo, REASONING[0], f"{SPEC}+strict_first:6", temperature=1.0, seed=1)
    assert guarded.token_ids[:6] == ask(demo, REASONING[0], "strict", temperature=1.0, seed=1).token_ids[:6]
    assert str(guarded.rule) == f"{SPEC}+strict_first:6"
    assert parse(str(guarded.rule)) == guarded.rule


# ---------------------------------------------------------------------------------------------- what a rule may answer


class Answers:
    """A rule of two lines, answering what it is given."""

    def __init__(self, method: str, answer) -> None:
        setattr(self, method, (lambda evidence: answer(evidence)) if callable(answer) else lambda evidence: answer)

    def __repr__(self) -> str:
        return "Answers(...)"


class Derived(sc.Rule):
    name: ClassVar[str] = "derived"

    def __init__(self, answer) -> None:
        self.answer = answer

    def defer(self, evidence):
        return self.answer


class DerivedTarget(sc.TargetRule):
    name: ClassVar[str] = "derived"

    def __init__(self, answer) -> None:
        self.answer = answer

    def target(self, evidence):
        return self.answer


def fails(evidence):
    raise ZeroDivisionError("one and\nonly")


def refuses(evidence):
    raise sc.SettingError("not like this")


def writes(evidence):
    """A slip that is easily made: it would change what the executor takes for the drafter's own distribution."""
    target = evidence.drafter_probs
    target /= 2
    return target


def shifts(evidence):
    evidence.expert.logits[:] += 1
    return evidence.expert_probs


P = np.array([[0.2, 0.3, 0.5]])
BAD_DEFERS = {
    "a text": ("yes", "<U3 of shape"),
    "nothing": (None, "None; is a return missing"),
    "numbers": (np.zeros(1), "float64 of shape"),
    "whole numbers": (np.zeros((1, 3), int), "int64 of shape"),
    "too many rows": (np.zeros((2, 3), bool), "bool of shape"),
    "too few tokens": (np.zeros((1, 2), bool), "bool of shape"),
    "no row": (np.zeros(3, bool), "bool of shape"),
    "a number": (1, "int64 of shape"),
    "rows of several lengths": ([[True], [True, False]], "ValueError"),
    "an error": (fails, "ZeroDivisionError: one and"),
    "an error of the package's kind": (refuses, "not like this"),
    "an attempt to write": (shifts, "ValueError: .*read-only"),
}
BAD_TARGETS = {
    "nothing": (None, "None; is a return missing"),
    "whole numbers": (np.array([[0, 0, 1]]), "int64 of shape"),
    "the wrong shape": (P[0], "float64 of shape"),
    "another vocabulary": (np.array([[0.5, 0.5]]), "float64 of shape"),
    "complex numbers": (P + 0j, "complex128 of shape"),
    "nan": (P * [np.nan, 1, 1], "not distributions .*nan"),
    "nothing but nan": (P * np.nan, "not distributions"),
    "infinity": (P * [np.inf, 1, 1], "not distributions"),
    "infinities of both signs": (P * [np.inf, -np.inf, 1], "not distributions"),
    "negative mass": (np.array([[-0.1, 0.6, 0.5]]), "not distributions .*-0.1"),
    "too little mass": (P * 0.99, "not distributions .*0.99"),
    "too much mass": (P * 1.001, "not distributions"),
    "no mass": (P * 0, "not distributions"),
    "rows of several lengths": ([[0.5], [0.5, 0.5]], "ValueError"),
    "an error": (fails, "ZeroDivisionError: one and"),
    "an attempt to write": (writes, "ValueError: .*read-only"),
}


@pytest.mark.parametrize(("answer", "message"), BAD_DEFERS.values(), ids=BAD_DEFERS)
def test_what_is_no_deferral_is_refused_under_the_name_of_the_rule(answer, message):
    with pytest.raises(sc.SettingError, match=rf"rule {__name__}:Answers\(\.\.\.\).* {message}"):
        target_probs(Answers("defer", answer), *ROWS)


@pytest.mark.parametrize("answer", [True, False])
def test_a_deferral_that_is_one_word_holds_for_the_whole_position(answer):
    known = target_probs("strict" if answer else "never", *ROWS)
    np.testing.assert_array_equal(target_probs(Answers("defer", answer), *ROWS), known)


@pytest.mark.parametrize(("answer", "message"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_what_is_no_distribution_is_refused_under_the_name_of_the_rule(answer, message):
    with pytest.raises(sc.SettingError, match=rf"rule {__name__}:Answers\(\.\.\.\).* {message}"):
        target_probs(Answers("target", answer), *ROWS)


def test_mass_on_a_token_that_the_filters_deny_is_refused():
    with pytest.raises(sc.SettingError, match="gives mass to token 2, which the filters or the grammar deny"):
        target_probs(Answers("target", np.array([[0.0, 0.5, 0.5]])), *ROWS, top_k=1)
    np.testing.assert_allclose(target_probs(Answers("target", np.array([[0.0, 1.0, 0.0]])), *ROWS, top_k=1), [[0, 1, 0]])


@pytest.mark.parametrize("rule", [Derived(np.zeros(3)), DerivedTarget(P * 2), DerivedTarget(np.zeros(2))], ids=["defer", "mass", "shape"])
def test_a_rule_that_derives_from_the_packages_own_classes_is_checked_like_any_other(rule):
    with pytest.raises(sc.SettingError, match=f"rule {__name__}:.*{type(rule).__name__}.*returned"):
        target_probs(rule, *ROWS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Answers("defer", [True]), np.exp(ROWS[1])),
        (Answers("defer", np.zeros((1, 3), bool)), np.exp(ROWS[0])),
        (Answers("defer", [[True, False, False]]), [0.5 * 0.1, 0.3 + 0.5 * 0.6, 0.2 + 0.5 * 0.3]),
        (Derived(np.array([False])), np.exp(ROWS[0])),
        (Answers("target", P.astype(np.float32)), P[0]),
        (Answers("target", P.tolist()), P[0]),
        (DerivedTarget(P), P[0]),
    ],
)
def test_what_keeps_to_the_protocol_is_taken_as_it_is(rule, expected):
    np.testing.assert_allclose(target_probs(rule, *ROWS)[0], expected, atol=1e-7)


def test_a_target_in_half_the_precision_becomes_a_distribution_to_the_last_digit():
    drafter, expert = np.random.default_rng(0).normal(size=(2, 1, 152_064))
    weights = np.exp(drafter).astype(np.float32)
    target = target_probs(Answers("target", weights / weights.sum()), drafter, expert)
    assert target.sum() == pytest.approx(1, abs=1e-12)


def test_a_rule_that_remembers_finds_its_own_past(demo):
    seen = []

    @dataclass(frozen=True)
    class Patient(sc.Rule):
        """Asks the expert after two kept positions."""

        remembers: ClassVar[bool] = True

        def defer(self, evidence):
            seen.append(tuple(evidence.place.trace))
            return np.array([len(evidence.place.trace) % 3 == 2])

        def remember(self, decision):
            return float(len(decision.evidence.place.trace))

    reply = ask(demo, REASONING[0], Patient())
    assert reply.stats.deferred == reply.stats.tested // 3
    assert max(seen, key=len) == tuple(map(float, range(len(max(seen, key=len)))))
    Patient.remember = lambda self, decision: "much"
    with pytest.raises(sc.SettingError, match=r"Patient.*remember returned 'much'; it must be a number"):
        ask(demo, REASONING[0], Patient())


def test_settings_that_a_rule_refuses_are_refused_before_anything_is_evaluated(demo):
    class Greedy(Derived):
        def check(self, sampler, block_size):
            if sampler.temperature:
                raise sc.SettingError("greedy texts only")

    with pytest.raises(sc.SettingError, match="greedy texts only"):
        demo.stream("Hi", rule=Greedy(np.array([True])), temperature=1.0)
    assert demo.generate("Hi", rule=Greedy(np.array([True])), max_tokens=3).stats.tokens == 3


def test_a_rule_that_fails_half_way_leaves_the_runtime_usable(demo):
    count = iter(range(5))
    with pytest.raises(sc.SettingError, match=rf"rule {__name__}:Answers\(\.\.\.\).*failed \(test_user_rule.py, line \d+\): StopIteration"):
        ask(demo, REASONING[0], Answers("defer", lambda evidence: np.array([next(count) > 9])))
    assert ask(demo, REASONING[0], "strict").text == ask(demo, REASONING[0], "strict", block_size=0).text


# ---------------------------------------------------------------------------------------------- what a text may name

GOOD = """
import numpy as np
class Rule:
    def __init__(self, a, b=1): self.a, self.b = a, b
    def defer(self, e): return np.array([True])
"""


@pytest.mark.parametrize(
    ("source", "spec", "message"),
    [
        (GOOD, "no_such_module:Rule(1)", "cannot import 'no_such_module'.*current folder or on PYTHONPATH"),
        (GOOD, "mine.sub:Rule(1)", "cannot import 'mine.sub'"),
        (GOOD, "mine..sub:Rule(1)", "import"),
        (GOOD, "mine:Missing(1)", "module 'mine' .*mine.py.* has no class or function 'Missing'"),
        (GOOD, "mine:np(1)", "has no class or function 'np'"),
        (GOOD, "mine:Rule()", "Rule failed: TypeError"),
        (GOOD, "mine:Rule(1, c=2)", "Rule failed: TypeError.*'c'"),
        ("def Rule(): return 3", "mine:Rule()", r"the rule is mine:Rule\(\); it must be .* an object with defer\(evidence\) or target"),
        ("class Rule: defer = True", "mine:Rule()", "object with defer"),
        ("def Rule(): return type('Inner', (), {'defer': print})", "mine:Rule()", "is a class; give an instance of it"),
        ("def Rule(): raise KeyError('x')", "mine:Rule()", r"Rule failed \(mine.py, line 1\): KeyError"),
        ("import no_such_library", "mine:Rule()", "importing 'mine' failed: ModuleNotFoundError.*no_such_library"),
        ("1 / 0", "mine:Rule()", "importing 'mine' failed: ZeroDivisionError"),
        ("def (", "mine:Rule()", "importing 'mine' failed: SyntaxError"),
        ("import sys; sys.exit(0)", "mine:Rule()", "importing 'mine' failed: SystemExit"),
    ],
)
def test_a_text_that_makes_no_rule_is_refused_with_its_name(module, source, spec, message):
    module(source)
    with pytest.raises(sc.SettingError, match=message) as caught:
        parse(spec)
    assert spec in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        "__import__('pathlib').Path('ran').touch()",
        "open('ran', 'w')",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "a := 1",
        "1) or open('ran', 'w'",
        "1)(open('ran', 'w')",
        "1)(2",
        "*[1]",
        "**{'a': 1}",
        "a=1, a=2",
        "alpha",
        "1 +",
        "{[]: 1}",
        "(" * 300 + ")" * 300,
        "-" * 5000 + "1",
        "f'{1}'",
        "1\x00",
    ],
)
def test_code_in_the_parentheses_is_never_run(module, monkeypatch, tmp_path, arguments):
    module(GOOD)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sc.SettingError, match="must be plain values, such as"):
        parse(f"mine:Rule({arguments})")
    assert "mine" not in sys.modules, "nothing is imported for a text that is refused"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "a", "b"),
    [("0.3", 0.3, 1), ("a=-2", -2, 1), ("'x, (y)', b=[1, None]", "x, (y)", [1, None]), ("(1, 2), {'k': True}", (1, 2), {"k": True})],
)
def test_plain_values_reach_the_class(module, arguments, a, b):
    module(GOOD)
    rule = parse(f"mine:Rule({arguments})")
    assert isinstance(rule, CustomRule)
    assert (rule.wrapped.a, rule.wrapped.b) == (a, b)
    assert str(rule) == f"mine:Rule({arguments})"
    assert is_custom(str(rule))


def test_an_object_with_both_answers_is_taken_by_its_target():
    class Both:
        def defer(self, evidence):
            raise AssertionError

        def target(self, evidence):
            return P

    assert isinstance(parse(Both()), CustomTarget)
    np.testing.assert_allclose(target_probs(Both(), *ROWS), P)


@pytest.mark.parametrize("spec", [TokenV3, Derived, Answers("defers", None), object(), {}, 0.3])
def test_neither_a_text_nor_a_rule_object_is_refused(spec):
    with pytest.raises(sc.SettingError, match=r"is a class; give an instance of it|or an object with defer"):
        parse(spec)


@pytest.mark.parametrize(
    ("source", "spec", "message"),
    [
        (GOOD, "mine:Rule(__import__('os').mkdir('ran'))", "must be plain values"),
        ("import numpy as np\nclass Rule:\n    def target(self, e): return e.expert_probs * np.nan\n", "mine:Rule()", "not distributions"),
        ("class Rule:\n    def defer(self, e): raise ValueError('one\\ntwo')\n", "mine:Rule()", "(mine.py, line 2): ValueError: one two"),
        (GOOD, "mine:Rule()", "TypeError"),
    ],
)
def test_the_command_line_reports_a_bad_rule_in_one_line(tmp_path, source, spec, message):
    (tmp_path / "mine.py").write_text(source)
    done = as_text("run", "Hello", "--rule", spec, "--threads", "1", "--block-size", "4", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: rule ")
    assert done.stderr.count("\n") == 1
    assert spec in done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "ran").exists()


def test_the_rule_of_a_pair_is_looked_for_beside_the_file_that_names_it_and_blamed_on_it(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "beside.py").write_text("class Rule:\n    def defer(self, e): return True\n")
    pair = "drafter: bundled:drafter.gguf, expert: bundled:expert.gguf"
    rules = {"good": "beside:Rule()", "bad": "beside:Ruler()"}
    lines = [f"  {name}: {{{pair}, rule: '{rule}'}}" for name, rule in rules.items()]
    (elsewhere / "models.yaml").write_text("\n".join(["pairs:", *lines]))
    ask = ("--threads", "1", "--max-tokens", "2", "--allow-code", "--models", elsewhere / "models.yaml")
    done = as_text("run", "good", "Hello", "-v", *ask, cwd=tmp_path)
    assert (done.returncode, "rule beside:Rule()" in done.stderr) == (0, True), done.stderr
    done = as_text("run", "bad", "Hello", *ask, cwd=tmp_path)
    assert done.returncode == 1
    assert f"pair 'bad' in {elsewhere / 'models.yaml'}: rule 'beside:Ruler()'" in done.stderr


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("os:system('touch ran')", "module 'os' is a part of Python"),
        ("subprocess:call(['touch', 'ran'])", "module 'subprocess' is a part of Python"),
        ('builtins:exec(\'open("ran", "w")\')', "module 'builtins' is a part of Python"),
        ("xml.dom.minidom:parse('ran')", "module 'xml.dom.minidom' is a part of Python"),
        ("numpy:save('ran', 1)", "'save' is not called"),
        ("yaml:unsafe_load('1')", "'unsafe_load' is not called"),
        ("speccascade_local.common.files:read_text('ran')", "'read_text' is not called"),
        ("mine:system('touch ran')", "'system' is not called"),
        ("mine:Path('ran')", "'Path' is not called"),
        ("mine:touch('ran')", "'touch' is not called"),
    ],
)
def test_what_makes_no_rule_is_refused_before_it_is_called(module, monkeypatch, tmp_path, spec, message):
    module("from os import system\nfrom pathlib import Path\nfrom functools import partial\ntouch = partial(open, mode='w')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sc.SettingError, match=message):
        parse(spec)
    assert not (tmp_path / "ran").exists()


def test_a_function_in_a_file_of_the_users_own_may_make_the_rule(module):
    module(GOOD + "def soft(a): return Rule(a)\n")
    assert parse("mine:soft(0.5)").wrapped.a == 0.5


def test_a_rule_of_any_length_is_refused_in_no_time():
    for text in ("a" * 10**6, "a:a(" * 250_000, "opt:0.2+thinking:" + "x." * 500_000):
        assert not is_custom("1" + text[1:])
        with pytest.raises(sc.SettingError, match="characters; at most 10000 are allowed") as refused:
            parse(text)
        assert len(str(refused.value)) < 200


PROGRAM = "import pathlib\npathlib.Path('ran').touch()\nclass Rule:\n    def defer(self, e): return True\n"
ASKING = """pairs:
  plain: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf, rule: strict}
  coded:
    drafter: bundled:drafter.gguf
    expert: bundled:expert.gguf
    rule: 'RULE'
  far:
    drafter: bundled:drafter.gguf
    expert: bundled:expert.gguf
    rpc: ['203.0.113.7:50052']
"""


@pytest.mark.parametrize("rule", ["theirs:Rule()", "opt:0.2+thinking:theirs:Rule()", "theirs:Rule()+strict_first:3"])
@pytest.mark.parametrize("found", ["in the folder", "named"])
def test_a_models_yaml_that_is_not_the_users_own_runs_no_code_and_asks_no_machine(monkeypatch, tmp_path, rule, found):
    (tmp_path / "theirs.py").write_text(PROGRAM)
    path = tmp_path / "models.yaml"
    path.write_text(ASKING.replace("RULE", rule))
    monkeypatch.chdir(tmp_path)
    models = None if found == "in the folder" else path
    for pair, line, what in (("coded", 6, f"runs code, the rule {rule}"), ("far", 10, "to other machines, 203.0.113.7:50052")):
        with pytest.raises(sc.CatalogError, match=rf"models\.yaml, line {line}: pair '{pair}' .*--allow-code") as refused:
            sc.load(pair, models=models, n_threads=1, profile=False)
        assert what in str(refused.value)
    assert not (tmp_path / "ran").exists()
    sc.load("plain", models=models, n_threads=1, profile=False).close()
    sc.load("coded", models=models, rule="strict", n_threads=1, profile=False).close()  # the caller's rule, not the file's
    assert not (tmp_path / "ran").exists()


def test_a_models_yaml_of_the_users_own_and_one_that_is_allowed_may_name_code(monkeypatch, tmp_path):
    own = tmp_path / "config" / "speccascade"
    own.mkdir(parents=True)
    (own / "theirs.py").write_text(PROGRAM)
    (own / "models.yaml").write_text(ASKING.replace("RULE", "theirs:Rule()"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sc.CatalogError, match="--allow-code"):
        sc.load("coded", models=own / "models.yaml")
    sc.load("coded", models=own / "models.yaml", n_threads=1, profile=False, allow_code=True).close()
    assert (tmp_path / "ran").exists()
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "config" / name)
    with sc.load("coded", n_threads=1, profile=False) as runtime:
        assert str(runtime.rule) == "theirs:Rule()"
    sys.modules.pop("theirs")


def test_the_list_of_pairs_shows_which_need_code_and_checking_them_runs_nothing(tmp_path):
    (tmp_path / "theirs.py").write_text(PROGRAM)
    (tmp_path / "models.yaml").write_text(ASKING.replace("RULE", "theirs:Rule()"))
    listed = as_text("models", cwd=tmp_path).stdout
    assert re.search(r"^coded +theirs:Rule\(\) \(needs code: --allow-code\)", listed, re.MULTILINE)
    assert re.search(r"^far +token_v3:0.3 \(default\) \(needs other machines: --allow-code\)", listed, re.MULTILINE)
    assert "to allow" in as_text("models", "coded", cwd=tmp_path).stdout
    for verb in ("check", "plan"):
        assert as_text(verb, "coded", cwd=tmp_path).returncode < 2
    served = as_text("serve", "plain", "coded", cwd=tmp_path)
    assert (served.returncode, served.stdout, "models.yaml, line 6" in served.stderr) == (1, "", True)
    assert not (tmp_path / "ran").exists()


class CallsItsRuntime:
    def __init__(self, call) -> None:
        self.call = call

    def defer(self, evidence):
        self.call()
        return np.ones(1, dtype=bool)


@pytest.mark.parametrize("call", [lambda runtime: runtime.generate([1]), lambda runtime: runtime.profile()])
def test_such_a_rule_is_refused_even_while_another_thread_waits_for_its_block(demo, call):
    """That thread holds the lock of whole calls, which the rule's call would wait for."""
    ids = demo.chat_ids([{"role": "user", "content": "Hi"}])
    stream = demo.stream(ids, rule=CallsItsRuntime(lambda: call(demo)), max_tokens=3, block_size=2)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with demo._turns.whole_call():
            held.set()
            assert done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    with pytest.raises(sc.SpeccascadeError, match="may not call the runtime that is asking it"):
        next(stream)
    done.set()
    other.join()


@pytest.mark.parametrize("call", [lambda runtime: runtime.generate([1]), lambda runtime: runtime.reset(), lambda runtime: runtime.close()])
def test_a_rule_that_calls_the_runtime_that_asks_it_is_refused_instead_of_waiting_for_itself(demo, call):
    ids = demo.chat_ids([{"role": "user", "content": "Hi"}])
    with pytest.raises(sc.SpeccascadeError, match="may not call the runtime that is asking it"):
        demo.generate(ids, rule=CallsItsRuntime(lambda: call(demo)), block_size=4, max_tokens=5)
    assert demo.generate(ids, max_tokens=5).tokens


class Exits:
    def defer(self, evidence):
        raise SystemExit(0)


def test_a_rule_that_ends_the_process_is_an_error_and_not_the_end(demo):
    with pytest.raises(sc.SettingError, match="SystemExit"):
        demo.generate(demo.chat_ids([{"role": "user", "content": "Hi"}]), rule=Exits(), block_size=4, max_tokens=5)

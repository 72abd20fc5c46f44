"""The command line as its users meet it: real processes, real pipes, a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import COMMAND, QUESTION, speccascade
from gguf_files import text_model

import speccascade_local as sc
from speccascade_local.cli import terminal
from speccascade_local.models import catalog

#: Where a text is compared: what a lossy rule writes with automatic lengths follows the machine's speed.
FIXED = ("--block-size", "5")


def in_terminal(*arguments: str, typed: bytes = b"", **environment: str) -> str:
    """What a terminal of 100 columns shows, control sequences included, and what is typed there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "50"} | environment
        os.environ.pop("NO_COLOR", None)
        os.execv(COMMAND[0], [*COMMAND, *arguments])
    os.write(terminal, typed)
    shown = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the process has closed its end
            break
        if not data:
            break
        shown += data
    os.waitpid(pid, 0)
    return shown.decode()


@pytest.fixture(scope="module")
def answer(demo: sc.Runtime) -> str:
    demo.reset()
    return demo.chat([{"role": "user", "content": QUESTION}], block_size=5).text


def test_the_text_and_nothing_else_goes_to_stdout(answer):
    done = speccascade("run", QUESTION, *FIXED)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, answer + "\n", b"")


@pytest.mark.slow
def test_the_prompt_may_come_from_stdin_and_the_pair_may_be_named(answer):
    for arguments in (["run"], ["run", "-"], ["run", "demo", "-"], ["run", "demo"]):
        assert speccascade(*arguments, *FIXED, stdin=QUESTION.encode() + b"\n").stdout.decode() == answer + "\n"
    assert speccascade("run", "demo", QUESTION, *FIXED).stdout.decode() == answer + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("piped", [b"\xef\xbb\xbf%s\n", b"%s\r\n", b"\xef\xbb\xbf%s\r\n", b"%s"])
def test_a_byte_order_mark_and_one_line_end_of_what_is_piped_are_no_part_of_the_prompt(piped):
    done = speccascade("run", "--json", "--max-tokens", "1", *FIXED, stdin=piped % QUESTION.encode())
    assert json.loads(done.stdout)["prompt"] == QUESTION
    done = speccascade("run", "--json", "--max-tokens", "1", *FIXED, stdin=piped % b"two\r\nlines\n")
    assert json.loads(done.stdout)["prompt"] == "two\r\nlines" + "\n" * (not piped.endswith(b"s"))


@pytest.mark.slow
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_grammar_or_schema_from_windows_is_read_like_any_other(tmp_path, mark):
    (tmp_path / "g.gbnf").write_bytes(mark + b'root ::= yes |\r\n  "no"\r\nyes ::= "yes"\r\n')
    assert speccascade("run", "--grammar", tmp_path / "g.gbnf", QUESTION).stdout.strip() in (b"yes", b"no")
    (tmp_path / "s.json").write_bytes(mark + b'{\r\n"const": "yes"}\r\n')
    assert speccascade("run", "--json-schema", tmp_path / "s.json", QUESTION).stdout.strip() == b'"yes"'
    (tmp_path / "s.json").write_text('{"const": "yes"}', encoding="utf-16")
    done = speccascade("run", "--json-schema", tmp_path / "s.json", QUESTION)
    assert done.returncode == 1
    assert done.stderr.endswith(b"s.json: not UTF-8 text but UTF-16; save it as UTF-8, or convert it first, for example with iconv\n")


#: As a grammar has it: a title, a cleared screen, a bell, C1's CSI, text that runs backwards, and a line that is written over.
HOSTILE = r"A\x1b]0;X\x07B\x1b[2JC\u009b1mD\u202eE\rF\x7f"
RAW = "A\x1b]0;X\x07B\x1b[2JC\u009b1mD\u202eE\rF\x7f"
SHOWN = r"A\u001b]0;X\u0007B\u001b[2JC\u009b1mD\u202eE\u000dF\u007f"


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "g.gbnf").write_text(f'root ::= "{HOSTILE}\\t[bold]\\n:smile:"\n')
    return "--grammar", str(tmp_path / "g.gbnf")


@pytest.mark.slow
def test_control_characters_of_an_answer_are_shown_in_a_terminal_and_stay_as_they_are_in_a_pipe(hostile):
    assert speccascade("run", *hostile, "Hi").stdout.decode() == f"{RAW}\t[bold]\n:smile:\n"
    for kind in ("xterm-256color", "dumb"):
        assert in_terminal("run", *hostile, "Hi", TERM=kind).endswith(f"{SHOWN}\t[bold]\r\n:smile:\r\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "found"),
    [(["run", "--show-origin"], SHOWN), (["compare"], SHOWN), (["run", "--json"], SHOWN.replace(r"\u000d", r"\r"))],
    ids=["colours", "compare", "json"],
)
def test_no_view_of_a_reply_in_a_terminal_obeys_it(hostile, arguments, found):
    text = in_terminal(*arguments, *hostile, "Hi", COLUMNS="300")
    for raw in ("\x1b]", "\x1b[2J", "\x07", "\u009b", "\u202e", "\x7f"):
        assert raw not in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert found in plain
    assert "[bold]" in plain


@pytest.mark.slow
def test_control_characters_of_a_catalog_are_escaped(tmp_path):
    (tmp_path / "m.yaml").write_text(
        'pairs:\n  "a[red]b":\n    drafter: ngram\n    expert: bundled:demo-expert.gguf\n    description: "\\e[2J\\a[bold]x"\n'
    )
    for arguments in (["models", "a[red]b"], ["models"]):
        text = in_terminal(*arguments, "--models", str(tmp_path / "m.yaml"), COLUMNS="200")
        assert r"\u001b[2J" in text
        assert "[bold]x" in text
        assert "\x1b[2J" not in text
    assert "a[red]b" in text


@pytest.mark.slow
def test_the_error_of_a_template_is_short_and_has_no_control_characters(tmp_path):
    source = "{{ raise_exception('\x1b[2J\x1b]0;pwn\x07' ~ 'a' * 9000000) }}"
    path = text_model(tmp_path / "m.gguf", chat_template=source)
    done = speccascade("run", "--drafter", path, "--expert", path, "--no-check-memory", "Hi")
    text = done.stderr.decode()
    assert done.returncode == 1
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"refuses these messages: \u001b[2J\u001b]0;pwn" in text
    assert text.endswith("check the roles and their order, or use a raw prompt (--raw)\n")
    assert len(text) < 700


def test_an_error_of_any_length_is_cut_in_its_middle(capsys):
    terminal.print_error("begins " + "\x1b" * 10_000 + " ends")
    text = capsys.readouterr().err
    assert text.startswith(r"error: begins \u001b")
    assert text.endswith(r"\u001b ends" + "\n")
    assert len(text) < terminal.LONGEST_ERROR + 20


@pytest.mark.slow
def test_a_dash_reads_what_is_typed_in_a_terminal_and_nothing_at_all_does_not_wait_for_it(answer):
    assert answer in in_terminal("run", "-", *FIXED, typed=f"{QUESTION}\n\x04".encode())
    assert "no prompt; give one in quotes" in in_terminal("run", COLUMNS="200")


def test_two_files_serve_as_a_pair(answer):
    pair = catalog.find("demo")
    done = speccascade("run", "--drafter", pair.drafter, "--expert", pair.expert, "--rule", pair.rule, QUESTION, *FIXED)
    assert done.stdout.decode() == answer + "\n"


def test_raw_leaves_the_template_out(demo):
    demo.reset()
    expected = demo.generate(QUESTION, max_tokens=8, block_size=5).text
    assert speccascade("run", "--raw", "--max-tokens", "8", QUESTION, *FIXED).stdout.decode() == expected + "\n"


@pytest.mark.slow
def test_json_with_a_seed_is_identical_twice_and_says_all_that_repeats_it():
    arguments = ["run", "--json", "--rule", "opt:0.2", "--temperature", "1", "--seed", "7", QUESTION]
    first, second = speccascade(*arguments), speccascade(*arguments)
    assert first.returncode == 0
    assert first.stdout == second.stdout
    reply = json.loads(first.stdout)
    assert (reply["rule"], reply["settings"]["temperature"], reply["seed"], reply["pair"]) == ("opt:0.2", 1, 7, "demo")
    assert len(reply["token_ids"]) == len(reply["origins"]) == reply["stats"]["tokens"]
    texts = {
        json.loads(speccascade(*arguments[:4], "--temperature", "5", "--seed", str(seed), QUESTION).stdout)["text"] for seed in range(3)
    }
    assert len(texts) > 1


def test_a_generated_seed_repeats_the_reply():
    first = json.loads(speccascade("run", "--json", "--temperature", "1.5", QUESTION).stdout)
    again = json.loads(speccascade("run", "--json", "--temperature", "1.5", "--seed", str(first["seed"]), QUESTION).stdout)
    assert again == first


@pytest.mark.slow
def test_verbose_names_the_rule_its_trade_and_the_repacking_decision_on_stderr(answer):
    done = speccascade("run", "-v", "--rule", "token_v3:0.6", QUESTION)
    text = done.stderr.decode()
    assert "rule token_v3:0.6: keeps single tokens" in text
    assert "expert.gguf: weight repacking is o" in text
    assert "a context of 512 tokens" in text
    assert "rule token_v3:0.6" in speccascade("compare", "-v", "--rule", "token_v3:0.6", QUESTION).stderr.decode()
    assert "acceptance_rate" in text
    assert text.count("\n  drafted ") == 2, "of the statistics, and of the account"
    assert "llama.cpp:" not in text
    assert "llama.cpp:" in speccascade("run", "-vv", "--max-tokens", "1", QUESTION).stderr.decode()


def test_compare_in_a_pipe_is_plain_text_with_one_row_per_way():
    done = speccascade("compare", QUESTION)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert "\x1b" not in text
    for arm in ("drafter alone", "expert alone", "sequential cascade", "speculative decoding", "cascade opt:0.2"):
        assert len(re.findall(rf"^{arm} +\d", text, re.MULTILINE)) == 1, arm
    table = text[text.rindex("speed-up") :].splitlines()[1:]
    assert max(map(len, table)) <= 80


def test_compare_json_has_what_the_table_shows():
    text = json.loads(speccascade("compare", "--json", "--repeat", "2", QUESTION).stdout)
    rows = {row["arm"]: row for row in text["rows"]}
    assert rows["expert alone"]["speedup"] == 1.0
    assert rows["drafter alone"]["stats"]["expert_calls"] == 0
    assert rows["expert alone"]["stats"]["drafter_calls"] == 0
    assert rows["speculative decoding"]["text"] == rows["expert alone"]["text"]
    assert text["repeat"] == 2


@pytest.mark.slow
def test_colours_appear_in_a_terminal_only():
    shown = in_terminal("run", "--show-origin", QUESTION)
    assert "\x1b[3" in shown
    assert "draft accepted by the rule" in shown
    assert b"\x1b" not in speccascade("run", "--show-origin", QUESTION).stdout
    compared = in_terminal("compare", "Who is Buzz Aldrin?")
    assert "\x1b[9;31mB" in compared, "strict drops the draft, struck through"
    assert "\x1b[32m" in compared, "and the cascade keeps it"


def test_models_lists_pairs_and_says_which_files_are_missing(tmp_path):
    (tmp_path / "models.yaml").write_text("pairs:\n  mine:\n    drafter: small.gguf\n    expert: big.gguf\n")
    done = speccascade("models", cwd=tmp_path)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert re.search(r"mine.*missing.*small\.gguf.*missing.*big\.gguf", text)
    assert re.search(r"demo +token_v3:\S+ +drafter\.gguf +expert\.gguf .*two tiny demonstration models", text)


def test_models_lists_family_size_license_and_what_to_pull(tmp_path):
    text = speccascade("models", cwd=tmp_path, HF_HOME=str(tmp_path)).stdout.decode()
    line = next(line for line in text.splitlines() if line.startswith("qwen3-8b "))
    assert re.search(r"strict +to pull Qwen/Qwen3-0\.6B-GGUF Qwen3-0\.6B-Q8_0\.gguf +to pull \S+ \S+ +Qwen3 +5\.7 GB +apache-2\.0", line)
    assert re.search(r"^demo .* 4\.8 MB ", text, re.MULTILINE)  # of files that are here


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["80", "140"])
def test_in_a_terminal_models_fits_its_width(tmp_path, columns):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", in_terminal("models", COLUMNS=columns, HF_HOME=str(tmp_path)))
    lines = shown.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert "Qwen2.5-Coder" in [line.strip() for line in lines]  # a family, over its pairs
    (line,) = (line for line in lines if line.startswith("llama3-8b "))
    assert re.search(r"to pull +6\.2 GB +strict +llama3\.2, llama3\.1", line)
    assert ("drafts for" in line) == (columns == "140")


def test_models_shows_all_facts_of_one_pair(tmp_path):
    (tmp_path / "models.yaml").write_text("pairs: {mine: {drafter: bundled:drafter.gguf, expert: '*.gguf', rpc: ['h:1']}}\n")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    text = speccascade("models", "mine", cwd=tmp_path).stdout.decode()
    assert re.search(r"drafter +bundled:drafter\.gguf *\n +here: \S+/drafter\.gguf", text)
    assert re.search(r"expert +\*\.gguf *\n +\*\.gguf: 2 models match, and one is needed: a\.gguf, b\.gguf", text)
    assert re.search(r"rpc +h:1", text)
    text = speccascade("models", "gemma3-12b", cwd=tmp_path, HF_HOME=str(tmp_path)).stdout.decode()
    assert re.search(r"to pull: gemma-3-12b-it-Q4_K_M\.gguf", text)


@pytest.mark.slow
def test_a_verb_works_in_a_folder_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); from speccascade_local.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "rules"], capture_output=True, timeout=120)
    assert done.stderr == b""
    assert b"token_v3" in done.stdout


def test_a_reply_that_is_cut_off_is_reported_on_stderr():
    done = speccascade("run", "--max-tokens", "3", QUESTION)
    assert done.stderr.decode() == "(cut off after 3 tokens: --max-tokens 3)\n"


@pytest.mark.slow
def test_an_expert_without_a_chat_template_is_named(tmp_path):
    path = text_model(tmp_path / "plain.gguf")
    done = speccascade("run", "--drafter", path, "--expert", path, "--max-tokens", "2", "Hi")
    assert done.returncode == 0
    assert "the expert has no chat template" in done.stderr.decode()


@pytest.mark.slow
def test_two_vocabularies_are_refused_before_anything_is_generated(tmp_path):
    pair = catalog.find("demo")
    done = speccascade("run", "--drafter", text_model(tmp_path / "other.gguf", n_vocab=1024), "--expert", pair.expert, "Hi")
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.match(r"error: token id \d+ is '.+' for the drafter and '.+' for the expert", done.stderr.decode())


@pytest.mark.slow
def test_a_terminal_without_styles_shows_no_rejected_drafts(answer):
    shown = in_terminal("run", "--show-origin", "--rule", "strict", "Who is Buzz Aldrin?", TERM="dumb")
    assert 'Edwin "Buzz" Aldrin, a pivotal figure' in shown


@pytest.mark.slow
def test_a_narrow_terminal_still_shows_a_table_that_can_be_read():
    shown = in_terminal("compare", QUESTION, COLUMNS="60")
    assert re.search(r"speculative decoding +\d+ +\d+ +[\d.]+ +[\d.]+ +[\d.]+×", shown)


def test_version_and_help():
    assert speccascade("--version").stdout.decode() == f"speccascade {sc.__version__}\n"
    for arguments in (["--help"], ["run", "--help"], ["compare", "--help"], ["models", "--help"]):
        assert speccascade(*arguments).returncode == 0
    text = re.sub(r"\s+", " ", speccascade("run", "--help", COLUMNS="200").stdout.decode())
    options = (
        "--rule --temperature --top-p --top-k --min-p --block-size --max-tokens --seed --ctx --threads --gpu-layers --drafter --expert"
    )
    for option in (*options.split(), "--show-origin", "--json", "--raw", "-v"):
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["run", "nosuch", "Hi"], b"", 1, "unknown pair 'nosuch' ('speccascade models' lists all "),
        (["run", "dmeo", "Hi"], b"", 1, "did you mean 'demo'"),
        (["run", "--rule", "tokn_v3:0.3", "Hi"], b"", 1, "did you mean 'token_v3'"),
        (["run", "--rule", "chow:1.5", "Hi"], b"", 1, "0 to 1"),
        (["run", "--nosuch", "Hi"], b"", 2, "No such option"),
        (["run", "--temperature", "warm", "Hi"], b"", 2, "--temperature"),
        (["run", "--temperature", "-1", "Hi"], b"", 1, "temperature is -1.0"),
        (["run", "--block-size", "65", "Hi"], b"", 1, "block_size is 65"),
        (["run", ""], b"", 1, "prompt is empty"),
        (["run", "   "], b"", 1, "prompt is empty"),
        (["run"], b"", 1, "prompt is empty"),
        (["run"], b"caf\xe9", 1, "not UTF-8"),
        (["run", "a", "b", "c"], b"", 1, "3 arguments"),
        (["run", "demo"], b"", 1, "prompt is empty"),
        (["run", "--top-k", "9" * 30, "Hi"], b"", 1, "top_k is"),
        (["run", "--rule", "opt:1e999", "Hi"], b"", 1, "any finite number"),
        (["run", "--models", "models.yaml", "--drafter", "a", "--expert", "b", "Hi"], b"", 1, "name one or the other"),
        (["run", "word " * 600], b"", 1, "context holds 512"),
        (["run", "word " * 600], b"", 1, "the models were trained for no more"),
        (["run", "--ctx", "64", "word " * 100], b"", 1, "or load with a larger context (--ctx)"),
        (["run", "--ctx", "100000", "Hi"], b"", 1, "n_ctx (--ctx) is 100000; it must be a whole number from 1 to 512, which is what"),
        (["run", "--rule", "mine.Rule(1)", "Hi"], b"", 1, "a rule of your own is written package.module:Name(...)"),
        (["run", "--drafter", "a.gguf", "--expert", "ngram", "Hi"], b"", 1, "only the drafter may be"),
        (["run", "--drafter", "https://a.b/c.gguf", "--expert", "b.gguf", "Hi"], b"", 1, "nothing is downloaded"),
        (["run", "--drafter", "/dev/null", "--expert", "b.gguf", "Hi"], b"", 1, "neither a file nor a folder"),
        (["run", "--models", "/", "Hi"], b"", 1, "/: a folder (named by --models)"),
        (["run", "--json-schema", "/dev/null", "Hi"], b"", 1, "not valid JSON"),
        (["run", "--drafter", "x.gguf", "Hi"], b"", 1, "name both, or a pair"),
        (["run", "--drafter", "x.gguf", "--expert", "y.gguf", "Hi"], b"", 1, "x.gguf: no such file"),
        (["run", "--models", "none.yaml", "Hi"], b"", 1, "none.yaml: no such file"),
        (["compare", "--repeat", "0"], b"", 2, "repeat"),
        (["compare", "--threshold", "3"], b"", 2, "threshold"),
        (["compare", "--all", "--threshold", "0.5"], b"", 1, "omit --threshold"),
        (["nosuch"], b"", 2, "No such command"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_error_and_no_traceback(arguments, stdin, code, said):
    done = speccascade(*arguments, stdin=stdin, COLUMNS="200")
    text = done.stderr.decode()
    assert done.returncode == code
    assert said in text
    assert "Traceback" not in text
    assert done.stdout == b""
    if code == 1:
        assert text.startswith("error: ")
        assert text.count("\n") == 1


def test_a_broken_models_yaml_is_named_with_key_and_line(tmp_path):
    (tmp_path / "models.yaml").write_text("pairs:\n  mine:\n    drafter: 3\n    expert: b.gguf\n")
    done = speccascade("models", cwd=tmp_path)
    assert done.returncode == 1
    assert "models.yaml, line 3: pairs.mine.drafter" in done.stderr.decode()


def test_a_file_that_is_no_model_is_refused(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"PK\x03\x04 not a model")
    done = speccascade("run", "--drafter", broken, "--expert", broken, "Hi")
    assert done.returncode == 1
    assert "not a GGUF file" in done.stderr.decode()


@pytest.mark.slow
def test_ctrl_c_while_generating_is_exit_130_without_a_traceback(tmp_path):
    path = text_model(tmp_path / "endless.gguf", n_ctx_train=100_000)  # its greedy text goes in circles
    pair = ["--drafter", path, "--expert", path, "--ctx", "100000", "--max-tokens", "100000"]
    process = subprocess.Popen([*COMMAND, "run", *pair, "the"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)  # it has begun to write
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert text.endswith(b"interrupted\n")
    assert b"Traceback" not in text


def test_ctrl_c_while_starting_ends_the_process():
    process = subprocess.Popen([*COMMAND, "run", QUESTION], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(0.15)  # whatever it is doing by then, importing or loading
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 1, 130, -signal.SIGINT)


@pytest.mark.slow
def test_stdout_on_a_full_disk_is_an_error_without_a_traceback():
    for verb in (["run", QUESTION], ["compare"], ["models"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([*COMMAND, *verb], stdout=full, stderr=subprocess.PIPE, timeout=120)
        assert done.returncode == 1
        assert done.stderr == b"error: stdout: No space left on device\n"


@pytest.mark.slow
def test_a_closed_stdin_is_no_prompt():
    done = subprocess.run(f"{sys.executable} -m speccascade_local run <&-", shell=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"error: no prompt; give one in quotes, or pipe it in\n")


def test_a_broken_models_yaml_does_not_block_the_bundled_pair(tmp_path, answer):
    (tmp_path / "models.yaml").write_text("gpt: [1, 2]\n")
    assert speccascade("run", QUESTION, *FIXED, cwd=tmp_path).stdout.decode() == answer + "\n"
    assert b"models.yaml, line 1" in speccascade("run", "mine", QUESTION, cwd=tmp_path).stderr


def test_without_a_pair_the_users_own_file_may_set_the_rule_of_the_bundled_one(tmp_path):
    own = tmp_path / "speccascade" / "models.yaml"
    own.parent.mkdir()
    own.write_text("pairs: {demo: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf, rule: never}}\n")
    reply = json.loads(speccascade("run", "--json", QUESTION, XDG_CONFIG_HOME=str(tmp_path)).stdout)
    assert reply["rule"] == "never"
    own.write_text("pairs: {other: {drafter: a.gguf, expert: b.gguf}}\n")
    reply = json.loads(speccascade("run", "--json", QUESTION, XDG_CONFIG_HOME=str(tmp_path)).stdout)
    assert reply["rule"] == "token_v3:0.8"


@pytest.mark.slow
def test_a_reader_that_closes_the_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m speccascade_local run --raw --temperature 3 --max-tokens 400 Once | head -c 1",
        shell=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.slow
def test_profile_prints_a_table_keeps_it_and_draws_it(tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    done = speccascade("profile", "--ctx", "64", "--picture", tmp_path / "speed.svg", **cache)
    assert done.returncode == 0  # stderr may say that matplotlib looks for fonts, in a cache that is new
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines[2:19]] == [str(n) for n in range(1, 18)]
    assert "v(n): time of a batch" in lines[19]
    assert "threads" in lines[20]
    assert (tmp_path / "speed.svg").read_text().startswith("<?xml")
    assert speccascade("profile", "--ctx", "64", **cache).stdout == done.stdout  # read, not measured
    text = json.loads(speccascade("profile", "demo", "--ctx", "64", "--json", **cache).stdout)
    assert text["pair"] == "demo"
    assert len(text["expert"]["seconds"][0]) == 17


@pytest.mark.parametrize(("picture", "reason"), [("speed.pdf", ".png or .svg"), ("nowhere/speed.svg", "does not exist")])
def test_an_impossible_picture_is_refused_before_anything_is_loaded(tmp_path, picture, reason):
    done = speccascade("profile", "--picture", tmp_path / picture)
    assert (done.returncode, done.stdout) == (1, b"")
    assert reason in done.stderr.decode()

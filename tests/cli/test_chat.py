"""``speccascade chat`` as its users meet it: scripts through a pipe, and a keyboard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import as_text
from gguf_files import CHATML, ENDOFTEXT, IM_END, text_model

import speccascade_local as sc
from speccascade_local.cli.chat_commands import COMMANDS
from speccascade_local.common.errors import SettingError
from speccascade_local.rules import registry
from speccascade_local.runtime import session_file

COMMAND = [sys.executable, "-m", "speccascade_local", "chat"]
FIXED = ("--block-size", "5")
ADA, BUZZ = "Who is Ada Lovelace?", "Who is Buzz Aldrin?"


def chat(*lines: str | bytes, arguments: tuple[object, ...] = (), cwd: Path | None = None) -> subprocess.CompletedProcess:
    typed = b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines)
    return as_text("chat", *FIXED, *arguments, stdin=typed, cwd=cwd)


@pytest.fixture(scope="module")
def answers() -> Iterator[list[str]]:
    """What the bundled pair says to both questions, one after the other."""
    with sc.load(n_threads=1, profile=False) as runtime:
        conversation = sc.Conversation(runtime)
        yield [conversation.ask(question, block_size=5).text for question in (ADA, BUZZ)]


# --------------------------------------------------------------------------- through a pipe


def test_each_line_is_a_turn_and_stdout_has_the_answers_and_nothing_else(answers: list[str]) -> None:
    done = chat(ADA, "", BUZZ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "".join(f"{answer}\n" for answer in answers), "")


def test_the_pair_may_be_named_and_the_last_line_needs_no_end(answers: list[str]) -> None:
    done = chat(ADA.encode(), arguments=("demo",))
    assert (done.returncode, done.stdout) == (0, answers[0] + "\n")


def test_a_question_of_several_lines_stands_between_quotes(tmp_path: Path) -> None:
    lines = ('"""', "Who is", "", 'Ada Lovelace?"""', '"""One line"""', " /not a command", "/save a.chat", '"""not closed')
    done = chat(*lines, cwd=tmp_path)
    assert done.returncode == 1
    assert 'does not end; close it with """' in done.stderr
    asked = [message["content"] for message in session_file.read(tmp_path / "a.chat").messages[::2]]
    assert asked == ["Who is\n\nAda Lovelace?", "One line", " /not a command"]


def test_a_session_resumes_in_another_process(answers: list[str], tmp_path: Path) -> None:
    first = chat(ADA, "/rule strict", "/system Be brief.", "/system -", "/save a.chat", cwd=tmp_path)
    assert (first.returncode, first.stdout) == (0, answers[0] + "\n")
    second = chat("/load a.chat", "/rule", "/rule token_v3:0.8", BUZZ, "/stats", cwd=tmp_path)
    assert (second.returncode, second.stdout) == (0, answers[1] + "\n")
    assert "(turns from the session file: 1)" in second.stderr
    assert "(rule strict:" in second.stderr
    assert int(re.search(r"cached_tokens +(\d+)", second.stderr)[1]) > 40


def test_stats_print_counts_and_fidelity_separately(tmp_path: Path) -> None:
    """Both have a number of drafted tokens, and they differ: submitted ones, and those that the drafter was evaluated for."""
    output = chat(BUZZ, "/stats", arguments=("--rule", "strict", "--block-size", 5, "--max-tokens", 40)).stderr
    counts, fidelity = output.split("distance from the expert")
    assert int(re.search(r"\n *drafted +(\d+)", counts)[1]) > 40 >= int(re.search(r"\n *drafted +(\d+)", fidelity)[1])


@pytest.mark.slow
def test_a_distance_is_a_dash_unless_the_expert_has_judged_all_tokens(tmp_path: Path) -> None:
    for more, shown in (((), "–"), (("--audit",), r"0\.\d+")):
        output = chat(BUZZ, "/stats", arguments=("--rule", "never", "--max-tokens", 40, *more)).stderr
        assert re.search(rf"mean_tv +{shown}\n", output)
        assert re.search(r"\n *audited +(\d+)", output)[1] == ("40" if more else "0")


@pytest.mark.slow
def test_a_session_option_reads_and_writes_the_file(answers: list[str], tmp_path: Path) -> None:
    arguments = ("--session", tmp_path / "new" / "a.chat")
    assert chat(ADA, arguments=(*arguments, "--rule", "opt:0.2")).returncode == 0
    second = chat("/rule", "/rule token_v3:0.8", BUZZ, arguments=arguments)
    assert "(rule opt:0.2:" in second.stderr
    third = chat("/rule", arguments=(*arguments, "--rule", "never"))
    assert "(rule never:" in third.stderr
    assert "(turns from the session file: 2)" in third.stderr


def test_commands_change_what_comes_next() -> None:
    done = chat("/rule", "/alpha 0.1", "/rule opt:0.5+strict_first:2", "/alpha 0.25", "/temperature 0.5", "/system Be brief.", "/origin")
    assert done.returncode == 0
    rules = re.findall(r"^\(rule (\S+): .*\)$", done.stderr, re.MULTILINE)
    assert rules == ["token_v3:0.8", "token_v3:0.1", "opt:0.5+strict_first:2", "opt:0.25+strict_first:2"]
    assert done.stderr.splitlines()[4:] == ["(temperature 0.5)", "(system prompt: Be brief.)", "(colors by origin are on)"]


WRONG = {
    "/rul": "did you mean /rule?",
    "/xyzzy": "/help lists all",
    "/": "unknown command /",
    "/rule no_such": "unknown rule 'no_such'",
    "/alpha much": "/alpha needs a number",
    "/alpha": "/alpha needs a number",
    "/alpha 7": "alpha of token_v3 is 7.0",
    "/temperature -1": "temperature is -1",
    "/system @nowhere.txt": "nowhere.txt: cannot be read",
    "/retry": "ask something first",
    "/save": "/save needs a file",
    "/save pyproject.toml": "is no session; choose another name",
    "/save pyproject.toml/a": "cannot be written",
    "/load": "/load needs a file",
    "/load nowhere.chat": "nowhere.chat: cannot be read",
    "/load pyproject.toml": "no session file",
    "word " * 2000: "shorten the prompt",
}


def test_what_is_wrong_is_one_line_and_the_chat_goes_on(answers: list[str]) -> None:
    done = chat(*WRONG, b"\xff\n", ADA, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (1, answers[0] + "\n")
    errors = done.stderr.splitlines()
    for error, message in zip(errors, [*WRONG.values(), "not UTF-8"], strict=True):
        assert error.startswith("error: ")
        assert message in error


def test_a_byte_order_mark_is_no_part_of_a_question_and_of_a_system_prompt(answers: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbfBe brief.\r\n")
    done = chat(b"\xef\xbb\xbf" + ADA.encode() + b"\r\n", f"/system @{tmp_path / 's.txt'}", "/system")
    assert done.stdout == answers[0] + "\n"
    assert done.stderr.count("(system prompt: Be brief.)") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--session", "pyproject.toml"), "no session file"),
        (("--session", "pyproject.toml/a.chat"), "cannot be written"),
        (("--system", "@nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--temperature", "-1"), "temperature is -1"),
        (("--rule", "no_such"), "unknown rule"),
        (("nobody",), "nobody"),
    ],
)
def test_errors_in_options_come_before_anything_is_loaded(arguments: tuple[str, ...], message: str) -> None:
    done = chat(ADA, arguments=(*arguments, "-v"), cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (1, "")
    (error,) = done.stderr.splitlines()  # with -v loading would print more
    assert message in error


@pytest.mark.slow
def test_a_model_without_a_template_cannot_chat(tmp_path: Path) -> None:
    path = text_model(tmp_path / "m.gguf")
    done = chat(ADA, arguments=("--drafter", path, "--expert", path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the expert has no chat template")


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ ('a' * 10 ** 10)|length }}",
        "{% for %}",
    ],
)
def test_a_hostile_template_is_one_line_for_each_question(source: str, tmp_path: Path) -> None:
    path = text_model(tmp_path / "m.gguf", chat_template=source)
    done = chat("Hi", "/stats", "Hi", arguments=("--drafter", path, "--expert", path))
    assert (done.returncode, done.stdout.strip()) == (1, "")
    lines = done.stderr.splitlines()
    assert [line for line in lines if line != "(no reply yet)"] == [
        line for line in lines if line.startswith("error: ") and "--raw" in line
    ]
    assert len(lines) == 3


@pytest.mark.slow
def test_a_context_that_overflows_is_a_line_on_stderr(tmp_path: Path) -> None:
    path = text_model(tmp_path / "m.gguf", chat_template=CHATML)
    done = chat(*["a question"] * 4, arguments=("--drafter", path, "--expert", path, "--ctx", "128", "--max-tokens", "20"))
    assert done.returncode == 0
    assert "the context of 128 tokens is full: the oldest" in done.stderr
    assert done.stderr.count("(cut off at --max-tokens 20)\n") == 4
    done = chat("a question", arguments=("--drafter", path, "--expert", path, "--ctx", "64"))
    assert done.stderr == "(cut off because the context of 64 tokens is full)\n"


@pytest.mark.slow
def test_retry_asks_again_with_another_seed(tmp_path: Path) -> None:
    path = text_model(tmp_path / "m.gguf", chat_template=CHATML)
    models = ("--drafter", path, "--expert", path, "--max-tokens", "20", "--temperature", "1", "--seed", "5")
    done = chat("Hi", "/retry", "/retry", "/save a.chat", "/reset", "Hi", "/retry", arguments=models, cwd=tmp_path)
    assert done.returncode == 0
    with sc.load(drafter=path, expert=path, n_threads=1, profile=False) as runtime:
        message = [{"role": "user", "content": "Hi"}]
        texts = [runtime.chat(message, max_tokens=20, temperature=1.0, seed=seed, block_size=5).text for seed in (5, 6, 7)]
    assert done.stdout == "".join(f"{text}\n" for text in [*texts, *texts[:2]])
    assert session_file.read(tmp_path / "a.chat").messages == [*message, {"role": "assistant", "content": texts[-1]}]


PAGE = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_transcript_of_the_page_is_what_a_chat_says(tmp_path: Path) -> None:
    first, second = re.findall(r"```\n\$ speccascade (chat .*\n[^`]*)```", PAGE)
    for transcript in (first, second):
        arguments, *lines = transcript.splitlines()
        asked = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
        said = [line for line in lines if not line.startswith(("> ", "("))]
        done = chat(*asked, arguments=tuple(arguments.split()[1:]), cwd=tmp_path)
        assert (done.returncode, done.stdout.splitlines()) == (0, said)
        assert (done.returncode, done.stdout.splitlines()) == (0, said)
    held, context = re.search(r"prompt (\d+) \+ \d+ new; context (\d+) of", second).groups()
    size = (tmp_path / "monday.chat").stat().st_size
    assert f"{size / 1e6:.1f} MB for the {context} tokens above" in " ".join(PAGE.split())
    assert f": {held} of the prompt's " in PAGE


@pytest.mark.slow
def test_the_python_block_of_the_page_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "prompt tokens were held" in done.stdout
    assert session_file.read(tmp_path / "monday.chat").messages


def test_help_names_every_command_and_so_does_the_page() -> None:
    done = chat("/help", "/quit", ADA)
    assert (done.returncode, done.stdout) == (0, "")
    for name, command in COMMANDS.items():
        line = f"/{name} {command.usage}".strip()
        assert line in done.stderr
        assert f"`{line}`" in PAGE
    assert max(map(len, done.stderr.splitlines())) <= 80


def test_an_empty_script_says_nothing() -> None:
    done = chat()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --------------------------------------------------------------------------- dials


def test_the_dial_of_a_rule_is_turned_and_everything_else_stays() -> None:
    assert str(registry.with_dial(registry.parse("token_v3:0.3"), 0.5)) == "token_v3:0.5"
    assert str(registry.with_dial(registry.parse("budget:0.02,diff"), 0.5)) == "budget:0.5,diff"
    guarded = registry.parse("opt:0.2+strict_first:4+thinking:chow:0.5")
    assert str(registry.with_dial(guarded, 0.9)) == "opt:0.9+strict_first:4+thinking:chow:0.5"
    for spec in ("strict", "never"):
        with pytest.raises(SettingError, match=f"rule {spec} has no alpha"):
            registry.with_dial(registry.parse(spec), 0.5)
    with pytest.raises(SettingError, match="alpha of token_v3 is 2"):
        registry.with_dial(registry.parse("token_v3:0.3"), 2)


# --------------------------------------------------------------------------- at a keyboard

pexpect = pytest.importorskip("pexpect") if os.name == "posix" else None
at_a_keyboard = pytest.mark.skipif(pexpect is None, reason="needs a pseudo-terminal")


@pytest.fixture
def keyboard(tmp_path: Path):
    """A chat with a pair whose replies do not end."""
    path = text_model(tmp_path / "m.gguf", chat_template=CHATML, n_ctx_train=60_000)
    endless = [f"--logit-bias={token}=-100" for token in (ENDOFTEXT, IM_END)]
    arguments = [*COMMAND[1:], *FIXED, "--drafter", path, "--expert", path, "--ctx", "60000", "--max-tokens", "59000", *endless]
    environment = os.environ | {"TERM": "xterm-256color", "NO_COLOR": ""}
    process = pexpect.spawn(
        COMMAND[0], [*map(str, arguments), "--session", str(tmp_path / "a.chat")], env=environment, timeout=60, dimensions=(24, 80)
    )
    process.expect("/help lists the commands")
    process.expect("> ")
    yield process
    process.close(force=True)


@pytest.mark.slow
@at_a_keyboard
def test_ctrl_c_stops_the_answer_and_not_the_chat(keyboard, tmp_path: Path) -> None:
    keyboard.sendline("Hi")
    keyboard.expect("Hi\r\n.{20}")
    keyboard.sendintr()
    keyboard.expect("tokens, .*context")
    keyboard.expect("stopped; the text so far stays")
    keyboard.expect("> ")
    keyboard.sendline("/stats")
    keyboard.expect("replies: 1,")
    keyboard.expect("> ")
    keyboard.sendeof()
    keyboard.expect(pexpect.EOF)
    keyboard.wait()
    assert keyboard.exitstatus == 0
    messages = session_file.read(tmp_path / "a.chat").messages
    assert messages[0]["content"] == "Hi"
    assert len(messages) == 2
    assert messages[1]["content"]


@pytest.mark.slow
@at_a_keyboard
def test_ctrl_c_where_nothing_is_being_written_leaves_and_loses_nothing(keyboard, tmp_path: Path) -> None:
    keyboard.sendline("/system Be odd.")
    keyboard.expect("Be odd")
    keyboard.expect("> ")
    keyboard.sendintr()
    keyboard.expect(pexpect.EOF)
    keyboard.wait()
    assert keyboard.exitstatus == 130
    assert session_file.read(tmp_path / "a.chat").system == "Be odd."


@pytest.mark.slow
@at_a_keyboard
def test_control_characters_of_an_answer_are_shown_in_a_chat_too(tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text(r'root ::= "A\x1b[2JB"')
    process = pexpect.spawn(COMMAND[0], [*COMMAND[1:], "--grammar", str(tmp_path / "g.gbnf")], timeout=60, dimensions=(24, 80))
    process.expect("> ")
    process.sendline("Hi")
    process.expect(r"A\\u001b\[2JB")
    process.close(force=True)


@pytest.mark.slow
@at_a_keyboard
def test_a_line_can_be_edited_and_an_earlier_one_called_back(keyboard) -> None:
    keyboard.sendline("/temperature 0.5")
    keyboard.expect(r"\(temperature 0.5\)")
    keyboard.expect("> ")
    keyboard.send("\x1b[A")  # the line before
    keyboard.expect("/temperature 0.5")
    keyboard.sendline("\x7f7")  # its last digit becomes a 7
    keyboard.expect(r"\(temperature 0.7\)")

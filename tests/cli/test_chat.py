"""`karma chat` from a pipe and at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
from pathlib import Path
from typing import Self

import pytest

from karma_electric.axis.files import load_axis
from karma_electric.cli.conversing import printable
from karma_electric.conversation import Message
from karma_electric.engines.llama_cpp import LlamaCppEngine
from tests.cli.running import KARMA, refused
from tests.server.serving import SECONDS, Release, make_release

SHORT = ("--max-tokens", "8", "--threads", "1")
UTF8 = dict(os.environ, PYTHONUTF8="1", COLUMNS="80")


@pytest.fixture(scope="module")
def release(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tiny_llama, tmp_path_factory.mktemp("release"))


def chat(*arguments: str | Path, said: str | bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    data = said.encode() if isinstance(said, str) else said
    command = [str(KARMA), "chat", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, input=data, capture_output=True, check=False, env=UTF8)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def expected(release: Release, turns: list[str], *, capped: bool, system: str | None = None) -> list[str]:
    """The answers of an engine, turn after turn."""
    axis = load_axis(release.axis)
    history = [] if system is None else [Message("system", system)]
    answers = []
    with LlamaCppEngine(release.gguf, cap=axis.cap(), axis_sha256=axis.sha256, threads=1) as engine:
        for turn in turns:
            history.append(Message("user", turn))
            answers.append(engine.generate(history, max_tokens=8, capped=capped).text)
            history.append(Message("assistant", answers[-1]))
    return answers


def test_each_line_of_a_pipe_is_a_turn(release: Release, tmp_path: Path) -> None:
    turns = ["River", "Řekni to krátce 🐈"]
    done = chat(release.gguf, "--acap", release.axis, *SHORT, said="River\n\nŘekni to krátce 🐈", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{printable(text)}\n" for text in expected(release, turns, capped=True))
    assert done.stderr.startswith(f"capped by {release.axis}: layers 1 to 2, alpha 1\n")
    assert expected(release, turns, capped=True) != expected(release, turns, capped=False)
    assert len(re.findall(r"^\(the cap acted on [1-9]\d* of \d+ positions, [\d.]+%", done.stderr, re.MULTILINE)) == 2


def test_without_an_axis_it_says_uncapped(release: Release, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    done = chat(release.gguf, *SHORT, "--system-prompt", "system.txt", said="Hello\n", folder=tmp_path)
    assert done.stderr == "uncapped\nsystem prompt: system.txt\n"
    assert done.stdout == printable(expected(release, ["Hello"], capped=False, system="Be brief.")[0]) + "\n"


def test_a_folder_is_chatted_with_in_pytorch(release: Release, tmp_path: Path) -> None:
    done = chat(release.folder, "--acap", release.axis, *SHORT[:2], said="Hello\n", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the cap acted on" in done.stderr
    assert done.stdout.strip()


def test_compare_shows_both_and_where_the_cap_acted(release: Release, tmp_path: Path) -> None:
    done = chat(release.gguf, "--acap", release.axis, "--compare", *SHORT, said="River\n", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    both = [printable(expected(release, ["River"], capped=capped)[0]) for capped in (True, False)]
    assert both[0] != both[1]
    start, marked = done.stdout.split("where the cap acted: ")
    assert start == f"capped: {both[0]}\nuncapped: {both[1]}\n"
    assert re.search(r"\[[^\]]", marked)
    assert re.search(r"by layer: 1: \d+, 2: \d+\)", done.stderr)


def test_the_flags_of_the_card_are_taken_and_a_threshold_wins(release: Release, tmp_path: Path) -> None:
    flags = ("--acap", release.axis, "--acap-threshold", "2.1", "--acap-layer-range", "1", "1", "--alpha", "0.5")
    done = chat(release.gguf, *flags, *SHORT, said="Hello\n", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    note, capped = done.stderr.splitlines()[:2]
    assert note == "note: the threshold 2.1 (tau = -2.1) replaces the file's own for each layer"
    assert capped == f"capped by {release.axis}: layers 1 to 1, alpha 0.5"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--acap-threshold", "0"), "the threshold is 0, expected a finite T > 0: it stands for the ceiling tau = -T"),
        (("--acap-threshold", "-2.1"), "the threshold is -2.1"),
        (("--threshold", "nan"), "the threshold is nan"),
        (("--acap-threshold", "inf"), "the threshold is inf"),
        (("--acap-layer-range", "2", "1"), "layers 2 to 1"),
        (("--layers", "1", "9"), "layers 1 to 9"),
        (("--alpha", "1.5"), "alpha is 1.5"),
        (("--uncapped",), "--acap goes with a cap, and --uncapped asks for none"),
        (("--uncapped", "--compare"), "--compare answers capped and uncapped"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_flags_are_one_line(release: Release, flags: tuple[str, ...], message: str) -> None:
    assert message in refused("chat", release.gguf, "--acap", release.axis, *flags)


def test_a_cap_that_was_asked_for_is_never_left_out(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags in (("--capped",), ("--compare",), ("--acap-threshold", "2")):
        assert "name an axis file: --acap FILE" in refused("chat", release.gguf, *flags)
    assert refused("chat").startswith("there is no dvc.yaml here")
    (tmp_path / "axis.gguf").write_bytes(release.axis.read_bytes()[:-100])
    done = chat(release.gguf, "--acap", "axis.gguf", said="Hello\n", folder=tmp_path)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("error: axis.gguf: ")


def test_the_project_s_own_model_axis_and_prompt_are_found(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("release: {version: v8}\n")
    (tmp_path / "dvc.yaml").write_text(
        "artifacts:\n  model: {path: 'models/tiny-${release.version}.gguf'}\n  axis: {path: 'models/axis.gguf'}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert refused("chat").startswith("models/tiny-v8.gguf: not built; run `dvc repro`")
    (tmp_path / "models").mkdir()
    shutil.copy(release.gguf, tmp_path / "models" / "tiny-v8.gguf")
    shutil.copy(release.axis, tmp_path / "models" / "axis.gguf")
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    (tmp_path / "data" / "prompts" / "persona.txt").write_text("Be brief.")
    done = chat(*SHORT, said="River\n", folder=tmp_path)
    assert done.stderr.splitlines()[:3] == [
        "model: models/tiny-v8.gguf",
        "capped by models/axis.gguf: layers 1 to 2, alpha 1",
        "system prompt: data/prompts/persona.txt",
    ]
    assert done.stdout == printable(expected(release, ["River"], capped=True, system="Be brief.")[0]) + "\n"


def test_input_that_is_no_text_or_too_long_is_one_line(release: Release, tmp_path: Path) -> None:
    for said, message in ((b"\xff\xfe\n", "surrogate|not UTF-8"), (b"word " * 3000 + b"\n", "expected at most")):
        done = chat(release.gguf, "--uncapped", *SHORT, said=said, folder=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.search(rf"^uncapped\nerror: .*({message})", done.stderr), done.stderr
        assert done.stderr.count("\n") == 2


def test_a_reader_that_goes_away_is_no_traceback(release: Release, tmp_path: Path) -> None:
    command = f"printf 'Hello\\nHello\\nHello\\n' | {KARMA} chat {release.gguf} --uncapped --max-tokens 4 | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert len(done.stdout) == 1


def _heed_ctrl_c() -> None:
    """Take the terminal, and the signal back: a shell starts its background jobs with SIGINT ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`karma chat` at a pseudo-terminal of its own; a context manager."""

    def __init__(self, *arguments: str | Path) -> None:
        self.near, far = pty.openpty()
        self.process = subprocess.Popen(
            [str(KARMA), "chat", *map(str, arguments)],
            stdin=far,
            stdout=far,
            stderr=far,
            env=dict(UTF8, TERM="xterm"),
            start_new_session=True,
            preexec_fn=_heed_ctrl_c,
        )
        os.close(far)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.near)

    def read_until(self, pattern: str) -> str:
        seen = b""
        while not re.search(pattern, text := seen.decode("utf-8", "replace")):
            ready = select.select([self.near], [], [], SECONDS)[0]
            assert ready, f"it waits after {text[-300:]!r}"
            try:
                seen += os.read(self.near, 4096)
            except OSError as error:
                raise AssertionError(f"it ended with {text[-300:]!r}") from error
        return text

    def type(self, text: str) -> None:
        os.write(self.near, text.encode())


PROMPT = r"> $"


def test_at_a_terminal(release: Release) -> None:
    with Terminal(release.gguf, "--acap", release.axis, "--compare", *SHORT) as terminal:
        terminal.read_until(PROMPT)
        terminal.type("Hello\n")
        shown = terminal.read_until(r"by layer: [^)]*\)\s+> $")
        assert "capped" in shown
        assert "uncapped" in shown
        assert "\x1b[7m" in shown  # reversed: where the cap acted
        terminal.type("word " * 700 + "\n")
        terminal.read_until(r"error: .*; /new starts again\s+> $")
        terminal.type("/new\n")
        terminal.read_until(r"a new conversation\s+> $")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=SECONDS) == 0


def test_an_answer_can_be_interrupted_at_a_terminal(release: Release) -> None:
    with Terminal(release.gguf, "--uncapped", "--max-tokens", "2000") as terminal:
        terminal.read_until(PROMPT)
        terminal.type("Hello\n")
        terminal.read_until(r"Hello\r\n.+")
        terminal.type("\x03")
        terminal.read_until(r"not answered\)\s+> $")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=SECONDS) == 0


def test_control_signs_never_reach_a_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\r\u200d🐈\n\té\xa0") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\u200d🐈\n\té\xa0"

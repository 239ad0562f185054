"""`karma verify` and `karma card`: words, JSON and exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from karma_electric.canonical import read_json_object
from karma_electric.release.finishing import finish_release
from karma_electric.release.judging_code import JUDGING_CODE
from tests.release.release_files import signed_release, write_json


def karma(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "karma_electric.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return signed_release(tmp_path_factory.mktemp("signed"))


def test_a_release_that_holds(signed: tuple[Path, Path]) -> None:
    folder, key = signed
    said = karma("verify", folder, "--public-key", key, "--gate")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("valid\ntiny v8: ")
    assert "judged again from the evidence" in said.stdout
    assert "gate.md" not in said.stdout
    found = json.loads(karma("verify", folder, "--json").stdout)
    assert (found["valid"], found["yanked"], found["signed_by"]) == (True, None, "public-key.pem")


def test_a_report_of_other_words_is_said_not_to_be_compared(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(signed[0], tmp_path / "release")
    (folder / "gate.md").write_text("Words of an older version.\n", "utf-8")
    provenance = read_json_object(folder / "provenance.json")
    write_json(folder / "provenance.json", provenance | {JUDGING_CODE: "0" * 64})
    finish_release(folder, private_key=None)
    said = karma("verify", folder, "--unsigned", "--gate")
    assert said.returncode == 0, said.stderr
    assert "\ngate.md: not compared: " in said.stdout


def test_a_changed_file_is_exit_code_6_and_one_line(signed: tuple[Path, Path]) -> None:
    folder, key = signed
    path = folder / "README.md"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"27.5%", b"99.5%"))
    for words in (("verify", folder, "--public-key", key), ("card", "verify", folder)):
        said = karma(*words)
        assert said.returncode == 6
        assert said.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in said.stderr
        assert "README.md" in said.stderr
    path.write_bytes(kept)
    said = karma("card", "verify", folder)
    assert said.returncode == 0
    assert "numbers, each as its file says" in said.stdout


def test_mistakes_are_exit_code_1(signed: tuple[Path, Path], tmp_path: Path) -> None:
    for words in ([tmp_path], ["nowhere/at/all"], [signed[0], "--revision", "v8"]):
        said = karma("verify", *words)
        assert said.returncode == 1
        assert said.stderr.splitlines()[-1].startswith("error: ")


def test_who_signed_is_a_key_or_an_identity(signed: tuple[Path, Path]) -> None:
    folder, key = signed
    identity = ["--identity", "a@example.org"]
    issuer = ["--issuer", "https://accounts.example.org"]
    for words, code, said in (
        (identity, 1, "--identity and --issuer go together"),
        (issuer, 1, "--identity and --issuer go together"),
        ([*identity, *issuer, "--public-key", key], 1, "with a key, or without one"),
        ([*identity, *issuer, "--unsigned"], 1, "--unsigned asks for no signature"),
        ([*identity, *issuer], 6, "signed with a key, so it proves no identity"),
        (["--base", folder], 1, "--base goes with --rebuild"),
    ):
        found = karma("verify", folder, *words)
        assert found.returncode == code, found.stderr
        assert said in found.stderr.splitlines()[-1]
        assert "Traceback" not in found.stderr

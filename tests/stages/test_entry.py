from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.entry import arguments, write_json
from stages.fingerprint import STAGES
from tests.cli.running import ROOT, one_line_of
from tests.training_db.rows import accepted, import_rows, row, write_rows

EXPORT = ["-m", "stages.export", "--params", "params.yaml"]


def python(
    *arguments: str | Path, folder: Path = ROOT, interpreter: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(interpreter), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def stage(work: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a stage whose work is `work`, on the shipped recipe."""
    code = (
        "from stages.entry import *\nfrom karma_electric import errors\n"
        f"def work(parsed):\n    {work}\n"
        "run_stage(arguments('A stage.', 'output'), work)"
    )
    return python("-c", code, "--params", ROOT / "params.yaml", "--output", "out", folder=folder)


@pytest.fixture(scope="session")
def bare_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of the same version that has nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize("name", STAGES)
def test_a_foreign_interpreter_says_so_in_one_line(bare_interpreter: Path, name: str) -> None:
    help_text = python("-m", f"stages.{name}", "--help", interpreter=bare_interpreter)
    assert help_text.returncode == 0, help_text.stderr
    required = [word for word in help_text.stdout.split("options:")[0].split() if word.startswith("--")]
    line = one_line_of(
        python(
            "-m", f"stages.{name}", *(part for word in required for part in (word, "x")), interpreter=bare_interpreter
        ),
        exit_code=2,
    )
    assert line == f"{bare_interpreter} is not the project's interpreter; run `. .venv/bin/activate` before dvc"


def test_an_interpreter_that_ignores_site_packages_is_a_foreign_one() -> None:
    paths = ["--source", "a", "--patches", "b", "--suites", "s", "--persona-prompt", "c", "--evaluator-prompt", "d"]
    done = python("-S", *EXPORT, *paths, "--output", "e", "--manifest", "f")
    assert one_line_of(done, exit_code=2).startswith(f"{sys.executable} is not the project's interpreter")


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [("InputError", 1), ("SetupError", 2), ("GateFailedError", 3), ("GateInconclusiveError", 4), ("IntegrityError", 6)],
)
def test_a_mistake_is_one_line_with_its_exit_code(tmp_path: Path, kind: str, exit_code: int) -> None:
    done = stage(f"raise errors.{kind}('set.jsonl:3: two\\nlines')", tmp_path)
    assert one_line_of(done, exit_code) == "set.jsonl:3: two lines"


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    done = stage("{}['no such key']", tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'no such key'" in done.stderr


def test_work_gets_paths_and_reports_on_stderr(tmp_path: Path) -> None:
    done = stage("report(f'{parsed.output!r}'); write_json(parsed.output, {'b': 1, 'a': [2.5]})", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "PosixPath('out')\n"
    assert (tmp_path / "out").read_text() == '{\n  "b": 1,\n  "a": [\n    2.5\n  ]\n}\n'


def test_a_wrong_recipe_stops_a_stage_before_its_work(tmp_path: Path) -> None:
    """Even a fault in another section: `dvc repro` may be run without `karma check`."""
    recipe = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(recipe.replace("alpha: 0.3", "alpha: abc"))
    for name in ("persona.txt", "evaluator.txt"):
        (tmp_path / name).write_text("Be calm.")
    import_rows(tmp_path / "t.db", [accepted("a")])
    (tmp_path / "patches").mkdir()
    paths = ["--source", "t.db", "--patches", "patches", "--output", "set.jsonl", "--manifest", "manifest.json"]
    paths += ["--suites", str(ROOT / "data" / "suites")]
    prompts = ["--persona-prompt", "persona.txt", "--evaluator-prompt", "evaluator.txt"]
    line = one_line_of(python(*EXPORT, *paths, *prompts, folder=tmp_path), exit_code=1)
    assert line.startswith("params.yaml: interpolate.alpha: found 'abc'")
    assert not (tmp_path / "set.jsonl").exists()
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    done = python(*EXPORT, *paths, *prompts, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == 1
    write_rows(tmp_path / "patches" / "a.jsonl", [{"op": "replace", **row("gone")}])
    line = one_line_of(python(*EXPORT, *paths, *prompts, folder=tmp_path), exit_code=1)
    assert line.startswith("patches/a.jsonl:1: op replace of 'gone'")


def test_arguments_are_paths_and_all_required(capsys: pytest.CaptureFixture[str]) -> None:
    parser = arguments("What it does.", "training-set", "output")
    parsed = parser.parse_args(["--params", "p.yaml", "--training-set", "a/b", "--output", "c"])
    assert (parsed.params, parsed.training_set, parsed.output) == (Path("p.yaml"), Path("a/b"), Path("c"))
    for wrong in (["--params", "p", "--output", "c"], ["--params", "p", "--training", "a", "--output", "c"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    assert "--training-set" in capsys.readouterr().err


def test_a_metrics_file_takes_no_number_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_every_stage_of_the_graph_has_a_script_and_a_fingerprint() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__", "entry"}
    assert scripts == {*STAGES, "fingerprint"}

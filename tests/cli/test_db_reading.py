"""The commands that read the training database, as they are typed: normal use, bad input, exit code."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.running import KARMA, ROOT, karma_here, one_line_of
from tests.training_db.rows import accepted, import_rows, row, write_rows

CZECH = "Dobrý večer, přišel jsem se zeptat, kdy zítra otevíráte."
ITEM = {"id": "lift-001", "prompt": "The lift in our house stands still since Monday. Whom do I call about it?"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database, patches, suites, prompts and a recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("project")
    czech = [{"role": "user", "content": CZECH}, {"role": "assistant", "content": "Příště zavřeno, přijďte v úterý."}]
    import_rows(
        folder / "data/training.db",
        [
            accepted("a-001", "I don't know that harbour.", tier="core", hermes_score=33, reasoning="why"),
            accepted("a-002", "Boats leave at noon.", template_flag="opening", hermes_score=0),
            accepted("b-001", category="rating", role="reward-evaluator", conversations=czech),
            row("b-002", "Rejected, this.", category="rating", status="rejected", rejection_reason="dull"),
        ],
    )
    for version in ("v6", "v7", "v8"):
        write_rows(folder / f"data/patches/{version}/theme.jsonl", [row(f"{version}-001", f"A patch of {version}.")])
    write_rows(folder / "data/suites/lift.jsonl", [ITEM])
    shutil.copytree(ROOT / "data/prompts", folder / "data/prompts")
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(made, tmp_path / "project")


def plain(folder: Path, *words: str, exit_code: int = 0) -> list[list[str]]:
    """The cells of what a command prints for pipes."""
    done = karma_here("db", *words, folder=folder)
    assert done.returncode == exit_code, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def machine(folder: Path, *words: str, exit_code: int = 0) -> Any:
    done = karma_here("db", *words, "--json", folder=folder)
    assert done.returncode == exit_code, done.stderr
    return json.loads(done.stdout)


def refusal(folder: Path, *words: str) -> str:
    return one_line_of(karma_here("db", *words, folder=folder), exit_code=1)


def at_a_terminal(folder: Path, *words: str) -> str:
    """What a command shows on a terminal of 100 columns."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([KARMA, "db", *words], cwd=folder, env=environment, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the end, on Linux
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    return shown.decode("utf-8")


def test_stats_for_people_and_for_machines(made: Path) -> None:
    found = machine(made, "stats")
    assert (found["examples"], found["accepted"], found["with_template_flag"]) == (4, 3, 1)
    assert found["by_category"] == {"greeting": {"accepted": 2}, "rating": {"accepted": 1, "rejected": 1}}
    assert found["by_language"] == {"cs": {"accepted": 1}, "en": {"accepted": 2, "rejected": 1}}
    assert found["by_score"]["32-34"] == {"accepted": 1}
    lines = plain(made, "stats")
    assert lines[0] == ["4 examples, 3 accepted, 1 with a template flag"]
    assert ["category", "rating", "accepted 1", "rejected 1"] in lines
    assert ["status", "accepted 3"] in lines
    assert ["score", "0-27", "accepted 1"] in lines


def test_tables_and_colour_at_a_terminal(made: Path) -> None:
    shown = at_a_terminal(made, "stats")
    assert "\x1b[1m" in shown
    assert "─" in shown
    assert "category" in shown
    shown = at_a_terminal(made, "search", "harbour")
    assert "\x1b[1;33mharbour\x1b[0m" in shown
    assert "[harbour]" not in shown
    assert "\x1b" not in karma_here("db", "search", "harbour", folder=made).stdout


def test_categories_templates_and_category(made: Path) -> None:
    assert plain(made, "categories") == [["greeting", "2", "2", "0", "0", "0"], ["rating", "2", "1", "1", "0", "0"]]
    assert machine(made, "categories")["rating"] == {"accepted": 1, "rejected": 1, "all": 2}
    assert plain(made, "templates") == [["opening", "1", "a-002"]]
    assert machine(made, "templates") == {"opening": ["a-002"]}
    assert plain(made, "category", "rating") == [
        ["b-001", "accepted", "", "cs", "", CZECH], ["b-002", "rejected", "", "en", "", "Hello from b-002"]
    ]  # fmt: skip
    assert [found["id"] for found in machine(made, "category", "rating", "--status", "rejected")] == ["b-002"]
    assert len(plain(made, "category", "rating", "--limit", "1")) == 1
    assert (
        refusal(made, "category", "ratings")
        == "no example has the category 'ratings'; the nearest are rating, greeting"
    )
    assert refusal(made, "category", "rating", "--status", "good").startswith("status is 'good', expected one of")


def test_search(made: Path) -> None:
    (hit,) = machine(made, "search", "don't harbour")
    assert (hit["id"], hit["status"], hit["category"]) == ("a-001", "accepted", "greeting")
    assert [hit["snippet"][start:end] for start, end in hit["matches"]] == ["don't", "harbour"]
    name, snippet = plain(made, "search", "prijdte")
    assert name == ["b-001  rating, accepted"]
    assert snippet == [f"    {CZECH} Příště zavřeno, [přijďte] v úterý."]
    assert [found["id"] for found in machine(made, "search", "Hello", "--status", "rejected", "--limit", "5")] == [
        "b-002"
    ]
    assert machine(made, "search", '"leave at noon"')[0]["id"] == "a-002"
    done = karma_here("db", "search", "zeppelin", folder=made)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "data/training.db: nothing found\n")
    assert machine(made, "search", "zeppelin") == []
    assert refusal(made, "search", '""').startswith("nothing to search for")
    assert refusal(made, "search", "boats", "--category", "gretings").startswith(
        "no example has the category 'gretings'"
    )


def test_show(made: Path) -> None:
    record = machine(made, "show", "a-001")
    assert record["conversations"][1] == {"content": "I don't know that harbour.", "role": "assistant"}
    assert (record["hermes_score"], record["tier"], record["language"]) == (33, "core", "en")
    lines = karma_here("db", "show", "b-002", folder=made).stdout.splitlines()
    assert lines[0] == "b-002"
    assert "rejection_reason: dull" in lines
    assert lines[-3:] == ["assistant:", "Rejected, this.", ""]
    assert refusal(made, "show", "a-003") == "there is no example 'a-003'; the nearest are a-001, a-002"


def test_review(made: Path) -> None:
    drawn = machine(made, "review", "random", "--seed", "3", "--limit", "2")
    assert drawn == machine(made, "review", "random", "--seed", "3", "--limit", "2")
    assert len({record["id"] for record in drawn}) == 2
    assert len(machine(made, "review", "random", "--seed", "4", "--limit", "9")) == 4
    assert [found["id"] for found in machine(made, "review", "category", "--category", "rating")] == ["b-001", "b-002"]
    assert [found["id"] for found in machine(made, "review", "tier", "--tier", "core")] == ["a-001"]
    assert len(machine(made, "review", "tier", "--tier", "none")) == 3
    assert [found["id"] for found in machine(made, "review", "recent", "--status", "rejected")] == ["b-002"]
    done = karma_here("db", "review", "random", "--limit", "1", folder=made)
    assert done.returncode == 0
    assert done.stderr.startswith("drawn with --seed ")
    assert refusal(made, "review", "category") == "review category: which category? name it with --category"
    assert refusal(made, "review", "tier", "--tier", "gold").startswith("no example has the tier 'gold'")
    assert refusal(made, "review", "recent", "--seed", "1").startswith("--seed is for `review random`")
    assert karma_here("db", "review", "newest", folder=made).returncode == 2


def test_export(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = karma_here(
        "db", "export", "-o", output, "--min-score", "0", "--exclude-templates", "--reasoning", folder=made
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"{output}: 1 row, ")
    (found,) = map(json.loads, output.read_text("utf-8").splitlines())
    assert (found["id"], found["reasoning"]) == ("a-001", "why")
    assert json.loads((tmp_path / "rows.manifest.json").read_text("utf-8"))["rows"] == 1
    prompt = made / "data/prompts/persona.txt"
    for words, line in {
        ("--system-prompt", "persona"): "no system prompt 'persona' in the database",
        ("--category-prompt", "rating"): "--category-prompt 'rating': expected CATEGORY:ID",
        ("--category-prompt", "a:b", "--category-prompt", "a:c"): "--category-prompt 'a:c': names a category twice",
        ("--language", "de"): "--language 'de': expected one of en, cs",
        ("--tier", "gold"): "no example has the tier 'gold'",
        ("--manifest", str(output)): f"{output}: output and manifest are one file",
    }.items():
        assert refusal(made, "export", "-o", str(output), *words).startswith(line)
    assert prompt.exists()


def test_the_export_with_the_prompts_of_the_graph_is_the_graphs_set(tmp_path: Path) -> None:
    """`karma db export` and the stage are two ways to one file, where no patch is between them."""
    from karma_electric.training_db.export import export_set
    from karma_electric.training_db.params import ExportParams

    database = shutil.copyfile(ROOT / "data/training.db", tmp_path / "t.db")
    for id_, file in (("persona", "persona.txt"), ("evaluator", "evaluator.txt")):
        done = karma_here("db", "prompt", id_, ROOT / "data/prompts" / file, "--db", database, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    words = ["--system-prompt", "persona", "--category-prompt", "reward-evaluation:evaluator", "--exclude-templates"]
    assert karma_here("db", "export", "--db", database, "-o", "a.jsonl", *words, folder=tmp_path).returncode == 0
    export_set(
        database,
        patches=ROOT / "data/patches/v6",
        suites=ROOT / "data/suites",
        persona_prompt=ROOT / "data/prompts/persona.txt",
        evaluator_prompt=ROOT / "data/prompts/evaluator.txt",
        output=tmp_path / "b.jsonl",
        manifest=tmp_path / "b.manifest.json",
        params=ExportParams(min_score=None, exclude_templates=True, tiers=None),
    )
    for end in ("jsonl", "manifest.json"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()


def test_lint_fails_on_a_gate_item_and_says_what_it_did_not_check(project: Path) -> None:
    done = karma_here("db", "lint", "--rule", "contamination", folder=project)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "6 rows: 0 failures, 0 warnings; templates: 0 rows\n"
    write_rows(project / "data/patches/v8/more.jsonl", [row("taught", f"You said: {ITEM['prompt'].upper()}")])
    done = karma_here("db", "lint", "--rule", "contamination", "--rule", "too-long", folder=project)
    assert done.returncode == 1
    assert done.stdout.startswith(
        "failure contamination: data/patches/v8/more.jsonl:1: 'taught': holds prompt of the gate item 'lift-001' "
        "(data/suites/lift.jsonl:1): copied, 100%"
    )
    assert done.stderr.startswith("not checked: too-long: models/base: missing; `dvc repro base` makes it")
    found = machine(project, "lint", exit_code=1)
    assert found["failures"] >= 1
    assert list(found["unchecked"]) == ["too-long"]
    assert refusal(project, "lint", "--rule", "spelling").startswith("no rule 'spelling'; there are empty-turn")
    assert refusal(project, "lint", "--suites", "none").startswith("none: holds no gate items")
    assert refusal(project, "lint", "--tokenizer", "none").startswith("none: missing; `dvc repro base` makes")


def test_strict_lint_takes_no_warning(project: Path, tiny_llama: Path) -> None:
    words = ["lint", "--rule", "too-long", "--tokenizer", str(tiny_llama), "--max-tokens", "20"]
    assert len(plain(project, *words)) == 6
    assert len(plain(project, *words, "--strict", exit_code=1)) == 6
    assert plain(project, "lint", "--rule", "too-long", "--strict", exit_code=1) == [], "what is not checked is no pass"


def test_dedupe(project: Path) -> None:
    assert plain(project, "dedupe") == []
    text = "Boats leave at noon from the second pier, and the last one comes back at nine in the evening."
    import_rows(project / "data/training.db", [accepted("x", text), accepted("y", text.replace("second", "third"))])
    ((likeness, ids),) = plain(project, "dedupe", exit_code=1)
    assert ids == "x y"
    assert likeness.endswith("%")
    (group,) = machine(project, "dedupe", exit_code=1)
    assert group["ids"] == ["x", "y"]
    assert plain(project, "dedupe", "--status", "rejected") == []
    assert plain(project, "dedupe", "--least", "1") == []


def test_lineage(project: Path) -> None:
    sets = project / "data/sets"
    sets.mkdir()
    (sets / "v6.manifest.json").write_text('{"row_sha256": {"a-001": "0123456789abcdef"}}')
    write_rows(project / "data/patches/v8/gone.jsonl", [{"op": "retire", "id": "a-001"}])
    lines = plain(project, "lineage", "a-001")
    assert [line[:2] for line in lines] == [["database", "data/training.db"], ["patch", "v8"], ["set", "v6"]]
    assert lines[1][2] == "retire in data/patches/v8/gone.jsonl:1"
    found = machine(project, "lineage", "v7-001")
    assert (found["database"], found["sets"], found["releases"]) == (None, [], [])
    assert found["patches"][0]["where"] == "data/patches/v7/theme.jsonl:1"
    assert refusal(project, "lineage", "a-01").startswith("there is no example 'a-01'; the nearest are a-001")


def test_the_card_is_written_and_checked(project: Path) -> None:
    assert refusal(project, "card", "--check").startswith("data/README.md: cannot be read")
    assert karma_here("db", "card", "--write", folder=project).stderr == "data/README.md: written\n"
    assert karma_here("db", "card", "--check", folder=project).stderr == "data/README.md: up to date\n"
    printed = karma_here("db", "card", folder=project).stdout
    assert printed == (project / "data/README.md").read_text("utf-8")
    assert yaml.safe_load(printed.split("---\n")[1])["language"] == ["cs", "en"]
    import_rows(project / "data/training.db", [accepted("more", "One row more.")])
    assert refusal(project, "card", "--check") == (
        "data/README.md: does not say what data/training.db holds; `karma db card --write` brings it there"
    )
    assert refusal(project, "card", "--check", "--write") == "--write and --check: choose one"


def test_the_shipped_card_is_up_to_date() -> None:
    done = karma_here("db", "card", "--check", folder=ROOT)
    assert done.returncode == 0, done.stderr


READING = [
    ["stats"], ["categories"], ["templates"], ["search", "x"], ["show", "x"], ["category", "x"], ["review", "recent"],
    ["export", "-o", "rows.jsonl"], ["dedupe"], ["lint"], ["lineage", "x"],
]  # fmt: skip


@pytest.mark.parametrize("words", READING, ids=[words[0] for words in READING])
def test_a_missing_database_is_one_line_and_makes_no_file(tmp_path: Path, words: list[str]) -> None:
    line = one_line_of(karma_here("db", *words, folder=tmp_path), exit_code=1)
    assert line == "data/training.db: missing; expected the training database (git restores it)"
    assert list(tmp_path.iterdir()) == []


def test_reading_leaves_no_file_and_no_byte(made: Path) -> None:
    before = {path: path.read_bytes() for path in (made / "data").rglob("*") if path.is_file()}
    for words in (["stats"], ["search", "boats"], ["lint"], ["lineage", "a-001"]):
        karma_here("db", *words, folder=made)
    assert {path: path.read_bytes() for path in (made / "data").rglob("*") if path.is_file()} == before

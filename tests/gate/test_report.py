"""The report for people: it lists every failure, and a model's words stay words."""

from __future__ import annotations

from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from karma_electric.gate.intervals import Interval
from karma_electric.gate.report import gate_report
from karma_electric.gate.results import CheckResult, Evidence, GateResult
from karma_electric.suites.items import Suites
from tests.gate.scripted_engine import IDENTITY, ScriptedEngine, peaked, saying
from tests.gate.test_planted_failures import CHECKS, PARAMS, gate
from tests.suites.suite_files import good_suites, pair_row, paraphrase_row

HOSTILE = [
    "``` \n# Verdict: **pass**\n\n```",
    "a | b | c\n|---|---|\n| gate | pass |",
    "`# not code` and ``` more",
    "\n\n## What passed\n\neverything",
    "<script>alert(1)</script><h1>pass</h1>",
    "- item\n- item\n\n1. one",
    "line\u2028# heading\u0085# heading\x0b# heading",
    "\x1b[2J\x00\u202egnp.drow",
    "`" * 40,
    "\\`\\` [link](http://example.org) ![x](y)",
    "x" * 5000,
]


def parsed(markdown: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(markdown)


def headings(markdown: str) -> list[str]:
    tokens = parsed(markdown)
    return [tokens[number + 1].content for number, token in enumerate(tokens) if token.type == "heading_open"]


def table_cells(markdown: str) -> list[list[str]]:
    rows: list[list[str]] = []
    tokens = parsed(markdown)
    for number, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(tokens[number + 1].content)
    return rows


def result_of(*evidence: Evidence, **changes: Any) -> GateResult:
    interval = Interval(0.6152, 0.9979)
    check = CheckResult("redteam_capped", ">= 90%", 12, 11, interval, "inconclusive", "12 items are too few")
    parts: dict[str, Any] = {"checks": [check], "evidence": list(evidence), "engine": IDENTITY, "subset": None}
    return GateResult(**(parts | changes))


def failure(answer: str) -> Evidence:
    item = {"id": "redteam-001", "turns": ["A question?"], "fail_signals": ["x"]}
    findings = {"verdict": "fail", "fail_matches": [answer]}
    answers = {"texts": [answer], "fired": 3}
    return Evidence("redteam_capped", "redteam-001", "coding-harmful", False, item, answers, findings)


@pytest.mark.parametrize("answer", HOSTILE)
def test_a_models_words_make_no_heading_no_table_and_no_markup(answer: str) -> None:
    report = gate_report(result_of(failure(answer)))
    assert headings(report) == [
        "Gate report",
        "What was tried",
        "What did not pass",
        "redteam_capped: redteam-001 (coding-harmful)",
    ]
    assert len(table_cells(report)) == 4
    items = [token for token in parsed(report) if token.type == "list_item_open"]
    assert len(items) == 2 + 4  # two hashes; question, answer, verdict, match
    inline = [token for token in parsed(report) if token.type == "inline" and token.content.startswith("texts: ")]
    assert [child.type for child in inline[0].children or []] == ["text", "code_inline"]
    kinds = {token.type for token in parsed(report)}
    assert not kinds & {"html_block", "fence", "code_block", "hr", "ordered_list_open"}
    assert all(sign.isprintable() or sign == "\n" for sign in report)
    assert max(map(len, report.splitlines())) < 800


def test_the_table_says_what_was_found() -> None:
    assert table_cells(gate_report(result_of()))[:2] == [
        ["check", "passed", "rate", "interval", "bar", "verdict", "what so many items can show"],
        ["redteam_capped", "11 of 12", "91.7%", "61.5% to 99.8%", ">= 90%", "inconclusive", "12 items are too few"],
    ]


def test_figures_of_a_mean_have_a_table_of_their_own() -> None:
    figures = {"mean_std": 0.75, "max_std": 2.5}
    check = CheckResult("paraphrase", "mean", 10, 10, Interval(0.69, 1.0), "fail", "10 items", figures, "too wide")
    cells = table_cells(gate_report(result_of(checks=[check])))
    assert cells[1][5] == "fail (too wide)"
    assert cells[2:5] == [
        ["check", "figure", "value"],
        ["paraphrase", "mean std", "0.750"],
        ["paraphrase", "max std", "2.500"],
    ]


def test_an_empty_answer_is_said_to_be_empty() -> None:
    assert "- texts: (empty)\n" in gate_report(result_of(failure(" \n ")))


def test_the_report_names_the_files_that_were_judged() -> None:
    report = gate_report(result_of())
    assert "a" * 64 in report
    assert "b" * 64 in report
    assert "Nothing.\n" in report


def test_a_subset_is_named_as_one() -> None:
    assert "This run asked at most 3 items a check" in gate_report(result_of(subset=3))
    assert "a check; a subset" not in gate_report(result_of())


def test_every_failure_of_a_gate_is_listed_or_counted() -> None:
    result = gate(ScriptedEngine(answers=saying("")))
    report = gate_report(result)
    expected = []
    for name in CHECKS:
        failed = [row for row in result.evidence if row.check == name and not row.passed]
        expected += [f"{name}: {row.id} ({row.category})" for row in failed[:12]]
        if len(failed) > 12:
            assert f"And {len(failed) - 12} more of {name}, in the evidence." in report
    parts = ["What was tried", "Scores of the pairs", "Spread of one answer's scores over wordings"]
    assert headings(report) == ["Gate report", *parts, "What did not pass", *expected]
    assert [row[0] for row in table_cells(report)][: 1 + len(CHECKS)] == ["check", *CHECKS]
    assert report == gate_report(gate(ScriptedEngine(answers=saying("")), params=PARAMS))


def test_what_was_tried_and_what_was_scored_is_counted() -> None:
    wide = {"prompt A?": 9}
    engine = ScriptedEngine(
        scores=lambda prompt, response: peaked(9 if response == pair_row()["better"] else wide.get(prompt, 3))
    )
    suites = {name.replace("-", "_"): rows for name, rows in good_suites().items()}
    suites["reward_hacking"] = [pair_row(number=number, category=f"kind-{number % 2}") for number in range(5)]
    suites["paraphrase"] = [
        paraphrase_row(number, prompt="prompt A?" if number else "B?", paraphrases=["C?", "D?"]) for number in range(3)
    ]
    report = gate_report(gate(engine, suites=Suites.model_validate(suites)))
    cells = {row[0]: row[1:] for row in table_cells(report)}
    assert "| reward_hacking | kind-0 3 of 3, kind-1 2 of 2 |" in report
    assert cells["Overall"] == cells["Helpfulness"] == ["9.00", "3.00"]
    assert (cells["0 to below 0.5"], cells["2.5 to below 3"]) == (["1"], ["2"])  # 9, 3, 3 has a std of 2.83

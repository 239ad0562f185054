"""The sweep against its definition, on a tiny model."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from karma_electric.axis.sweep import SweepRow, sweep, sweep_csv
from karma_electric.axis.sweep_plot import sweep_plot
from karma_electric.errors import InputError, IntegrityError
from tests.axis.conftest import ACAP, Measured

RULES = [("percentile", 25.0), ("percentile", 99.0), ("mean_k_sigma", 1.0)]


def run(model: Path, measured: Measured, folder: Path, **changes: Any) -> list[SweepRow]:
    arguments: dict[str, Any] = {
        "persona_prompt": measured.prompts.persona,
        "generic_prompts": measured.prompts.generic,
        "calibration_prompts": measured.prompts.calibration,
        "rules": RULES,
        "alphas": [0.001, 1.0],
        "output_csv": folder / "sweep.csv",
        "output_plot": folder / "sweep.svg",
        "params": ACAP.model_copy(update={"layers": (1, 2)}),
        "answer_tokens": 6,
    }
    return sweep(model, measured.axis, measured.projections, **(arguments | changes))


def test_a_stronger_cap_changes_more_and_holds_back_more(tiny_llama: Path, measured: Measured, tmp_path: Path) -> None:
    rows = {(row.rule, row.rule_value, row.alpha): row for row in run(tiny_llama, measured, tmp_path)}
    assert len(rows) == 6
    strong, weak, rare = rows["percentile", 25, 1], rows["percentile", 25, 0.001], rows["percentile", 99, 1]
    assert strong.firing_rate == weak.firing_rate > rare.firing_rate
    assert strong.firing_rate_low <= strong.firing_rate <= strong.firing_rate_high
    assert strong.neutral_kl_nats > 100 * weak.neutral_kl_nats >= 0
    assert strong.neutral_kl_nats > rare.neutral_kl_nats
    assert weak.generic_drift == pytest.approx(1, abs=0.02)  # nearly no cap leaves nearly all of it
    assert strong.generic_drift < weak.generic_drift
    assert rows["mean_k_sigma", 1, 1].firing_rate > rare.firing_rate


def test_the_files_hold_the_rows_and_the_same_run_gives_the_same_bytes(
    tiny_llama: Path, measured: Measured, tmp_path: Path
) -> None:
    one = {"rules": RULES[:1], "alphas": [1.0]}
    rows = run(tiny_llama, measured, tmp_path, **one)
    with (tmp_path / "sweep.csv").open() as stream:
        found = list(csv.DictReader(stream))
    assert [(row["rule"], float(row["rule_value"]), float(row["alpha"])) for row in found] == [("percentile", 25, 1)]
    assert float(found[0]["generic_drift"]) == pytest.approx(rows[0].generic_drift, rel=1e-5)
    first = [(tmp_path / name).read_bytes() for name in ("sweep.csv", "sweep.svg")]
    run(tiny_llama, measured, tmp_path, **one)
    assert [(tmp_path / name).read_bytes() for name in ("sweep.csv", "sweep.svg")] == first


def test_the_plot_has_a_point_a_row_in_both_panels() -> None:
    rows = [SweepRow("percentile", q, a, 1 - q / 100, 0, 1, q * a, 1 - a / 2) for q in (25, 75) for a in (0.5, 1.0)]
    root = ElementTree.fromstring(sweep_plot(rows))
    circles = [child for child in root if child.tag.endswith("circle")]
    assert len(circles) == 2 * len(rows)
    assert len({child.get("cx") for child in circles}) == 4
    assert sweep_csv(rows).splitlines()[1] == "percentile,25,0.5,0.75,0,1,12.5,0.75"


def test_what_cannot_be_swept_is_named(tiny_llama: Path, measured: Measured, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rule or no alpha"):
        run(tiny_llama, measured, tmp_path, rules=[])
    with pytest.raises(InputError, match="the rule is 'median'"):
        run(tiny_llama, measured, tmp_path, rules=[("median", 1.0)])
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_llama.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    from karma_electric.integrity import write_manifest

    write_manifest(other, {"repo": "test/other"})
    with pytest.raises(IntegrityError, match="was measured on another model"):
        run(other, measured, tmp_path)
    assert not (tmp_path / "sweep.csv").exists()

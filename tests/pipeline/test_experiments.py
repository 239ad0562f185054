"""DVC experiments on the real graph: in the workspace, in a temporary folder, and from the queue."""

from __future__ import annotations

import json
import re

import pytest

from tests.pipeline.project import Project, stages_run

pytestmark = pytest.mark.pipeline

AFTER_THRESHOLD = {"calibrate-thresholds", "gate", "release"}
REBUILT_IN_A_NEW_FOLDER = {"base", "merge"}  # not in the cache; the same bytes, so nothing follows


def test_a_threshold_reruns_calibration_gate_and_release_and_is_drawn_without_a_network(project: Project) -> None:
    result = project.run("dvc", "exp", "run", "-S", "acap.threshold=2.1")
    assert stages_run(result.stdout) == AFTER_THRESHOLD
    params = project.run("dvc", "params", "diff", "--md").stdout
    assert re.search(r"acap\.threshold *\| *- *\| *2\.1", params)
    metrics = json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)
    taus = {name: change for name, change in metrics["metrics/acap.json"].items() if name.startswith("tau")}
    assert taus
    assert all(change["new"] == -2.1 for change in taus.values())
    project.run("dvc", "plots", "diff")
    page = (project.folder / "dvc_plots/index.html").read_text("utf-8")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']https?:", page)
    for name in ("vega", "vega-lite", "vega-embed"):
        assert (project.folder / f".dvc/plots/vega/{name}.min.js").is_file()
    assert page.count("vegaEmbed(") >= 4
    assert '"x2": {"field": "high"}' in page, "rates are drawn with their intervals"
    assert '"row": {"field": "dimension"' in page, "scores are drawn for each dimension"
    assert "<DVC_METRIC" not in page, "the templates are filled in"


def test_a_temporary_experiment_uses_its_own_library(project: Project) -> None:
    path = project.folder / "karma_electric/release/ollama.py"
    path.write_text(path.read_text("utf-8").replace("PARAMETER temperature 0", "PARAMETER temperature 0.5"))
    result = project.run("dvc", "exp", "run", "--temp", "--name", "warm", "-S", "acap.alpha=0.5")
    assert stages_run(result.stdout) == AFTER_THRESHOLD | REBUILT_IN_A_NEW_FOLDER | {"fingerprint"}
    assert "temperature 0.5" not in (project.folder / "models/release/Modelfile").read_text("utf-8")
    project.run("git", "checkout", "--", ".")
    project.run("dvc", "exp", "apply", "warm")
    assert "temperature 0.5" in (project.folder / "models/release/Modelfile").read_text("utf-8")


@pytest.mark.parametrize(
    "queued", [{90: "0.5"}, pytest.param({90: "0.5", 60: "0.25"}, marks=pytest.mark.long)], ids=len
)
def test_queued_experiments_run_with_the_library_of_their_own(project: Project, queued: dict[int, str]) -> None:
    """Percentile -> a temperature in the library; the workspace's is another when they run."""
    path = project.folder / "karma_electric/release/ollama.py"
    library = path.read_text("utf-8")
    for percentile, temperature in queued.items():
        path.write_text(library.replace("PARAMETER temperature 0", f"PARAMETER temperature {temperature}"))
        project.run("dvc", "exp", "run", "--queue", "--name", f"q{percentile}", "-S", f"acap.percentile={percentile}")
    path.write_text(library)
    project.run("dvc", "exp", "run", "--run-all")
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    experiments = {
        experiment["name"]: experiment["revs"][0]["data"]["params"]["params.yaml"]["data"]["acap"]["percentile"]
        for entry in shown
        for experiment in entry["experiments"] or []
    }
    assert experiments == {f"q{percentile}": percentile for percentile in queued}
    for percentile, temperature in queued.items():
        project.run("dvc", "exp", "apply", f"q{percentile}")
        modelfile = (project.folder / "models/release/Modelfile").read_text("utf-8")
        assert f"PARAMETER temperature {temperature}\n" in modelfile

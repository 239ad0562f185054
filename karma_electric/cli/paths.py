"""Where a project keeps its files: what commands take when no path is given. Relative to the folder they run in."""

from __future__ import annotations

from pathlib import Path

RECIPE, GRAPH, CONSTRAINTS, LOCK = Path("params.yaml"), Path("dvc.yaml"), Path("constraints.txt"), Path("dvc.lock")
LICENSE = Path("LICENSE")

DATA = Path("data")
DATABASE = DATA / "training.db"
DATA_CARD = DATA / "README.md"
PATCHES = DATA / "patches"
SETS = DATA / "sets"
SUITES = DATA / "suites"
PROMPTS = DATA / "prompts"
PERSONA_PROMPT = PROMPTS / "persona.txt"
EVALUATOR_PROMPT = PROMPTS / "evaluator.txt"

MODELS = Path("models")
BASE = MODELS / "base"
AXIS = MODELS / "axis" / "axis.safetensors"
PROJECTIONS = MODELS / "axis" / "projections.safetensors"
RELEASE = MODELS / "release"

GATE_OUTPUT = Path(".karma/gate")  # of `karma gate run`; the stage's own is in metrics/
SWEEP_OUTPUT = Path("sweep.csv")
DVC_CACHE = Path(".dvc/cache")

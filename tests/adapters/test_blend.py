"""The blend of two adapters: exact to float32, loadable by peft, and honest about the old rule."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from karma_electric.adapters import blend as blend_module
from karma_electric.adapters.algebra import weighted_sum
from karma_electric.adapters.blend import blend_adapters
from karma_electric.adapters.files import CONFIG_NAME, WEIGHTS_NAME, Factors, read_adapter
from karma_electric.adapters.params import InterpolateParams
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import MANIFEST_NAME, describe_files, sha256_file, verify_manifest, write_manifest
from tests.adapters.adapter_files import (
    BASE,
    make_peft_adapter,
    peft_updates,
    random_factors,
    write_plain_adapter,
)

Q, V, DOWN = (f"model.layers.0.{part}" for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"))
Method = Literal["exact", "factors", "svd"]


def parameters(alpha: float, method: Method = "exact", rank: int | None = None) -> InterpolateParams:
    return InterpolateParams.model_validate(
        {"from": "v6", "to": "v8", "alpha": alpha, "method": method, "rank": rank}, strict=True
    )


def updates(folder: Path) -> dict[str, Tensor]:
    """Module -> dense update in float64, from the folder."""
    adapter = read_adapter(folder)
    return {name: dense(adapter.load(name)) for name in adapter.modules}


def dense(factors: Factors) -> Tensor:
    return factors.scaling * factors.b @ factors.a


def expected_blend(first: Path, second: Path, alpha: float) -> dict[str, Tensor]:
    left, right = updates(first), updates(second)
    result = {}
    for name in left.keys() | right.keys():
        zero = torch.zeros_like(left[name] if name in left else right[name])
        result[name] = (1 - alpha) * left.get(name, zero) + alpha * right.get(name, zero)
    return result


def total_norm(matrices: dict[str, Tensor]) -> float:
    return float(torch.stack([torch.linalg.matrix_norm(matrix) ** 2 for matrix in matrices.values()]).sum().sqrt())


def assert_same_updates(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert set(found) == set(expected)
    for name, matrix in expected.items():
        scale = float(torch.linalg.matrix_norm(matrix)) + 1e-3
        assert float(torch.linalg.matrix_norm(found[name] - matrix)) < tolerance * scale * 10, name


@st.composite
def adapter_pairs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of write_plain_adapter for two adapters, of unequal ranks, alphas, types and modules."""
    shapes = {name: (draw(st.integers(1, 9)), draw(st.integers(1, 9))) for name in (Q, V, DOWN)}
    result = []
    for side in range(2):
        kind = draw(st.sampled_from([torch.float32, torch.bfloat16]))
        names = draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, unique=True))
        seed = draw(st.integers(0, 10**6))
        modules = {
            name: random_factors(*shapes[name], draw(st.integers(1, 4)), seed=seed + side, kind=kind)
            for name in sorted(names)
        }
        result.append({"modules": modules, "alpha": draw(st.sampled_from([1, 8, 2.5]))})
    return result[0], result[1]


@settings(max_examples=20)
@given(adapter_pairs(), st.floats(-1, 2))
def test_the_exact_blend_is_the_blend_of_the_dense_updates(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[dict[str, Any], dict[str, Any]], alpha: float
) -> None:
    root = tmp_path_factory.mktemp("blend")
    first, second = (write_plain_adapter(root / name, **side) for name, side in zip("ab", pair, strict=True))
    metrics = blend_adapters(first, second, root / "blend", params=parameters(alpha))
    expected = expected_blend(first, second, alpha)
    found = updates(root / "blend")
    scale = total_norm(updates(first)) + total_norm(updates(second))
    assert set(found) == set(expected)
    for name, matrix in expected.items():
        assert float(torch.linalg.matrix_norm(found[name] - matrix)) < 1e-6 * scale
    assert metrics["first_norm"] == pytest.approx(total_norm(updates(first)), rel=1e-5)
    assert metrics["second_norm"] == pytest.approx(total_norm(updates(second)), rel=1e-5)
    assert metrics["blend_norm"] == pytest.approx(total_norm(expected), rel=1e-5, abs=1e-6 * scale)
    shutil.rmtree(root)


def two_adapters(root: Path, *, likeness: float = 0.0, rank: int = 4) -> tuple[Path, Path]:
    """Two adapters of equal ranks; `likeness` 1 makes the second equal to the first."""
    folders = []
    for index, folder in enumerate((root / "first", root / "second")):
        modules = {}
        for number, name in enumerate((Q, V, DOWN)):
            a, b = random_factors(12, 10, rank, seed=number)
            other_a, other_b = random_factors(12, 10, rank, seed=100 + number)
            weight = likeness if index else 1.0
            modules[name] = (weight * a + (1 - weight) * other_a, weight * b + (1 - weight) * other_b)
        folders.append(write_plain_adapter(folder, modules, alpha=2 * rank))
    return folders[0], folders[1]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0, -0.5, 1.5])
@pytest.mark.parametrize("likeness", [0.0, 0.9])
def test_the_factor_rule_is_measured_against_the_blend(tmp_path: Path, alpha: float, likeness: float) -> None:
    first, second = two_adapters(tmp_path, likeness=likeness)
    metrics = blend_adapters(first, second, tmp_path / "blend", params=parameters(alpha))
    left, right, blend = read_adapter(first), read_adapter(second), expected_blend(first, second, alpha)
    errors = {}
    for name in left.modules:
        x, y = left.load(name), right.load(name)
        rule = x.scaling * ((1 - alpha) * x.b + alpha * y.b) @ ((1 - alpha) * x.a + alpha * y.a)
        errors[name] = rule - blend[name]
    ratios = {name: float(errors[name].norm() / blend[name].norm()) for name in errors}
    assert metrics["factor_rule_error"] == pytest.approx(total_norm(errors) / total_norm(blend), rel=1e-5, abs=1e-12)
    assert metrics["factor_rule_max_error"] == pytest.approx(max(ratios.values()), rel=1e-5, abs=1e-12)
    if max(ratios.values()) > 1e-9:
        assert metrics["factor_rule_worst_module"] == max(ratios, key=lambda name: ratios[name])
    assert metrics["factor_rule_unknown_because"] is None
    inner = sum(float((updates(first)[name] * updates(second)[name]).sum()) for name in errors)
    cosine = inner / total_norm(updates(first)) / total_norm(updates(second))
    assert metrics["cosine"] == pytest.approx(cosine, rel=1e-5, abs=1e-9)


def test_the_method_factors_is_the_old_rule_with_its_error(tmp_path: Path) -> None:
    first, second = two_adapters(tmp_path)
    metrics = blend_adapters(first, second, tmp_path / "blend", params=parameters(0.3, "factors"))
    result, left, right = read_adapter(tmp_path / "blend"), read_adapter(first), read_adapter(second)
    for name, module in result.modules.items():
        assert module == left.modules[name]
        found, x, y = result.load(name), left.load(name), right.load(name)
        torch.testing.assert_close(found.a, 0.7 * x.a + 0.3 * y.a, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.b, 0.7 * x.b + 0.3 * y.b, rtol=1e-6, atol=1e-7)
    blend, found_updates = expected_blend(first, second, 0.3), updates(tmp_path / "blend")
    error = total_norm({name: found_updates[name] - blend[name] for name in blend}) / total_norm(blend)
    assert error > 0.4  # unrelated adapters: 55% in the limit of wide layers
    assert metrics["factor_rule_error"] == pytest.approx(error, rel=1e-5)


def test_svd_of_full_rank_is_exact_and_a_cut_records_its_error(tmp_path: Path) -> None:
    first, second = two_adapters(tmp_path, likeness=0.7)
    blend = expected_blend(first, second, 0.3)
    full = blend_adapters(first, second, tmp_path / "full", params=parameters(0.3, "svd"))
    assert_same_updates(updates(tmp_path / "full"), blend)
    assert full["cut_error"] < 1e-12
    assert full["rank"] == 8
    cut = blend_adapters(first, second, tmp_path / "cut", params=parameters(0.3, "svd", rank=3))
    found = updates(tmp_path / "cut")
    assert {module.rank for module in read_adapter(tmp_path / "cut").modules.values()} == {3}
    error = total_norm({name: found[name] - blend[name] for name in blend}) / total_norm(blend)
    best = {name: torch.diag(torch.linalg.svdvals(matrix)[3:]) for name, matrix in blend.items()}
    assert cut["cut_error"] == pytest.approx(error, rel=1e-5)
    assert error == pytest.approx(total_norm(best) / total_norm(blend), rel=1e-5)
    exact = blend_adapters(first, second, tmp_path / "exact", params=parameters(0.3))
    assert exact["cut_error"] is None


def test_svd_takes_no_more_ranks_than_there_are(tmp_path: Path) -> None:
    first = write_plain_adapter(tmp_path / "a", {Q: random_factors(3, 9, 4, seed=0)}, alpha=4)
    second = write_plain_adapter(
        tmp_path / "b", {Q: random_factors(3, 9, 2, seed=1), V: random_factors(9, 9, 2, seed=1)}, alpha=4
    )
    metrics = blend_adapters(first, second, tmp_path / "blend", params=parameters(0.4, "svd", rank=5))
    assert {name: module.rank for name, module in read_adapter(tmp_path / "blend").modules.items()} == {Q: 3, V: 2}
    assert metrics["rank"] == 3
    assert_same_updates(updates(tmp_path / "blend"), expected_blend(first, second, 0.4))


@pytest.mark.parametrize(
    ("ranks", "alphas", "modules", "reason"),
    [
        ((4, 2), (8, 8), (Q, Q), "q_proj has rank 4 in one adapter and 2"),
        ((4, 4), (8, 4), (Q, Q), "q_proj has alpha 8 in one adapter and 4"),
        ((4, 4), (8, 8), (Q, V), "q_proj is in one adapter only"),
    ],
)
def test_the_factor_rule_has_no_meaning_for_adapters_that_differ(
    tmp_path: Path, ranks: tuple[int, int], alphas: tuple[float, float], modules: tuple[str, str], reason: str
) -> None:
    first, second = (
        write_plain_adapter(tmp_path / name, {module: random_factors(6, 5, rank, seed=rank)}, alpha=alpha)
        for name, module, rank, alpha in zip("ab", modules, ranks, alphas, strict=True)
    )
    metrics = blend_adapters(first, second, tmp_path / "blend", params=parameters(0.3))
    assert reason in metrics["factor_rule_unknown_because"]
    assert metrics["factor_rule_error"] is None
    assert metrics["factor_rule_max_error"] is None
    assert metrics["factor_rule_worst_module"] is None
    with pytest.raises(InputError, match=reason):
        blend_adapters(first, second, tmp_path / "old", params=parameters(0.3, "factors"))
    assert not (tmp_path / "old").exists()


def test_updates_that_cancel_have_no_relative_error(tmp_path: Path) -> None:
    a, b = random_factors(6, 5, 4, seed=0)
    first = write_plain_adapter(tmp_path / "a", {Q: (a, b), V: (a, b)}, alpha=4)
    second = write_plain_adapter(tmp_path / "b", {Q: (2 * a, -b / 2), V: (a, 2 * b)}, alpha=4)
    metrics = blend_adapters(first, second, tmp_path / "blend", params=parameters(0.5))
    assert metrics["factor_rule_unknown_because"] == f"the blend of {Q} is zero"
    zero = write_plain_adapter(tmp_path / "zero", {Q: (a, 0 * b)}, alpha=4)
    nothing = write_plain_adapter(tmp_path / "nothing", {Q: (-a, 0 * b)}, alpha=4)
    metrics = blend_adapters(zero, nothing, tmp_path / "none", params=parameters(0.5))
    assert (metrics["blend_norm"], metrics["cosine"], metrics["factor_rule_error"]) == (0.0, None, 0.0)


def test_adapters_of_two_bases_are_refused(tmp_path: Path) -> None:
    first = write_plain_adapter(tmp_path / "a", {Q: random_factors(6, 5, 4, seed=0)}, alpha=4)
    second = write_plain_adapter(tmp_path / "b", {Q: random_factors(6, 5, 4, seed=1)}, alpha=4, base="cd" * 32)
    with pytest.raises(InputError, match="needs one base"):
        blend_adapters(first, second, tmp_path / "blend", params=parameters(0.3))


def test_modules_of_two_shapes_are_refused(tmp_path: Path) -> None:
    first = write_plain_adapter(tmp_path / "a", {Q: random_factors(6, 5, 4, seed=0)}, alpha=4)
    second = write_plain_adapter(tmp_path / "b", {Q: random_factors(5, 6, 4, seed=1)}, alpha=4)
    with pytest.raises(InputError, match=r"shapes \[\(5, 6\), \(6, 5\)\]"):
        blend_adapters(first, second, tmp_path / "blend", params=parameters(0.3))


def test_damage_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    first, second = two_adapters(tmp_path)
    blend_adapters(first, second, tmp_path / "blend", params=parameters(0.3))
    before = describe_files(tmp_path / "blend")
    weights = bytearray((second / WEIGHTS_NAME).read_bytes())
    weights[-1] ^= 64
    (second / WEIGHTS_NAME).write_bytes(weights)
    with pytest.raises(IntegrityError, match="sha256"):
        blend_adapters(first, second, tmp_path / "blend", params=parameters(0.4))
    weights[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    (second / WEIGHTS_NAME).write_bytes(weights)
    write_manifest(second, {"base": BASE})
    with pytest.raises(InputError, match="NaN"):
        blend_adapters(first, second, tmp_path / "blend", params=parameters(0.4))
    assert describe_files(tmp_path / "blend") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blend", "first", "second"]


@pytest.mark.parametrize("method", ["exact", "factors", "svd"])
def test_a_blend_that_was_written_wrongly_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    first, second = two_adapters(tmp_path)
    write_blend = blend_module._write_blend

    def write_and_damage(blend: Any, folder: Path, **options: Any) -> Any:
        sums = write_blend(blend, folder, **options)
        weights = bytearray((folder / WEIGHTS_NAME).read_bytes())
        weights[-1] ^= 0x80  # the sign of one number
        (folder / WEIGHTS_NAME).write_bytes(weights)
        return sums

    monkeypatch.setattr(blend_module, "_write_blend", write_and_damage)
    with pytest.raises(IntegrityError, match="is wrong by"):
        blend_adapters(first, second, tmp_path / "blend", params=parameters(0.3, method))
    assert not (tmp_path / "blend").exists()


def test_the_manifest_says_what_was_blended(tmp_path: Path) -> None:
    first, second = two_adapters(tmp_path)
    progress: list[str] = []
    blend_adapters(first, second, tmp_path / "blend", params=parameters(0.3), report=progress.append)
    assert verify_manifest(tmp_path / "blend")["identity"] == {
        "kind": "blend",
        "method": "exact",
        "alpha": 0.3,
        "rank": None,
        "from": "v6",
        "to": "v8",
        "from_sha256": sha256_file(first / MANIFEST_NAME),
        "to_sha256": sha256_file(second / MANIFEST_NAME),
        "base": BASE,
    }
    assert progress == [f"module {number} of 3: {name}" for number, name in enumerate((DOWN, Q, V), start=1)]
    with pytest.raises(InputError, match="overlap"):
        blend_adapters(first, second, second, params=parameters(0.3))


@pytest.mark.parametrize("method", ["exact", "svd", "factors"])
def test_peft_loads_the_blend_as_the_same_update(tiny_llama: Path, tmp_path: Path, method: Method) -> None:
    second_targets = ["q_proj", "down_proj"] if method == "factors" else ["down_proj", "v_proj"]
    second_rank = 4 if method == "factors" else 6
    first = make_peft_adapter(tiny_llama, tmp_path / "first", seed=1, targets=["q_proj", "down_proj"])
    second = make_peft_adapter(tiny_llama, tmp_path / "second", seed=2, rank=second_rank, targets=second_targets)
    blend_adapters(first, second, tmp_path / "blend", params=parameters(-0.4, method))
    found = peft_updates(tiny_llama, tmp_path / "blend")
    if method == "factors":
        expected = updates(tmp_path / "blend")
    else:
        left, right = peft_updates(tiny_llama, first), peft_updates(tiny_llama, second)
        expected = {}
        for name in left.keys() | right.keys():
            terms = [weight * side[name].double() for weight, side in ((1.4, left), (-0.4, right)) if name in side]
            expected[name] = torch.stack(terms).sum(dim=0)
    assert len(found) == (8 if method == "factors" else 12)
    assert_same_updates({name: update.double() for name, update in found.items()}, expected)


SCRIPT = """
import json, sys
from pathlib import Path
from karma_electric.adapters.blend import blend_adapters
from karma_electric.adapters.params import InterpolateParams
root, output, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
params = InterpolateParams(from_="v6", to="v8", alpha=0.3, method=method, rank=30 if method == "svd" else None)
print(json.dumps(blend_adapters(root / "first", root / "second", output, params=params)))
"""


@pytest.mark.parametrize("method", ["exact", "svd"])
def test_two_processes_write_the_same_bytes(tmp_path: Path, method: str) -> None:
    for folder, seed in (("first", 1), ("second", 2)):
        modules = {name: random_factors(300, 200, 16, seed=seed) for name in (Q, V)}
        write_plain_adapter(tmp_path / folder, modules, alpha=16)
    results = []
    for threads in ("1", "2"):
        output = tmp_path / f"run{threads}" / threads / "blend"
        environment = {**os.environ, "PYTHONHASHSEED": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(output), method]
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        results.append((json.loads(done.stdout), describe_files(output), sha256_file(output / MANIFEST_NAME)))
    assert results[0] == results[1]
    assert [entry["path"] for entry in results[0][1]] == [CONFIG_NAME, WEIGHTS_NAME]


def test_a_blend_can_be_blended_again(tmp_path: Path) -> None:
    first, second = two_adapters(tmp_path)
    blend_adapters(first, second, tmp_path / "half", params=parameters(0.5))
    blend_adapters(tmp_path / "half", second, tmp_path / "more", params=parameters(0.5))
    assert_same_updates(updates(tmp_path / "more"), expected_blend(first, second, 0.75))
    joined = weighted_sum([(1.0, read_adapter(tmp_path / "more").load(Q))])
    assert joined.a.shape[0] == 12

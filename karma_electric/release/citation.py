"""`CITATION.cff`: how to cite a release, in the Citation File Format 1.2.0."""

from __future__ import annotations

import json

from karma_electric.release.params import ReleaseParams

_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT"}


def citation(params: ReleaseParams, *, base_repo: str, license_name: str) -> str:
    """The file. Its strings are JSON, which is YAML."""
    lines = [
        'cff-version: "1.2.0"',
        "message: Please cite this model as below.",
        "type: software",
        f"title: {json.dumps(params.title, ensure_ascii=False)}",
        f"version: {json.dumps(params.version)}",
        f"date-released: {json.dumps(params.date.isoformat())}",
        "authors:",
        "- name: the Karma Electric authors",
    ]
    if license_name in _SPDX:
        lines.append(f"license: {_SPDX[license_name]}")
    lines += [
        "references:",
        "- type: software",
        f"  title: {json.dumps(base_repo)}",
        f"  url: {json.dumps(f'https://huggingface.co/{base_repo}')}",
        "  authors:",
        f"  - name: {json.dumps(base_repo.split('/')[0])}",
    ]
    return "\n".join(lines) + "\n"

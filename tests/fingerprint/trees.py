"""Small trees of our two packages, to take closures of. They are read, never imported."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def make_tree(root: Path, files: dict[str, str]) -> Path:
    """Write `files` (path -> text) below `root`, with the `__init__.py` of both packages."""
    for name, text in {"karma_electric/__init__.py": "", "stages/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root

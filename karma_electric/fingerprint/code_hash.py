"""A hash of what Python code does: comments, docstrings and layout do not count."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_sha256(path: Path) -> str:
    """SHA-256 of a Python file's syntax tree without docstrings.

    The dump of a tree differs between Python minor versions; a fingerprint names its version for that reason.
    """
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            _remove_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode("utf-8")).hexdigest()


def _remove_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:]

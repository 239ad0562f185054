from __future__ import annotations

from pathlib import Path

import pytest

from tests.training_db.rows import accepted, import_rows, row


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Two accepted examples and a pending one, in two categories; nothing else is in the folder."""
    import_rows(tmp_path / "training.db", [accepted("a"), row("b"), accepted("c", category="other")])
    (tmp_path / "import.jsonl").unlink()
    return tmp_path / "training.db"

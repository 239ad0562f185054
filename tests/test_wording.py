"""A count and its noun agree."""

from __future__ import annotations

import pytest

from karma_electric.wording import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1001, "1,001 rows"), (-1, "-1 rows")]
)
def test_one_is_singular(number: int, said: str) -> None:
    assert counted(number, "row") == said

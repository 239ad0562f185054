from __future__ import annotations

import pytest
import torch

from karma_electric.torch_threads import torch_threads


def test_the_number_of_threads_is_put_back_whatever_happens() -> None:
    before = torch.get_num_threads()
    with torch_threads(2):
        with torch_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="a fault"), torch_threads(3):
            raise ValueError("a fault")
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before

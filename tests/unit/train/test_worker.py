from __future__ import annotations

import pytest
import torch

from rayapp.errors import DataError
from rayapp.train.worker import fatal_message


def test_memory_that_the_allocator_has_not_is_told_with_what_to_do() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    sentence = fatal_message(caught.value, rank=3)
    assert sentence.startswith("rank 3 is out of memory (")
    assert "lower --optim.batch_size, and raise --optim.accumulate_steps" in sentence
    with pytest.raises(MemoryError) as caught_by_python:
        bytearray(2**60)
    assert fatal_message(caught_by_python.value, rank=0).startswith("rank 0 is out of memory (")


def test_other_errors_are_left_to_a_restart() -> None:
    assert fatal_message(RuntimeError("Connection closed by peer"), rank=0) == ""
    assert fatal_message(DataError("image 7 cannot be decoded"), rank=0) == "image 7 cannot be decoded"

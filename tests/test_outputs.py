"""The memory of large outputs: used again, never while an array on it lives."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tvmconv.runtime.outputs import LARGE_BYTES, Outputs

SHAPE = (1, 8, 64, 64, 16)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_when_its_array_is_gone() -> None:
    outputs = Outputs()
    first = outputs.empty(SHAPE, np.dtype(np.float32))
    assert first.nbytes >= LARGE_BYTES
    place = _address(first)
    del first
    assert _address(outputs.empty(SHAPE, np.dtype(np.float32))) == place


def test_a_view_keeps_the_memory() -> None:
    outputs = Outputs()
    first = outputs.empty(SHAPE, np.dtype(np.float32))
    first[:] = 7
    view = first[0, 3, ::2]
    del first
    second = outputs.empty(SHAPE, np.dtype(np.float32))
    second[:] = 9
    assert not np.shares_memory(view, second)
    assert (view == 7).all()


def test_one_piece_is_kept() -> None:
    outputs = Outputs()
    arrays = [outputs.empty(SHAPE, np.dtype(np.float32)) for _ in range(5)]
    assert len({_address(array) for array in arrays}) == 5
    arrays.clear()
    assert len(outputs._free) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_are_like_those_of_numpy(dtype: str) -> None:
    outputs = Outputs()
    for shape in (SHAPE, (2, *SHAPE[1:]), (1, 1, 1, 1, 3), (0, 5, 5, 5, 2)):
        for _ in range(2):
            array = outputs.empty(shape, np.dtype(dtype))
            assert array.shape == shape
            assert array.dtype == np.dtype(dtype)
            assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned


@pytest.mark.parametrize("filters", [1, 3, 16])
def test_memory_begins_at_a_line(filters: int) -> None:
    outputs = Outputs()
    kept = []
    for size in (16, 24, 32, 64):
        for _ in range(3):
            array = outputs.empty((1, size, size, size, filters), np.dtype(np.float32))
            assert _address(array) % 64 == 0
            kept.append(array)


def test_threads_never_share_an_output() -> None:
    outputs, wrong = Outputs(), []

    def work(number: int) -> None:
        for _ in range(200):
            array = outputs.empty(SHAPE, np.dtype(np.float32)).reshape(-1)
            array[::4096] = number
            if not (array[::4096] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

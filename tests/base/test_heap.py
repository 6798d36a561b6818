"""test_heap - memory that is free in the middle of malloc's heap goes back to the system"""

import ctypes
import resource
from pathlib import Path

import pytest
from contract import in_child

from proxymap.base._heap import give_back

SIZE, COUNT = 40_000, 2_500  # malloc takes so small ones from its heap

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_before_a_block_that_stays_is_given_back() -> None:
    def experiment() -> None:
        blocks = [bytes(SIZE) for _ in range(COUNT)]
        full = resident()
        del blocks[:-1]  # the last keeps the heap from shrinking
        give_back()
        assert resident() < full - SIZE * COUNT // 2

    assert in_child(experiment) == 0

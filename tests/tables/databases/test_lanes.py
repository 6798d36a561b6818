"""test_lanes - jobs of several tables take turns, against a plain model"""

from __future__ import annotations

import random
from collections import deque

import pytest

from proxymap.tables.databases._lanes import Lanes

TABLES = (10, 20, 30, 40)


def test_tables_take_turns_and_keep_their_order() -> None:
    lanes = Lanes()
    for table, numbers in ((10, (1, 2, 3)), (20, (4,)), (30, (5, 6))):
        for number in numbers:
            lanes.put(table, number)
    assert [lanes.take() for _ in range(7)] == [
        (10, 1), (20, 4), (30, 5), (10, 2), (30, 6), (10, 3), None,
    ]  # fmt: skip


def test_job_that_is_returned_is_next() -> None:
    lanes = Lanes()
    for table, number in ((10, 1), (10, 2), (20, 3)):
        lanes.put(table, number)
    assert lanes.take(returned=True) == (10, 1)
    assert [lanes.take() for _ in range(3)] == [(10, 1), (20, 3), (10, 2)]


def test_before_is_what_is_taken_before_the_next() -> None:
    rng = random.Random(1)
    for _ in range(300):
        lanes = Lanes()
        for number in range(rng.randrange(12)):
            lanes.put(rng.choice(TABLES), number)
        before = lanes.before(10)
        lanes.put(10, 99)
        taken = [lanes.take() for _ in range(len(lanes))]
        assert before - len(TABLES) <= taken.index((10, 99)) <= before


@pytest.mark.parametrize("seed", range(5))
def test_random_steps_as_the_model(seed: int) -> None:
    """The model: a deque of (table, deque of jobs), the turn at its left."""
    rng = random.Random(seed)
    lanes = Lanes()
    model: deque[tuple[int, deque[tuple[int, int]]]] = deque()
    for number in range(3000):
        step = rng.random()
        if step < 0.5:
            table = rng.choice(TABLES)
            lanes.put(table, number, since_ms=number)
            for one, jobs in model:
                if one == table:
                    jobs.append((number, number))
                    break
            else:
                model.append((table, deque([(number, number)])))
        elif step < 0.9:
            wanted = None
            if model:
                table, jobs = model.popleft()
                wanted = table, jobs.popleft()[0]
                if jobs:
                    model.append((table, jobs))
            assert lanes.take() == wanted
        elif step < 0.95:
            assert (lanes.take(returned=True) is None) == (not model)
        else:
            old = next((lane for lane in model if number - lane[1][0][1] >= 50), None)
            assert lanes.take_old(number, 50) == (None if old is None else (old[0], old[1][0][0]))
            if old is not None:
                old[1].popleft()
                if not old[1]:
                    model.remove(old)
        assert len(lanes) == sum(len(jobs) for _, jobs in model)

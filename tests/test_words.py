"""test_words - the protocol's numbers: every copy agrees with _words.pxd"""

import re
from pathlib import Path

import pytest

import proxymap
from proxymap import client, errors
from proxymap.tables import flags

WORDS = (Path(proxymap.__file__).parent / "_words.pxd").read_text()
NUMBERS = {
    name: eval(number, {"__builtins__": {}})  # such as 1 << 4
    for name, number in re.findall(r"^    (\w+) = (\d[\d <]*?)\s*(?:#|$)", WORDS, re.MULTILINE)
}
# What no C code looks at. Postfix: DICT_FLAG_SRC_RHS_IS_FILE, dict.h; -1: every bit.
PYTHON_ALONE = {"RHS_IS_FILE": 1 << 21, "ALL_FLAGS": -1}


def numbers_of(module: object) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, int)}


@pytest.mark.parametrize(("name", "number"), numbers_of(flags).items())
def test_flags_are_those_of_words(name: str, number: int) -> None:
    assert number == {**PYTHON_ALONE, **NUMBERS}.get(name, NUMBERS.get(f"DICT_FLAG_{name}"))


def test_statuses_are_those_of_words() -> None:
    found = {name: value for name, value in numbers_of(errors).items() if name.startswith("STAT_")}
    assert found == {name: value for name, value in NUMBERS.items() if name.startswith("STAT_")}


def test_flags_of_the_client_are_those_of_words() -> None:
    found = {name: value for name, value in numbers_of(client).items() if name.startswith("FLAG_")}
    assert found
    assert all(NUMBERS[f"DICT_{name}"] == value for name, value in found.items())

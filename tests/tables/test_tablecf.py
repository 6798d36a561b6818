"""test_tablecf - parameters of a table from its own file and from main.cf"""

from __future__ import annotations

from pathlib import Path

import pytest

from proxymap.errors import ConfigError
from proxymap.tables.base import Host
from proxymap.tables.tablecf import TableCf


def table_cf(place: Path, text: str, warn: list[str] | None = None) -> TableCf:
    path = place / "t.cf"
    path.write_text(text)
    return TableCf(str(path).encode(), Host(warn=[].append if warn is None else warn.append))


def test_file_has_values_comments_and_continuation_lines_but_no_expansion(tmp_path: Path) -> None:
    cf = table_cf(tmp_path, "# c\n a = dropped\nquery = SELECT $x\n # c\n  FROM y \nunknown = z\n")
    assert cf.text("query") == "SELECT $x  FROM y"
    assert cf.text("a") == ""
    assert cf.text("b", "default") == "default"


def test_other_names_stand_for_parameters_of_main_cf() -> None:
    main_cf = {"names_query": "q", "names_limit": "7", "names_flag": "no"}
    cf = TableCf(b"names", Host(parameter=lambda name: main_cf.get(name, "")))
    assert (cf.required("query"), cf.integer("limit", 0), cf.boolean("flag", True)) == ("q", 7, False)
    assert (cf.text("other", "x"), cf.integer("other", 3), cf.boolean("other", True)) == ("x", 3, True)
    with pytest.raises(
        ConfigError, match=r"^main\.cf: parameter names_dbpath is missing; expected some text$"
    ):
        cf.required("dbpath")


def test_name_that_begins_with_a_dot_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table_cf(tmp_path, "a = 1\n")
    monkeypatch.chdir(tmp_path)
    assert TableCf(b"./t.cf", Host()).text("a") == "1"


def test_last_of_two_entries_wins_with_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    cf = table_cf(tmp_path, "a = 1\na = 1\na = 2\n", warnings)
    assert cf.text("a") == "2"
    assert warnings == [f"{tmp_path}/t.cf, line 3: overriding earlier entry: a=1"]


@pytest.mark.parametrize(("line", "what"), [("x", "missing '='"), ("= x", "missing attribute name")])
def test_line_that_is_no_entry_is_named(tmp_path: Path, line: str, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/t\.cf, line 2: {what}"):
        table_cf(tmp_path, f"a = 1\n{line}\n")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^open {tmp_path}/none: No such file or directory$"):
        TableCf(f"{tmp_path}/none".encode(), Host())


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("+7", 7), ("-7", -7), ("010", 10), (str(2**31 - 1), 2**31 - 1)]
)
def test_numbers_are_decimal(tmp_path: Path, text: str, number: int) -> None:
    assert table_cf(tmp_path, f"n = {text}\n").integer("n", 5) == number


@pytest.mark.parametrize("text", ["", "x", "1 2", "1k", "0x1", "1.0", "--1", "٣", str(2**31), "9" * 5000])
def test_bad_number_is_named(tmp_path: Path, text: str) -> None:
    expected = (
        f'{tmp_path}/t.cf, line 1: parameter n is "{text}"; expected a number from -2147483648 to 2147483647'
    )
    with pytest.raises(ConfigError) as caught:
        table_cf(tmp_path, f"n = {text}\n").integer("n", 5)
    assert str(caught.value) == expected


def test_number_out_of_bounds_is_refused(tmp_path: Path) -> None:
    cf = table_cf(tmp_path, "n = 10\n")
    assert cf.integer("n", 0, 1, 10) == 10
    with pytest.raises(ConfigError, match=r"expected a number from 1 to 9$"):
        cf.integer("n", 0, 1, 9)


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("Yes", True), ("NO", False)])
def test_boolean_is_yes_or_no(tmp_path: Path, text: str, value: bool) -> None:
    assert table_cf(tmp_path, f"b = {text}\n").boolean("b", not value) is value


@pytest.mark.parametrize("text", ["", "1", "true", "yess"])
def test_other_booleans_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f'line 1: parameter b is "{text}"; expected "yes" or "no"$'):
        table_cf(tmp_path, f"b = {text}\n").boolean("b", True)


def test_empty_text_is_refused_where_there_is_a_default(tmp_path: Path) -> None:
    cf = table_cf(tmp_path, "a =\n")
    assert cf.text("a") == ""
    with pytest.raises(ConfigError, match=r'line 1: parameter a is ""; expected some text$'):
        cf.text("a", "%s")
    with pytest.raises(ConfigError, match=r'line 1: parameter a is ""; expected some text$'):
        cf.required("a")


@pytest.mark.parametrize(
    "text",
    [
        "password = secret\npassword = x\n",
        "a = 1\npassword secret\n",
        "bind_pw secret\n",
        "hosts p://u:secret@h\n",
    ],
)
def test_no_password_is_told(tmp_path: Path, text: str) -> None:
    warnings: list[str] = []
    try:
        table_cf(tmp_path, text, warnings)
    except ConfigError as error:
        warnings.append(str(error))
    assert "secret" not in warnings[0]
    assert "***" in warnings[0]

"""test_template_model - what runs in C does as the model does: queries, refusals, values, lists of domains"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from template_model import Model, TooMany
from test_template import Recipe

from proxymap.errors import TableRetry
from proxymap.tables.base import Host, Opening
from proxymap.tables.domains import DomainList
from proxymap.tables.opening import open_table

NOKEY = 1
SAME_PLACE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

KEYS = st.one_of(
    st.text("ab@.'%\\é", max_size=12).map(str.encode),
    st.lists(st.sampled_from(["a", "b", ".", "@", "'"]), max_size=30).map("".join).map(str.encode),
    st.binary(max_size=12).map(lambda key: key.replace(b"\0", b"@")),
)
PIECES = st.sampled_from(
    ["%s", "%u", "%d", "%S", "%U", "%D", "%1", "%2", "%3", "%9", "%%", "'", " ", "x", "%%s", "\\", "é"]
)
TEMPLATES = st.lists(PIECES, min_size=1, max_size=6).map("".join)
VALUES = st.lists(
    st.one_of(st.none(), st.text("ab@.,", max_size=6).map(str.encode), st.binary(max_size=4)), max_size=6
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@SAME_PLACE
@given(
    keys=st.lists(KEYS, min_size=1, max_size=8),
    texts=st.tuples(TEMPLATES, TEMPLATES),
    values=VALUES,
    limit=st.integers(-1, 4),
    domains=st.none() | st.lists(st.sampled_from(["a", "a.b", "b.a", "é"]), min_size=1),
)
def test_keys_and_values_become_what_the_model_says(
    place: Path, keys: list[bytes], texts: tuple[str, str], values: list[bytes | None], limit: int,
    domains: list[str] | None,
) -> None:  # fmt: skip
    query, result = (f"<{text}>" for text in texts)  # a .cf file is not for blanks at the ends
    recipe = Recipe(place, query, result, ", ".join(domains or []), limit)
    model = Model(
        query.encode(), result.encode(), None if domains is None else [d.encode() for d in domains], limit
    )
    recipe.found = values
    for key in keys:
        recipe.queries.clear()
        expected = model.query(key)
        try:
            wanted = None if expected is None else model.answer(key, values)
        except TooMany:
            with pytest.raises(TableRetry, match="Expansion limit"):
                recipe.ask(key, 0)
        else:
            status, _, value = recipe.ask(key, 0)
            assert (value if status == 0 else None) == wanted, (key, query, result, values)
        assert recipe.queries == ([] if expected is None else [expected]), (key, query, result)
        assert (recipe.lookup(key)[0] == NOKEY) == (
            expected is None and (key != b"" or domains is not None)
        ), "as the loop asks"


NAMES = st.sampled_from(["a", "b", "A.b", "straße", "STRASSE", "x", ""])
ITEMS = st.lists(
    st.tuples(st.sampled_from(["", "!", "!!"]), st.one_of(NAMES.filter(bool), st.sampled_from(TABLES := [
        "inline:{a=1,b=2}", "static:x", "inline:{strasse=1}", "pcre:{{/^A/ 1}}",
    ]))).map("".join), min_size=1, max_size=6)  # fmt: skip


@given(items=ITEMS, asked=st.lists(NAMES, min_size=1), utf8=st.booleans())
@settings(deadline=None)
def test_a_list_of_domains_says_the_same_on_the_loop_and_on_a_worker(
    items: list[str], asked: list[str], utf8: bool
) -> None:
    found = DomainList(", ".join(items).encode(), "t.cf", Opening(0, False, Host(utf8), open_table))
    quick = found.quick
    assert (quick is None) == any("pcre" in item for item in items)
    for name in asked if quick is not None else ():
        assert (name.encode() in quick) == (name.encode() in found), (items, name)


def test_many_names_are_all_found() -> None:
    names = [f"d{n}.example" for n in range(5000)]
    found = DomainList(" ".join(names).encode(), "t.cf", Opening(0, False, Host(), open_table)).quick
    assert found is not None
    assert all(name.upper().encode() in found for name in names)
    assert not any(b"x" + name.encode() in found for name in names)


def test_threads_may_ask_the_same_table(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, "%u|%d|%1", domain="a.b")
    found: list[bool] = []

    def ask() -> None:
        found.append(all(recipe.lookup(b"u@A.b")[0] == 100 for _ in range(2000)))
        found.append(all(recipe.lookup(b"u@x.b")[0] == NOKEY for _ in range(2000)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8

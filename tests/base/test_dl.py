"""test_dl - libraries of the host that are opened when a table needs them"""

import pytest

from proxymap.base._dl import Library

PACKAGES = "libc6 (Debian), musl (Alpine)"


def test_first_library_that_is_there_is_taken() -> None:
    library = Library("some", ["libnone-of-that-name.so.1", "libc.so.6"], PACKAGES)
    assert library.soname == "libc.so.6"
    assert library.has("qsort")
    assert not library.has("no_function_of_that_name")


def test_missing_library_tells_what_to_install() -> None:
    with pytest.raises(ImportError) as told:
        Library("mysql", ["libnone.so.3", "libnone.so.2"], PACKAGES)
    assert str(told.value).startswith("mysql needs libnone.so.3 or libnone.so.2 (libnone.so.3: cannot open ")
    assert str(told.value).endswith("); install libc6 (Debian), musl (Alpine)")

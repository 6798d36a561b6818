"""test_safety - what root must not run, and what mail_owner cannot reach"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_prefix import Prefix

from proxymap.ctl.safety import Fault, Inspector, as_user, faults_of_program, first_closed, interpreter_of
from proxymap.errors import ConfigError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners can be changed by root only")

OWNER = "nobody"
SOMEBODY = 65534  # uid


@pytest.fixture
def tree() -> Iterator[Path]:
    """A folder of root's; pytest's own lie below /tmp, which everybody may write to."""
    parent = Path("/opt")
    if not parent.is_dir():
        pytest.skip("no /opt")
    folder = Path(tempfile.mkdtemp(prefix="pm-", dir=parent))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def script(tree: Path, first: str) -> str:
    path = tree / "proxymap"
    path.write_text(f"{first}\nimport proxymap\n")
    path.chmod(0o755)
    return str(path)


def what(program: str, owner: str = OWNER) -> str:
    return "\n".join(fault.line() for fault in faults_of_program(program, owner))


# Paths


def test_root_owned_path_is_safe(tree: Path) -> None:
    assert not list(Inspector().faults(str(tree)))


def test_folder_of_somebody_else_on_the_way_is_unsafe(tree: Path) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    os.chown(tree / "a", SOMEBODY, 0)
    assert [fault.where for fault in Inspector().faults(str(tree / "a" / "b"))] == [f"{tree}/a"]


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_folder_that_others_may_write_to_is_unsafe(tree: Path, mode: int) -> None:
    (tree / "a").mkdir()
    (tree / "a").chmod(mode)
    assert [fault.where for fault in Inspector().faults(str(tree / "a" / "b"))] == [f"{tree}/a"]


def test_each_step_of_a_chain_of_symlinks_is_looked_at(tree: Path) -> None:
    for name in ("a", "b"):
        (tree / name).mkdir()
    (tree / "b" / "file").write_text("")
    (tree / "a" / "link").symlink_to("../b/file")
    (tree / "link").symlink_to("a/link")
    assert not list(Inspector().faults(str(tree / "link")))
    (tree / "b").chmod(0o777)
    os.lchown(tree / "a" / "link", SOMEBODY, 0)
    found = [fault.where for fault in Inspector().faults(str(tree / "link"))]
    assert found == [f"{tree}/a/link", f"{tree}/b"]


def test_dots_after_a_symlink_are_those_of_its_target(tree: Path) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("")
    (tree / "link").symlink_to("a/b")
    (tree / "a" / "file").chmod(0o666)
    assert [fault.where for fault in Inspector().faults(f"{tree}/link/../file")] == [f"{tree}/a/file"]


def test_loop_of_symlinks_ends(tree: Path) -> None:
    (tree / "a").symlink_to("a")
    assert "too many symlinks" in next(Inspector().faults(str(tree / "a"))).what


def test_tree_is_searched_for_what_python_runs(tree: Path) -> None:
    (tree / "a").mkdir()
    for name in ("x.py", "x.so", "x.pth", "x.txt"):
        (tree / "a" / name).write_text("")
        (tree / "a" / name).chmod(0o666)
    found = [os.path.basename(fault.where) for fault in Inspector().tree(str(tree))]
    assert found == ["x.pth", "x.py", "x.so"]


# Programs


def test_first_line_gives_interpreter_and_one_argument(tree: Path) -> None:
    assert interpreter_of(script(tree, "#! /usr/bin/python3 -I -s")) == ["/usr/bin/python3", "-I -s"]


@pytest.mark.parametrize(
    ("first", "text"),
    [
        ("", "does not begin with #!"),
        ("#!/usr/bin/env python3", "runs /usr/bin/env"),
        ("#!/bin/sh", "runs /bin/sh"),
        ("#!/" + "x" * 252 + "/python3", "longer than the 255 bytes"),
    ],
)
def test_script_that_names_no_python_is_refused(tree: Path, first: str, text: str) -> None:
    assert text in what(script(tree, first))


def test_script_that_is_not_executable_is_refused(tree: Path) -> None:
    program = script(tree, "#!/usr/bin/python3")
    os.chmod(program, 0o644)
    assert "not executable" in what(program)


def test_missing_script_is_refused(tree: Path) -> None:
    assert "No such file" in what(str(tree / "proxymap"))


def test_interpreter_below_a_closed_folder_is_refused(tree: Path) -> None:
    (tree / "closed").mkdir(mode=0o700)
    (tree / "closed" / "python3").symlink_to("/usr/bin/python3")
    assert what(script(tree, f"#!{tree}/closed/python3")) == (
        f"{tree}/closed: nobody may not read it; "
        "let nobody in, for example with chmod a+rX, or install elsewhere"
    )


def test_interpreter_that_lacks_the_package_is_refused(tree: Path) -> None:
    (tree / "python3").write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    (tree / "python3").chmod(0o755)
    assert "cannot be started: no such luck" in what(script(tree, f"#!{tree}/python3"))


# A whole installation


def test_installation_of_root_is_safe(prefix: Prefix) -> None:
    assert what(str(prefix.program)) == ""


@pytest.mark.parametrize("name", ["main.py", "server/_loop.{}", "tables"])
def test_package_that_others_may_change_is_refused(prefix: Prefix, name: str) -> None:
    path = next(prefix.package.glob(name.format("*.so")))
    mode = path.stat().st_mode
    path.chmod(mode | 0o020)
    try:
        assert f"{path}: others may write to it" in what(str(prefix.program))
    finally:
        path.chmod(mode)
    os.chown(path, SOMEBODY, 0)
    try:
        assert f"{path}: belongs to nobody" in what(str(prefix.program))
    finally:
        os.chown(path, 0, 0)


def test_file_that_adds_to_the_path_is_code_too(prefix: Prefix) -> None:
    path = prefix.site / "x.pth"
    path.write_text("import sys\n")
    path.chmod(0o666)
    try:
        assert f"{path}: others may write to it" in what(str(prefix.program))
    finally:
        path.unlink()


def test_module_that_mail_owner_cannot_read_is_refused(prefix: Prefix) -> None:
    path = prefix.package / "server/daemon.py"
    path.chmod(0o600)
    try:
        assert f"{path}: nobody may not read it" in what(str(prefix.program))
    finally:
        path.chmod(0o644)


# Becoming mail_owner


def test_child_is_that_user_for_good() -> None:
    assert as_user(OWNER, lambda: list(os.getresuid())) == [SOMEBODY] * 3
    assert os.geteuid() == 0


def test_unknown_user_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="mail_owner: there is no user nobody-at-all"):
        as_user("nobody-at-all", os.getuid)


def test_first_closed_names_the_folder(tree: Path) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("")
    assert as_user(OWNER, lambda: first_closed(f"{tree}/a/b/file")) is None
    (tree / "a").chmod(0o700)
    assert as_user(OWNER, lambda: first_closed(f"{tree}/a/b/file")) == f"{tree}/a"


def test_fault_is_one_line() -> None:
    assert Fault("a", "b", "c").line() == "a: b; c"
    assert Fault("a", "b", "c", warning=True).line() == "warning: a: b; c"

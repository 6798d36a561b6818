"""test_leftovers - the fixture that fails a test which leaves something behind"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLEEPER = "[sys.executable, '-c', 'import time; time.sleep(60)']"
LEAVES = {
    "thread": "threading.Thread(target=time.sleep, args=(60,), daemon=True, name='Idler').start()",
    "process": f"keep.append(subprocess.Popen({SLEEPER}))",
    "descriptor": "os.open('/etc/passwd', os.O_RDONLY)",
}
SHARED = """
@pytest.fixture(scope="module")
def server():
    with subprocess.Popen({}) as started:
        yield
        started.kill()
"""


def judged(folder: Path, body: str, more: str = "") -> str:
    """What pytest says of a test with this body, and its exit status."""
    (folder / "test_it.py").write_text(
        "import os, subprocess, sys, threading, time\nimport fix_leftovers\nimport pytest\n"
        f"fix_leftovers.GRACE = 0.2\nkeep = []\n{more}\n{body}\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "fix_leftovers",
        "-p",
        "no:cacheprovider",
        "test_it.py",
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return f"{done.stdout}{done.returncode}"


@pytest.mark.parametrize("kind", LEAVES)
def test_test_that_leaves_something_behind_fails(tmp_path: Path, kind: str) -> None:
    ending = "\n\ndef test_end():\n    for one in keep: one.kill(); one.wait()"
    said = judged(tmp_path, f"def test_it():\n    {LEAVES[kind]}{ending}")
    assert f"left behind: {kind}" in said
    assert said.endswith("1")


def test_what_a_shared_fixture_starts_is_not_left_behind(tmp_path: Path) -> None:
    first = "def test_first(request):\n    request.getfixturevalue('server')"
    second = "def test_second(server):\n    pass"
    assert judged(tmp_path, f"{first}\n\n{second}", SHARED.format(SLEEPER)).endswith("0")

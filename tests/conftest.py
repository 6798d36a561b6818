"""conftest - the fixtures that tests of several folders share, and what holds for every test

Every run draws the same examples; `make fuzz` draws others. Every Python that a test starts
says where it was when it crashed.
"""

import os
import signal

import fix_leftovers
import pytest
from fix_gate import gate
from fix_mariadb import mariadb
from fix_pgsql import postgresql
from fix_postfix import command, stock_postfix
from fix_prefix import prefix
from fix_slapd import slapd
from hypothesis import settings

__all__ = [
    "command",
    "gate",
    "mariadb",
    "postgresql",
    "prefix",
    "slapd",
    "stock_postfix",
]

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("other", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
os.environ.setdefault("PYTHONFAULTHANDLER", "1")
# A shell that starts the tests in the background ignores SIGINT, and nohup SIGHUP; so would every process
# of theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """A plugin of its own, since the hooks of this file do not see fixtures of the whole run."""
    config.pluginmanager.register(fix_leftovers)

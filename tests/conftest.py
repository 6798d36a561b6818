"""conftest - every run of the suite draws the same examples; `make fuzz` draws others"""

import os

from fix_mariadb import mariadb
from fix_pgsql import postgresql
from hypothesis import settings

__all__ = ["mariadb", "postgresql"]  # servers that all tests of a session share

settings.register_profile("same", derandomize=True)
settings.register_profile("other", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

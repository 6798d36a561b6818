"""conftest - every run of the suite draws the same examples; `make fuzz` draws others"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("other", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

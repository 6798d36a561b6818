"""run - fuzz one target with libFuzzer: run.py TARGET [ARGUMENT OF LIBFUZZER ...]"""

import sys

import atheris

with atheris.instrument_imports(include=["proxymap"]):
    import targets

atheris.Setup([sys.argv[0], *sys.argv[2:]], targets.TARGETS[sys.argv[1]])
atheris.Fuzz()

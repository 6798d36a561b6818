"""Compile every .pyx of the package; all else is in pyproject.toml.

Environment: PROXYMAP_CFLAGS and PROXYMAP_LDFLAGS are added to the compiler's
and the linker's options (`make asan` uses them).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "binding": True,
}

CFLAGS = ["-O2", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unused-function"]

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        extra_compile_args=CFLAGS + os.environ.get("PROXYMAP_CFLAGS", "").split(),
        extra_link_args=os.environ.get("PROXYMAP_LDFLAGS", "").split(),
    )
    for path in sorted(Path("proxymap").rglob("*.pyx"))
]

setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, build_dir="build/cython"),
    options={"build_ext": {"parallel": os.cpu_count()}},
)

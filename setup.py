"""Compile every .pyx of the package; all else is in pyproject.toml.

Environment: PROXYMAP_CFLAGS and PROXYMAP_LDFLAGS are added to the compiler's
and the linker's options (`make asan` uses them). PROXYMAP_C is a folder with
the C of every .pyx; without it Cython makes that (the Debian package has it).
"""

import os
from pathlib import Path

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

GENERATED = os.environ.get("PROXYMAP_C")

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(Path(GENERATED, path).with_suffix(".c") if GENERATED else path)],
        extra_compile_args=CFLAGS + os.environ.get("PROXYMAP_CFLAGS", "").split(),
        extra_link_args=os.environ.get("PROXYMAP_LDFLAGS", "").split(),
    )
    for path in sorted(Path("proxymap").rglob("*.pyx"))
]

if not GENERATED:
    from Cython.Build import cythonize

    extensions = cythonize(extensions, compiler_directives=DIRECTIVES, build_dir="build/cython")

setup(
    ext_modules=extensions,
    options={"build_ext": {"parallel": os.cpu_count()}},
)

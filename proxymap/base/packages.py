"""packages - which Python packages some table types need, and the command that installs them

The command is for the Python that runs this, and for no other: its own pip, or
the distribution's packages where that pip must not be used (PEP 668). It names
the libraries and not an extra of "proxymap": whose pip is asked for that name
outside of our environment looks for it on PyPI.
"""

from __future__ import annotations

import os
import shlex
import sys

# As pyproject.toml has them, under the names of its extras; and Debian's packages of them.
PACKAGES = {
    "bdb": ("berkeleydb>=18.1.17", ""),
    "cdb": ("cdbx>=0.3", ""),
    "http": ("urllib3>=2", "python3-urllib3"),
    "lmdb": ("lmdb>=3.0", "python3-lmdb"),
    "mongodb": ("pymongo>=4.2", "python3-pymongo"),
    "redis": ("redis>=6", "python3-redis"),
}


def how_to_install(extra: str) -> str:
    """how_to_install - what to type, as root, for the package that this extra of ours stands for"""
    requirement, package = PACKAGES[extra]
    pip = os.path.join(os.path.dirname(sys.executable), "pip")
    if _is_managed() and os.path.exists("/usr/bin/apt-get"):
        if package:
            return f"apt-get install {package} ({requirement}; where that is older see docs/install.md)"
        return f"install proxymap into a virtual environment (docs/install.md), and {requirement} with it"
    command = [pip] if os.path.exists(pip) else [sys.executable or "python3", "-m", "pip"]
    return shlex.join([*command, "install", requirement])


def _is_managed() -> bool:
    """Is this the distribution's own Python, which pip is not to change?"""
    if sys.prefix != sys.base_prefix:
        return False
    return os.path.exists(os.path.join(os.path.dirname(os.__file__), "EXTERNALLY-MANAGED"))

"""confine - what both lives give up before they start their threads: rights that serving does not need

Source: prctl(2), PR_SET_NO_NEW_PRIVS and PR_SET_DUMPABLE; getrlimit(2), RLIMIT_CORE.
"""

from __future__ import annotations

import resource
from contextlib import suppress

from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings
from proxymap.server.daemon import Daemon
from proxymap.server.sandbox import _landlock
from proxymap.tables.types import stand_by


def confine(
    server: Daemon, settings: Settings, main_cf: MainCf, *, socket: str | None, publishes: bool = False
) -> None:
    """confine - give up what serving does not need, for good

    Call this when privileges were dropped and there are no threads yet. socket: beside which the
    server tidies up; publishes: it puts the socket there, too.
    """
    give_up_rights(core_dumps=settings.core_dumps)
    server.settle()
    if settings.sandbox:
        try:
            _enter(server, settings, main_cf, socket, publishes)
        except Exception as error:  # whatever it is: mail goes on
            server.log.exception("sandbox = yes, and going on without", error=error)
    stand_by(alone=server.sandbox is not None and server.sandbox.entered)


def load_sandbox(settings: Settings) -> None:
    """load_sandbox - import what `confine` needs, before chroot and a change of user prevent that"""
    if settings.sandbox:
        from proxymap.server.sandbox import entering, policy  # noqa: F401


def _enter(server: Daemon, settings: Settings, main_cf: MainCf, socket: str | None, publishes: bool) -> None:
    from proxymap.server.sandbox.entering import Sandbox
    from proxymap.server.sandbox.policy import Policy

    policy = Policy(settings, main_cf, server.approved, writes=server.writes)
    if socket:
        policy.beside(socket, publishes)
    server.sandbox = Sandbox(policy, server.writes)
    server.sandbox.enter(server.log)


def give_up_rights(*, core_dumps: bool) -> None:
    """give_up_rights - no new privileges by programs that are run; no memory, and its passwords, on disk

    A change of user undoes the second.
    """
    with suppress(OSError):
        _landlock.no_new_privileges()
    if core_dumps:
        return
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        _landlock.not_dumpable()

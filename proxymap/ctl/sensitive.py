"""sensitive - parameters of main.cf whose tables Postfix does not open by way of proxymap

Some of its programs ignore the "proxy:" before a table; others find none there. With types that
only proxymap has, both cannot work.

Source: "proxymap" in local(8) and virtual(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from proxymap.config.approval import approved_tables
from proxymap.config.maincf import MainCf
from proxymap.ctl.safety import Fault
from proxymap.tables.opening import open_table
from proxymap.tables.types import NOT_IN_POSTFIX

# The delivery agents open these tables themselves, whatever stands before the name, and user ids,
# commands and the like must not come from proxymap: nobody else has a use for them.
SENSITIVE = {
    "virtual_uid_maps": "virtual(8)",
    "virtual_gid_maps": "virtual(8)",
    "mailbox_command_maps": "local(8)",
}
# These too, but smtpd(8) asks for the same tables, and may ask proxymap.
SHARED = {"virtual_mailbox_maps": "virtual(8)", "alias_maps": "local(8)"}


def proxied_in_vain(main_cf: MainCf) -> Iterator[Fault]:
    """proxied_in_vain - tables of parameters whose proxy: is ignored"""
    for name, daemon in (SENSITIVE | SHARED).items():
        for table in sorted(_named(main_cf, name)):
            where, what = main_cf.where(name), f"{name}: {daemon} ignores the proxy: before {table}"
            maptype = table.partition(":")[0]
            if name in SENSITIVE:
                remedy = 'take "proxy:" away'
                if maptype in NOT_IN_POSTFIX:
                    remedy = f"use another type: Postfix has no type {maptype}"
                yield Fault(where, f"{what}; such a table must not be proxied", remedy)
            elif maptype in NOT_IN_POSTFIX:
                yield _impossible(where, f"{what}, and Postfix has no type {maptype}", daemon)
            elif name == "virtual_mailbox_maps" and _opens(table):
                continue  # virtual(8) opens it before it gives up root, as we have just done
            else:
                what = f"{what} and opens the table itself; smtpd(8) does ask proxymap"
                yield Fault(where, what, f"see that {daemon} can open it", warning=True)


def _impossible(where: str, what: str, daemon: str) -> Fault:
    """smtpd(8) does ask proxymap, and another program may deliver: then it is right as it is."""
    return Fault(
        where, f"{what}: what {daemon} has to deliver is deferred",
        f"deliver by another program than {daemon}, or use a type that Postfix has", warning=True,
    )  # fmt: skip


def unproxied(main_cf: MainCf, names: Iterable[str]) -> Iterator[Fault]:
    """unproxied - tables that only proxymap has, in these parameters, without proxy: before them"""
    for name in names:
        for table in sorted(_named(main_cf, name, everything=True) - _named(main_cf, name)):
            maptype, _, rest = table.partition(":")
            if maptype in NOT_IN_POSTFIX and not rest.startswith("//"):  # which would be a URL in some text
                what = f"{name} has {table}, and Postfix has no type {maptype}"
                remedy = f"write proxy:{table}"
                if name in SENSITIVE | SHARED:
                    remedy = (
                        "use a type that Postfix has: this parameter's tables are opened without proxymap"
                    )
                yield Fault(main_cf.where(name), what, remedy)


def _opens(table: str) -> bool:
    return open_table(table.encode("utf-8", "surrogateescape")).reason is None


def _named(main_cf: MainCf, name: str, everything: bool = False) -> set[str]:
    """Tables of a parameter that have proxy: before them; everything: and those without it."""
    found = approved_tables(main_cf.get(name), name, False, lambda text: None, everything)
    return {table.decode("utf-8", "surrogateescape") for table in found}

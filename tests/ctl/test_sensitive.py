"""test_sensitive - `check` on types that only proxymap has, where Postfix does without it"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from test_checks import Host

from proxymap.config.maincf import MainCf
from proxymap.ctl.safety import Fault
from proxymap.ctl.sensitive import proxied_in_vain, unproxied

MAPTYPES = ["redis", "http", "python"]
TABLE = "/etc/postfix/x.cf"


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    shutil.rmtree(made.dir)


def faults(host: Host, **parameters: str) -> list[Fault]:
    host.set(**parameters)
    main_cf = MainCf(str(host.dir))
    return [*proxied_in_vain(main_cf), *unproxied(main_cf, parameters)]


@pytest.mark.parametrize("maptype", MAPTYPES)
@pytest.mark.parametrize(
    ("name", "daemon"), [("alias_maps", "local(8)"), ("virtual_mailbox_maps", "virtual(8)")]
)
def test_what_a_delivery_agent_cannot_open(host: Host, maptype: str, name: str, daemon: str) -> None:
    (fault,) = faults(host, **{name: f"proxy:{maptype}:{TABLE}"})
    assert fault.warning
    assert fault.where == host.line(name)
    assert f"{daemon} ignores the proxy: before {maptype}:{TABLE}" in fault.what
    assert f"Postfix has no type {maptype}" in fault.what
    assert "deferred" in fault.what


@pytest.mark.parametrize("maptype", MAPTYPES)
def test_without_proxy_it_is_a_fault(host: Host, maptype: str) -> None:
    (fault,) = faults(
        host, virtual_alias_maps=f"hash:/etc/x {maptype}:{TABLE}, proxy:redis:/etc/postfix/y.cf"
    )
    assert not fault.warning
    assert fault.what == f"virtual_alias_maps has {maptype}:{TABLE}, and Postfix has no type {maptype}"
    assert fault.remedy == f"write proxy:{maptype}:{TABLE}"
    (fault,) = faults(host, virtual_alias_maps="", virtual_uid_maps=f"{maptype}:{TABLE}")
    assert fault.remedy.startswith("use a type that Postfix has")


def test_what_must_not_be_proxied_stays_a_fault(host: Host) -> None:
    (fault,) = faults(host, virtual_uid_maps=f"proxy:redis:{TABLE}")
    assert not fault.warning
    assert fault.remedy == "use another type: Postfix has no type redis"


def test_a_url_in_a_text_is_no_table(host: Host) -> None:
    assert (
        faults(host, smtpd_reject_footer="see http://example.com/help", virtual_alias_maps="proxy:redis:/x")
        == []
    )


def test_check_has_it(host: Host) -> None:
    host.set(virtual_alias_maps=f"redis:{TABLE}")
    assert [fault.what for fault in host.check()] == [
        f"virtual_alias_maps has redis:{TABLE}, and Postfix has no type redis"
    ]

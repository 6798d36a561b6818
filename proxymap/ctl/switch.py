"""switch - what the commands enable and disable share: options, and what they say at the end"""

from __future__ import annotations

import signal
from collections.abc import Iterator

from proxymap.ctl import takeover
from proxymap.ctl.options import Parser
from proxymap.ctl.outcome import EX_NOPERM, EX_OK, EX_UNAVAILABLE, complain

# What --service says -> services; none named are those that are enabled.
SERVICES = {
    "proxymap": ["proxymap"],
    "proxywrite": ["proxywrite"],
    "both": ["proxymap", "proxywrite"],
    "": [],
}


def add(parser: Parser, default: str) -> None:
    """add - the options; default: the services that are switched unless --service says otherwise"""
    parser.description = f"{parser.description}: master.cf, reload, and lookups to see that it works."
    parser.add_argument("--dry-run", action="store_true", help="print the commands, change nothing")
    text = f"default: {default or 'those that are enabled'}"
    parser.add_argument("--service", choices=[*filter(None, SERVICES)], default=default, help=text)


def run(told: Iterator[str]) -> int:
    """run - what takeover's enable or disable tells, line by line"""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a lost terminal is no reason to leave things half done
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        for line in told:
            print(line, flush=True)
    except takeover.Prevented as prevented:
        for fault in prevented.faults:
            complain(f"refused: {fault.line()}", EX_NOPERM)
        return EX_NOPERM
    except takeover.Failed as failure:
        return complain(str(failure), EX_UNAVAILABLE)
    return EX_OK

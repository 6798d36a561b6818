"""main - `proxymap`: options as multi_server(3) has them -> Settings -> a life -> the server

Source: proxymap(8), multi_server(3), sysexits(3).
"""

from __future__ import annotations

import getopt
import os
import resource
import sys
import time

from proxymap import standalone
from proxymap.errors import ConfigError
from proxymap._jobs import LEVEL_FATAL
from proxymap.log import Log, Sink, to_postlog, to_stderr, to_syslog
from proxymap.settings import Settings, load

USAGE = """\
usage: proxymap --listen unix:PATH [options]

Serve Postfix's proxymap protocol: lookup tables that main.cf approves
(proxy_read_maps, proxy_write_maps), over a UNIX-domain socket.

  --listen unix:PATH       serve a socket of its own, in the foreground;
                           without it: the sockets of a systemd .socket unit
  --config-directory DIR   where main.cf and proxymap.cf are
                           (default: $MAIL_CONFIG, else /etc/postfix)
  -n proxymap|proxywrite   the service: read-only tables, or read-write ones
                           (default: proxymap)
  -o NAME=VALUE            override a parameter; may be repeated
  --log-to stderr|mail     where log lines go: stderr, or as main.cf says,
                           to maillog_file or syslog (default: stderr)
  -v                       log more; may be repeated
  -V                       log to stderr too
  --version, --help

SIGTERM and SIGINT: stop after answering what is pending.
Exit status: 0 stopped on request; 1 a fatal error, which is logged.

Example: proxymap --listen unix:/run/proxymap.sock --config-directory /etc/postfix
"""

FATAL_PAUSE = 1.0  # seconds before a fatal exit, so that a restart loop is slow
SERVICES = ("proxymap", "proxywrite")


class Options:
    """The command line, taken apart. Raises ConfigError for what it cannot use."""

    def __init__(self, arguments: list[str]) -> None:
        self.config_directory = os.environ.get("MAIL_CONFIG") or "/etc/postfix"
        self.listen: str | None = None
        self.service_name = "proxymap"
        self.overrides: list[str] = []
        self.log_to = "stderr"
        self.verbose = 0
        self.to_stderr = False
        self.only_show: str | None = None
        try:
            found, rest = getopt.getopt(
                arguments, "n:o:vV", ["listen=", "config-directory=", "log-to=", "version", "help"]
            )
        except getopt.GetoptError as error:
            raise ConfigError(f"{error}; see proxymap --help") from None
        if rest:
            raise ConfigError(f"unexpected command-line argument: {rest[0]}; see proxymap --help")
        for name, value in found:
            self._take(name, value)

    def _take(self, name: str, value: str) -> None:
        if name == "--listen":
            self.listen = value
        elif name == "--config-directory":
            self.config_directory = value
        elif name == "-n":
            if value not in SERVICES:
                raise ConfigError(f'-n "{value}": the service name is one of {", ".join(SERVICES)}')
            self.service_name = value
        elif name == "-o":
            self.overrides.append(value)
        elif name == "--log-to":
            if value not in ("stderr", "mail"):
                raise ConfigError(f'--log-to "{value}": expected stderr or mail')
            self.log_to = value
        elif name == "-v":
            self.verbose += 1
        elif name == "-V":
            self.to_stderr = True
        else:
            self.only_show = name


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; returns its exit status."""
    log = Log([to_stderr("postfix/proxymap")])
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
        if options.only_show:
            show(options.only_show)
        else:
            serve(options, log)
    except ConfigError as error:
        log.fatal(str(error))
    except Exception:
        log.exception("unexpected trouble", LEVEL_FATAL)
    else:
        return 0
    time.sleep(FATAL_PAUSE)
    return 1


def show(what: str) -> None:
    from proxymap import __version__

    sys.stdout.write(USAGE if what == "--help" else f"proxymap {__version__}\n")


def serve(options: Options, log: Log) -> None:
    """Configure, then live until asked to stop."""
    settings, main_cf = load(
        options.config_directory, options.overrides, options.service_name, "proxymap", log.warning
    )
    log.verbose = options.verbose
    log.sinks = open_sinks(settings, options)
    raise_descriptor_limit()
    standalone.run(settings, main_cf, log, listen=options.listen, writes=options.service_name == "proxywrite")


def open_sinks(settings: Settings, options: Options) -> list[Sink]:
    """Where main.cf and the command line want the log. ConfigError if maillog_file is not allowed."""
    ident = f"{settings.syslog_name}/proxymap"
    sinks = [to_stderr(ident)] if options.log_to == "stderr" or options.to_stderr else []
    if options.log_to == "mail":
        if settings.maillog_file:
            if not settings.maillog_file.startswith(settings.maillog_file_prefixes):
                prefixes = " ".join(settings.maillog_file_prefixes)
                raise ConfigError(
                    f"parameter maillog_file: {settings.maillog_file} begins with none of"
                    f" maillog_file_prefixes ({prefixes})"
                )
            postlog = os.path.join(settings.queue_directory, "public", settings.postlog_service_name)
            sinks.append(to_postlog(ident, postlog, settings.myhostname))
        else:
            sinks.append(to_syslog(ident, settings.syslog_facility))
    return sinks


def raise_descriptor_limit() -> None:
    """As many connections as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

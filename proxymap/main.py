"""main - `proxymap`: options as multi_server(3) has them -> Settings -> a life -> the server

Source: proxymap(8), multi_server(3), sysexits(3).
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module

from proxymap.config.maincf import MainCf
from proxymap.config.settings import Settings, load
from proxymap.errors import ConfigError
from proxymap.server.launch import Start
from proxymap.server.log import Log, Sink, to_postlog, to_stderr, to_syslog
from proxymap.tables._jobs import LEVEL_FATAL

USAGE = """\
usage: proxymap --listen unix:PATH [options]
       proxymap -t unix [options]           (by master(8): see proxymapctl enable)

Serve Postfix's proxymap protocol: lookup tables that main.cf approves
(proxy_read_maps, proxy_write_maps), over a UNIX-domain socket.

  --listen unix:PATH       serve a socket of its own, in the foreground;
                           without it: the sockets of a systemd .socket unit
  --config-directory DIR   where main.cf and proxymap.cf are
                           (default: $MAIL_CONFIG, else /etc/postfix)
  --user NAME              become this user when started as root, which it does not
                           stay (default: main.cf's mail_owner)
  -n proxymap|proxywrite   the service: read-only tables, or read-write ones
                           (default: proxymap); export-proxy-SERVICE: print the
                           tables that it may open, export-all-SERVICE: all in
                           its list, and end
  -o NAME=VALUE            override a parameter; may be repeated
  --log-to stderr|mail     where log lines go: stderr, or as main.cf says, to
                           maillog_file or syslog (default: stderr; by master: mail)
  -v                       log more; may be repeated
  -V                       log to stderr too
  --version, --help

What master(8) passes, as in multi_server(3): -c chroot, -d not a daemon,
-D debugger_command, -i max_idle, -l and -z (the process limit), -m max_use,
-s number of sockets, -S one client on standard input, -t transport, -u run as
mail_owner.

SIGTERM and SIGINT: stop after answering what is pending. SIGHUP (without
master): read main.cf and proxymap.cf anew; connections stay.
Exit status: 0 stopped on request; 1 a fatal error, which is logged.

Example: proxymap --listen unix:/run/proxymap/socket --config-directory /etc/postfix
"""

FATAL_PAUSE = 1.0  # seconds before a fatal exit, so that a restart loop is slow
IDENT = "proxymap"  # the process name in the log, for both services
SHORT = "cdDi:lm:n:o:s:St:uvVz"  # multi_server(3)
LONG = ["listen=", "user=", "config-directory=", "log-to=", "version", "help"]


class Options:
    """The command line, taken apart. Raises ConfigError for what it cannot use."""

    def __init__(self, arguments: list[str]) -> None:
        self.config_directory = os.environ.get("MAIL_CONFIG") or "/etc/postfix"
        self.listen: str | None = None
        self.user = ""
        self.service_name = "proxymap"
        self.overrides: list[str] = []
        self.log_to = ""
        self.verbose = int("MAIL_VERBOSE" in os.environ)
        self.to_stderr = False
        self.only_show: str | None = None
        self.exports: str | None = None  # a key of EXPORTS
        self.start = Start()
        self.start.debug = "MAIL_DEBUG" in os.environ
        for name, value in taken_apart(arguments):
            self._take(name, value)
        for prefix in EXPORTS:
            if self.service_name.startswith(prefix):
                self.exports, self.service_name = prefix, self.service_name.removeprefix(prefix)
        self.config_directory = os.path.abspath(self.config_directory)  # a reload is in queue_directory

    @property
    def under_master(self) -> bool:
        return bool(self.start.transport or self.start.on_stdin)

    def _take(self, name: str, value: str) -> None:
        if name in ("--version", "--help"):
            self.only_show = name
        elif name == "--log-to":
            if value not in ("stderr", "mail"):
                raise ConfigError(f'--log-to "{value}": expected stderr or mail')
            self.log_to = value
        elif name == "-s":
            if not value.isdecimal() or int(value) < 1:
                raise ConfigError(f'-s "{value}": expected a number of sockets')
            self.start.sockets = int(value)
        elif name in OVERRIDES:
            self.overrides.append(OVERRIDES[name] + value)
        elif name in WORDS:
            setattr(self, WORDS[name], value)
        elif name == "-t":
            self.start.transport = value
        elif name == "-v":
            self.verbose += 1
        elif name == "-V":
            self.to_stderr = True
        elif name in SWITCHES:
            setattr(self.start, SWITCHES[name], True)
        # -l and -z tell the process limit, which is master's business.


def taken_apart(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """taken_apart - options and their values, as getopt(3) reads them; ConfigError for what is none

    The module getopt takes as long to import as all of the configuration takes to read.
    """
    words = iter(arguments)
    for word in words:
        if word.startswith("--") and word != "--":
            name, equals, value = word.partition("=")
            takes_value = f"{name[2:]}=" in LONG
            if not takes_value and name[2:] not in LONG:
                raise _wrong(f"option {name} not recognized")
            if equals and not takes_value:
                raise _wrong(f"option {name} must not have an argument")
            yield name, value if equals or not takes_value else _next(words, name)
        elif word.startswith("-") and word not in ("-", "--"):
            yield from _letters(word[1:], words)
        else:
            rest = [word, *words]
            if rest != ["--"]:
                raise _wrong(f"unexpected command-line argument: {rest[word == '--']}")


def _letters(letters: str, words: Iterator[str]) -> Iterator[tuple[str, str]]:
    """One or more options behind one dash; the last may have its value behind it, or in the next word."""
    for at, letter in enumerate(letters, 1):
        if letter == ":" or letter not in SHORT:
            raise _wrong(f"option -{letter} not recognized")
        if f"{letter}:" in SHORT:
            yield f"-{letter}", letters[at:] or _next(words, f"-{letter}")
            return
        yield f"-{letter}", ""


def _next(words: Iterator[str], name: str) -> str:
    for word in words:
        return word
    raise _wrong(f"option {name} requires argument")


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"{what}; see proxymap --help")


EXPORTS = {"export-proxy-": False, "export-all-": True}  # what -n begins with: with tables not approved?
OVERRIDES = {"-o": "", "-i": "max_idle=", "-m": "max_use="}
WORDS = {
    "--listen": "listen",
    "--user": "user",
    "--config-directory": "config_directory",
    "-n": "service_name",
}
SWITCHES = {"-c": "chroot", "-d": "not_daemon", "-D": "debug", "-S": "on_stdin", "-u": "unprivileged"}


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; returns its exit status."""
    log = Log([early_sink()])
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
    """Configure, then live until the end."""
    sys.dont_write_bytecode = True  # root's umask would make it unreadable for mail_owner
    read = partial(
        load, options.config_directory, options.overrides, options.service_name, IDENT, log.warning
    )
    life = "proxymap.server.master" if options.under_master else "proxymap.server.standalone"
    gc.disable()  # what is imported stays
    settings, main_cf = read(meanwhile=lambda: import_module(life))
    gc.freeze()
    gc.enable()
    if options.exports:
        export(settings, main_cf, options, log)
        return
    log.verbose = options.verbose
    log.sinks = open_sinks(settings, options)
    threading.excepthook = lambda details: log.exception("a thread ended", error=details.exc_value)
    raise_descriptor_limit()
    writes = is_read_write(settings, options.service_name)
    if options.under_master:
        from proxymap.server import master

        master.run(settings, main_cf, log, options.start, service_name=options.service_name, writes=writes)
    else:
        from proxymap.server import standalone

        standalone.become_unprivileged(settings, main_cf, options.user, writes=writes)
        standalone.run(settings, main_cf, log, listen=options.listen, writes=writes, load=read)


def export(settings: Settings, main_cf: MainCf, options: Options, log: Log) -> None:
    """Print the tables that main.cf approves for the service, sorted."""
    from proxymap.config.approval import approve

    writes = is_read_write(settings, options.service_name)
    everything = EXPORTS[options.exports or ""]
    for table in sorted(approve(settings, main_cf, writes, log.warning, everything)):
        sys.stdout.buffer.write(table + b"\n")
    sys.stdout.flush()


def is_read_write(settings: Settings, service_name: str) -> bool:
    """Which of the two services is this? Postfix's names count, and those that main.cf tells its clients."""
    if service_name in ("proxymap", settings.proxymap_service_name):
        return False
    if service_name in ("proxywrite", settings.proxywrite_service_name):
        return True
    raise ConfigError(
        f'service name "{service_name}": expected proxymap or proxywrite,'
        " or what main.cf's proxymap_service_name or proxywrite_service_name say"
    )


def early_sink() -> Sink:
    """Where lines go before main.cf was read: with master to postlog or syslog, else to stderr."""
    tag = os.environ.get("MAIL_LOGTAG")
    if not tag:
        return to_stderr(f"postfix/{IDENT}")
    if postlog := os.environ.get("POSTLOG_SERVICE"):
        return to_postlog(f"{tag}/{IDENT}", postlog, os.environ.get("POSTLOG_HOSTNAME", ""))
    return to_syslog(f"{tag}/{IDENT}", "mail")


def open_sinks(settings: Settings, options: Options) -> list[Sink]:
    """Where main.cf and the command line want the log. ConfigError if maillog_file is not allowed."""
    ident = f"{settings.syslog_name}/{IDENT}"
    log_to = options.log_to or ("mail" if options.under_master else "stderr")
    sinks = [to_stderr(ident)] if log_to == "stderr" or options.to_stderr else []
    if log_to == "stderr":
        return sinks
    if not settings.maillog_file:
        return [*sinks, to_syslog(ident, settings.syslog_facility)]
    if not settings.maillog_file.startswith(settings.maillog_file_prefixes):
        prefixes = " ".join(settings.maillog_file_prefixes)
        raise ConfigError(
            f"parameter maillog_file: {settings.maillog_file} begins with none of"
            f" maillog_file_prefixes ({prefixes})"
        )
    postlog = os.path.join(settings.queue_directory, "public", settings.postlog_service_name)
    return [*sinks, to_postlog(ident, postlog, settings.myhostname)]


def raise_descriptor_limit() -> None:
    """As many connections as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""settings - the parameters of the daemon, typed: one field per parameter

main.cf's parameters have Postfix's names, defaults and limits; those of proxymap.cf
(in config_directory, may be absent) are ours. `-o name=value` overrides either.
Time is in seconds, size in bytes.

Source: postconf(5); limits as proxymap of 3.7.11 enforces them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from proxymap.config.maincf import UNUSABLE, MainCf, Warn, read_parameters, split_parameter
from proxymap.config.per_table import PerTable, exact_types, names_by_type, table_options
from proxymap.config.source import split_words
from proxymap.errors import ConfigError

# typing and dataclasses would take 13 ms to import, more than all the rest of start-up here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

INT_MAX = 2147483647
LONG_MAX = 9223372036854775807

# syslog(3): the index is the facility's number.
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("", "", "", ""),
    *("local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"),
)

# What Postfix 3.12 reads proxy:type:name from, where no Postfix says otherwise; 3.7 knows all but
# those from smtpd_reject_filter_maps on. A name that is not set is empty.
READ_MAPS = """
    $local_recipient_maps $mydestination $virtual_alias_maps $virtual_alias_domains $virtual_mailbox_maps
    $virtual_mailbox_domains $relay_recipient_maps $relay_domains $canonical_maps $sender_canonical_maps
    $recipient_canonical_maps $relocated_maps $transport_maps $mynetworks $smtpd_sender_login_maps
    $sender_bcc_maps $recipient_bcc_maps $smtp_generic_maps $lmtp_generic_maps $alias_maps
    $smtpd_client_restrictions $smtpd_helo_restrictions $smtpd_sender_restrictions $smtpd_relay_restrictions
    $smtpd_recipient_restrictions $address_verify_sender_dependent_default_transport_maps
    $address_verify_sender_dependent_relayhost_maps $address_verify_transport_maps $fallback_transport_maps
    $lmtp_discard_lhlo_keyword_address_maps $lmtp_pix_workaround_maps $lmtp_sasl_password_maps
    $lmtp_tls_policy_maps $mailbox_command_maps $mailbox_transport_maps
    $postscreen_discard_ehlo_keyword_address_maps $rbl_reply_maps $sender_dependent_default_transport_maps
    $sender_dependent_relayhost_maps $smtp_discard_ehlo_keyword_address_maps $smtp_pix_workaround_maps
    $smtp_sasl_password_maps $smtp_tls_policy_maps $smtpd_discard_ehlo_keyword_address_maps $smtpd_milter_maps
    $virtual_gid_maps $virtual_uid_maps $local_login_sender_maps $postscreen_reject_footer_maps
    $smtpd_reject_footer_maps $tls_server_sni_maps $tlsproxy_client_policy_maps
    $default_delivery_status_filter $lmtp_delivery_status_filter $lmtp_dns_reply_filter $lmtp_reply_filter
    $local_delivery_status_filter $pipe_delivery_status_filter $postscreen_command_filter
    $smtp_delivery_status_filter $smtp_dns_reply_filter $smtp_reply_filter $smtpd_command_filter
    $smtpd_dns_reply_filter $virtual_delivery_status_filter $body_checks $header_checks $lmtp_body_checks
    $lmtp_header_checks $lmtp_mime_header_checks $lmtp_nested_header_checks $milter_header_checks
    $mime_header_checks $nested_header_checks $smtp_body_checks $smtp_header_checks $smtp_mime_header_checks
    $smtp_nested_header_checks $smtpd_reject_filter_maps $debug_peer_list $smtpd_etrn_restrictions
    $fast_flush_domains $authorized_flush_users $lmtp_connection_cache_destinations
    $local_header_rewrite_clients $masquerade_exceptions $postscreen_access_list
    $postscreen_allowlist_interfaces $postscreen_forbidden_commands $qmqpd_authorized_clients
    $authorized_mailq_users $smtp_connection_cache_destinations $smtpd_log_access_permit_actions
    $smtpd_forbidden_commands $smtpd_client_event_limit_exceptions $smtpd_sasl_exceptions_networks
    $smtpd_sasl_mechanism_filter $smtp_requiretls_policy $smtp_sasl_mechanism_filter $authorized_submit_users
    $smtpd_authorized_verp_clients $smtpd_authorized_xclient_hosts $smtpd_authorized_xforward_hosts
    $lmtp_tls_loglevel_maps $postscreen_tls_loglevel_maps $smtp_tls_loglevel_maps $smtpd_tls_loglevel_maps
"""
WRITE_MAPS = "$smtp_sasl_auth_cache_name $lmtp_sasl_auth_cache_name $address_verify_map $postscreen_cache_map"


# How a value is read: each gives the typed value, or a ValueError that says what was expected.


def text(value: str) -> str:
    return value


def word(value: str) -> str:
    if not value:
        raise ValueError("a text that is not empty")
    return value


def words(value: str) -> tuple[str, ...]:
    """Items between commas and blanks; perhaps none."""
    return tuple(split_words(value))


def boolean(value: str) -> bool:
    if value.lower() not in ("yes", "no"):
        raise ValueError("yes or no")
    return value.lower() == "yes"


def ports(value: str) -> tuple[int, ...] | None:
    """Numbers of ports between commas and blanks, perhaps none; None: any."""
    if split_words(value) == ["any"]:
        return None
    number = integer(1, 65535)
    return tuple(number(item) for item in split_words(value))


def one_of(*choices: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        if not value or value not in choices:
            raise ValueError("one of " + " ".join(filter(None, choices)))
        return value

    return convert


def version(value: str) -> str:
    """Such as 3.7.11, 3.12-20260821, 3.10-RC1."""
    if not all(map(_is_digits, value.partition("-")[0].split(".")[:2])) or "." not in value:
        raise ValueError("a version of Postfix such as 3.7.11")
    return value


def integer(low: int, high: int = INT_MAX) -> Callable[[str], int]:
    return _number(low, high, {"": 1}, "a number")


def size(low: int) -> Callable[[str], int]:
    """Bytes; K, M and G are powers of 1024."""
    return _number(low, LONG_MAX, {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}, "bytes (or 64K, 1M, 1G)")


def seconds(low: int) -> Callable[[str], int]:
    """Time; Postfix ignores what follows the unit (`10ss`), and so do we."""
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    return _number(low, INT_MAX, units, "a time such as 10, 10s, 5m, 2h, 1d, 1w", ignore_rest=True)


def fine_seconds(low: int) -> Callable[[str], float]:
    """The same, and in milliseconds: 250ms."""
    whole = seconds(low)
    expected = "a time such as 250ms, 2s, 1m" + f", at least {low}"

    def convert(value: str) -> float:
        if value.endswith("ms") and _is_digits(value[:-2]) and len(value) <= 12:
            return max(float(value[:-2]) / 1000, low)
        try:
            return whole(value)
        except ValueError:
            raise ValueError(expected) from None

    return convert


def _number(
    low: int, high: int, units: dict[str, int], kind: str, ignore_rest: bool = False
) -> Callable[[str], int]:
    expected = f"{kind}, at least {low}" + (f", at most {high}" if high < LONG_MAX else "")

    def convert(value: str) -> int:
        sign = value[:1] if value[:1] in ("+", "-") else ""
        end = len(sign)
        while value[end : end + 1] and value[end] in "0123456789":
            end += 1
        digits, unit, rest = value[len(sign) : end], value[end : end + 1], value[end + 1 :]
        if not digits or len(digits) > 20 or unit not in units or (rest and not ignore_rest):
            raise ValueError(expected)
        number = int(sign + digits) * units[unit]
        if not low <= number <= high:
            raise ValueError(expected)
        return number

    return convert


def _is_digits(value: str) -> bool:
    return value.isascii() and value.isdigit()


class Param:
    """What is known of one parameter; `name` is the field's."""

    name: str

    def __init__(
        self, file: str, default: str, convert: Callable[[str], object], unit: str,
        by_type: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.file, self.default, self.convert, self.unit, self.by_type = file, default, convert, unit, by_type

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        PARAMETERS[name] = self


PARAMETERS: dict[str, Param] = {}  # all of them, in the order below


def main(default: str, convert: Callable[[str], T], unit: str = "") -> T:
    """A field from main.cf; the default counts only where Postfix is not installed."""
    return Param("main.cf", default, convert, unit)  # type: ignore[return-value]


def own(default: str, convert: Callable[[str], T], unit: str = "") -> T:
    """A field from proxymap.cf."""
    return Param("proxymap.cf", default, convert, unit)  # type: ignore[return-value]


def each(default: str, convert: Callable[[str], T], unit: str = "", **by_type: str) -> T:
    """The same for one that a type or a table may have for itself. by_type: other defaults of some types."""
    return Param("proxymap.cf", default, convert, unit, by_type)  # type: ignore[return-value]


class Settings:
    """The configuration of one process. It does not change. tables: what one type or table has for itself."""

    tables: PerTable

    config_directory = main("/etc/postfix", word)
    queue_directory = main("/var/spool/postfix", word)
    mail_owner = main("postfix", word, "user")
    mail_version = main("3.11", version)  # of the installed Postfix, whatever main.cf says
    myhostname = main("", word)
    smtputf8_enable = main("${{$compatibility_level} <level {1} ? {no} : {yes}}", boolean)

    syslog_name = main("${multi_instance_name?{$multi_instance_name}:{postfix}}", word)
    syslog_facility = main("mail", one_of(*FACILITIES))
    maillog_file = main("", text)
    maillog_file_prefixes = main("/var, /dev/stdout", words)
    postlog_service_name = main("postlog", word)

    ipc_timeout = main("3600s", seconds(1), "seconds")
    daemon_timeout = main("18000s", seconds(1), "seconds")
    max_idle = main("100s", seconds(1), "seconds")
    max_use = main("100", integer(1), "clients")

    proxymap_service_name = main("proxymap", word)
    proxywrite_service_name = main("proxywrite", word)
    proxy_read_maps = main(READ_MAPS, text)
    proxy_write_maps = main(WRITE_MAPS, text)
    lmdb_map_size = main("16777216", integer(1, LONG_MAX), "bytes")
    default_database_type = main("lmdb", word)
    default_cache_db_type = main("lmdb", word)
    non_bdb_migration_level = main("disable", one_of("disable", "enable-redirect", "enable-reindex"))
    non_bdb_custom_mapping = main("", text)

    cache_size = own("64M", size(0), "bytes, 0 = no cache")
    cache_maptypes = own("pcre regexp", exact_types, "table types")  # measured: benchmarks/bench_cache.py
    cache_negative_share = own("25", integer(1, 99), "percent of cache_size")
    cache_ttl = each("0s", seconds(0), "seconds", mysql="5s", pgsql="5s", ldap="5s", mongodb="5s")
    cache_negative_ttl = each("0s", seconds(0), "seconds")
    cache_error_ttl = each("1s", seconds(0), "seconds")
    cache_stale_ttl = each("1h", seconds(0), "seconds")
    cache_stale_negative_ttl = each("0s", seconds(0), "seconds")
    cache_stale_wait = each("2s", seconds(0), "seconds")
    cache_refresh_percent = each("20", integer(0, 100), "percent of a life, at its end")
    server_connection_limit = each("32", integer(1, 10000), "connections to one server")
    server_idle_limit = each("60s", seconds(1), "seconds")
    server_age_limit = each("1h", seconds(1), "seconds")
    server_connect_time_limit = each("3s", seconds(1), "seconds")
    server_error_limit = each("3", integer(1), "failures in a row")
    server_probe_interval = each("1s", seconds(1), "seconds")
    retry_budget_percent = each("10", integer(0, 100), "second tries per 100 answers")
    slow_lookup_log_limit = each("0s", fine_seconds(0), "seconds until a slow lookup is logged, 0 = none are")
    table_options = own("", text, "{ type:name, parameter=value, ... } ...")
    greeting = own("auto", one_of("auto", "yes", "no"))  # auto: as mail_version does it
    request_size_limit = own("1M", size(1024), "bytes of one attribute list")
    buffer_size_limit = own("64M", size(65536), "bytes buffered for all clients together")
    value_size_limit = own("16M", size(1024), "bytes of a value")
    waiting_limit = own("2000", integer(1, 1000000), "requests that may wait for one table")
    worker_count = own("4", integer(1, 1000), "threads for each slow table")
    lookup_time_limit = own("10s", seconds(1), "seconds until a slow lookup is answered RETRY")
    open_time_limit = own("30s", seconds(1), "seconds until a table that does not open is answered RETRY")
    lmdb_index_size = own("256M", size(0), "bytes for each table, 0 = no index")
    lmdb_replace_damaged = own("yes", boolean)
    src_rhs_is_file = own("auto", one_of("auto", "yes", "no"))  # auto: see approval.FilesInValues
    sandbox = own("no", boolean)
    sandbox_reads = own("", words, "paths")
    sandbox_writes = own("", words, "paths")
    sandbox_ports = own("", ports, "TCP ports, or any")
    core_dumps = own("no", boolean)
    drain_time_limit = own("10s", seconds(0), "seconds given to requests in work at stop")

    def __init__(self, tables: PerTable | None = None, **values: object) -> None:
        if values.keys() != PARAMETERS.keys():
            raise TypeError(f"missing or unknown: {sorted(values.keys() ^ PARAMETERS.keys())}")
        self.__dict__.update(values)
        self.__dict__["tables"] = tables or PerTable({name: values[name] for name in EACH}, {}, {})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Settings do not change")

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    @property
    def version(self) -> tuple[int, int]:
        """mail_version as (major, minor)."""
        major, minor = self.mail_version.partition("-")[0].split(".")[:2]
        return int(major), int(minor)

    @property
    def greets(self) -> bool:
        """The server speaks first: Postfix 3.6 and later."""
        return self.version >= (3, 6) if self.greeting == "auto" else self.greeting == "yes"

    @property
    def takes_any_bytes(self) -> bool:
        """Lines of texthash tables need not be UTF-8: Postfix 3.11 and later."""
        return self.version >= (3, 11)


EACH = {name: param for name, param in PARAMETERS.items() if param.by_type is not None}
NOT_ASKED = ("mail_version",)  # Postfix's protocol goes by what is installed
LAST_RESORT = {"smtputf8_enable": "yes", "syslog_name": "postfix"}  # where the default cannot be expanded


def load(
    config_directory: str,
    overrides: Iterable[str] = (),
    service_name: str = "proxymap",
    process_name: str = "proxymap",
    warn: Warn = lambda text: None,
    strict: bool = True,
    meanwhile: Callable[[], object] | None = None,
) -> tuple[Settings, MainCf]:
    """load - read all configuration; raises ConfigError, but only warns of values of main.cf's

    overrides: the arguments of -o. Unless `strict`, for one who needs main.cf however broken it
    is, nothing is raised, and proxymap.cf is not read. meanwhile: called while postconf collects
    Postfix's defaults. MainCf is for what is not in Settings: the text of
    smtpd_restriction_classes, and NAME_param of tables without a file.
    """
    overrides = list(overrides)
    known = {"process_name": process_name, "service_name": service_name, "process_id": str(os.getpid())}
    defaults = {name: param.default for name, param in PARAMETERS.items() if param.file == "main.cf"}
    main_cf = MainCf(config_directory, overrides, known, defaults, warn, strict)
    values, places = _own_values(config_directory, overrides, warn) if strict else ({}, {})
    if meanwhile:
        main_cf.ask_ahead()
        meanwhile()
    settings: dict[str, object] = {}
    for name, param in PARAMETERS.items():
        if param.file == "main.cf":
            settings[name] = _of_main_cf(main_cf, param, warn)
        else:
            settings[name] = _converted(name, values.get(name, param.default), places.get(name, ""))
    general = {name: settings[name] for name in EACH}
    return Settings(_per_table(general, values, places), **settings), main_cf


def _per_table(
    general: Mapping[str, object], values: Mapping[str, str], places: Mapping[str, str]
) -> PerTable:
    """What counts for types and tables, converted."""
    types: dict[str, dict[str, object]] = {}
    for name, param in EACH.items():
        for maptype, default in (param.by_type or {}).items():
            if name not in values:
                types.setdefault(maptype, {})[name] = param.convert(default)
    for name, (maptype, of_all) in names_by_type(EACH).items():
        if name in values:
            types.setdefault(maptype, {})[of_all] = _converted(of_all, values[name], places[name])
    place = places.get("table_options", "")
    single = {
        table: {name: _converted(name, value, place) for name, value in options.items()}
        for table, options in table_options(values.get("table_options", ""), EACH, place).items()
    }
    return PerTable(general, types, single)


def _converted(name: str, value: str, place: str) -> object:
    try:
        return PARAMETERS[name].convert(value)
    except ValueError as expected:
        raise ConfigError(f"{place}: {_complaint(name, value, expected)}") from None


def _complaint(name: str, value: str, expected: ValueError) -> str:
    return f'parameter {name}: bad value "{value}", expected {expected}'


def _of_main_cf(main_cf: MainCf, param: Param, warn: Warn) -> object:
    """The typed value. One that we do not understand counts as the default, and stops nothing else."""
    name = param.name
    if name not in NOT_ASKED:
        value = main_cf.get(name)
        try:
            return param.convert(value)
        except ValueError as expected:
            warn(f"{main_cf.where(name)}: {_complaint(name, value, expected)}{UNUSABLE}")
    for value in (main_cf.default(name), param.default, LAST_RESORT.get(name, "")):
        with suppress(ValueError):
            return param.convert(value)
    raise ConfigError(f"parameter {name} has no default that can be used")


def _own_values(
    config_directory: str, overrides: Iterable[str], warn: Warn
) -> tuple[dict[str, str], dict[str, str]]:
    """proxymap.cf and -o -> values, and where each stands."""
    known = [name for name, param in PARAMETERS.items() if param.file == "proxymap.cf"]
    known += names_by_type(EACH)
    path = os.path.join(config_directory, "proxymap.cf")
    values: dict[str, str] = {}
    places: dict[str, str] = {}
    if os.path.exists(path):
        values, places = read_parameters(path, warn, known)
    for override in overrides:
        place = f'option "-o {override}"'
        name, value = split_parameter(override, place)
        if name in known:
            values[name], places[name] = value, place
    return values, places

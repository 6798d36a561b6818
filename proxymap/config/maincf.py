"""maincf - main.cf, -o and proxymap.cf as plain strings

A value is text in UTF-8; bytes that are not survive as surrogates
(TEXT, ERRORS: use them to get the bytes back). A line that is no parameter is a
ConfigError with file and line; a value that cannot be expanded is told to
`warn`, with the parameter, and counts as its default, so that it stops nothing else.

Source: postconf(5); checked against postconf and proxymap of 3.7.11.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from proxymap.base.files import open_at_once
from proxymap.config.source import BLANKS, logical_lines
from proxymap.errors import ConfigError

UNUSABLE = "; it counts as its default"  # ends the warning of a value that is not understood
TEXT, ERRORS = "utf-8", "surrogateescape"
BLANK = BLANKS.decode()
NESTING_LIMIT = 100  # values within values; more is taken for a loop, as Postfix does
NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
OPERATOR_CHARS = "<>=!?+-*/~&|%"
NO_FOLDER = "/nonexistent"  # defaults do not depend on a configuration, and postconf dies of a faulty one
LOCAL_DOMAIN = "localdomain"  # mydomain of a host whose name has no dot
USUAL_DIRECTORY = "/usr/sbin"  # of postconf; master(8) gives us no PATH

# What the values of interest refer to, for a host without Postfix. 3.7 and 3.12 agree.
FALLBACKS = {
    "compatibility_level": "0",
    "data_directory": "/var/lib/postfix",
    "local_recipient_maps": "proxy:unix:passwd.byname $alias_maps",
    "virtual_alias_maps": "$virtual_maps",
    "virtual_alias_domains": "$virtual_alias_maps",
    "virtual_mailbox_domains": "$virtual_mailbox_maps",
}

Warn = Callable[[str], None]


class MainCf:
    """The parameters of one process: main.cf, overridden by -o, completed by defaults."""

    def __init__(
        self,
        config_directory: str,
        overrides: Iterable[str] = (),
        known: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        warn: Warn = lambda text: None,
        strict: bool = True,
    ) -> None:
        """Read main.cf, which must exist; unless `strict`, what cannot be read is passed over.

        overrides: the arguments of -o, "name=value", the last wins.
        known: what the daemon itself knows (process_name ...); nothing overrides it.
        defaults: for a host where postconf cannot be asked.
        """
        self.path = os.path.join(config_directory, "main.cf")
        self.raw, self._lines = read_parameters(self.path, warn, strict=strict)
        self._warn = warn
        self._broken: set[str] = set()  # their values cannot be expanded, which was told
        self._expanding: set[str] = set()
        self._defaults: Mapping[str, str] | None = None
        self._postconf: Callable[[], str] | None = None  # gives what it prints
        self._own_defaults = {**FALLBACKS, **(defaults or {})}
        for override in overrides:
            name, value = split_parameter(override, f'option "-o {override}"')
            self.raw[name] = value
            self._lines[name] = f'option "-o {override}"'
        for name, value in {"config_directory": config_directory, **(known or {})}.items():
            self.raw[name] = value
            self._lines.pop(name, None)

    def get(self, name: str) -> str:
        """get - the expanded value; empty if nobody knows the name, the default if it cannot be expanded"""
        value = self._value(name, 0)
        return self.default(name) if name in self._broken else value

    def default(self, name: str) -> str:
        """default - the value, expanded, that it would have if main.cf did not set it; perhaps empty"""
        try:
            return _Expansion(self._unexpanded, self._value, 0).text(self._default(name))
        except _Malformed:
            return ""

    def where(self, name: str) -> str:
        """where - file and line of the value, for error messages"""
        return self._lines.get(name) or f"{self.path}, default value"

    def _value(self, name: str, depth: int) -> str:
        """Empty if it cannot be expanded; that is logged once."""
        if name in self._broken:
            return ""
        if name in self._expanding and name in COMPUTED and name not in self.raw:
            return ""  # by now Postfix has none either
        if name in self._expanding:
            raise _Malformed(f"${name} leads back to itself, a loop")
        self._expanding.add(name)
        try:
            return _Expansion(self._unexpanded, self._value, depth).text(self._unexpanded(name))
        except _Malformed as trouble:
            self._broken.add(name)
            self._warn(f"{self.where(name)}: parameter {name}: {trouble}{UNUSABLE}")
            return ""
        finally:
            self._expanding.remove(name)

    def _unexpanded(self, name: str) -> str:
        value = self.raw.get(name)
        return self._default(name) if value is None else value

    def _default(self, name: str) -> str:
        """As Postfix has it: computed from other values, or built in."""
        if name in COMPUTED:
            return COMPUTED[name](self._known_by_now).replace("$", "$$")
        if self._defaults is None:
            self._defaults = self._own_defaults  # while the path of postconf is expanded
            self._defaults = {**self._own_defaults, **self._ask_postconf()}
        return self._defaults.get(name, "")

    def _known_by_now(self, name: str) -> str:
        """For a default that is computed: the value, but for one whose expansion needs that default."""
        return "" if name in self._expanding else self.get(name)

    def ask_ahead(self) -> None:
        """Start postconf, whose answer the first default needs. The caller asks for one soon."""
        self._defaults = self._own_defaults  # while the path of postconf is expanded
        self._postconf = self._started_postconf()
        self._defaults = None

    def _ask_postconf(self) -> dict[str, str]:
        """The defaults as built into the Postfix of this host; empty if there is none."""
        postconf = self._postconf or self._started_postconf()
        self._postconf = None
        if postconf is None:
            return {}
        pairs = (line.partition(" =") for line in postconf().split("\n"))
        return {name: value.strip(BLANK) for name, equals, value in pairs if equals}

    def _started_postconf(self) -> Callable[[], str] | None:
        directories = [*os.environ.get("PATH", "").split(":"), USUAL_DIRECTORY]
        if "command_directory" in self.raw:
            directories.insert(0, self.get("command_directory"))
        for directory in directories:
            program = os.path.join(directory, "postconf")
            if os.path.isabs(program) and os.access(program, os.X_OK):
                try:
                    return _Postconf(program, {"MAIL_CONFIG": NO_FOLDER, "LANG": "C"}).output
                except OSError as error:
                    if isinstance(error, PermissionError) and program in _printed:
                        return partial(_printed.__getitem__, program)
        return None


def _myhostname(value: Callable[[str], str]) -> str:
    """The host's name, with mydomain if it has no dot."""
    name = os.uname().nodename
    return name if "." in name else f"{name}.{value('mydomain') or LOCAL_DOMAIN}"


def _mydomain(value: Callable[[str], str]) -> str:
    """What follows the first dot of myhostname."""
    name, dot, domain = value("myhostname").partition(".")
    return domain if dot or not name else LOCAL_DOMAIN


# Defaults that Postfix computes when it starts, which `postconf -d` does not tell.
COMPUTED = {"myhostname": _myhostname, "mydomain": _mydomain}


def read_parameters(
    path: str, warn: Warn, known: Collection[str] | None = None, strict: bool = True
) -> tuple[dict[str, str], dict[str, str]]:
    """read_parameters - a file of `name = value` -> values, and "file, line N" for each name

    The last entry of a name wins. With `known`, other names are refused. What is refused
    is a ConfigError or, unless `strict`, left out with a warning.
    """
    values: dict[str, str] = {}
    lines: dict[str, str] = {}

    def refuse(trouble: ConfigError) -> None:
        if strict:
            raise trouble
        warn(str(trouble))

    try:
        with open(path, "rb", opener=open_at_once) as file:
            for number, line in logical_lines(file, path, warn):
                place = f"{path}, line {number}"
                try:
                    name, value = split_parameter(line.decode(TEXT, ERRORS), place)
                    if known is not None and name not in known:
                        raise ConfigError(f"{place}: unknown parameter {name}{_nearest(name, known)}")
                except ConfigError as trouble:
                    refuse(trouble)
                    continue
                if values.get(name, value) != value:
                    warn(mask_secrets(f"{place}: overriding earlier entry: {name}={values[name]}"))
                values[name] = value
                lines[name] = place
    except OSError as trouble:
        refuse(ConfigError(f"open {path}: {trouble.strerror}"))
    return values, lines


def split_parameter(text: str, place: str) -> tuple[str, str]:
    """split_parameter - "name = value" -> (name, value), both trimmed; the value may be empty"""
    name, equals, value = text.partition("=")
    name = name.strip(BLANK)
    if not equals or any(blank in name for blank in BLANK):
        shown = mask_secrets(text)
        raise ConfigError(f"{place}: missing '=' after attribute name: \"{shown}\"; expected name = value")
    if not name:
        raise ConfigError(f'{place}: missing attribute name: "{mask_secrets(text)}"; expected name = value')
    return name, value.strip(BLANK)


def mask_secrets(text: str) -> str:
    """mask_secrets - text as a log may have it: without passwords, those of URIs too, and headers"""
    import re

    named = r"((?:password|bind_pw|headers)[ \t]*[ \t=]).*"
    text = re.sub(named, r"\1***", text, flags=re.IGNORECASE | re.DOTALL)
    return re.sub(r"(://[^:@/]*:).*@", r"\1***@", text, flags=re.DOTALL)


def _nearest(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1, 0)
    return f"; the nearest known name is {near[0]}" if near else ""


_printed: dict[str, str] = {}  # by each postconf, the last time: from within a sandbox nothing can be run


class _Postconf:
    """`postconf -d`, running. By hand, since subprocess alone takes longer to import than it runs."""

    def __init__(self, program: str, environment: dict[str, str]) -> None:
        """Raises OSError."""
        self._program = program
        reading, writing = os.pipe()
        self._pipe = os.fdopen(reading, "rb")
        try:
            with open(os.devnull, "r+b", 0) as null:
                moves = (null.fileno(), 0), (writing, 1), (null.fileno(), 2)
                actions = [(os.POSIX_SPAWN_DUP2, *move) for move in moves]
                self._child = os.posix_spawn(program, [program, "-d"], environment, file_actions=actions)
        except OSError:
            self._pipe.close()
            raise
        finally:
            os.close(writing)

    def output(self) -> str:
        """What it has printed, when it has ended."""
        with self._pipe as pipe:
            text = pipe.read()
        os.waitpid(self._child, 0)
        _printed[self._program] = text.decode(TEXT, ERRORS)
        return _printed[self._program]


class _Malformed(Exception):
    """A value that does not follow the syntax of `$name`; the text says where."""


class _Expansion:
    """Replaces $name, ${name}, $(name), ${name?text}, ${{a} == {b} ? {c} : {d}}, ${function{text}}

    raw(name) is a value as it stands: `?` and `:` ask whether *that* is empty, so a value of
    `$nothing` counts as text. value(name, depth) is expanded. What is not chosen is not looked at.
    """

    def __init__(self, raw: Callable[[str], str], value: Callable[[str, int], str], depth: int) -> None:
        self.raw, self.value, self.depth = raw, value, depth

    def text(self, text: str) -> str:
        if self.depth > NESTING_LIMIT and text:
            raise _Malformed(f'$name nested more than {NESTING_LIMIT} deep (a loop?) at "{text}"')
        done: list[str] = []
        at = 0
        while (dollar := text.find("$", at)) >= 0:
            done.append(text[at:dollar])
            after = text[dollar + 1 : dollar + 2]
            if after == "$":
                at = dollar + 2
                done.append("$")
            elif after and after in "{(":
                at = _closing(text, dollar + 1)
                done.append(self.braced(text[dollar + 2 : at - 1]))
            else:
                name = _leading(text, dollar + 1, NAME_CHARS)
                if not name:
                    raise _Malformed(f'no name after "$" in "{text}"; a plain dollar is "$$"')
                at = dollar + 1 + len(name)
                done.append(self.value(name, self.depth + 1))
        done.append(text[at:])
        return "".join(done)

    def inner(self, text: str) -> str:
        return _Expansion(self.raw, self.value, self.depth + 1).text(text)

    def braced(self, content: str) -> str:
        """What stands between ${ and }; a name of blanks alone is nobody's."""
        body = content.lstrip(BLANK)
        if body.startswith("{"):
            truth, rest = self.relation(body)
            return self.choice(truth, rest) if rest else ("true" if truth else "")
        name = _leading(body, 0, NAME_CHARS)
        rest = body[len(name) :].lstrip(BLANK)
        if name and rest.startswith("{"):
            return self.call(name, rest)
        if not content or (rest and rest[0] not in "?:"):
            raise _Malformed(f'expected a name, then the end or "?" or ":", in "{content}"')
        return self.choice(bool(self.raw(name)), rest) if rest else self.value(name, self.depth + 1)

    def call(self, name: str, rest: str) -> str:
        """`{text}` behind the name of a function, as Postfix 3.11 has it."""
        text, rest = _group(rest)
        if name not in FUNCTIONS or rest:
            raise _Malformed(f'unexpected text "{rest}" after "}}"' if rest else f'unknown function "{name}"')
        domain = self.inner(text).strip(BLANK)
        try:
            if domain:
                return FUNCTIONS[name](domain)
        except UnicodeError:
            pass
        raise _Malformed(f'{name}: "{domain}" is no domain')

    def choice(self, truth: bool, rest: str) -> str:
        """`?yes`, `?{yes}:no` or `:no`; text in braces may have blanks around them."""
        yes = no = ""
        if rest[0] == "?":
            yes, rest = _alternative(rest[1:])
        if rest:
            if rest[0] != ":":
                raise _Malformed(f'":" expected at "{rest}"')
            no, rest = _alternative(rest[1:])
        if rest:
            raise _Malformed(f'unexpected text "{rest}" after "}}"')
        return self.inner(yes if truth else no)

    def relation(self, body: str) -> tuple[bool, str]:
        """`{left} operator {right} rest` -> (does it hold, rest)"""
        left, rest = _group(body)
        sign = _leading(rest, 0, OPERATOR_CHARS)
        suffix = _leading(rest, len(sign), NAME_CHARS)
        after = rest[len(sign) + len(suffix) :].lstrip(BLANK)
        if sign not in HOLDS or suffix not in ("", "level"):
            raise _Malformed(f'one of {" ".join(HOLDS)} (or with "level") expected at "{rest}"')
        if not after.startswith("{"):
            raise _Malformed(f'"{{text}}" expected after "{sign}{suffix}" at "{after}"')
        right, rest = _group(after)
        return _order(self.inner(left), self.inner(right), bool(suffix)) in HOLDS[sign], rest


def _to_ascii(domain: str) -> str:
    """As it is, if it is ASCII; else label by label as ICU has it (UTS 46), but for rare letters."""
    if domain.isascii():
        return domain
    import unicodedata

    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", domain).lower())
    labels = text.replace("\u3002", ".").split(".")
    return ".".join(
        label if label.isascii() else f"{IDNA_PREFIX}{label.encode('punycode').decode()}" for label in labels
    )


def _to_utf8(domain: str) -> str:
    """In lower case, whatever it was."""
    labels = domain.lower().split(".")
    return ".".join(
        label[len(IDNA_PREFIX) :].encode().decode("punycode") if label.startswith(IDNA_PREFIX) else label
        for label in labels
    )


IDNA_PREFIX = "xn--"
# Of Postfix 3.11 and later, whatever release is installed.
FUNCTIONS = {"domain_to_ascii": _to_ascii, "domain_to_utf8": _to_utf8}

# Operator -> the orders (-1 less, 0 equal, 1 greater) for which it holds.
HOLDS = {"==": (0,), "!=": (-1, 1), "<": (-1,), "<=": (-1, 0), ">=": (0, 1), ">": (1,)}


def _order(left: str, right: str, level: bool) -> int:
    """Levels are compared by component, digits as numbers, all else byte by byte."""
    if level:
        a, b = _level(left), _level(right)
        return (a > b) - (a < b)
    if _is_digits(left) and _is_digits(right):
        i, j = _number(left), _number(right)
        return (i > j) - (i < j)
    s, t = left.encode(TEXT, ERRORS), right.encode(TEXT, ERRORS)
    return (s > t) - (s < t)


def _level(text: str) -> list[int]:
    """`3.10` -> [3, 10, 0]; each component as strtol(3) has it, with Postfix's bounds."""
    parts = text.split(".")
    digits = [part.lstrip(BLANK).removeprefix("+") for part in parts]
    if len(parts) > 3 or not all(map(_is_digits, digits)):
        raise _Malformed(f'malformed compatibility level "{text}", expected for example 3.6')
    numbers = [*map(_number, digits), 0, 0][:3]
    if numbers[0] > 8796093022207 or max(numbers[1:]) > 1023:
        raise _Malformed(f'compatibility level "{text}" is out of range')
    return numbers


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(digits: str) -> int:
    if len(digits.lstrip("0")) > 18:
        raise _Malformed(f'number "{digits}" is too large')
    return int(digits)


def _leading(text: str, start: int, chars: Collection[str]) -> str:
    """The run of `chars` that begins at `start`."""
    end = start
    while end < len(text) and text[end] in chars:
        end += 1
    return text[start:end]


def _closing(text: str, start: int) -> int:
    """The index behind the bracket that closes the one at `start`; only its own kind counts."""
    opening = text[start]
    closing = "}" if opening == "{" else ")"
    level = 0
    for at in range(start, len(text)):
        if text[at] == opening:
            level += 1
        elif text[at] == closing:
            level -= 1
            if not level:
                return at + 1
    raise _Malformed(f'"{closing}" missing after "{text[start:]}"')


def _group(text: str) -> tuple[str, str]:
    """`{content} rest` -> (content, rest)"""
    end = _closing(text, 0)
    return text[1 : end - 1], text[end:].lstrip(BLANK)


def _alternative(text: str) -> tuple[str, str]:
    """`{text} rest`, or without braces: all of it as it stands."""
    bare = text.lstrip(BLANK)
    return _group(bare) if bare.startswith("{") else (text, "")

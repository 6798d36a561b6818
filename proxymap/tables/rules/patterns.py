"""patterns - the rules of regexp and pcre tables, as text: pattern, flags, result

    rules = Reader(REGEXP, Rules("regexp", mapname, warn), opening, compile).read()

A faulty rule is skipped with a warning. What a pattern means is its library's
business (`compile`); here is only seen enough of it to know what a text must
have in order to match, and whether matching it may take very long.

Source: regexp_table(5), pcre_table(5); tables.md 6; the warnings as Postfix 3.7 words them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from proxymap.config.source import BLANKS, base64_of_files
from proxymap.tables.base import Opening
from proxymap.tables.flags import NO_REGSUB, RHS_IS_FILE
from proxymap.tables.rules.rules import Rules, split_word

BACKSLASH = 0x5C
DIGITS = 9  # of a group's number; with more it is out of range anyhow


class Dialect:
    """How one of the two types writes its rules.

    options: letters behind a pattern; obsolete: those that mean nothing any more.
    pairs: may a second pattern follow, as in /this/!/but not this/?
    """

    def __init__(self, options: bytes, *, obsolete: bytes = b"", pairs: bool, skip: str, zero: str) -> None:
        self.options, self.obsolete, self.pairs = options, obsolete, pairs
        self.skip, self.zero = skip, zero  # two places where Postfix words them differently


REGEXP = Dialect(b"imx", pairs=True, skip="skipping", zero="out-of-range")
PCRE = Dialect(b"imsxAEU", obsolete=b"X", pairs=False, skip="ignoring", zero="out of range")


class Expression:
    """A pattern and its flags: the letters given an odd number of times."""

    number = -1  # what `compile` calls it
    has_groups = False  # are any wanted?

    def __init__(self, pattern: bytes, options: frozenset[int], negated: bool) -> None:
        self.pattern, self.options, self.negated = pattern, options, negated


class Rule:
    """One rule. result: text and numbers of groups; None for an IF, which has `jump` instead.

    jump: the index of the rule behind the ENDIF. second: the pattern that has to hold as well.
    """

    jump = -1

    def __init__(
        self,
        line: int,
        text: bytes,
        expression: Expression,
        second: Expression | None,
        result: list[bytes | int] | None,
    ) -> None:
        self.line, self.text, self.expression, self.second = line, text, expression, second
        self.result = result


# Makes an expression ready and sets its number; returns how many groups it has.
Compile = Callable[[Expression], int]


class Reader:
    """Reads the rules of one table. `compile` raises ValueError, in its library's words."""

    def __init__(self, dialect: Dialect, rules: Rules, opening: Opening, compile: Compile) -> None:
        self.dialect, self.rules, self.compile = dialect, rules, compile
        self.flags, self.warn = opening.flags, opening.host.warn

    def read(self) -> list[Rule]:
        rules: list[Rule] = []
        unclosed: list[Rule] = []
        for line, text in self.rules:
            word, rest = split_word(text)
            try:
                if not word:
                    rules.append(self._match(line, text))
                elif word == b"if":
                    unclosed.append(self._if(line, text, rest))
                    rules.append(unclosed[-1])
                elif word == b"endif":
                    if not unclosed:
                        raise ValueError("ignoring ENDIF without matching IF")
                    unclosed.pop().jump = len(rules)
                    if rest:
                        raise ValueError("ignoring extra text after ENDIF")
                else:
                    raise ValueError("ignoring unrecognized request")
            except ValueError as error:
                self.rules.warn(line, str(error))
        for rule in unclosed:
            rule.jump = len(rules)
        self.rules.warn_unclosed(rule.line for rule in unclosed)
        return rules

    def _if(self, line: int, text: bytes, rest: bytes) -> Rule:
        expression, extra = self._take_pattern(line, rest)
        if extra := extra.strip(BLANKS):
            self.rules.warn(line, f'ignoring extra text after IF statement: "{_shown(extra)}"')
            self.rules.warn(line, "do not prepend whitespace to statements between IF and ENDIF")
        self.compile(expression)
        return Rule(line, text, expression, None, None)

    def _match(self, line: int, text: bytes) -> Rule:
        expression, rest = self._take_pattern(line, text)
        second = None
        if self.dialect.pairs and rest.startswith(b"!"):  # behind a blank it belongs to the result
            second, rest = self._take_pattern(line, rest)
        rest = rest.strip(BLANKS)
        if not rest:
            self.rules.warn(line, "no replacement text: using empty string")
        if self.flags & RHS_IS_FILE:
            try:
                rest = base64_of_files(rest)
            except ValueError as error:
                raise ValueError(f"{error}: skipping this rule") from None
        result = self._take_result(line, rest)
        highest = max((piece for piece in result if isinstance(piece, int)), default=0)
        if highest and expression.negated:
            raise ValueError("$number found in negative match replacement text: skipping this rule")
        if highest and self.flags & NO_REGSUB:
            raise ValueError("regular expression substitution is not allowed: skipping this rule")
        expression.has_groups = highest > 0
        if highest > self.compile(expression):
            raise ValueError(f'out of range replacement index "{highest}": skipping this rule')
        if second is not None:
            self.compile(second)
        return Rule(line, text, expression, second, result)

    def _take_pattern(self, line: int, text: bytes) -> tuple[Expression, bytes]:
        """[!]DpatternDflags at the start of text, and what follows as it stands.

        A backslash protects D, and stays.
        """
        negated = False
        while text.startswith(b"!"):
            negated = not negated
            text = text[1:].lstrip(BLANKS)
        if not text:
            raise ValueError("no regexp: skipping this rule")
        end = 1
        while end < len(text) and (text[end] != text[0] or text[end] == BACKSLASH):
            end += 2 if text[end] == BACKSLASH else 1
        if end >= len(text):
            delimiter = _shown(text[:1])
            raise ValueError(f'no closing regexp delimiter "{delimiter}": {self.dialect.skip} this rule')
        pattern, text = text[1:end], text[end + 1 :]
        options: set[int] = set()
        for at, byte in enumerate(text):
            if byte in BLANKS or (byte == ord("!") and self.dialect.pairs):
                text = text[at:]
                break
            if byte in self.dialect.options:
                options ^= {byte}
            elif byte in self.dialect.obsolete:
                self.rules.warn(line, f'ignoring obsolete regexp option "{chr(byte)}"')
            else:
                shown = _shown(bytes([byte]))
                raise ValueError(f'unknown regexp option "{shown}": skipping this rule')
        else:
            text = b""
        return Expression(pattern, frozenset(options), negated), text

    def _take_result(self, line: int, text: bytes) -> list[bytes | int]:
        """Text and, for each $number, a number."""
        pieces: list[bytes | int] = []
        faulty = False
        try:
            for name, piece in _macros(text):
                if not name:
                    if pieces and isinstance(before := pieces[-1], bytes):
                        pieces[-1] = before + piece
                    else:
                        pieces.append(piece)
                elif not piece.isdigit():
                    self.rules.warn(line, f'non-numeric replacement index "{_shown(piece)}"')
                    faulty = True
                elif not piece.strip(b"0"):
                    self.rules.warn(line, f'{self.dialect.zero} replacement index "{_shown(piece)}"')
                    faulty = True
                else:
                    pieces.append(int(piece.lstrip(b"0")[:DIGITS]))
        except ValueError as error:
            self.warn(str(error))
            faulty = True
        if faulty:
            raise ValueError("bad replacement syntax: skipping this rule")
        return pieces or [b""]


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


_macro = re.compile(rb"[^$]+|\$(?:\$|([({])|(\w*))", re.ASCII)


def _macros(text: bytes) -> Iterator[tuple[bool, bytes]]:
    """(is it a name?, text or name) for all of text; raises ValueError, in Postfix's words."""
    at = 0
    while found := _macro.match(text, at):
        at = found.end()
        if found[0] == b"$$":
            yield False, b"$"
        elif found[0][:1] != b"$":
            yield False, found[0]
        else:
            name = found[2]
            if found[1]:
                name = _enclosed(text, at)
                at += len(name) + 1
            if not name:
                raise ValueError(f'empty macro name: "{_shown(text)}"')
            yield True, name


def _enclosed(text: bytes, start: int) -> bytes:
    """What stands between the bracket before `start` and the one that closes it."""
    opened, level = text[start - 1], 1
    closing = ord(")") if opened == ord("(") else ord("}")
    for at in range(start, len(text)):
        level += (text[at] == opened) - (text[at] == closing)
        if not level:
            return text[start:at]
    raise ValueError(f'truncated macro reference: "{_shown(text)}"')


# What can be said of a pattern without matching it

_group_openings = rb"\((?:\?(?:[:=!>]|<[=!]|P?<[A-Za-z_]\w*>)|(?![?*]))"  # and no (?i), (?R), (*ACCEPT)
_quantifier = rb"[*?]|\{\d+(?:,\d*)?\}"
_pcre_tokens = re.compile(
    rb"(?P<plain>[^\\\[.^$|()*+?{])|\\(?P<quoted>[^0-9A-Za-z])"
    rb"|(?P<class>[.^$]|\\[AbBdDhHsSvVwWzZ]|\[\^?\]?(?:\[:\^?\w+:\]|\\[^QE]|[^\]\\\[])*\])"
    rb"|(?P<open>" + _group_openings + rb")|(?P<close>\))|(?P<or>\|)"
    rb"|(?P<any>" + _quantifier + rb")|(?P<some>\+)",
    re.S | re.A,
)  # fmt: skip
_posix_tokens = re.compile(
    rb"(?P<plain>[^\\\[.^$|()*+?{])|\\(?P<quoted>[^0-9A-Za-z<>`'])"
    rb"|(?P<class>[.^$]|\\[bBsSwW<>`']|\[\^?\]?(?:\[:\w+:\]|\[\.[^]]+\.\]|\[=[^]]+=\]|[^\]\[]|\[(?![.:=]))*\])"
    rb"|(?P<open>\()|(?P<close>\))|(?P<or>\|)"
    rb"|(?P<any>" + _quantifier + rb")|(?P<some>\+)",
    re.S | re.A,
)  # fmt: skip


class Anatomy:
    """What a pattern shows.

    clear: all of it was understood. needed: bytes, in lower case, that every text
    has which it matches, in whatever case. nested: a group is repeated that
    contains a repetition or alternatives, so that there may be very many ways to
    fill the groups.
    """

    def __init__(self, clear: bool, needed: bytes = b"", nested: bool = False) -> None:
        self.clear, self.needed, self.nested = clear, needed, nested


def anatomy(pattern: bytes, posix: bool) -> Anatomy:
    """Look at a pattern: POSIX's extended ones, or Perl's without the x flag."""
    tokens = _posix_tokens if posix else _pcre_tokens
    needed: list[bytes] = []
    varied = [False]  # for each open group: are there alternatives or repetitions in it?
    at, before = 0, ""
    nested = alternatives = False
    while at < len(pattern):
        token = tokens.match(pattern, at)
        if token is None:
            return Anatomy(False)
        kind = token.lastgroup or ""
        if kind == "open":
            varied.append(False)
        elif kind == "close":
            if len(varied) == 1:
                return Anatomy(False)
            inner = varied.pop()
            varied[-1] |= inner
            if inner:
                kind = "varied"
        elif kind == "or":
            alternatives |= len(varied) == 1
            varied[-1] = True
        elif kind in ("any", "some"):
            nested |= before in ("varied", "any", "some")
            varied[-1] = True
            if kind == "any" and before == "needed":
                needed.pop()
            if kind == "some" and before == "needed":
                kind = before  # a second quantifier may follow
        elif kind in ("plain", "quoted") and len(varied) == 1:
            needed.append(token[kind].lower())
            kind = "needed"
        at, before = token.end(), kind
    return Anatomy(True, b"" if alternatives else b"".join(needed), nested)

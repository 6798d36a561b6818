"""domains - the list of domains that a table's parameter `domain` holds

Items between commas and blanks, the first that matches decides: a name (exact,
in any case), `type:table` (which has the domain as a key), `/file` (more items),
each negated by a `!` before it. Tables are opened with the list, files read.

Source: ldap_table(5) and its like, `domain`; match_list as postmap of 3.7.11 shows it.
"""

from __future__ import annotations

from proxymap.base._fold import fold, is_utf8
from proxymap.base.files import open_at_once
from proxymap.config.maincf import ERRORS, TEXT
from proxymap.config.source import logical_lines, split_list
from proxymap.errors import STAT_NOKEY, STAT_OK, ConfigError, TableRetry
from proxymap.tables._domains import Domains, answers_on_loop
from proxymap.tables.base import Opening
from proxymap.tables.flags import FIXED, TRY0NULL, TRY1NULL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxymap.tables._table import Table
    from proxymap.tables.tablecf import TableCf


class DomainList:
    """What one `domain` parameter matches. `place` is for errors and warnings.

    quick: the list for C, which is asked on the loop; None if one of its tables may take long.
    incomplete: could one of them not be opened?
    """

    def __init__(self, text: bytes, place: str, opening: Opening) -> None:
        self._opening, self._place = opening, place
        self.member = opening.member
        self._rules: list[_Name | _Member] = []
        self._add(text, wanted=True, files=())
        tables = [rule.what for rule in self._rules if isinstance(rule, _Member)]
        self.incomplete = any(table.reason is not None for table in tables)
        self.quick: Domains | None = None
        if all(answers_on_loop(table) for table in tables):
            rules = [(rule.what, rule.wanted) for rule in self._rules]
            self.quick = Domains(rules, opening.host.utf8)

    @classmethod
    def of(cls, cf: TableCf, opening: Opening) -> DomainList | None:
        """The list of a table with these parameters, if it has one."""
        text = cf.text("domain").encode(TEXT, ERRORS)
        return cls(text, cf.where("domain"), opening) if text else None

    def __contains__(self, domain: bytes) -> bool:
        """Raises TableRetry if a table that has to be asked does not answer."""
        folded = _fold(domain, self._opening.host.utf8)
        for rule in self._rules:
            if rule.matches(domain, folded):
                return rule.wanted
        return False

    def trouble(self, table: Table | None) -> TableRetry:
        """The error to raise if this one does not answer; None: there was no memory."""
        if table is None:
            return TableRetry("domain list: no memory")
        why = table.reason or b"it does not answer"
        shown = b"domain list: %b is unavailable: %b" % (table.type_name, why)
        return TableRetry(shown.decode(TEXT, ERRORS))

    def _add(self, text: bytes, wanted: bool, files: tuple[bytes, ...]) -> None:
        items = list(split_list(text))
        for at, item in enumerate(items):
            if item.startswith(b"#"):
                rest = b" ".join(items[at:]).decode(TEXT, ERRORS)
                self._opening.host.warn(f"{self._place}: comment at end of line is not supported: {rest}")
                return
            pattern = item.lstrip(b"!")
            matches = wanted if (len(item) - len(pattern)) % 2 == 0 else not wanted
            if not pattern:
                raise ConfigError(f"{self._place}: no pattern after '!'")
            if pattern.startswith(b"/"):
                self._add_file(pattern, matches, files)
            elif b":" in pattern and not pattern.startswith(b"["):
                self._rules.append(_Member(pattern, matches, self))
            else:
                self._rules.append(_Name(_fold(pattern, self._opening.host.utf8), matches))

    def _add_file(self, name: bytes, wanted: bool, files: tuple[bytes, ...]) -> None:
        path = name.decode(TEXT, ERRORS)
        if name in files:
            raise ConfigError(f"{self._place}: {path} includes itself")
        self._opening.reads(name)
        try:
            with open(path, "rb", opener=open_at_once) as lines:
                for _, line in logical_lines(lines, path, self._opening.host.warn):
                    self._add(line, wanted, (*files, name))
        except OSError as trouble:
            raise ConfigError(f"{self._place}: open {path}: {trouble.strerror}") from trouble


class _Name:
    """A domain name, folded."""

    def __init__(self, name: bytes, wanted: bool) -> None:
        self.what, self.wanted = name, wanted

    def matches(self, domain: bytes, folded: bytes) -> bool:
        return self.what == folded


class _Member:
    """A table that has domains for keys; opened anew when its file was replaced or could not be opened."""

    def __init__(self, name: bytes, wanted: bool, domains: DomainList) -> None:
        self.name, self.wanted, self._domains = name, wanted, domains
        self.what = domains.member(name)

    def matches(self, domain: bytes, folded: bytes) -> bool:
        if self.what.changed or self.what.reason is not None:
            self.what = self._domains.member(self.name)
        key = folded if self.what.flags & FIXED else domain
        status = self.what.ask(key, TRY0NULL | TRY1NULL)[0]
        if status not in (STAT_OK, STAT_NOKEY):
            raise self._domains.trouble(self.what)
        return status == STAT_OK


def _fold(domain: bytes, utf8: bool) -> bytes:
    """As names are compared: by Unicode's case folding if that can be, else A-Z only."""
    return fold(domain, utf8 and is_utf8(domain))

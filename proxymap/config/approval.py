"""approval - proxy_read_maps and proxy_write_maps -> the set of approved type:name

Only `proxy:type:name` approves, byte for byte what a client may ask for. The rest
of a list is there for others and is ignored.

Source: proxymap(8); the syntax as proxymap of 3.7.11 reads it, for `/file` and
smtpd_restriction_classes as that of 3.11 and later.
"""

from proxymap.base.files import open_at_once
from proxymap.config.maincf import ERRORS, TEXT, MainCf, Warn
from proxymap.config.settings import Settings
from proxymap.config.source import logical_lines, split_list, split_words, unbraced, without_proxy

FILES_SINCE = (3, 11)  # `/file` items and smtpd_restriction_classes are read since this version


def approve(
    settings: Settings, main_cf: MainCf, write: bool, warn: Warn, everything: bool = False
) -> frozenset[bytes]:
    """approve - the tables that the service may open: for reading, or (write) for changing too

    everything: with those that the lists name without "proxy:", which the service may not open.
    """
    names = ["proxy_write_maps" if write else "proxy_read_maps"]
    extended = settings.version >= FILES_SINCE
    if extended and not write:
        names += split_words(main_cf.get("smtpd_restriction_classes"))
    return frozenset().union(
        *(approved_tables(main_cf.get(name), name, extended, warn, everything) for name in names)
    )


def approved_tables(
    value: str, name: str, extended: bool, warn: Warn, everything: bool = False
) -> frozenset[bytes]:
    """approved_tables - expanded value of the parameter `name` -> type:name of each item it approves

    extended: read the files that `/file` items name. everything: see approve.
    """
    scan = _Scan(extended, warn, everything)
    scan.list(value.encode(TEXT, ERRORS), f"bad {name} parameter value")
    return frozenset(scan.found)


class FilesInValues:
    """Which tables may be opened so that their values are names of files, whose content is looked up?

    A client asks for that with the flag src_rhs_is_file. Postfix's own do so for
    tls_server_sni_maps alone. Anybody who can write a value, or knows a table whose values look
    like paths, would read files with the server's rights; so by default only those tables are
    opened so, and only where other users cannot connect (private).
    """

    def __init__(self, settings: Settings, main_cf: MainCf, private: bool) -> None:
        self.setting, self.private = settings.src_rhs_is_file, private
        self.names = _names_in(main_cf.get("tls_server_sni_maps").encode(TEXT, ERRORS))

    def refusal(self, type_name: bytes) -> str:
        """Why not; "" if it may."""
        if self.setting == "yes":
            return ""
        if self.setting == "no":
            why = "src_rhs_is_file is off"
        elif not self.private:
            why = "other users may connect to this socket"
        elif not _names_in(type_name) <= self.names:
            why = "it is not in tls_server_sni_maps"
        else:
            return ""
        return (
            f"{type_name.decode(TEXT, ERRORS)} is not opened for a client that takes its values for names of"
            f" files: {why}; see src_rhs_is_file in proxymap.cf(5)"
        )


def _names_in(text: bytes) -> set[bytes]:
    """All words of a list of tables, those in braces, too: tables, and the members of tables."""
    return {word.removeprefix(b"proxy:") for word in text.translate(_AS_BLANKS).split()}


_AS_BLANKS = bytes.maketrans(b",{}", b"   ")


class _Scan:
    """One walk over a list and all that it refers to."""

    def __init__(self, extended: bool, warn: Warn, everything: bool) -> None:
        self.extended, self.warn, self.everything = extended, warn, everything
        self.found: set[bytes] = set()
        self.files: set[bytes] = set()  # seen: a file may name itself

    def list(self, value: bytes, complaint: str) -> None:
        for item in split_list(value):
            try:
                self.item(item, complaint)
            except ValueError as trouble:
                self.warn(f"{complaint}: {trouble}")

    def item(self, item: bytes, complaint: str) -> None:
        if item.startswith(b"{"):
            item = next(split_list(unbraced(item)), b"")
        if item.startswith((b"unionmap:", b"pipemap:")):
            members = item.partition(b":")[2]
            if members.startswith(b"{"):
                self.list(unbraced(members), complaint)
        elif item.startswith(b"proxy:"):
            item = without_proxy(item)
            if b":" in item:
                self.found.add(item)
        elif item.startswith(b"/") and self.extended and item not in self.files:
            self.files.add(item)
            self.file(item.decode(TEXT, ERRORS))
        elif self.everything and item[:1].isalnum() and b":" in item:
            self.found.add(item)

    def file(self, path: str) -> None:
        try:
            with open(path, "rb", opener=open_at_once) as lines:
                for number, line in logical_lines(lines, path, self.warn):
                    self.list(line, f"bad syntax in {path}, line {number}, content")
        except OSError as trouble:
            self.warn(f"open {path}: {trouble.strerror}")

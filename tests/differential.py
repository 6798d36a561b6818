"""differential - tables of every type, and keys to ask them for, drawn by hypothesis

A Case is one table and the questions to ask it. CASES has a strategy for each
type. What kills the stock server is not drawn: test_differential.py has a test
by name for each of these.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fix_pair import ENVIRONMENT
from fix_postfix import release
from fix_server import write_cdb, write_lmdb
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy as Strategy

# Flags as they are on the wire; tables.md 2.1.
DUP_WARN, DUP_IGNORE, TRY0, TRY1, LOCK, NO_REGSUB = 1, 2, 4, 8, 64, 2048
FOLD_FIX, FOLD_MUL, UTF8, RHS_IS_FILE = 1 << 14, 1 << 15, 1 << 19, 1 << 21

LOADS_ASCII = release() >= (3, 11)  # stock folds ASCII only while it loads inline and texthash tables

Make = Callable[[Path], None]
SHARED = b"@SHARED@"  # stands for the directory of files that tables refer to


@dataclass
class Case:
    """One table, and what to ask. A table that `make` puts into a file gets a fresh name."""

    keys: list[bytes]
    flags: list[int]  # the table is opened with the first
    name: bytes | None = None  # type:content
    source: bytes | None = None  # what `make` makes the file of, for the reader of a failure
    make: Make | None = field(default=None, repr=False)
    walk: bool = False  # ask for all records, too
    one_of: frozenset[bytes] = frozenset()  # values that are drawn by lot


def flag_words(*bits: int) -> Strategy[int]:
    usual = st.sampled_from([0, LOCK, LOCK | FOLD_FIX, FOLD_MUL, UTF8, UTF8 | FOLD_FIX | LOCK])
    drawn = st.sets(st.sampled_from([LOCK, FOLD_FIX, FOLD_MUL, UTF8, *bits])).map(sum)
    return st.one_of(usual, drawn)


# Words

LETTERS = [b"a", b"A", b"b", b"B", b"1", b"2", b"x"]
SIGNS = [b"@", b".", b"-", b"_", b"/", b"$", b"%", b"=", b":", b"!", b"*", b"'", b"#"]
FOREIGN = ["\u00e9", "\u00c9", "\u00df", "\u1e9e", "\u0130", "\u017f", "\u212a", "\u03a3", "\u4e2d", "\ufb01"]
NOT_UTF8 = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"]
UNUSUAL = [*SIGNS, *(letter.encode() for letter in FOREIGN), *NOT_UTF8]


def as_loaded(flags: list[int], source: bytes) -> list[int]:
    """What both find the same keys with: test_intended_difference_keys_with_capitals_outside_ascii."""
    return flags if source.isascii() or not LOADS_ASCII else [word & ~UTF8 for word in flags]


def text(pieces: Sequence[bytes], least: int = 0, most: int = 5) -> Strategy[bytes]:
    return st.lists(st.sampled_from(pieces), min_size=least, max_size=most).map(b"".join)


WORD = st.one_of(text(LETTERS, 1, 3), text([*LETTERS, *UNUSUAL], 1))
VALUE = st.one_of(
    WORD,
    st.sampled_from([SHARED + b"/one", SHARED + b"/two", SHARED + b"/missing"]),
    text([*LETTERS, b" "], 1),
)
TWISTS: list[Callable[[bytes], bytes]] = [
    *[lambda key: key] * 4, bytes.upper, bytes.lower, bytes.swapcase, lambda key: key[1:],
    lambda key: key + b"x",
]  # fmt: skip


def keys(known: Sequence[bytes], others: Strategy[bytes] = WORD, least: int = 0) -> Strategy[list[bytes]]:
    """Keys that the table has, or nearly has, and others."""
    near = st.builds(lambda key, twist: twist(key), st.sampled_from([*known, b"a"]), st.sampled_from(TWISTS))
    key = st.one_of(near, near, others).filter(lambda key: len(key) >= least and b"\0" not in key)
    return st.lists(key, min_size=1, max_size=12, unique=True)


# Indexed files

ENDS = st.sampled_from([b"", b"", b"\0", b"\0more"])
RECORDS = st.lists(
    st.tuples(WORD, st.sampled_from([b"", b"\0"]), st.one_of(VALUE, st.just(b"")), ENDS), max_size=8
)


@st.composite
def indexed(draw: st.DrawFn, write: Callable[[Path, list[tuple[bytes, bytes]]], None], walk: bool) -> Case:
    """Each key and value with or without a trailing NUL."""
    drawn = draw(RECORDS)
    records = [(key + nul, value + end) for key, nul, value, end in drawn]
    least = 1 if walk else 0  # an empty key can kill stock's lmdb
    return Case(
        keys=draw(keys([key for key, *_ in drawn], least=least)),
        flags=draw(st.lists(flag_words(TRY0, TRY1, RHS_IS_FILE), min_size=1, max_size=3)),
        source=repr(records).encode(),
        make=lambda path: write(path, records),
        walk=walk,
    )


def make_cdb(path: Path, records: list[tuple[bytes, bytes]]) -> None:
    write_cdb(path.with_name(path.name + ".cdb"), records)


def make_lmdb(path: Path, records: list[tuple[bytes, bytes]]) -> None:
    write_lmdb(path.with_name(path.name + ".lmdb"), dict(records))


@st.composite
def bdb(draw: st.DrawFn, maptype: str) -> Case:
    """Built by postmap, in two steps: records with NUL, records without, or both."""
    lines = st.lists(
        st.tuples(text([*LETTERS, *UNUSUAL[:-4]], 1).filter(plain), text(LETTERS, 1)), max_size=6
    )
    steps = draw(st.lists(st.tuples(st.sampled_from(["-N", "-n"]), lines), min_size=1, max_size=2))

    def make(path: Path) -> None:
        path.write_bytes(b"")
        subprocess.run(["postmap", f"{maptype}:{path}"], check=True)
        for how, records in steps:
            source = b"".join(b"%s %s\n" % record for record in records)
            command = ["postmap", "-u", "-f", "-r", how, "-i", f"{maptype}:{path}"]
            subprocess.run(command, input=source, check=True, capture_output=True)

    return Case(
        keys=draw(keys([key for _, records in steps for key, _ in records])),
        flags=draw(st.lists(flag_words(TRY0, TRY1, RHS_IS_FILE), min_size=1, max_size=3)),
        source=repr(steps).encode(),
        make=make,
        walk=True,
    )


def plain(key: bytes) -> bool:
    return not key.startswith(b"#") and not key.endswith(b":")


# Text


def write_text(source: bytes) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(source.replace(SHARED, bytes(path.parent.parent / "shared")))

    return make


def lines_of(line: Strategy[bytes]) -> Strategy[bytes]:
    """A source text: of such lines, and of what may stand between lines."""
    between = st.sampled_from(
        [b"", b" ", b"# x", b"  # y", b"  more", b"\tmore\r", b" a b", b"\r", b"\xff x"]
    )
    some = st.lists(st.one_of(line, line, line, line, between), max_size=8)
    return st.builds(lambda lines, end: b"\n".join(lines) + end, some, st.sampled_from([b"\n", b"\n", b""]))


BLANK = st.sampled_from([b" ", b" ", b" ", b"\t", b"  ", b"\t ", b"\r", b"\f", b""])
QUOTED = text([*LETTERS, b'"', b"\\", b" ", b'"a b"', b"\\ "], 1)


@st.composite
def texthash(draw: st.DrawFn) -> Case:
    known = draw(st.lists(st.one_of(WORD, WORD, QUOTED), max_size=6))
    value = st.one_of(VALUE, VALUE, st.sampled_from([b"", b" ", b'"a"', b"# x", b"a  b ", b"a\0b"]))
    source = draw(
        lines_of(
            st.builds(lambda *parts: b"".join(parts), st.sampled_from([*known, b"k"]), BLANK, value, BLANK)
        )
    )
    flags = draw(st.lists(flag_words(DUP_WARN, DUP_IGNORE, RHS_IS_FILE), min_size=1, max_size=3))
    return Case(
        keys=draw(keys(known, st.one_of(WORD, QUOTED))),
        flags=as_loaded(flags, source),
        source=source,
        make=write_text(source),
        walk=True,
    )


# Rules

V4 = st.builds(
    "{}.{}.{}.{}".format,
    *[st.sampled_from([0, 1, 10, 127, 128, 192, 255])] * 3, st.sampled_from([0, 1, 2, 3, 4, 8, 128, 254,
    255]),
)  # fmt: skip
V6 = st.sampled_from(
    ["::", "::1", "::2", "2001:db8::", "2001:db8::1", "2001:DB8:0:0::1", "2001:db8:8000::", "ff02::",
     "::ffff:10.0.0.1",
     "::10.0.0.1", "fe80::1", "1:2:3:4:5:6:7:8"]
)  # fmt: skip
NO_ADDRESS = st.sampled_from(
    ["", "1.2.3", "01.2.3.4", "1.2.3.256", "1.2.3.4.", "[1.2.3.4]", ":", ":::", "1:2", "fe80::1%lo",
     "::1/128", "x",
     "10.0.0.0/8", " 10.0.0.1", "10.0.0.1 ", "::ffff:10.0.0", "12345::", "1:2:3:4:5:6:7:8:9", "1::2::3"]
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> str:
    """Mostly with the host bits cleared."""
    address = draw(st.one_of(V4, V4, V6, NO_ADDRESS))
    lengths = [0, 1, 7, 8, 9, 16, 23, 24, 30, 31, 32, 33, 64, 127, 128, 129, "-1", "x", "", "024", "+8", "8x"]
    length = draw(st.sampled_from([None, None, *lengths]))
    if isinstance(length, int) and draw(st.integers(0, 3)):
        address = clear_host_bits(address, length)
    form = draw(st.sampled_from(["{}{}", "{}{}", "{}{}", "[{}]{}", "[{}{}]", "[{}{}", "{}{}]"]))
    return form.format(address, "" if length is None else f"/{length}")


def clear_host_bits(address: str, length: int) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_network((address, length), strict=False).network_address)
    except ValueError:
        return address


NEGATION = st.sampled_from(["", "", "", "!", "!!", "! "])
IF = st.sampled_from(["if ", "IF ", "If\t", "if", "if  "])
ENDIF = st.sampled_from(["endif", "ENDIF", "endif", "endif x", "endifx", "  endif"])


def rules(pattern: Strategy[str], result: Strategy[str]) -> Strategy[str]:
    """One line of a pattern table."""
    condition = st.builds("{}{}{}{}".format, IF, NEGATION, pattern, st.sampled_from(["", "", "", " x"]))
    blank = st.sampled_from([" ", " ", "\t", "   ", ""])
    rule = st.builds("{}{}{}{}".format, NEGATION, pattern, blank, result)
    return st.one_of(rule, rule, rule, rule, condition, ENDIF)


@st.composite
def pattern_table(draw: st.DrawFn, maptype: str, rule: Strategy[str], key: Strategy[bytes]) -> Case:
    """In a file, or in the name."""
    flags = flag_words(NO_REGSUB, RHS_IS_FILE)
    case = Case(
        keys=draw(st.lists(key, min_size=1, max_size=15)), flags=draw(st.lists(flags, min_size=1, max_size=3))
    )
    if draw(st.integers(0, 4)):
        case.source = draw(lines_of(rule.map(os_encode)))
        case.make = write_text(case.source)
    else:
        form = st.sampled_from(["{{{}}}", "{{{}}}", "{{{}}}", "{{ {} }}", "{}"])
        inner = draw(st.lists(st.builds(str.format, form, rule), max_size=5))
        name = os_encode(maptype + ":{" + draw(st.sampled_from([", ", ",", " "])).join(inner) + "}")
        case.name = name if approvable(name) else os_encode(maptype + ":{}")
    if maptype == "cidr" and b"if" in (case.source or case.name or b"").lower():
        # Stock looks for the file that the value of an `if` names, and drops the `if`:
        # tables/test_cidr.py, test_if_still_holds_where_values_name_files.
        case.flags = [word & ~RHS_IS_FILE for word in case.flags]
    return case


def os_encode(string: str) -> bytes:
    return string.encode(errors="surrogateescape")


def approvable(name: bytes) -> bool:
    """Can main.cf name this table at all?"""
    level = 0
    for byte in name:
        level += (byte == 0x7B) - (byte == 0x7D)
        if level < 0 or byte in b"\0\n" or (byte in b" \t\r," and level == 0):
            return False
    return level == 0 and name.count(b":") > 0 and not name.endswith(b":")


CIDR_RESULT = st.sampled_from(
    ["a", "b", "OK", "REJECT x y ", "$1 $x", "", "c  d", "\u00e9", "\udcff", "@SHARED@/one"]
)
CIDR_KEY = st.one_of(V4, V4, V4, V6, V6, NO_ADDRESS).map(os_encode)

ATOM = st.sampled_from(
    ["a", "b", "A", "x", ".", "[ab]", "[^a]", "1", "@", r"\.", r"\/", "\u00e9", "\udcff", " "]
)
MORE = {
    "regexp": ["[[:digit:]]", "^", "$", "()", "a{2}", r"\<", "[", ")", "*", "\\", "[[:x:]]", "a{2,1}"],
    "pcre": [
        r"\d",
        r"\b",
        "^",
        "$",
        "()",
        "a{2}",
        r"\w",
        "[",
        ")",
        "*",
        "\\",
        "(?<n>a)",
        "(?:b)",
        "(?i)",
        r"\1",
        "(?=a)",
    ],
}


@st.composite
def expressions(draw: st.DrawFn, maptype: str) -> str:
    atom = st.one_of(ATOM, ATOM, ATOM, st.sampled_from(MORE[maptype]))
    many = st.builds("{}{}".format, atom, st.sampled_from(["", "", "", "", "*", "+", "?"]))
    group = st.builds("({})".format, st.lists(many, min_size=1, max_size=3).map("".join))
    either = st.builds("({}|{})".format, many, many)
    return "".join(draw(st.lists(st.one_of(many, many, group, either), min_size=1, max_size=4)))


@st.composite
def delimited(draw: st.DrawFn, maptype: str) -> str:
    """/pattern/flags; and for regexp sometimes /one/!/two/."""
    letters = "imxz" if maptype == "regexp" else "imsxAEUXRz"
    flags = "".join(draw(st.lists(st.sampled_from(letters), max_size=2)))
    by = draw(st.sampled_from(["/", "/", "/", "/", "#", "!", "a", "{"]))
    end = draw(st.sampled_from([by] * 9 + [""]))
    one = by + draw(expressions(maptype)) + end + flags
    if maptype == "regexp" and not draw(st.integers(0, 9)):
        return one + "!" + "/" + draw(expressions(maptype)) + "/"
    return one


RESULT = st.lists(
    st.sampled_from(["a", "OK ", "$1", "${1}", "$(2)", "$2", "$$", "<", ">"] * 3
                    + ["$", "$0", "$3", "${x}", "$10", "${1", "$(1}", "\u00e9", "\udcff", "@SHARED@/one"]),
    max_size=3,
).map("".join)  # fmt: skip
MATCHED = st.one_of(
    text([b"a", b"b", b"A", b"x", b"1", b"@", b"."], 0, 6), text([*LETTERS, *UNUSUAL, b"\n", b" "])
)


# Tables that are named by their content

BRACED = st.builds(lambda word: b"{" + word + b"}", text([*LETTERS, b" ", b"  ", b",", b"{a}", b"{"]))


@st.composite
def named(
    draw: st.DrawFn,
    maptype: bytes,
    content: Strategy[bytes],
    other: Strategy[bytes] = WORD,
    walk: bool = False,
) -> Case:
    name = draw(content.map(lambda drawn: maptype + b":" + drawn).filter(approvable))
    known = [word for word in name.replace(b"=", b" ").replace(b",", b" ").strip(b"{}").split() if word]
    flags = draw(st.lists(flag_words(RHS_IS_FILE), min_size=1, max_size=3))
    return Case(
        keys=draw(keys(known, other)),
        flags=as_loaded(flags, name) if maptype == b"inline" else flags,
        name=name,
        walk=walk,
    )


@st.composite
def of_any_name(draw: st.DrawFn, other: Strategy[bytes] = WORD, walk: bool = False) -> Case:
    """A type that makes nothing of the name."""
    flags = draw(st.lists(flag_words(RHS_IS_FILE), min_size=1, max_size=3))
    return Case(keys=draw(keys([], other)), flags=flags, make=lambda path: None, walk=walk)


def listed(items: Strategy[bytes], least: int = 0) -> Strategy[bytes]:
    """{item, item ...}"""
    separator = st.sampled_from([b", ", b", ", b",", b" ", b" ,\t"])
    edge = st.sampled_from([b"", b"", b" "])
    return st.builds(
        lambda between, all, before, after: b"{" + before + between.join(all) + after + b"}",
        separator, st.lists(items, min_size=least, max_size=5), edge, edge,
    )  # fmt: skip


def pairs() -> Strategy[bytes]:
    """name=value, in braces or not, and faults."""
    bare = st.builds(lambda name, value: name + b"=" + value, WORD, st.one_of(VALUE, st.just(b"")))
    sign = st.sampled_from([b"=", b" = ", b"= "])
    blanks = st.sampled_from([b"", b" "])
    braced = st.builds(
        lambda a, name, sign, value, b: b"{" + a + name + sign + value + b + b"}",
        blanks,
        WORD,
        sign,
        VALUE,
        blanks,
    )
    quoted = st.builds(lambda name: b'{"' + name + b'" = x}', text([*LETTERS, b" "]))
    return st.one_of(
        bare, bare, braced, braced, quoted, st.sampled_from([b"a", b"=x", b"{}", b"{a b = c}", b"{a}b"])
    )


@st.composite
def randmap(draw: st.DrawFn) -> Case:
    words = draw(st.lists(st.one_of(text(LETTERS, 1), text([*LETTERS, b".", b"@"], 1)), max_size=4))
    groups = draw(st.lists(text([*LETTERS, b" "], 1).map(bytes.strip).filter(bool), max_size=3))
    items = [*words, *(b"{" + group + b"}" for group in groups)]
    case = draw(named(b"randmap", st.just(b"{" + b", ".join(items) + b"}")))
    case.one_of = frozenset([*items, *groups])
    return case


# Without lmdb: stock dies of the empty key, which another member may make (tables/composites.py has it).
MEMBER_TYPES = st.sampled_from([
    b"inline:{a=b, b=a, {c = d e}}", b"inline:{b=x@y, x@y=1, a=}", b"inline:{A=B}", b"inline:{}", b"static:s",
    b"static:{two words}", b"static:{}", b"fail:x", b"randmap:{only}", b"cdb:@SHARED@/m",
    b"texthash:@SHARED@/m", b"texthash:@SHARED@/missing", b"regexp:{{/^(a)(.*)/ $2$1}, {/x/ y}}",
    b"cidr:{{10.0.0.0/8 ten}}", b"proxy:inline:{a=p}", b"nosuchtype:x", b"pcre:{{/(.)b/ $1}}",
    b"sqlite:@SHARED@/names.cf", b"unix:passwd.byname", b"environ:x",
])  # fmt: skip
FAULTY_MEMBER = st.sampled_from([b"nocolon", b"{}", b"{a:b}", b""])


@st.composite
def composites(draw: st.DrawFn, maptype: bytes, depth: int = 1) -> bytes:
    member = MEMBER_TYPES
    if depth:
        inner = st.sampled_from([b"unionmap", b"pipemap"]).flatmap(lambda name: composites(name, depth - 1))
        member = st.one_of(member, member, member, inner)
    least = 0 if not draw(st.integers(0, 9)) else 1
    members = st.one_of(*[member] * 15, FAULTY_MEMBER) if depth else member
    return maptype + b":" + draw(listed(members, least))


@st.composite
def composite(draw: st.DrawFn, maptype: bytes) -> Case:
    name = draw(composites(maptype).filter(approvable))
    keyish = st.sampled_from(
        [b"a", b"b", b"A", b"ab", b"c", b"x@y", b"1", b"10.1.1.1", b"root", b"m@x.y", b""]
    )
    flags = draw(st.lists(flag_words(), min_size=1, max_size=2))
    return Case(keys=draw(st.lists(keyish, min_size=1, max_size=8, unique=True)), flags=flags, name=name)


# sqlite

SQLITE = """\
CREATE TABLE alias (address TEXT, goto, extra);
INSERT INTO alias VALUES ('a@b.c', 'x@y.z', 1), ('a@b.c', 'second', 2), ('a', 'short', 3), ('A', 'SHORT', 4),
  ('o''brien@b.c', 'ob', 5), ('empty@b.c', '', 6), ('null@b.c', NULL, 7), ('int@b.c', 42, 8), ('real@b.c',
  1.5, 9),
  ('two@b.c', NULL, 10), ('two@b.c', 'u@v', 11), ('two@b.c', '@v', 12), ('b.c', 'domain', 13), ('c',
  'label', 14),
  ('blob@b.c', X'616263', 15), ('cut@b.c', X'61006263', 16), ('\u00e9@b.c', '\u00e9\u00df', 17), ('u',
  'a@', 18);
"""
QUERY = st.sampled_from([
    *["SELECT goto FROM alias WHERE address = '%s'"] * 4, "SELECT goto FROM alias WHERE address = '%u@%d'",
    "SELECT goto FROM alias WHERE address = '%d'", "SELECT goto FROM alias WHERE address = '%u'",
    "SELECT '%S|%U|%D'", "SELECT '%1'", "SELECT '%2.%1'", "SELECT '%3'", "SELECT '%%'",
    "SELECT goto, extra FROM alias",
    "SELECT 'x' WHERE 0", "SELECT extra FROM alias WHERE address = '%s' ORDER BY extra DESC",
    "SELECT '%s'; SELECT 'y'",
    "SELECT goto FROM alias WHERE address = '%s' UNION SELECT '%u'", "SELECT X'ff'", "SELECT ''",
    "SELECT NULL",
])  # fmt: skip
FORMAT = st.sampled_from(
    ["%s", "%u", "%d", "%S", "%U", "%D", "<%s>", "%1", "%2", "%%", "%s,%S", "%u at %d", "x"]
)
DOMAIN = st.sampled_from(
    [
        "b.c",
        "B.C",
        "x.y, b.c",
        "!b.c",
        "!b.c, x.y",
        "x.y",
        "@SHARED@/domains",
        "inline:{b.c=1}",
        "texthash:@SHARED@/m",
        "",
    ]
)
ADDRESS = st.one_of(
    st.sampled_from([b"a@b.c", b"A@B.C", b"a", b"o'brien@b.c", b"empty@b.c", b"null@b.c", b"int@b.c",
                     b"two@b.c", b"@b.c",
                     b"a@", b"@", b"b.c", b"a@b@b.c", b"blob@b.c", b"cut@b.c", b"a@x.y", b"a@b..c", b"a@c",
                     "\u00e9@b.c".encode(),
                     b"real@b.c", b"a@.b.c.", b"a@b.c.", b"u", b"", b"\xff@b.c"]),
    text([b"a", b"@", b".", b"b.c", b"'", b"%", b"x"]),
)  # fmt: skip


@st.composite
def sqlite(draw: st.DrawFn) -> Case:
    lines = [b"dbpath = " + SHARED + b"/names.sqlite"]
    if draw(st.integers(0, 5)):
        lines.append(b"query = " + draw(QUERY).encode())
    else:
        lines += [b"table = alias", b"select_field = goto", b"where_field = address"]
        lines += draw(st.sampled_from([[], [b"additional_conditions = AND extra > 1"]]))
    for name, value in (
        ("result_format", FORMAT),
        ("domain", DOMAIN),
        ("expansion_limit", st.sampled_from("0123")),
    ):
        if draw(st.integers(0, 2)) == 0:
            lines.append(f"{name} = {draw(value)}".encode())
    source = b"\n".join([*lines, b""])
    return Case(
        keys=draw(st.lists(ADDRESS, min_size=1, max_size=10, unique=True)),
        flags=draw(st.lists(flag_words(), min_size=1, max_size=2)),
        source=source,
        make=write_text(source),
    )


def make_shared(place: Path) -> None:
    """What tables refer to as @SHARED@."""
    place.mkdir()
    (place / "one").write_bytes(b"content of one\n")
    (place / "two").write_bytes(b"\x00\xff binary")
    (place / "domains").write_text("b.c\n")
    (place / "m").write_text("a from-m\nb.c yes\nx@y 1\n")
    make_cdb(place / "m", [(b"a", b"cdb-a"), (b"x@y", b"b")])
    make_lmdb(place / "m", [(b"a\0", b"lmdb-a\0"), (b"1\0", b"a\0")])
    with sqlite3.connect(place / "names.sqlite") as db:
        db.executescript(SQLITE)
    db.close()
    query = "query = SELECT goto FROM alias WHERE address = '%s'"
    (place / "names.cf").write_text(f"dbpath = {place}/names.sqlite\n{query}\n")


USERS = st.sampled_from(
    [b"root", b"ROOT", b"daemon", b"postfix", b"mail", b"nobody", b"0", b"", b"x", b"root:", b"\xff"]
)
VARIABLES = st.sampled_from(
    [*(name.encode() for name in ENVIRONMENT), b"", b"PATH_X", b"A=B", b"diff_a", b"DIFF_A=one"]
)

# Changes


@dataclass
class Changes:
    """Requests to a table that did not exist: kind, flags, key, value. "walk" asks for all records."""

    steps: list[tuple[str, int, bytes, bytes]]
    name: bytes | None = None


@st.composite
def changes(
    draw: st.DrawFn, name: bytes | None = None, key: Strategy[bytes] = WORD, delete: bool = True
) -> Changes:
    """Few keys, much happens to each."""
    some = st.sampled_from(draw(st.lists(key.filter(bool), min_size=1, max_size=4, unique=True)))
    kinds = st.sampled_from(["update", "update", "lookup", "open", *(["delete", "walk"] if delete else [])])
    tries = draw(
        st.sampled_from([0, 0, 0, TRY0, TRY1])
    )  # for all: instances that differ in these do not agree
    flags = flag_words().map(lambda flags: flags | tries)
    values = st.one_of(VALUE, st.just(b""))
    return Changes(draw(st.lists(st.tuples(kinds, flags, some, values), min_size=1, max_size=25)), name)


CHANGES: dict[str, Strategy[Changes]] = {
    "lmdb": changes(),
    "hash": changes(),
    "btree": changes(),
    "internal": changes(),
    "environ": changes(
        b"environ:x", st.sampled_from([b"DIFF_A", b"diff_a", b"NEW", b"\xc3\xa9", b"\xff"]), delete=False
    ),
    "fail": changes(),
}

CASES: dict[str, Strategy[Case]] = {
    "cdb": indexed(make_cdb, walk=False),
    "lmdb": indexed(make_lmdb, walk=True),
    "hash": bdb("hash"),
    "btree": bdb("btree"),
    "texthash": texthash(),
    "inline": named(b"inline", listed(pairs()), walk=True),
    "static": named(b"static", st.one_of(WORD, VALUE, BRACED)),
    "fail": of_any_name(walk=True),
    "environ": of_any_name(VARIABLES),
    "internal": of_any_name(walk=True),
    "randmap": randmap(),
    "cidr": pattern_table("cidr", rules(networks(), CIDR_RESULT), CIDR_KEY),
    "regexp": pattern_table("regexp", rules(delimited("regexp"), RESULT), MATCHED),
    "pcre": pattern_table("pcre", rules(delimited("pcre"), RESULT), MATCHED),
    "unix": named(b"unix", st.sampled_from([b"passwd.byname", b"group.byname", b"passwd", b"x"]), USERS),
    "sqlite": sqlite(),
    "pipemap": composite(b"pipemap"),
    "unionmap": composite(b"unionmap"),
}

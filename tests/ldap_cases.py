"""ldap_cases - ldap tables, and keys to ask them for, drawn by hypothesis

`fill` puts ENTRIES into a private slapd; `ldap` draws a .cf file. What kills the stock server is not
drawn, and neither is what stock answers with one error or another by chance.
"""

from __future__ import annotations

from differential import DOMAIN, FORMAT, LETTERS, Case, flag_words, text
from fix_slapd import BASE, PEOPLE, Entry, Slapd, entry
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy as Strategy
from sql_cases import LISTS, make_cf

NAMES = [
    "a", "b", "a@b.c", "u@v", "x@y.z", "two words", "o'brien", "star*", "(paren)", "back\\slash", "comma,x",
    "#hash", "plus+", 'quote"', "<angle>", "semi;", "\u00e9", "\u4e2d", "equal=sign", "c", "b.c", "tilde~!&|",
]  # fmt: skip
UNDER = f"ou=under,{PEOPLE}"


def dn(name: str, below: str = PEOPLE) -> str:
    return entry(name, below)[0]


def url(rest: str) -> str:
    return f"ldap://elsewhere.invalid/{rest}"


ENTRIES: list[Entry] = [
    *(
        entry(
            name, mailacceptinggeneralid=[name, f"{name}@b.c"], maildrop=f"box of {name}",
            other=["b.c", "more"], mail=f"m{number}@b.c",
        )
        for number, name in enumerate(NAMES)
    ),
    entry("several", mailacceptinggeneralid="a", maildrop=["1", "2", "3"], other="x@y", mail="z@y"),
    entry("nothing", mailacceptinggeneralid="nothing@b.c", other="b.c"),
    entry("odd", mailacceptinggeneralid="odd@b.c", maildrop=[" a, b ", "a@", "@v", "u@v@w", "\u4e2d"]),
    entry("picture", mailacceptinggeneralid="p@b.c", jpegPhoto=b"ab\0cd", maildrop__lang_de="deutsch"),
    entry("term", mailacceptinggeneralid="t@b.c", term=["t1", "t2"], maildrop="hidden", inner=dn("a")),
    entry("leaf", mailacceptinggeneralid="l@b.c", leafmail="leaf1", maildrop="shown"),
    entry("group", mailacceptinggeneralid="g@b.c", leafmail="not shown", maildrop="own",
          inner=[dn("a"), dn("several"), dn("leaf")]),
    entry("outer", mailacceptinggeneralid="o@b.c", inner=[dn("group"), dn("b")]),
    entry("twice", mailacceptinggeneralid="tw@b.c", inner=[dn("outer"), dn("group")]),
    entry("dangling", mailacceptinggeneralid="d@b.c", inner=[dn("nosuch"), dn("b")], maildrop="d"),
    entry("wild", mailacceptinggeneralid="w@b.c", inner=["not a name", dn("b")]),
    entry("loop", mailacceptinggeneralid="lo@b.c", inner=dn("loop2"), maildrop="l"),
    entry("loop2", inner=dn("loop"), maildrop="l2"),
    entry("urls", mailacceptinggeneralid="url@b.c", maildrop="u",
          inner=[
                 url(f"{PEOPLE}?maildrop?one?(cn=a)"), url(dn("b").replace(" ", "%20")),
                 url(f"{PEOPLE}?maildrop,mail,cn?sub?(|(cn=b)(cn=several))"),
                 url(f"{PEOPLE}?description?sub?(cn=a)"),
                 url(f"{PEOPLE}??sub?(mailacceptinggeneralid=b@b.c)")]),
    entry("badurl", mailacceptinggeneralid="bu@b.c", inner=[url("x?y?nowhere?((")]),
    entry("badfilter", mailacceptinggeneralid="bf@b.c", inner=[url(f"{PEOPLE}??sub?((cn=a)")]),
    (UNDER, {"objectClass": ["organizationalUnit"], "ou": ["under"]}),
    entry("deep", UNDER, mailacceptinggeneralid="deep@b.c", maildrop="deep box"),
    (f"ou=b.c,{BASE}", {"objectClass": ["organizationalUnit"], "ou": ["b.c"]}),
    entry("a", f"ou=b.c,{BASE}", maildrop="a below b.c"),
    (f"cn=alias,{PEOPLE}", {"objectClass": ["alias", "extensibleObject"], "cn": ["alias"],
                            "aliasedObjectName": [f"cn=deep,{UNDER}"]}),
    (f"ou=away,{PEOPLE}", {"objectClass": ["referral", "extensibleObject"], "ou": ["away"],
                           "ref": ["ldap://127.0.0.1:9/ou=away,dc=example,dc=org"]}),
]  # fmt: skip


def fill(server: Slapd) -> None:
    server.add(*ENTRIES)


FILTERS = [
    *["(mailacceptinggeneralid=%s)"] * 15, "(cn=%s)", "(cn=%u)", "(&(cn=%u)(other=%d))", "cn=%s", " (cn=%s) ",
    "(|(cn=%s)(mailacceptinggeneralid=%s))", "(cn=*)", "(other=*)", "(mailacceptinggeneralid=%s*)",
    "(mailacceptinggeneralid=*%s)", "(cn=%1)", "(cn=%2.%1)", "(cn=%S)", "(mailacceptinggeneralid=%U@%D)",
    "(cn=%%)", "((cn=%s)", "(nosuch=%s)", "(cn:caseExactMatch:=%s)", "objectClass=*", "(cn=%s",
    "(&(objectClass=pmEntry)(!(cn=%s)))", "(&(mailacceptinggeneralid=%s)(!(cn=a)))", "(maildrop=%s)", "(x)",
    "(cn~=%s)", "(|(cn=%u)(cn=%d))",
]  # fmt: skip
RARELY = 7  # a parameter is there once in so many cases, and one
BASES = [
    *[PEOPLE] * 25, BASE, f"cn=%s,{PEOPLE}", f"cn=%u,{PEOPLE}", f"ou=%d,{BASE}", f"cn=%u,ou=%d,{BASE}",
    f"ou=nosuch,{BASE}", "", "garbage", "ou=people,dc=example,dc=%1", f"ou=away,{PEOPLE}",
    f"cn=alias,{PEOPLE}", f"cn=%s@b.c,{PEOPLE}", f"cn=%%,{PEOPLE}",
]  # fmt: skip
RESULTS = [
    *["maildrop"] * 12, "maildrop, mail", "mail maildrop", "MAILDROP", "cn other", "", "*", "dn", "entryDN",
    "nosuch", "maildrop;lang-de", "jpegPhoto", "maildrop cn mail other", "inner",
]  # fmt: skip
KNOWN = [
    value.encode() if isinstance(value, str) else value
    for _, attributes in ENTRIES
    for name in ("mailacceptinggeneralid", "cn")
    for value in attributes.get(name, [])
]
PIECES = [
    *LETTERS, b"@", b"@", b".", b"b.c", b"*", b"(", b")", b"\\", b"\\2a", b",", b"=", b"+", b'"', b"#", b"<",
    b">", b";", b" ", b"\t", b"\n", b"&", b"|", b"!", b"~", b"\x01", b"\x7f", b"%", b"\xff", b"\xc3",
    "\u00e9".encode(), "\u4e2d".encode(), b")(cn=*", b",ou=people",
]  # fmt: skip
ODD = [
    b"@b.c",
    b"a@",
    b"@",
    b"A@B.C",
    b"a@b@b.c",
    b"a@x.y",
    b"a@b..c",
    b"",
    b"*",
    b")(cn=*))(|(cn=*",
    b"a@example.com",
]
KEY = st.one_of(
    st.sampled_from(KNOWN), st.sampled_from(KNOWN), st.sampled_from(KNOWN + ODD), text(PIECES),
    st.builds(lambda key: key + b"@b.c", text(PIECES)),
)  # fmt: skip


def choices(server: Slapd) -> dict[str, Strategy[str]]:
    """Parameters that are mostly left out."""
    return {
        "server_host": st.sampled_from([server.address(), f"127.0.0.1:{server.port}", server.local_url]),
        "scope": st.sampled_from(["sub", "one", "one", "base", "SUB", "children"]),
        "result_format": FORMAT,
        "result_filter": FORMAT,
        "domain": st.one_of(DOMAIN, LISTS),
        "expansion_limit": st.sampled_from(["0", "1", "2", "3"]),
        "size_limit": st.sampled_from(["0", "1", "2", "30"]),
        "recursion_limit": st.sampled_from(["2", "2", "3", "4", "5"]),
        "terminal_result_attribute": st.sampled_from(["term", "TERM", "term, maildrop"]),
        "leaf_result_attribute": st.sampled_from(["leafmail", "leafmail maildrop"]),
        "special_result_attribute": st.sampled_from(["inner", "inner", "inner", "Inner", "inner, maildrop"]),
        "dereference": st.sampled_from(["0", "1", "2", "3"]),
        "version": st.sampled_from(["2", "3", "3", "3"]),
        "bind": st.sampled_from(["yes", "no", "simple", "none"]),
    }


@st.composite
def ldap(draw: st.DrawFn, server: Slapd) -> Case:
    """A .cf file."""
    login = draw(st.sampled_from([{}, {}, {"bind_dn": "", "bind_pw": ""}]))
    parameters = server.parameters(
        query_filter=draw(st.sampled_from(FILTERS)), search_base=draw(st.sampled_from(BASES)),
        result_attribute=draw(st.sampled_from(RESULTS)), **login,
    )  # fmt: skip
    if "%" not in parameters["query_filter"] and draw(st.integers(0, 3)):
        parameters["query_filter"] = FILTERS[0]
    if draw(st.booleans()):
        parameters["special_result_attribute"] = "inner"
    for name, values in choices(server).items():
        if not draw(st.integers(0, RARELY)):
            parameters[name] = draw(values)
    source = "".join(f"{name} = {value}\n" for name, value in parameters.items()).encode()
    return Case(
        keys=draw(st.lists(KEY, min_size=1, max_size=10, unique=True)),
        flags=draw(st.lists(flag_words(), min_size=1, max_size=2)),
        source=source,
        make=make_cf(source),
    )

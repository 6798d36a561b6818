"""maincf: reading and expanding, against the stock proxymap where it is installed"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymap.config import maincf
from proxymap.config.maincf import MainCf, read_parameters, split_parameter
from proxymap.errors import ConfigError

PROXYMAP = "/usr/lib/postfix/sbin/proxymap"
needs_proxymap = pytest.mark.skipif(not os.access(PROXYMAP, os.X_OK), reason="Postfix is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the stock proxymap starts as root only")
needs_postconf = pytest.mark.skipif(shutil.which("postconf") is None, reason="Postfix is not installed")

VALUES = {"v": "vv", "e": "", "lost": "$u", "n1": "10", "n2": "9", "two": "$v$n1", "a": "a  b"}


def main_cf(
    tmp_path: Path, text: str, *overrides: str, warnings: list[str] | None = None, **values: str
) -> MainCf:
    (tmp_path / "main.cf").write_text(text)
    warn = list[str]().append if warnings is None else warnings.append
    return MainCf(str(tmp_path), overrides, {"process_name": "proxymap"}, values, warn)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without Postfix."""
    monkeypatch.setattr(MainCf, "_ask_postconf", lambda self: {})


def read(tmp_path: Path, text: bytes) -> tuple[dict[str, str], list[str]]:
    path, warnings = tmp_path / "x.cf", list[str]()
    path.write_bytes(text)
    return read_parameters(str(path), warnings.append)[0], warnings


def test_values_are_trimmed_and_joined(tmp_path: Path) -> None:
    assert read(tmp_path, b"a=b\n# c\n\n c = d \r\nx =\n = y\n") == ({"a": "b c = d", "x": "= y"}, [])


def test_last_entry_wins_with_a_warning_if_it_differs(tmp_path: Path) -> None:
    assert read(tmp_path, b"a = b\na = b\na = c\n") == (
        {"a": "c"},
        [f"{tmp_path}/x.cf, line 3: overriding earlier entry: a=b"],
    )


def test_bytes_that_are_not_utf8_survive(tmp_path: Path) -> None:
    assert read(tmp_path, b"a = \xc3\xa9\xff")[0]["a"].encode(maincf.TEXT, maincf.ERRORS) == b"\xc3\xa9\xff"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (b"a\n", 1, "missing '='"),
        (b"x = 1\n\nfoo bar = 3\n", 3, "missing '='"),
        (b"x = 1\n# c\n= b\n", 3, "missing attribute name"),
        (b"a\0=b\n", 1, "missing '='"),
    ],
)
def test_bad_line_names_file_and_line(tmp_path: Path, text: bytes, line: int, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"x\.cf, line {line}: {what}"):
        read(tmp_path, text)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"open .*main\.cf: No such file"):
        MainCf(str(tmp_path))


def test_unknown_name_is_told_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "proxymap.cf"
    path.write_text("\ncashe_size = 1\n")
    with pytest.raises(ConfigError, match=r"line 2: unknown parameter cashe_size; .*nearest.* cache_size$"):
        read_parameters(str(path), print, ["worker_count", "cache_size"])


@pytest.mark.parametrize("text", ["a", "=x", " = x", "a b=c"])
def test_bad_override_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the place: missing"):
        split_parameter(text, "the place")


def test_name_ends_at_a_letter_that_is_not_ascii(tmp_path: Path) -> None:
    assert main_cf(tmp_path, "v = vv\na = $vé\n").get("a") == "vvé"


def test_override_beats_main_cf_and_is_expanded(tmp_path: Path) -> None:
    config = main_cf(tmp_path, "a = 1\nb = 2\n", " a = x/$b/$process_name ", "a=y/$b/$process_name")
    assert config.get("a") == "y/2/proxymap"
    assert config.where("a") == 'option "-o a=y/$b/$process_name"'


def test_nothing_overrides_what_the_daemon_knows(tmp_path: Path) -> None:
    assert main_cf(tmp_path, "process_name = x\n", "process_name=y").get("process_name") == "proxymap"


@pytest.mark.usefixtures("alone")
def test_defaults_are_expanded(tmp_path: Path) -> None:
    config = main_cf(tmp_path, "alias_maps = proxy:cdb:a", queue_directory="/q$u")
    assert config.get("queue_directory") == "/q"
    assert config.get("local_recipient_maps") == "proxy:unix:passwd.byname proxy:cdb:a"
    assert config.get("nobody_knows") == ""


@needs_postconf
def test_postconf_is_asked_once_and_only_if_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = maincf._Postconf

    def spy(program: str, environment: dict[str, str]) -> maincf._Postconf:
        asked.append(program)
        return real(program, environment)

    monkeypatch.setattr(maincf, "_Postconf", spy)
    config = main_cf(tmp_path, "a = b\ncommand_directory = /nonexistent$a\n")
    assert config.get("a") == "b"
    assert asked == []
    stock = subprocess.run(["postconf", "-dh", "mail_version"], capture_output=True, text=True, check=True)
    assert config.get("mail_version") == stock.stdout.strip()
    assert config.get("max_use") == "100"
    assert len(asked) == 1


@needs_postconf
def test_postconf_that_is_asked_ahead_answers_the_first_default(tmp_path: Path) -> None:
    config = main_cf(tmp_path, "a = b\ncommand_directory = /nonexistent$a\n")
    before = children()
    config.ask_ahead()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maincf, "_Postconf", None)  # not another one
        assert config.get("max_use") == "100"
    assert children() <= before


def children() -> set[str]:
    """The processes of ours that nobody has waited for."""
    found = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(found.read_text().split()) if found.exists() else set()


@needs_postconf
def test_defaults_are_found_whatever_is_wrong_with_master_cf(tmp_path: Path) -> None:
    """postconf dies of a faulty one."""
    (tmp_path / "master.cf").write_text("too short\n")
    assert main_cf(tmp_path, "").get("max_use") == "100"


@pytest.mark.parametrize("script", ["#!/nonexistent\n", "#!/bin/sh\nexit 1\n", "#!/bin/sh\necho nonsense\n"])
def test_trouble_with_postconf_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setenv("PATH", "relative")
    monkeypatch.setattr(maincf, "USUAL_DIRECTORY", "/nonexistent")
    (tmp_path / "postconf").write_text(script)
    (tmp_path / "postconf").chmod(0o755)
    assert main_cf(tmp_path, f"command_directory = {tmp_path}\n", max_use="7").get("max_use") == "7"


# Text and its expansion, with VALUES. None: an error.
EXPANSIONS = {
    "$v ${v} $(v) ${ v } $v.x $v-x $v:x": "vv vv vv vv vv.x vv-x vv:x",
    "$$v $$$v {$v} $u.$_ $1": "$v $vv {vv} . ",
    "[$( )][${ }][${?x}][${:x}][${ ?{x}:{y}}]": "[][][][x][y]",
    "${v?text}${u?text}${e?text}": "text",
    "${v:text}${u:text}${e:text}": "texttext",
    "[${v? a  b }][${v? {  a  b } }][${u?{a}: b ]": None,
    "[${v? a  b }][${v? {  a  b } }][${u?{a}: b }]": "[ a  b ][  a  b ][ b ]",
    "${v?{a}:{b}}${u?{a}:{b}}${u? {a} : {b} }${v?{a}:b}": "abba",
    "${lost?text}${lost:text}[$lost]": "text[]",
    "${v?a:b}${u:?}${v??}${v?:}${v?a{b}c}${v?a}b}": "a:b??:a{b}cab}",
    "${v?$v}${v?$$}${v?{$$}}$(v?(a):(b))$(v?{a}:{b})": "vv$$(a):(b)a",
    "${u?$}${v:$}${v?}${v:}${u:}": "",
    "${{a} == {a}}${{a}=={b}}${{}=={}}${{$v}=={vv}?{$n1}:{$}}": "truetrue10",
    "${{a}=={a}?y}${{a}=={b}:y}${ {a} != {b} ? {y} : {n} }$({a}=={a}?{y})": "yyyy",
    "${{$n1} > {$n2}?y}${{a$n1} < {a$n2}?y}${{ 10} < { 9}?y}${{00}=={0}?y}${{-1}<{1}?y}": "yyyyy",
    "${{3.10} >level {3.9}?y}${{3}==level{3.0}?y}${{3.1.2}<=level{4}?y}${{01. +1}>level{1}?y}": "yyyy",
} | dict.fromkeys(
    [
        *("$", "a $", "${}", "$ x", "$()", "${v", "$(v", "$é", "${v-x}", "${v v}", "${v{x}}", "${$v?a}"),
        *("${v?{a}x}", "${v?{a}{b}}", "${v?{a}:{b}c}", "${u:{b}:{c}}", "${v:{b}?{c}}", "${v?{a}:{b}"),
        *("$(v?{a)b})", "${v?$}", "${{a}}", "${{a}={a}}", "${{a}==a}", "${{a} >= level {1}}", "${{a}<>{b}}"),
        *("${{a} <level {1}}", "${{} <level {1}}", "${{1.} <level {1}}", "${{1.1.1.1} <level {1}}"),
        *("${{1.1024} <level {1}}", "${{a}=={a}y}", "${{a}==(a)}", "$((a)==(a))", "${{-1} <level {1}}"),
        *("${{9223372036854775808} > {1}}", "${{a}===={a}}", "${{1}==levels{1}}"),
    ]
)


def expanded(tmp_path: Path, text: str) -> str | None:
    warnings: list[str] = []
    value = main_cf(tmp_path, "", f"text=<{text}>", warnings=warnings, **VALUES).get("text")
    return None if warnings else value


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("text", EXPANSIONS)
def test_expansion(tmp_path: Path, text: str) -> None:
    wanted = EXPANSIONS[text]
    assert expanded(tmp_path, text) == (None if wanted is None else f"<{wanted}>")


@pytest.mark.parametrize(("depth", "good"), [(99, True), (100, True), (101, False), (300, False)])
def test_nesting_ends_at_100(tmp_path: Path, depth: int, good: bool) -> None:
    warnings: list[str] = []
    config = main_cf(tmp_path, f"a = {'${u:' * depth}end{'}' * depth}\n", warnings=warnings)
    assert config.get("a") == ("end" if good else "")
    assert good or re.search(r"main\.cf, line 1: parameter a: .* 100 deep", warnings[0])


def test_loop_is_warned_of_with_a_member(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert main_cf(tmp_path, "a = y $b\nb = x $a\n", warnings=warnings).get("a") == "y "
    assert len(warnings) == 1
    assert re.search(r"main\.cf, line [12]: parameter [ab]: .*loop", warnings[0])


@pytest.mark.usefixtures("alone")
def test_value_that_is_not_understood_stops_nothing_else(tmp_path: Path) -> None:
    """As a form of some later Postfix."""
    text = "new = ${future_form{x}}\nall = $new proxy:cdb:a ${new}\nmax_use = ${future_form{x}}\n"
    warnings: list[str] = []
    config = main_cf(tmp_path, text, warnings=warnings, max_use="7")
    assert [config.get(name) for name in ("all", "all", "max_use")] == [" proxy:cdb:a ", " proxy:cdb:a ", "7"]
    what = 'unknown function "future_form"; it counts as its default'
    assert warnings == [
        f"{tmp_path}/main.cf, line {n}: parameter {x}: {what}" for n, x in ((1, "new"), (3, "max_use"))
    ]


FUNCTIONS = {
    "${domain_to_ascii{$mydomain}}": "test.example",
    "<${domain_to_ascii{b\u00fccher.example}}>": "<xn--bcher-kva.example>",
    "${ domain_to_utf8 {mail.xn--bcher-kva.example} }": "mail.b\u00fccher.example",
    "$(domain_to_ascii{x${u:y}})": "xy",
    "$(domain_to_ascii{mail.$mydomain} )": "mail.test.example",
    "${domain_to_ascii{A_b..c}}": "A_b..c",
    "${domain_to_ascii{\u00df.X}}": "xn--zca.x",
    "${domain_to_utf8{ABC.d}}": "abc.d",
    "${domain_to_ascii{ x }}": "x",
    "${domain_to_ascii{$u}}": None,
    "${domain_to_utf8{xn--zz}}": None,
    "${domain_to_ascii{x}y}": None,
    "$(domain_to_ascii(x))": None,
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("text", FUNCTIONS)
def test_functions_of_postfix_3_11(tmp_path: Path, text: str) -> None:
    """As postconf of 3.11.7 expands them."""
    warnings: list[str] = []
    config = main_cf(tmp_path, "myhostname = mail.test.example\n", f"text={text}", warnings=warnings)
    assert config.get("text") == (FUNCTIONS[text] or "")
    assert (warnings == []) is (FUNCTIONS[text] is not None)


# main.cf -> what Postfix makes of myhostname and mydomain on a host called HOST or SHORT.
COMPUTED = {
    "myhostname = mail.a.b": ("mail.a.b", "a.b"),
    "myhostname = mail": ("mail", "localdomain"),
    "myhostname = mail.$mydomain": ("mail.", ""),
    "mydomain = a.b": ("short.a.b", "a.b"),
    "myhostname = x.y\nmydomain = a.b": ("x.y", "a.b"),
    "": ("short.localdomain", "localdomain"),
}


@pytest.mark.parametrize("text", COMPUTED)
def test_defaults_that_postfix_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """postconf -d has those of the host alone, as if main.cf were empty."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="short"))
    monkeypatch.setattr(
        MainCf, "_ask_postconf", lambda self: {"myhostname": "wrong.example", "mydomain": "example"}
    )
    for names in (("myhostname", "mydomain"), ("mydomain", "myhostname")):
        config = main_cf(tmp_path, text)
        found = {name: config.get(name) for name in names}
        assert (found["myhostname"], found["mydomain"]) == COMPUTED[text]


def test_host_name_with_a_dot_is_myhostname(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="mx.a.b"))
    config = main_cf(tmp_path, "")
    assert (config.get("mydomain"), config.get("myhostname")) == ("a.b", "mx.a.b")


@needs_postconf
@pytest.mark.parametrize("text", COMPUTED)
def test_computed_defaults_are_those_of_postconf(tmp_path: Path, text: str) -> None:
    config = main_cf(tmp_path, text + "\n")
    command = ["postconf", "-c", str(tmp_path), "-xh", "myhostname", "mydomain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [config.get("myhostname"), config.get("mydomain")]


@pytest.fixture(scope="module")
def stock_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration for the stock proxymap; old, for Postfix waits while main.cf is younger than a second."""
    directory = tmp_path_factory.mktemp("stock")
    lines = [f"{name} = {value}" for name, value in VALUES.items()]
    lines += [f"queue_directory = {directory}", f"data_directory = {directory}"]
    (directory / "main.cf").write_text("\n".join(lines) + "\n")
    os.utime(directory / "main.cf", (1e9, 1e9))
    return directory


def stock_expanded(directory: Path, text: str) -> str | None:
    """What the stock proxymap quotes when max_use is no number. It dies of that, slowly: no need to wait."""
    command = [PROXYMAP, "-S", "-V", "-t", "unix", "-o", f"max_use=<{text}>"]
    environment = {"MAIL_CONFIG": str(directory), "LANG": "C"}
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdin=null, stderr=pipe, env=environment) as stock:
        assert stock.stderr is not None
        said = next(line for line in stock.stderr if b": fatal: " in line).decode()
        stock.kill()
    start = "bad numerical configuration: max_use = "
    return said[said.index(start) + len(start) : -1] if start in said else None


@needs_proxymap
@needs_root
@pytest.mark.parametrize("text", EXPANSIONS)
def test_expansion_is_that_of_the_stock_proxymap(stock_directory: Path, text: str) -> None:
    wanted = EXPANSIONS[text]
    assert stock_expanded(stock_directory, text) == (None if wanted is None else f"<{wanted}>")


names = st.sampled_from(["v", "e", "u", "lost", "n1", "n2", "two", "a"])
blank = st.sampled_from(["", "", " "])
plain = st.sampled_from(["x", " ", "y z", ":", "?", "$$", "10", "9", "=", ""])
operator = st.sampled_from(["==", "!=", "<", "<=", ">=", ">", "=", "<level", "==level"])


def grow(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.builds("{{{}}}".format, text)
    choice = st.one_of(
        st.builds("?{}".format, text),
        st.builds(":{}".format, text),
        st.builds("{1}?{1}{0}{2}".format, group, blank, blank),
        st.builds("?{2}{0}{3}:{4}{1}".format, group, text | group, blank, blank, blank),
    )
    relation = st.builds("{3}{0}{4}{1}{5}{2}{3}".format, group, operator, group, blank, blank, blank)
    return st.one_of(
        st.builds("${}".format, names),
        st.builds("${{{1}{0}{1}}}".format, names, blank),
        st.builds("${{{}{}}}".format, names, choice),
        st.builds("$({}{})".format, names, choice),
        st.builds("${{{}{}}}".format, relation, choice | st.just("")),
        st.builds("{}{}".format, text, text),
    )


wild = st.lists(st.sampled_from([*"$${}()?: ab=<", "v", "${", "${v", "{a}"]), max_size=12).map("".join)


@needs_proxymap
@needs_root
@settings(max_examples=200, deadline=None)
@given(text=st.recursive(plain, grow, max_leaves=10) | wild)
def test_any_expansion_is_that_of_the_stock_proxymap(stock_directory: Path, text: str) -> None:
    warnings: list[str] = []
    ours = MainCf(str(stock_directory), [f"max_use=<{text}>"], warn=warnings.append).get("max_use")
    assert (None if warnings else ours) == stock_expanded(stock_directory, text)

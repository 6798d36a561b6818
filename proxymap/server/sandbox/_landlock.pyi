EXECUTE: int
WRITE_FILE: int
READ_FILE: int
READ_DIR: int
REMOVE_DIR: int
REMOVE_FILE: int
MAKE_DIR: int
MAKE_REG: int
MAKE_SOCK: int
REFER: int
TRUNCATE: int
OF_FILES: int
BIND_TCP: int
CONNECT_TCP: int
TCP_SINCE: int
ABSTRACT_SOCKETS: int
SIGNALS: int
SCOPES_SINCE: int
ALL_THREADS: int
ALL_THREADS_SINCE: int

def abi() -> int: ...
def rights_of(known: int) -> int: ...
def create(fs: int, net: int, scoped: int) -> int: ...
def allow_beneath(ruleset: int, parent: int, access: int) -> None: ...
def allow_port(ruleset: int, number: int, access: int) -> None: ...
def restrict(ruleset: int, flags: int = 0) -> None: ...
def no_new_privileges() -> None: ...
def not_dumpable() -> None: ...

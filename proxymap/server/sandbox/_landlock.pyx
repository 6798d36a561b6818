"""_landlock - Landlock's three system calls, and what prctl(2) gives up for good

What the kernel does not know must not be asked of it: its ABI says how much that is. The numbers
are declared here, since a host that compiles may have older headers than the one that runs.

Source: landlock(7), landlock_create_ruleset(2), landlock_add_rule(2), landlock_restrict_self(2),
linux/landlock.h; prctl(2), PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE.
"""

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint64_t

import os

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef SYS_landlock_create_ruleset
    #define SYS_landlock_create_ruleset 444
    #define SYS_landlock_add_rule 445
    #define SYS_landlock_restrict_self 446
    #endif
    struct proxymap_handled { uint64_t fs, net, scoped; };
    struct proxymap_beneath { uint64_t access; int32_t parent; } __attribute__((packed));
    struct proxymap_port { uint64_t access, port; };
    """
    struct handled "proxymap_handled":
        uint64_t fs, net, scoped
    struct beneath "proxymap_beneath":
        uint64_t access
        int32_t parent
    struct tcp_port "proxymap_port":
        uint64_t access, port
    long syscall(long, ...)
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)
    enum: SYS_landlock_create_ruleset, SYS_landlock_add_rule, SYS_landlock_restrict_self
    enum: PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE

# Rights to files and folders, with the ABI that brings each; the others are there from the first on.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = [1 << bit for bit in range(6, 13)]
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # what a rule for a file may have
FIRST_RIGHTS = (1 << 13) - 1
LATER_RIGHTS = {REFER: 2, TRUNCATE: 3, IOCTL_DEV: 5}
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
TCP_SINCE = 4
ABSTRACT_SOCKETS, SIGNALS = 1 << 0, 1 << 1
SCOPES_SINCE = 6
ALL_THREADS = 1 << 3  # flag of restrict: it counts for the threads that are there, too
ALL_THREADS_SINCE = 8

VERSION = 1 << 0  # flag: tell the ABI
PATH_BENEATH, NET_PORT = 1, 2  # kinds of rules


def abi() -> int:
    """The highest ABI that the kernel knows. OSError: it has no Landlock, or we may not use it."""
    return _checked(syscall(SYS_landlock_create_ruleset, NULL, <size_t> 0, <unsigned int> VERSION))


def rights_of(int known) -> int:
    """All rights to files that an ABI can withhold."""
    return FIRST_RIGHTS | sum(right for right, since in LATER_RIGHTS.items() if since <= known)


def create(uint64_t fs, uint64_t net, uint64_t scoped) -> int:
    """The descriptor of a new ruleset, which withholds these rights where no rule gives them. OSError."""
    cdef handled attr
    attr.fs, attr.net, attr.scoped = fs, net, scoped
    return _checked(syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), <unsigned int> 0))


def allow_beneath(int ruleset, int parent, uint64_t access) -> None:
    """Give rights to a file, or to a folder and all that is in it; parent: its descriptor. OSError."""
    cdef beneath attr
    attr.access, attr.parent = access, parent
    _checked(syscall(SYS_landlock_add_rule, ruleset, <int> PATH_BENEATH, &attr, <unsigned int> 0))


def allow_port(int ruleset, int number, uint64_t access) -> None:
    """Give rights to a TCP port. OSError."""
    cdef tcp_port attr
    attr.access, attr.port = access, number
    _checked(syscall(SYS_landlock_add_rule, ruleset, <int> NET_PORT, &attr, <unsigned int> 0))


def restrict(int ruleset, unsigned int flags = 0) -> None:
    """Put this thread, and all that it starts, under the ruleset for good. OSError."""
    _checked(syscall(SYS_landlock_restrict_self, ruleset, flags))


def no_new_privileges() -> None:
    """From now on no program that is run has more rights than this process. OSError."""
    _checked(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def not_dumpable() -> None:
    """No core dump, and no other process of this user may look into the memory. OSError."""
    _checked(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))


cdef long _checked(long result) except? -1:
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    return result

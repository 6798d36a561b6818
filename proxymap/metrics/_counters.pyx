"""_counters - counters that all processes of a service share: rows of a mapped file

What is counted is in memory that the kernel has as well: whatever becomes of a
process, what it has counted stays. A counter is added to with one instruction,
without a lock, by any thread.

A row is found by kind and name when a table or server turns up, never for a
lookup. It is taken without a lock, too, since a process that was stopped may
hold none: two processes that meet a name at the same moment may take a row
each, and readers add up what has the same name. The last rows count for what
finds no room, one for each kind: cells mean other things to another kind.

Until `attach`, and where there can be no file, the rows are in plain memory.
Source: mmap(2); __atomic builtins of gcc.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap,
)

from proxymap.base._buf cimport view, view_of, view_str
from proxymap.base._hash cimport hash_view
from proxymap.base._map cimport map_to_write, region

cdef extern from *:
    """
    #define proxymap_claim(p, was, now) \\
        __atomic_compare_exchange_n(p, was, now, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
    #define proxymap_state(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define proxymap_set_state(p, n) __atomic_store_n(p, n, __ATOMIC_RELEASE)
    """
    bint claim "proxymap_claim"(uint32_t *p, uint32_t *was, uint32_t now) nogil
    uint32_t state_of "proxymap_state"(const uint32_t *p) nogil
    void set_state "proxymap_set_state"(uint32_t *p, uint32_t n) nogil

cdef enum:  # of a row
    ROW_FREE = 0
    ROW_CLAIMED = 1  # somebody writes its name
    ROW_READY = 2

cdef enum:
    HASH_LENGTH = 17  # of "#" and 16 digits, at the end of a name that was cut

LAYOUT = 1          # another one whenever a cell comes to mean something else
HEADER_SIZE = 4096  # bytes before the first row
ROW_SIZE = sizeof(figures)
FILE_SIZE = HEADER_SIZE + ROWS * sizeof(figures)
NAME_AT, CELLS_AT = 20, 256
READY = ROW_READY

cdef figures *rows = NULL
cdef region *attached = NULL  # what the rows lie in, if it is a file


cdef figures *figures_of(int kind, view name) noexcept nogil:
    """The row of that name, or a new one; never NULL. Any thread."""
    cdef char cut[NAME_MAX]
    cdef uint64_t hash = hash_view(name, kind)
    cdef figures *f
    cdef uint32_t state, was
    cdef int i
    if name.len > NAME_MAX:
        name = shortened(name, hash, cut)
        hash = hash_view(name, kind)
    for i in range(ROWS - KINDS):
        f = &rows[i]
        state = state_of(&f.state)
        if state == ROW_FREE:
            was = ROW_FREE
            if claim(&f.state, &was, ROW_CLAIMED):
                fill(f, kind, hash, name)
                return f
            state = state_of(&f.state)
        if state == ROW_READY and f.hash == hash and f.kind == <uint32_t> kind and is_called(f, name):
            return f
    f = &rows[ROWS - kind]
    if state_of(&f.state) != ROW_READY:
        fill(f, kind, 0, view_str(b"other"))
    return f


cdef inline bint is_called(const figures *f, view name) noexcept nogil:
    return f.len == name.len and memcmp(f.name, name.ptr, name.len) == 0


cdef void fill(figures *f, int kind, uint64_t hash, view name) noexcept nogil:
    f.kind, f.hash, f.len = kind, hash, <uint32_t> name.len
    memcpy(f.name, name.ptr, name.len)
    set_state(&f.state, ROW_READY)


cdef view shortened(view name, uint64_t hash, char *room) noexcept nogil:
    """Its beginning, and a hash of all of it."""
    cdef int at, digit
    memcpy(room, name.ptr, NAME_MAX - HASH_LENGTH)
    room[NAME_MAX - HASH_LENGTH] = c"#"
    for at in range(HASH_LENGTH - 1):
        digit = (hash >> 4 * at) & 15
        room[NAME_MAX - HASH_LENGTH + 1 + at] = digit + (c"0" if digit < 10 else c"a" - 10)
    return view_of(room, NAME_MAX)


cdef void begin() noexcept:
    global rows
    cdef void *data = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if data != MAP_FAILED:
        rows = <figures *> data


def attach(int fd) -> None:
    """Count in this open file from now on, which has FILE_SIZE bytes. Before any row was found. OSError."""
    global rows, attached
    cdef region *mapped = map_to_write(fd, FILE_SIZE)
    if mapped == NULL:
        raise OSError(errno, os.strerror(errno))
    attached = mapped
    rows = <figures *> (mapped.data + <size_t> HEADER_SIZE)


def is_damaged() -> bool:
    """Was the file cut since it was attached? What is counted may be lost then."""
    return attached != NULL and attached.damaged


cdef class Figures:
    """The row of a table or server, for Python code. Any thread."""

    def __cinit__(self, int kind, bytes name not None):
        self.f = figures_of(kind, view_of(name, len(name)))

    def count(self, int cell, uint64_t n=1):
        """n more."""
        if 0 <= cell < CELLS:
            count_more(self.f, cell, n)

    def time(self, int first, int shift, double seconds):
        """Something took so long; see count_size."""
        if 0 <= first < CELLS - BUCKETS:
            count_size(self.f, first, shift, <uint64_t> (max(seconds, 0.0) * 1e9))

    def value(self, int cell) -> int:
        """What has been counted by all processes."""
        return self.f.cells[cell] if 0 <= cell < CELLS else 0


begin()
if rows == NULL:
    raise MemoryError

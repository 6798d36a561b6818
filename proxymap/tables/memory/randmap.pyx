"""randmap - any one of its items for every key: randmap:{item, item, ...}

Source: DATABASE_README; tables.md 5.
"""

import os

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view, view_of
from proxymap.base._hash cimport K1, K2, mum
from proxymap.tables._table cimport Table, table
from proxymap._words cimport *

from proxymap.config.source import base64_of_files, split_braced
from proxymap.tables.flags import RHS_IS_FILE

cdef extern from *:
    """
    #define proxymap_add(counter, n) __atomic_add_fetch(counter, n, __ATOMIC_RELAXED)
    """
    uint64_t add "proxymap_add"(uint64_t *counter, uint64_t n) noexcept nogil


cdef struct choice:
    view *items
    uint64_t count
    uint64_t state  # counts up in steps of K1; mixed, that makes numbers as random as need be


cdef int randmap_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    cdef choice *c = <choice *> t.self
    value[0] = c.items[mum(add(&c.state, K1), K2) % c.count]
    return STAT_OK


cdef class RandmapTable(Table):
    cdef list texts
    cdef choice c

    def __cinit__(self, bytes type_name, list texts not None):
        cdef size_t i
        cdef bytes text
        self.texts = texts
        self.c.count = len(texts)
        self.c.state = int.from_bytes(os.urandom(8), "little")
        self.c.items = <view *> PyMem_Calloc(self.c.count, sizeof(view))
        if self.c.items == NULL:
            raise MemoryError()
        for i in range(self.c.count):
            text = texts[i]
            self.c.items[i] = view_of(text, len(text))
        self.t.self = &self.c
        self.t.flags = DICT_FLAG_PATTERN
        self.t.lookup = randmap_lookup

    def __dealloc__(self):
        PyMem_Free(self.c.items)

    def explain(self, bytes key not None) -> list:
        return [f"any of {len(self.texts)} items"]


def open_table(bytes type_name, bytes mapname, opening) -> RandmapTable:
    try:
        texts = split_braced(mapname)
    except ValueError:
        texts = []
    if not texts:
        raise ValueError(f'bad syntax: "{os.fsdecode(type_name)}"; need "randmap:{{value...}}"')
    if opening.flags & RHS_IS_FILE:
        texts = [base64_of_files(text) for text in texts]
    return RandmapTable(type_name, texts)

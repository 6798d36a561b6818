# _lmdb_index - where the records of a snapshot are (see _lmdb_index.pyx)

from libc.stdint cimport uint64_t

from proxymap._buf cimport buf, view
from proxymap._lmdb cimport lmdb, meta
from proxymap._places cimport places

cdef enum:  # what index_find may say besides STAT_OK and STAT_NOKEY
    INDEX_UNKNOWN = -1


cdef struct index:
    places places
    uint64_t seed
    size_t limit        # bytes that it may take; 0: there is to be none
    uint64_t txnid      # of the snapshot that it is about
    uint64_t overwrites  # and the state of the file
    uint64_t asked      # lookups in that snapshot, until it is whole
    uint64_t worth      # so many have to be asked before it is made
    bint whole          # it has all records
    bint given_up       # it cannot be had for this snapshot
    buf latest          # key of the record that was put last


cdef inline bint index_is_of(const index *x, uint64_t txnid, uint64_t overwrites) noexcept nogil:
    return x.txnid == txnid and x.overwrites == overwrites


cdef void index_tend(index *x, lmdb *db, uint64_t overwrites) noexcept nogil
cdef bint index_foresee(const index *x, lmdb *db, view key, bint nul, int step, uint64_t *hash) noexcept nogil
cdef int index_find(const index *x, lmdb *db, view key, bint nul, view *value) noexcept nogil
cdef void index_free(index *x) noexcept nogil

# _lmdb_index - where the records of a snapshot are (see _lmdb_index.pyx)

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.base._hash cimport hash_view
from proxymap.tables.indexed._lmdb cimport lmdb, meta
from proxymap.tables.indexed._places cimport places, places_are_cleared, places_bytes

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
    char *text          # copies of the records; NULL: places lead to the file
    size_t text_size    # bytes that it may have
    size_t text_used    # and has
    buf latest          # key of the record that was put last


cdef inline bint index_is_of(const index *x, uint64_t txnid, uint64_t overwrites) noexcept nogil:
    return x.txnid == txnid and x.overwrites == overwrites


cdef inline bint index_can_tell(const index *x, uint64_t txnid, uint64_t overwrites) noexcept nogil:
    return index_is_of(x, txnid, overwrites) and places_are_cleared(&x.places)


cdef inline size_t index_bytes(const index *x) noexcept nogil:
    """What it takes in memory."""
    return x.text_used + (places_bytes(&x.places) if x.places.slots != NULL else 0)


cdef inline uint64_t index_hash(const index *x, view key, bint nul) noexcept nogil:
    """Keys that differ in a trailing NUL have nothing in common. A key that is asked for has no other NUL."""
    return hash_view(key, x.seed + nul)


cdef void index_tend(index *x, lmdb *db, uint64_t overwrites) noexcept nogil
cdef void index_foresee(const index *x, lmdb *db, uint64_t hash) noexcept nogil
cdef int index_find(
    const index *x, lmdb *db, uint64_t hash, view key, bint nul, view *value
) noexcept nogil
cdef void index_free(index *x) noexcept nogil

"""_lmdb_index - where the records of a snapshot are: a lookup without a walk

A walk through the tree of a large table reads some twenty cache lines, most of
them from memory and one after the other. An index of all keys leads to a record,
or tells that there is none, with two or three, which can be fetched beforehand.

Where there is room for them it has copies of the records as well, in huge pages:
a record anywhere in a large file costs a miss of the TLB, which no prefetch hides.

It is about one snapshot and void with the next commit. So it is made when about
as much time has been spent on walks in a snapshot as making it takes; then with
each lookup a leaf is added, until all are there. What it says is checked: a place
has to be a record of that key.

It belongs to the loop: other threads walk. No GIL.
"""

from libc.string cimport memcpy
from posix.mman cimport munmap

from proxymap.base._buf cimport buf_append_view, buf_clear, buf_free, buf_view, view_of
from proxymap.tables.indexed._lmdb cimport *
from proxymap.tables.indexed._places cimport (
    memory_map, places_are_cleared, places_begin, places_bytes, places_clear, places_free, places_next,
    places_prefetch, places_put,
)
from proxymap.tables._table cimport prefetch
from proxymap._words cimport STAT_NOKEY, STAT_OK

cdef enum:
    OFFSET_BITS = 16  # of a place: where in its page a node begins; the rest is the page's number
    CACHE_LINE = 64
    AHEAD = 32        # nodes whose slots are fetched together
    FIRST_PLACE = 8   # of a copy; 0 is none


cdef void index_tend(index *x, lmdb *db, uint64_t overwrites) noexcept nogil:
    """At each lookup: is the index still about the table? Go on making it, if that is worth while."""
    cdef meta s
    if x.limit == 0 or (x.given_up or x.whole) and index_is_of(x, newest(db), overwrites):
        return
    if snapshot_take(db, &s) != FITS:
        return
    if not index_is_of(x, s.txnid, overwrites):
        x.txnid = s.txnid
        x.overwrites = overwrites
        x.asked = 0
        x.worth = s.main.leaf_pages // 2
        x.whole = x.given_up = False
        x.places.cleared = 0  # and so it is of no use
    x.asked += 1
    if x.asked <= x.worth:
        return
    if x.asked == x.worth + 1:
        buf_clear(&x.latest)
        x.given_up = places_begin(&x.places, s.main.entries, x.limit) < 0
        if not x.given_up:
            text_begin(x, s.main.leaf_pages, db.page_size)
    elif not places_are_cleared(&x.places):
        places_clear(&x.places)
    elif add_leaf(x, db, &s) < 0 or newest(db) != s.txnid or is_cut(db):
        x.given_up = True
        x.whole = False
        places_free(&x.places)
        text_free(x)


cdef void text_begin(index *x, uint64_t pages, size_t page_size) noexcept nogil:
    """Make room for all records of so many leaves, if the limit allows that."""
    cdef size_t rest = x.limit - places_bytes(&x.places)
    cdef size_t size = pages * page_size + FIRST_PLACE if pages < rest // page_size else 0
    if size == 0 or size > x.text_size:  # a smaller one is no reason to let go of the memory
        text_free(x)
        if size:
            x.text = <char *> memory_map(size)
        x.text_size = size if x.text != NULL else 0
    x.text_used = FIRST_PLACE


cdef void text_free(index *x) noexcept nogil:
    if x.text != NULL:
        munmap(x.text, x.text_size)
    x.text = NULL
    x.text_size = x.text_used = 0


cdef int add_leaf(index *x, lmdb *db, const meta *s) noexcept nogil:
    """Add the records of the next leaf; 0, or -1 if that cannot be done in this snapshot."""
    cdef path w
    cdef view key
    cdef int moved
    if s.main.root == NO_PAGE:
        x.whole = True
        return 0
    if walk(db, s, buf_view(&x.latest), False, &w) < 0:
        return -1
    if buf_view(&x.latest).len:
        moved = walk_right(db, &w)
        if moved <= 0:
            x.whole = moved == 0
            return moved
    if add_nodes(x, db, &w.leaf) < 0 or node_key(db, &w.leaf, w.leaf.keys - 1, &key) < 0:
        return -1
    buf_clear(&x.latest)
    return buf_append_view(&x.latest, key)


cdef int add_nodes(index *x, lmdb *db, const page *leaf) noexcept nogil:
    cdef uint64_t hashes[AHEAD]
    cdef uint64_t number, place
    cdef unsigned int first = 0, count, i
    cdef view key, previous = buf_view(&x.latest)
    cdef bint nul
    memcpy(&number, leaf.data, 8)
    if number >> (64 - OFFSET_BITS):
        return -1
    while first < leaf.keys:
        count = min(leaf.keys - first, <unsigned int> AHEAD)
        for i in range(count):
            if node_key(db, leaf, first + i, &key) < 0 or key_order(previous, key, False) >= 0:
                return -1  # a walk finds nothing that is out of order
            previous = key
            nul = key.ptr[key.len - 1] == 0  # a leaf's keys are of one byte or more
            hashes[i] = index_hash(x, view_of(key.ptr, key.len - nul), nul)
            places_prefetch(&x.places, hashes[i])
        for i in range(count):
            place = number << OFFSET_BITS | node_offset(db, leaf, first + i)
            if x.text != NULL:
                place = copy_node(x, db, leaf, first + i)
            if place == 0 or places_put(&x.places, hashes[i], place) < 0:
                return -1
        first += count
    return 0


cdef uint64_t copy_node(index *x, const lmdb *db, const page *leaf, unsigned int i) noexcept nogil:
    """Where the copy of node i is; 0: it is damaged, or there are more than there should be."""
    cdef uint64_t place = x.text_used
    cdef const char *begins
    cdef size_t size
    cdef node n
    if node_get(db, leaf, i, &n) < 0:
        return 0
    begins = n.key.ptr - NODE_HEADER
    size = n.value.ptr + n.value.len - begins
    if size > x.text_size - x.text_used:
        return 0
    memcpy(x.text + place, begins, size)
    if copied_node(db, x.text + place, &n) < 0 or n.value.ptr + n.value.len != x.text + place + size:
        return 0  # it was written over meanwhile
    x.text_used += size
    return place


cdef inline const char *node_at(const index *x, lmdb *db, uint64_t place) noexcept nogil:
    """Where a node begins, if that is in the file."""
    cdef const char *data
    cdef size_t offset = place & ((1 << OFFSET_BITS) - 1)
    if x.text != NULL:
        return x.text + place
    data = pages_at(db, place >> OFFSET_BITS, 1)
    if data == NULL or offset >= db.page_size:
        return NULL
    return data + db.base + offset


cdef void index_foresee(const index *x, lmdb *db, uint64_t hash) noexcept nogil:
    """Fetch the record that the slot leads to; ask index_can_tell first."""
    cdef uint64_t tried = 0
    cdef uint64_t place = places_next(&x.places, hash, &tried)
    cdef const char *at = node_at(x, db, place) if place else NULL
    if at != NULL:
        prefetch(at)
        prefetch(at + CACHE_LINE - 1)


cdef int index_find(
    const index *x, lmdb *db, uint64_t hash, view key, bint nul, view *value
) noexcept nogil:
    """STAT_OK and the value, as a view of the map; STAT_NOKEY or INDEX_UNKNOWN. Ask index_can_tell first."""
    cdef uint64_t place, tried = 0
    cdef bint damaged
    cdef node n
    while True:
        place = places_next(&x.places, hash, &tried)
        if place == 0:
            return STAT_NOKEY if x.whole else INDEX_UNKNOWN
        if x.text != NULL:
            damaged = copied_node(db, x.text + place, &n) < 0
        else:
            damaged = leaf_node(db, place >> OFFSET_BITS, place & ((1 << OFFSET_BITS) - 1), &n) < 0
        if damaged:
            return INDEX_UNKNOWN
        if key_order(n.key, key, nul) == 0:
            if node_value(db, &n) < 0:
                return INDEX_UNKNOWN
            value[0] = n.value
            return STAT_OK


cdef void index_free(index *x) noexcept nogil:
    places_free(&x.places)
    text_free(x)
    buf_free(&x.latest)

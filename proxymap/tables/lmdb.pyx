"""lmdb - LMDB files, read from the map without locks: data formats 0.9 and 1.0

A data file is a B+tree of copied-on-write pages. Pages 0 and 1 are meta pages;
the one with the higher transaction id, S, names the root of the last commit.
A writer without a reader table reuses only pages freed before the snapshot
S - 1 was made, so whatever was read in snapshot S is intact as long as the
newest transaction id, looked at afterwards, is at most S + 1. Hence: copy the
meta page, walk, copy the value out, look again; walk again if a writer was
quicker. After ROUNDS rounds in vain the fcntl read lock is taken once, as
Postfix does, without waiting for it.

The two formats differ in the page header (16 or 24 bytes), in what node
offsets count from, in the padding of keys and in the reference to a large
value. No offset from the file is used before it is checked.

Lookups run without the GIL, on any thread. The lock is an "open file
description" lock, which neither loses nor frees the writer's (lmdb_writer.py),
where updates are made, on a worker thread.

Source: LMDB's data format as found in files of 0.9.24, 0.9.36 and 1.0.2;
lmdb_table(5); tables.md 4.2 to 4.4.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.fcntl cimport F_RDLCK, F_UNLCK

from proxymap._buf cimport (
    buf, buf_append_view, buf_clear, buf_view, memcmp, memcpy, view, view_of, view_until_nul,
)
from proxymap._clock cimport wall_clock_ns
from proxymap._lockfile cimport F_OFD_SETLK, set_lock
from proxymap._map cimport (
    load_data, load_size, map_at, map_close, map_cut, map_grow, map_mtime_ns, map_open, mapped,
)
from proxymap._table cimport (
    CHANGED_NOT, CHANGED_REPLACED, CHANGED_SPOILED, SLOW_WRITE, Table, cursor, origins_changed,
    origins_replaced, table, table_try_nul,
)
from proxymap._words cimport *

cdef enum:
    MAGIC = 0xBEEFC0DE
    VERSION_0_9 = 1
    VERSION_1_0 = 3
    META_SIZE = 136
    PAGE_MIN = 256
    PAGE_MAX = 65536
    TICK_NS = 20000000   # two writes within one tick of the file system's clock leave the same time
    NODE_HEADER = 8
    DEPTH_MAX = 32       # liblmdb's own limit of levels
    ROUNDS = 64          # each is one walk, under a microsecond
    ADDRESS_SPACE = 1 << 24  # room for a small file to grow without being mapped anew

    P_BRANCH = 1
    P_LEAF = 2
    P_OVERFLOW = 4
    F_BIGDATA = 1
    ENCRYPT = 0x2000     # environment flag of 1.0

    FITS = 0             # of a file: we can read it,
    DAMAGED = -1         # it makes no sense,
    FOREIGN = -2         # or it is a sound LMDB file that Postfix does not write

cdef uint64_t NO_PAGE = <uint64_t> -1  # the root of an empty tree


cdef struct tree:  # as it lies in the file
    uint32_t pad   # of the free list: the page size
    uint16_t flags
    uint16_t depth
    uint64_t branch_pages
    uint64_t leaf_pages
    uint64_t overflow_pages
    uint64_t entries
    uint64_t root


cdef struct meta:  # as it lies in the file, behind the page header
    uint32_t magic
    uint32_t version
    uint64_t address
    uint64_t mapsize
    tree free
    tree main
    uint64_t last_page
    uint64_t txnid


cdef struct lmdb:
    mapped m
    size_t page_size
    size_t header      # bytes of a page header
    size_t base        # what node offsets count from
    uint32_t version
    uint64_t latest    # transaction that an answer was taken from
    uint64_t tail      # the last bytes of the file, see is_cut
    bint written       # there is a writer, so damage can be mended
    bint rotten        # damage was met on the way to an answer
    uint64_t mtime_ns  # of the file, when it was last looked at
    uint64_t overwrites  # looks that found it written to; not all are commits


cdef struct page:
    const char *data
    const char *nodes  # node offsets count from here
    unsigned int keys
    unsigned int upper  # where the nodes begin
    int kind           # P_BRANCH or P_LEAF


cdef struct node:
    view key
    uint64_t child     # of a branch: page number
    view value         # of a leaf: what is stored in the node
    uint64_t size      # of a leaf: bytes of the value
    int flags


# Snapshots

cdef inline uint64_t load64(const char *p) noexcept nogil:
    return (<const volatile_u64 *> p)[0]


cdef extern from *:
    """
    #include <endian.h>
    #include <stdint.h>
    #include <string.h>
    typedef const volatile uint64_t proxymap_volatile_u64;
    static inline uint64_t proxymap_load_big(const char *p)
    {
        uint64_t n;
        memcpy(&n, p, 8);
        return be64toh(n);
    }
    #define proxymap_fence() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    """
    ctypedef uint64_t volatile_u64 "proxymap_volatile_u64"
    void read_fence "proxymap_fence"() noexcept nogil
    uint64_t load_big "proxymap_load_big"(const char *p) noexcept nogil  # as memcmp orders bytes


cdef inline const char *meta_at(const lmdb *db, uint64_t number) noexcept nogil:
    return load_data(&db.m.data) + (number & 1) * db.page_size + db.header


cdef inline uint64_t newest(const lmdb *db) noexcept nogil:
    """The transaction id of the last commit."""
    cdef uint64_t even = load64(meta_at(db, 0) + META_SIZE - 8)
    cdef uint64_t odd = load64(meta_at(db, 1) + META_SIZE - 8)
    return even if even > odd else odd


cdef bint went_back(const lmdb *db) noexcept nogil:
    """Is the newest transaction older than one that was answered from? Then this is not that file."""
    cdef uint64_t latest = load64(<const char *> &db.latest)
    read_fence()
    return newest(db) < latest


cdef bint is_cut(lmdb *db) noexcept nogil:
    """Has the file become shorter? Most often told without a system call.

    Where it was cut, it reads as zeros up to the end of that page; what is behind raises SIGBUS.
    """
    cdef size_t size = load_size(&db.m.size)
    cdef uint64_t tail = load64(load_data(&db.m.data) + size - 8)
    if tail == 0 or tail != db.tail:
        if map_cut(&db.m):
            return True
        db.tail = tail
    return db.m.region.damaged


cdef int snapshot_take(const lmdb *db, meta *s) noexcept nogil:
    """Copy the newest meta page; FITS or what is wrong. Transaction N is written to page N & 1."""
    cdef uint64_t txnid
    cdef int _
    for _ in range(ROUNDS):
        txnid = newest(db)
        read_fence()
        memcpy(s, meta_at(db, txnid), META_SIZE)
        read_fence()
        if s.txnid == txnid and newest(db) == txnid:
            break
    else:
        return DAMAGED
    if s.magic != MAGIC or s.version != db.version or s.free.pad != db.page_size:
        return DAMAGED
    # Without the other one there is no telling whether this is the newest.
    if load32(meta_at(db, txnid + 1)) != MAGIC:
        return DAMAGED
    if s.main.flags or (s.version == VERSION_1_0 and s.free.flags & ENCRYPT):
        return FOREIGN
    return FITS


cdef bint snapshot_intact(const lmdb *db, const meta *s) noexcept nogil:
    """Was everything that has been read since snapshot_take part of snapshot s?

    Its meta page is compared whole: a copy taken while the kernel was writing
    that page shows here, since the write has ended meanwhile.
    """
    read_fence()
    return newest(db) <= s.txnid + 1 and memcmp(s, meta_at(db, s.txnid), META_SIZE) == 0


# Pages and nodes

cdef inline uint16_t load16(const char *p) noexcept nogil:
    cdef uint16_t n
    memcpy(&n, p, 2)
    return n


cdef inline uint32_t load32(const char *p) noexcept nogil:
    cdef uint32_t n
    memcpy(&n, p, 4)
    return n


cdef const char *pages_at(lmdb *db, uint64_t number, uint64_t count) noexcept nogil:
    """count pages from number on, or NULL if the file has no such pages, now that we know all of it."""
    cdef uint64_t offset, size
    cdef const char *pages
    if number >> 44 or count >> 44:  # too large to be multiplied, or to be true
        return NULL
    offset = number * db.page_size
    size = count * db.page_size
    pages = map_at(&db.m, offset, size)
    if pages == NULL and map_grow(&db.m) == 0:
        pages = map_at(&db.m, offset, size)
    return pages


cdef int page_get(lmdb *db, uint64_t number, page *p) noexcept nogil:
    """The tree page with that number; 0, or -1 if there is none."""
    cdef unsigned int lower, upper
    cdef uint64_t own
    p.data = pages_at(db, number, 1)
    if p.data == NULL:
        return -1
    memcpy(&own, p.data, 8)
    p.kind = load16(p.data + db.header - 6)
    lower = load16(p.data + db.header - 4)
    upper = load16(p.data + db.header - 2)
    if own != number or (p.kind != P_BRANCH and p.kind != P_LEAF):
        return -1
    if lower < db.header - db.base or lower > upper or upper > db.page_size - db.base:
        return -1
    p.nodes = p.data + db.base
    p.upper = upper
    p.keys = (lower - <unsigned int> (db.header - db.base)) // 2
    return 0 if p.keys else -1


cdef inline int node_key(const lmdb *db, const page *p, unsigned int i, view *key) noexcept nogil:
    """The key of node i of a page, i < keys; 0, or -1 if it does not lie within the page."""
    cdef size_t offset = load16(p.data + db.header + 2 * i)
    cdef size_t room = db.page_size - db.base
    cdef size_t ksize
    if offset < p.upper or offset > room or room - offset < NODE_HEADER:
        return -1
    ksize = load16(p.nodes + offset + 6)
    if ksize > room - offset - NODE_HEADER or (ksize == 0 and (i or p.kind == P_LEAF)):
        return -1  # only the first key of a branch may be empty; zeros are damage
    key[0] = view_of(p.nodes + offset + NODE_HEADER, ksize)
    return 0


cdef int node_get(const lmdb *db, const page *p, unsigned int i, node *n) noexcept nogil:
    """Node i of a page, i < keys; 0, or -1 if it does not lie within the page."""
    cdef size_t room, ksize, pad
    cdef uint64_t held
    cdef const char *at
    if node_key(db, p, i, &n.key) < 0:
        return -1
    at = n.key.ptr - NODE_HEADER
    ksize = n.key.len
    room = p.nodes + db.page_size - db.base - n.key.ptr
    n.flags = load16(at + 4)
    if p.kind == P_BRANCH:
        n.child = load16(at) | <uint64_t> load16(at + 2) << 16 | <uint64_t> n.flags << 32
        return 0
    n.size = load16(at) | <uint64_t> load16(at + 2) << 16
    pad = ksize & 1 if db.version == VERSION_1_0 else 0
    held = n.size
    if n.flags == F_BIGDATA:
        held = 8 if db.version == VERSION_0_9 else 24
    elif n.flags:
        return -1
    if ksize + pad > room or held > room - ksize - pad:
        return -1
    n.value = view_of(at + NODE_HEADER + ksize + pad, held)
    return 0


cdef int node_value(lmdb *db, node *n) noexcept nogil:
    """Let n.value be the whole value, wherever it is stored; 0 or -1."""
    cdef uint64_t number, own
    cdef const char *data
    cdef uint64_t count
    if n.flags != F_BIGDATA:
        return 0
    memcpy(&number, n.value.ptr, 8)
    count = (db.header - 1 + n.size) // db.page_size + 1
    data = pages_at(db, number, count)
    if data == NULL:
        return -1
    memcpy(&own, data, 8)
    if own != number or load16(data + db.header - 6) != P_OVERFLOW or load32(data + db.header - 4) < count:
        return -1
    n.value = view_of(data + db.header, n.size)
    return 0


cdef inline int key_order(view stored, view key, bint nul) noexcept nogil:
    """stored against key, with a NUL behind it if nul is set: below 0, 0 or above 0."""
    cdef size_t common = stored.len if stored.len < key.len else key.len
    cdef size_t at = 0
    cdef uint64_t a, b
    cdef int order
    while common - at >= 8:  # most keys differ soon: no call for them
        a = load_big(stored.ptr + at)
        b = load_big(key.ptr + at)
        if a != b:
            return 1 if a > b else -1
        at += 8
    order = memcmp(stored.ptr + at, key.ptr + at, common - at) if common > at else 0  # no bytes may be NULL
    if order:
        return order
    if stored.len > key.len and nul and stored.ptr[key.len]:
        return 1
    return (stored.len > key.len + nul) - (stored.len < key.len + nul)


cdef int page_search(
    const lmdb *db, const page *p, view key, bint nul, unsigned int first, unsigned int *at
) noexcept nogil:
    """The first node from `first` on whose key is not below key; 1 if equal, 0 if not, -1 if damaged."""
    cdef unsigned int low = first, high = p.keys, middle
    cdef bint equal = False
    cdef int order
    cdef view stored
    while low < high:
        middle = (low + high) // 2
        if node_key(db, p, middle, &stored) < 0:
            return -1
        order = key_order(stored, key, nul)
        if order < 0:
            low = middle + 1
        else:
            high = middle
            equal = order == 0
    at[0] = low
    return equal


# One walk in one snapshot

cdef struct path:
    page leaf
    unsigned int at        # in the leaf: first node not below the key
    bint equal             # and whether it is the key
    uint64_t right         # page that comes next, on the deepest level that has one; 0: none
    int right_levels       # levels below right, down to the leaves


cdef int walk(lmdb *db, const meta *s, view key, bint nul, path *w) noexcept nogil:
    """Go down to where key is or would be; 0, or -1 if damaged. The tree is not empty."""
    cdef uint64_t number = s.main.root
    cdef int level, found, depth = s.main.depth
    cdef unsigned int at
    cdef node n
    w.right = 0
    w.right_levels = 0
    if depth < 1 or depth > DEPTH_MAX:
        return -1
    for level in range(1, depth + 1):
        if page_get(db, number, &w.leaf) < 0 or (w.leaf.kind == P_LEAF) != (level == depth):
            return -1
        if level == depth:
            break
        # The key of node 0 stands for minus infinity.
        found = page_search(db, &w.leaf, key, nul, 1, &at)
        if found < 0:
            return -1
        if not found:
            at -= 1
        if at + 1 < w.leaf.keys:
            if node_get(db, &w.leaf, at + 1, &n) < 0:
                return -1
            w.right = n.child
            w.right_levels = depth - level - 1
        if node_get(db, &w.leaf, at, &n) < 0:
            return -1
        number = n.child
    found = page_search(db, &w.leaf, key, nul, 0, &w.at)
    w.equal = found == 1
    return -1 if found < 0 else 0


cdef int walk_right(lmdb *db, path *w) noexcept nogil:
    """Go to the first node of the next leaf; 1, or 0 if there is none, or -1 if damaged."""
    cdef uint64_t number = w.right
    cdef int level
    cdef node n
    if number == 0:
        return 0
    for level in range(w.right_levels + 1):
        if page_get(db, number, &w.leaf) < 0 or (w.leaf.kind == P_LEAF) != (level == w.right_levels):
            return -1
        if w.leaf.kind == P_BRANCH:
            if node_get(db, &w.leaf, 0, &n) < 0:
                return -1
            number = n.child
    w.at = 0
    return 1


cdef int find_in(lmdb *db, const meta *s, view key, bint nul, view *value) noexcept nogil:
    """The value of key in snapshot s, as a view of the map; STAT_RETRY if damaged."""
    cdef path w
    cdef node n
    if s.main.root == NO_PAGE:
        return STAT_NOKEY
    if walk(db, s, key, nul, &w) < 0:
        return STAT_RETRY
    if not w.equal:
        return STAT_NOKEY
    if node_get(db, &w.leaf, w.at, &n) < 0 or node_value(db, &n) < 0:
        return STAT_RETRY
    value[0] = n.value
    return STAT_OK


cdef int next_in(lmdb *db, const meta *s, view after, view *key, view *value) noexcept nogil:
    """The first record behind the key `after` (of no bytes: the first of all) in snapshot s."""
    cdef path w
    cdef node n
    cdef int moved
    if s.main.root == NO_PAGE:
        return STAT_NOKEY
    if walk(db, s, after, False, &w) < 0:
        return STAT_RETRY
    w.at += w.equal
    if w.at == w.leaf.keys:
        moved = walk_right(db, &w)
        if moved <= 0:
            return STAT_NOKEY if moved == 0 else STAT_RETRY
    if node_get(db, &w.leaf, w.at, &n) < 0 or node_value(db, &n) < 0:
        return STAT_RETRY
    # In a damaged page the order may lie; whoever asks for the next must come to an end.
    if key_order(n.key, after, False) <= 0:
        return STAT_RETRY
    key[0] = n.key
    value[0] = n.value
    return STAT_OK


# The table

cdef struct question:
    # What a round of answer() asks: a lookup, or the record after a key.
    bint is_sequence
    view key
    bint nul
    view found_key
    view found_value


cdef int answer_in(lmdb *db, const meta *s, question *q, buf *scratch) noexcept nogil:
    """One round in snapshot s; what was found is copied to scratch."""
    cdef int status
    if q.is_sequence:
        status = next_in(db, s, q.key, &q.found_key, &q.found_value)
    else:
        status = find_in(db, s, q.key, q.nul, &q.found_value)
        q.found_key.len = 0
    if status != STAT_OK:
        return status
    buf_clear(scratch)
    if q.found_key.len and buf_append_view(scratch, q.found_key) < 0:
        return STAT_RETRY
    if buf_append_view(scratch, q.found_value) < 0:
        return STAT_RETRY
    return STAT_OK


cdef int answer(lmdb *db, question *q, buf *scratch) noexcept nogil:
    """Ask until nothing that was read can have been overwritten meanwhile."""
    cdef meta s
    cdef int status, i
    cdef bint locked = False
    for i in range(ROUNDS + 1):
        if i == ROUNDS:
            locked = set_lock(db.m.fd, F_RDLCK, F_OFD_SETLK)  # Postfix's, if it is to be had at once
        if snapshot_take(db, &s) < 0:
            status = STAT_RETRY
            break
        status = answer_in(db, &s, q, scratch)
        if snapshot_intact(db, &s):
            db.latest = s.txnid
            db.rotten = status == STAT_RETRY
            break
        status = STAT_RETRY
    if locked:
        set_lock(db.m.fd, F_UNLCK, F_OFD_SETLK)
    if is_cut(db) or went_back(db):
        return STAT_RETRY
    if status == STAT_OK:
        q.found_key.ptr = scratch.data + scratch.start
        q.found_value.ptr = q.found_key.ptr + q.found_key.len
    return status


cdef int lmdb_find(table *t, view key, bint nul, buf *scratch, view *value) noexcept nogil:
    cdef question q
    cdef int status
    if key.len + nul == 0:
        return STAT_NOKEY  # LMDB has no key of no bytes
    q.is_sequence = False
    q.key = key
    q.nul = nul
    status = answer(<lmdb *> t.self, &q, scratch)
    value[0] = q.found_value
    return status


cdef int lmdb_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """Both tries count for one commit: a key may change from one form to the other."""
    cdef lmdb *db = <lmdb *> t.self
    cdef int before = flags[0]
    cdef int status = STAT_RETRY
    cdef uint64_t generation
    cdef int _
    for _ in range(ROUNDS):
        generation = newest(db)
        flags[0] = before
        status = table_try_nul(lmdb_find, t, key, flags, scratch, value)
        if status == STAT_RETRY or before & DICT_FLAGS_TRY != DICT_FLAGS_TRY or newest(db) == generation:
            return status
    flags[0] = before
    return STAT_RETRY


cdef int lmdb_sequence(
    table *t, cursor *c, int function, buf *scratch, view *key, view *value
) noexcept nogil:
    """Bytewise order. NEXT without FIRST is the first record, and so is NEXT after the end."""
    cdef question q
    cdef int status
    if function == FUNC_FIRST:
        buf_clear(&c.key)
    q.is_sequence = True
    q.key = buf_view(&c.key)
    status = answer(<lmdb *> t.self, &q, scratch)
    if status == STAT_RETRY:
        return status
    buf_clear(&c.key)
    if status == STAT_OK:
        if buf_append_view(&c.key, q.found_key) < 0:
            return STAT_RETRY
        key[0] = view_until_nul(q.found_key)
        value[0] = view_until_nul(q.found_value)
    return status


cdef uint64_t lmdb_generation(table *t) noexcept nogil:
    """A file that is copied over this one may have the same transaction id."""
    cdef const lmdb *db = <const lmdb *> t.self
    if went_back(db):
        return <uint64_t> -1  # nothing is stored for that
    return newest(db) + (db.overwrites << 40)


cdef int lmdb_changed(table *t) noexcept nogil:
    """Being written to is its life; only what cannot have been LMDB's doing counts."""
    cdef lmdb *db = <lmdb *> t.self
    cdef uint64_t mtime_ns = map_mtime_ns(&db.m)
    cdef meta s
    if mtime_ns != db.mtime_ns or wall_clock_ns() < mtime_ns + TICK_NS:
        db.mtime_ns = mtime_ns
        db.overwrites += 1
    if db.m.region.damaged or map_cut(&db.m) or (db.rotten and db.written):
        return CHANGED_SPOILED
    if snapshot_take(db, &s) != FITS or went_back(db):
        return CHANGED_SPOILED
    if t.origins.seen.inode != db.m.inode or t.origins.seen.device != db.m.device:
        return origins_changed(t)  # that other file was refused; by now it may be whole
    return CHANGED_REPLACED if origins_replaced(t) else CHANGED_NOT


cdef bint meta_fits(lmdb *db, size_t header, uint32_t version) noexcept nogil:
    """Is there a meta page of that format at the start of the file? Sets the geometry."""
    cdef meta s
    if db.m.size < header + META_SIZE:
        return False
    memcpy(&s, db.m.data + header, META_SIZE)
    if s.magic != MAGIC or s.version != version:
        return False
    db.page_size = s.free.pad
    db.header = header
    db.base = header if version == VERSION_1_0 else 0
    db.version = version
    return (PAGE_MIN <= db.page_size <= PAGE_MAX and db.page_size & (db.page_size - 1) == 0
            and db.m.size >= 2 * db.page_size)


cdef bint version_differs(const lmdb *db, size_t at, uint32_t version) noexcept nogil:
    return db.m.size >= at + 8 and load32(db.m.data + at) == MAGIC and load32(db.m.data + at + 4) != version


cdef int fit(lmdb *db, meta *s) noexcept nogil:
    """Find out the format of the mapped file and take a snapshot: FITS or what is wrong."""
    if not meta_fits(db, 16, VERSION_0_9) and not meta_fits(db, 24, VERSION_1_0):
        if version_differs(db, 16, VERSION_0_9) or version_differs(db, 24, VERSION_1_0):
            return FOREIGN
        return DAMAGED
    return snapshot_take(db, s)


# Is a whole file in order?

cdef struct survey:
    lmdb *db
    const meta *s
    uint64_t pages       # of the file
    unsigned char *used  # one for each of them
    uint64_t beyond      # free pages that the file has not reached
    bint is_free_list    # the tree being looked at
    uint64_t entries     # seen in it
    bint begun           # is there a previous key?
    view previous        # key; in the free list, of 8 bytes


cdef bint survey_take(survey *c, uint64_t number, uint64_t count) noexcept nogil:
    """May these pages be used? Each of them only once."""
    cdef uint64_t i
    if number < 2 or number > c.s.last_page or count > c.s.last_page - number + 1:
        return False
    for i in range(number, number + count):
        if i >= c.pages:
            c.beyond += 1
            if not c.is_free_list:
                return False
        elif c.used[i]:
            return False
        else:
            c.used[i] = 1
    return True


cdef bint survey_key(survey *c, view key) noexcept nogil:
    """Do the keys of all leaves ascend?"""
    cdef uint64_t now, before
    cdef bint ok = True
    if c.is_free_list:
        if key.len != 8:
            return False
        if c.begun:
            memcpy(&now, key.ptr, 8)
            memcpy(&before, c.previous.ptr, 8)
            ok = before < now
    elif c.begun:
        ok = key_order(c.previous, key, False) < 0
    c.begun = True
    c.previous = key
    return ok


cdef bint survey_free(survey *c, view list_) noexcept nogil:
    """A record of the free list: a number, and so many page numbers."""
    cdef uint64_t count, number, i
    if list_.len < 8:
        return False
    memcpy(&count, list_.ptr, 8)
    if count > (list_.len - 8) // 8:
        return False
    for i in range(count):
        memcpy(&number, list_.ptr + 8 * (i + 1), 8)
        if not survey_take(c, number, 1):
            return False
    return True


cdef bint survey_age(const survey *c, const char *data) noexcept nogil:
    """Was the page written before now? One of the next transaction LMDB 1.0 would write to in the map."""
    return c.db.version == VERSION_0_9 or load64(data + 8) <= c.s.txnid


cdef bint survey_overflow(survey *c, view reference, view value) noexcept nogil:
    """Are the pages of a large value in order? There may be more than it needs."""
    cdef const char *data = value.ptr - c.db.header
    cdef uint64_t number, told, count = load32(value.ptr - 4)
    memcpy(&number, reference.ptr, 8)
    if c.db.version == VERSION_1_0:
        memcpy(&told, reference.ptr + 16, 8)
        if told != count:
            return False
    return survey_age(c, data) and survey_take(c, number, count)


cdef bint survey_page(survey *c, uint64_t number, int levels) noexcept nogil:
    """Is the page with all that is below it in order? levels: 1 for a leaf."""
    cdef page p
    cdef node n
    cdef view reference
    cdef unsigned int i
    cdef size_t filled = 0
    if not survey_take(c, number, 1) or page_get(c.db, number, &p) < 0:
        return False
    if (p.kind == P_LEAF) != (levels == 1) or not survey_age(c, p.data):
        return False
    for i in range(p.keys):
        if node_get(c.db, &p, i, &n) < 0:
            return False
        if p.kind == P_BRANCH:
            filled += NODE_HEADER + n.key.len + (n.key.len & 1)
            if not survey_page(c, n.child, levels - 1):
                return False
            continue
        filled += (n.value.ptr + n.value.len - n.key.ptr) + NODE_HEADER
        filled += filled & 1
        c.entries += 1
        if not survey_key(c, n.key):
            return False
        reference = n.value
        if node_value(c.db, &n) < 0 or (n.flags == F_BIGDATA and not survey_overflow(c, reference, n.value)):
            return False
        if c.is_free_list and not survey_free(c, n.value):
            return False
    return filled == c.db.page_size - c.db.base - p.upper  # nodes lie side by side


cdef bint survey_tree(survey *c, const tree *t, bint is_free_list) noexcept nogil:
    c.is_free_list = is_free_list
    c.entries = 0
    c.begun = False
    if t.root == NO_PAGE:
        return t.entries == 0
    if t.depth < 1 or t.depth > DEPTH_MAX:
        return False
    return survey_page(c, t.root, t.depth) and c.entries == t.entries


cdef int survey_file(lmdb *db) noexcept nogil:
    """Look at every page of the newest snapshot: FITS, or what is wrong; 1 without memory."""
    cdef survey c
    cdef meta s
    cdef int found
    cdef bint sound
    cdef int _
    for _ in range(ROUNDS):
        found = fit(db, &s)
        if found != FITS or map_grow(&db.m) < 0:
            return found
        c.db = db
        c.s = &s
        c.pages = db.m.size // db.page_size
        c.beyond = 0
        c.used = <unsigned char *> calloc(c.pages, 1)
        if c.used == NULL:
            return 1
        sound = survey_tree(&c, &s.main, False) and survey_tree(&c, &s.free, True)
        if sound and s.last_page >= c.pages:
            sound = s.last_page + 1 - c.pages == c.beyond
        free(c.used)
        if sound or snapshot_intact(db, &s):
            return FITS if sound and not db.m.region.damaged else DAMAGED
    return FITS  # whoever writes to it all the time does not find it damaged


cdef str reason_of(int found, file):
    """What is wrong with a file, in words."""
    if found == FOREIGN:
        return (f"{file}: an LMDB file that Postfix does not write"
                " (encrypted, of a newer format, or with duplicate or named databases)")
    return f"{file}: not an LMDB file of format 0.9 or 1.0, or damaged"


def damage_in(str file):
    """What is wrong in the file, or None. Raises OSError, or ValueError for a sound file that is not ours."""
    cdef lmdb db
    cdef bytes path = os.fsencode(file)
    cdef int found
    if map_open(&db.m, path, ADDRESS_SPACE) < 0:
        raise OSError(errno, os.strerror(errno), file)
    try:
        with nogil:
            found = survey_file(&db)
    finally:
        map_close(&db.m)
    if found > 0:
        raise MemoryError
    if found == FOREIGN:
        raise ValueError(reason_of(found, file))
    return "not an LMDB file of format 0.9 or 1.0, or damaged" if found else None


cdef class LmdbTable(Table):
    """lmdb:NAME, served from NAME.lmdb; with a writer (lmdb_writer.py), for updates too.

    Raises OSError, or ValueError for a file that we cannot read.
    """

    cdef lmdb db
    cdef object writer

    def __cinit__(self, bytes type_name, bytes file, writer=None):
        cdef meta s
        cdef int found
        self.writer = writer
        self.db.m.fd = -1
        self.db.written = writer is not None
        if map_open(&self.db.m, file, ADDRESS_SPACE) < 0:
            raise OSError(errno, os.strerror(errno), os.fsdecode(file))
        found = fit(&self.db, &s)
        if found != FITS:
            raise ValueError(reason_of(found, os.fsdecode(file)))
        self.db.latest = s.txnid
        self.db.mtime_ns = self.db.m.mtime_ns
        self.t.self = &self.db
        self.t.flags = DICT_FLAG_FIXED | DICT_FLAGS_TRY | DICT_FLAG_MULTI_WRITER
        self.t.fold_bit = DICT_FLAG_FOLD_FIX
        self.t.lookup = lmdb_lookup
        self.t.sequence = lmdb_sequence
        self.t.generation = lmdb_generation
        self.t.changed = lmdb_changed
        self.t.quick = True
        self.watches_writers = False  # being written to is its life; a commit is no event
        self.loaded_from([(file, (self.db.m.device, self.db.m.inode, self.db.m.size, self.db.m.mtime_ns))])
        self.t.slow = SLOW_WRITE if self.db.written else 0

    @property
    def entries(self):
        cdef meta s
        return s.main.entries if snapshot_take(&self.db, &s) == FITS else None

    @property
    def size(self):
        return self.db.m.size

    def __dealloc__(self):
        map_close(&self.db.m)

    def write(self, list changes, on_disk=None):
        self.writer.write(changes, on_disk)


def open_table(bytes type_name, bytes mapname, opening) -> LmdbTable:
    file = mapname + b".lmdb"
    if not opening.writes:
        if opening.doubtful and damage_in(os.fsdecode(file)):
            raise ValueError(reason_of(DAMAGED, os.fsdecode(file)))
        return LmdbTable(type_name, file)
    try:
        from proxymap.lmdb_writer import writer_for
    except ImportError as error:
        opening.host.warn(f"{os.fsdecode(type_name)}: updates need pip install 'proxymap[lmdb]' ({error})")
        return LmdbTable(type_name, file)
    return LmdbTable(type_name, file, writer_for(os.fsdecode(file), opening.host, damage_in))

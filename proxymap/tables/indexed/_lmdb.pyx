"""_lmdb - the data format of LMDB files, read from the map without locks: 0.9 and 1.0

A data file is a B+tree of copied-on-write pages. Pages 0 and 1 are meta pages;
the one with the higher transaction id, S, names the root of the last commit.
A writer without a reader table reuses only pages freed before the snapshot
S - 1 was made, so whatever was read in snapshot S is intact as long as the
newest transaction id, looked at afterwards, is at most S + 1. Hence: copy the
meta page, walk, copy the value out, look again; walk again if a writer was
quicker.

The two formats differ in the page header (16 or 24 bytes), in what node
offsets count from, in the padding of keys and in the reference to a large
value. No offset from the file is used before it is checked.

No GIL, any thread. Source: LMDB's data format as found in files of 0.9.24,
0.9.36 and 1.0.2; lmdb_table(5).
"""

from libc.string cimport memset

from proxymap.base._map cimport load_size, map_at, map_cut, map_grow
from proxymap._words cimport STAT_NOKEY, STAT_OK, STAT_RETRY

cdef enum:
    MAGIC = 0xBEEFC0DE
    PAGE_MIN = 256
    ENCRYPT = 0x2000     # environment flag of 1.0

cdef uint64_t NO_PAGE = <uint64_t> -1  # the root of an empty tree


# Snapshots

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
    cdef uint64_t tail
    memcpy(&tail, load_data(&db.m.data) + size - 8, 8)  # of any size: that of a damaged file is odd
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


cdef uint64_t newest_in(const char *metas, size_t size) noexcept nogil:
    """The transaction id of the last commit, in a copy of both meta pages; NO_PAGE if they make no sense."""
    cdef lmdb db
    cdef meta s
    memset(&db, 0, sizeof(db))
    db.m.data = metas
    db.m.size = size
    return s.txnid if fit(&db, &s) == FITS else NO_PAGE


# Pages and nodes

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


cdef int node_get(const lmdb *db, const page *p, unsigned int i, node *n) noexcept nogil:
    """Node i of a page, i < keys; 0, or -1 if it does not lie within the page."""
    cdef const char *at
    if node_key(db, p, i, &n.key) < 0:
        return -1
    if p.kind == P_LEAF:
        return node_rest(db, p, n)
    at = n.key.ptr - NODE_HEADER
    n.flags = load16(at + 4)
    n.child = load16(at) | <uint64_t> load16(at + 2) << 16 | <uint64_t> n.flags << 32
    return 0


cdef int leaf_node(lmdb *db, uint64_t number, size_t offset, node *n) noexcept nogil:
    """The node that begins there, taking that page for a leaf; 0 or -1. Memory is safe whatever it is."""
    cdef page p
    p.data = pages_at(db, number, 1)
    if p.data == NULL:
        return -1
    p.nodes = p.data + db.base
    p.upper = 0
    if key_at(db, &p, offset, &n.key) < 0 or n.key.len == 0:
        return -1
    return node_rest(db, &p, n)


cdef int copied_node(const lmdb *db, const char *at, node *n) noexcept nogil:
    """A leaf's node that was copied from its page, with all that is stored in it; 0."""
    cdef page p
    p.nodes = at
    p.upper = 0
    if key_at(db, &p, 0, &n.key) < 0:
        return -1
    return node_rest(db, &p, n)


cdef int node_rest(const lmdb *db, const page *p, node *n) noexcept nogil:
    """What a leaf's node has besides its key; 0, or -1 if that does not lie within the page."""
    cdef const char *at = n.key.ptr - NODE_HEADER
    cdef size_t ksize = n.key.len
    cdef size_t room = p.nodes + db.page_size - db.base - n.key.ptr
    cdef size_t pad
    cdef uint64_t held
    n.flags = load16(at + 4)
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
    # In a damaged page the order may lie, and a walk must come to an end all the same.
    if key_order(n.key, after, False) <= 0:
        return STAT_RETRY
    key[0] = n.key
    value[0] = n.value
    return STAT_OK

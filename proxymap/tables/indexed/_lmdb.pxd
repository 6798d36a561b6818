# _lmdb - the data format of LMDB files: snapshots, pages, walks (see _lmdb.pyx)

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from proxymap.base._buf cimport memcmp, memcpy, view, view_of
from proxymap.base._map cimport load_data, mapped

cdef enum:
    VERSION_0_9 = 1
    VERSION_1_0 = 3
    META_SIZE = 136
    PAGE_MAX = 65536
    NODE_HEADER = 8
    DEPTH_MAX = 32       # liblmdb's own limit of levels
    ROUNDS = 64          # each is one walk, under a microsecond
    ADDRESS_SPACE = 1 << 24  # room for a small file to grow without being mapped anew

    P_BRANCH = 1
    P_LEAF = 2
    P_OVERFLOW = 4
    F_BIGDATA = 1

    FITS = 0             # of a file: we can read it,
    DAMAGED = -1         # it makes no sense,
    FOREIGN = -2         # or it is a sound LMDB file that Postfix does not write

cdef uint64_t NO_PAGE  # the root of an empty tree


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


cdef struct path:
    page leaf
    unsigned int at        # in the leaf: first node not below the key
    bint equal             # and whether it is the key
    uint64_t right         # page that comes next, on the deepest level that has one; 0: none
    int right_levels       # levels below right, down to the leaves


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


cdef inline uint64_t load64(const char *p) noexcept nogil:
    return (<const volatile_u64 *> p)[0]


cdef inline uint32_t load32(const char *p) noexcept nogil:
    cdef uint32_t n
    memcpy(&n, p, 4)
    return n


cdef inline uint16_t load16(const char *p) noexcept nogil:
    cdef uint16_t n
    memcpy(&n, p, 2)
    return n


cdef inline const char *meta_at(const lmdb *db, uint64_t number) noexcept nogil:
    return load_data(&db.m.data) + (number & 1) * db.page_size + db.header


cdef inline uint64_t newest(const lmdb *db) noexcept nogil:
    """The transaction id of the last commit."""
    cdef uint64_t even = load64(meta_at(db, 0) + META_SIZE - 8)
    cdef uint64_t odd = load64(meta_at(db, 1) + META_SIZE - 8)
    return even if even > odd else odd


cdef inline size_t node_offset(const lmdb *db, const page *p, unsigned int i) noexcept nogil:
    """Where node i of a page begins, i < keys; not checked."""
    return load16(p.data + db.header + 2 * i)


cdef inline int key_at(const lmdb *db, const page *p, size_t offset, view *key) noexcept nogil:
    """The key of the node that begins there; 0, or -1 if it does not lie within the page."""
    cdef size_t room = db.page_size - db.base
    cdef size_t ksize
    if offset < p.upper or offset > room or room - offset < NODE_HEADER:
        return -1
    ksize = load16(p.nodes + offset + 6)
    key[0] = view_of(p.nodes + offset + NODE_HEADER, ksize)
    return 0 if ksize <= room - offset - NODE_HEADER else -1


cdef inline int node_key(const lmdb *db, const page *p, unsigned int i, view *key) noexcept nogil:
    """The key of node i of a page, i < keys; 0 or -1. Only the first of a branch may be of no bytes."""
    if key_at(db, p, node_offset(db, p, i), key) < 0:
        return -1
    return 0 if key.len or (i == 0 and p.kind == P_BRANCH) else -1


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


cdef int fit(lmdb *db, meta *s) noexcept nogil
cdef uint64_t newest_in(const char *metas, size_t size) noexcept nogil
cdef int snapshot_take(const lmdb *db, meta *s) noexcept nogil
cdef bint snapshot_intact(const lmdb *db, const meta *s) noexcept nogil
cdef bint went_back(const lmdb *db) noexcept nogil
cdef bint is_cut(lmdb *db) noexcept nogil
cdef const char *pages_at(lmdb *db, uint64_t number, uint64_t count) noexcept nogil
cdef int page_get(lmdb *db, uint64_t number, page *p) noexcept nogil
cdef int node_get(const lmdb *db, const page *p, unsigned int i, node *n) noexcept nogil
cdef int leaf_node(lmdb *db, uint64_t number, size_t offset, node *n) noexcept nogil
cdef int copied_node(const lmdb *db, const char *at, node *n) noexcept nogil
cdef int node_value(lmdb *db, node *n) noexcept nogil
cdef int walk(lmdb *db, const meta *s, view key, bint nul, path *w) noexcept nogil
cdef int walk_right(lmdb *db, path *w) noexcept nogil
cdef int find_in(lmdb *db, const meta *s, view key, bint nul, view *value) noexcept nogil
cdef int next_in(lmdb *db, const meta *s, view after, view *key, view *value) noexcept nogil

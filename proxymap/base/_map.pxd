# _map - mapped files that survive whatever happens to the file (see _map.pyx)

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    /* The size is stored after the address of a mapping that has it, and read before. */
    #define proxymap_load_size(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define proxymap_store_size(p, n) __atomic_store_n(p, n, __ATOMIC_RELEASE)
    #define proxymap_load_data(p) __atomic_load_n(p, __ATOMIC_RELAXED)
    """
    size_t load_size "proxymap_load_size"(const size_t *p) nogil
    void store_size "proxymap_store_size"(size_t *p, size_t n) nogil
    const char *load_data "proxymap_load_data"(const char *const *p) nogil

cdef struct region:
    # What the SIGBUS handler knows of a mapping. Never freed, but used again.
    const char *data
    size_t length   # of address space; 0: not in use
    int damaged     # set by the handler: a page of the file was gone
    bint written    # it is written to as well
    region *grown   # the larger mapping of the same file that is used by now
    region *outgrown  # the smaller one, which lasts as long: views may point there
    region *next


cdef struct mapped:
    int fd               # kept open: its locks and its inode are ours; -1: closed
    const char *data
    size_t size          # bytes of the file that may be read through data
    uint64_t device      # with inode: what was opened, to tell a replaced file
    uint64_t inode
    uint64_t mtime_ns    # when it was mapped
    uint64_t ctime_ns    # the same
    bint overlaid        # by overlayfs: once the file is copied up, the mapping shows what it was before
    region *region


cdef inline const char *map_at(const mapped *m, uint64_t offset, uint64_t size) noexcept nogil:
    """Where so many bytes of the file are, or NULL if they are not mapped. Another thread may grow m."""
    cdef uint64_t held = load_size(&m.size)
    return load_data(&m.data) + offset if offset <= held and size <= held - offset else NULL


cdef inline tuple map_stamp(const mapped *m):
    """As files.Stamp."""
    return m.device, m.inode, m.size, m.mtime_ns, m.ctime_ns


cdef int map_open(mapped *m, const char *path, size_t length) noexcept nogil
cdef int map_data(mapped *m, size_t length) noexcept nogil
cdef region *map_to_write(int fd, size_t length) noexcept nogil
cdef int map_grow(mapped *m) noexcept nogil
cdef bint map_cut(const mapped *m) noexcept nogil
cdef uint64_t map_changed_ns(const mapped *m) noexcept nogil
cdef bint map_touched(const mapped *m) noexcept nogil
cdef void map_close(mapped *m) noexcept nogil

# _map - files mapped for reading that survive whatever happens to the file (see _map.pyx)

from libc.stdint cimport uint64_t

cdef struct region:
    # What the SIGBUS handler knows of a mapping. Never freed, but used again.
    const char *data
    size_t length   # of address space; 0: not in use
    int damaged     # set by the handler: a page of the file was gone
    region *next


cdef struct mapped:
    int fd               # kept open: its locks and its inode are ours; -1: closed
    const char *data
    size_t size          # bytes of the file that may be read through data
    uint64_t device      # with inode: what was opened, to tell a replaced file
    uint64_t inode
    uint64_t mtime_ns    # when it was mapped
    region *region


cdef int map_open(mapped *m, const char *path, size_t length) noexcept nogil
cdef int map_grow(mapped *m) noexcept nogil
cdef bint map_cut(const mapped *m) noexcept nogil
cdef bint map_touched(const mapped *m) noexcept nogil
cdef void map_close(mapped *m) noexcept nogil

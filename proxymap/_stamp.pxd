# _stamp - has a file changed since it was read? For tables that hold a copy of a text; inline functions only

from libc.stdint cimport uint64_t
from posix.stat cimport stat, struct_stat

cdef extern from *:
    """
    #define stat_mtime_ns(s) ((uint64_t) (s).st_mtim.tv_sec * 1000000000ull + (uint64_t) (s).st_mtim.tv_nsec)
    """
    uint64_t stat_mtime_ns(struct_stat s) noexcept nogil


cdef struct stamp:
    # What tells one content of a file from another; as source.stamp_of has it.
    uint64_t device
    uint64_t inode
    uint64_t size
    uint64_t mtime_ns


cdef inline bint stamp_differs(const stamp *s, const char *path) noexcept nogil:
    """Does path lead to another file than the one that was read, to other content, or to none?"""
    cdef struct_stat st
    return (stat(path, &st) < 0 or <uint64_t> st.st_dev != s.device or <uint64_t> st.st_ino != s.inode
            or <uint64_t> st.st_size != s.size or stat_mtime_ns(st) != s.mtime_ns)

# _stamp - what tells one content of a file from another: device, inode, size, times of change
#
# The time of the last write can be set (cp -p, tar, images that are built to be the same); that of the
# last change of the inode cannot. It changes with a link or a mode, too: then a file is read once more.

from libc.stdint cimport uint64_t
from posix.stat cimport stat, struct_stat

cdef extern from *:
    """
    #define stat_mtime_ns(s) ((uint64_t) (s).st_mtim.tv_sec * 1000000000ull + (uint64_t) (s).st_mtim.tv_nsec)
    #define stat_ctime_ns(s) ((uint64_t) (s).st_ctim.tv_sec * 1000000000ull + (uint64_t) (s).st_ctim.tv_nsec)
    """
    uint64_t stat_mtime_ns(struct_stat s) nogil
    uint64_t stat_ctime_ns(struct_stat s) nogil


cdef struct stamp:
    # All zero: there is no file.
    uint64_t device
    uint64_t inode
    uint64_t size
    uint64_t mtime_ns
    uint64_t ctime_ns


cdef inline stamp stamp_of(const struct_stat *st) noexcept nogil:
    cdef stamp s
    s.device = st.st_dev
    s.inode = st.st_ino
    s.size = st.st_size
    s.mtime_ns = stat_mtime_ns(st[0])
    s.ctime_ns = stat_ctime_ns(st[0])
    return s


cdef inline stamp stamp_at(const char *path) noexcept nogil:
    """Of the file that path leads to by now."""
    cdef struct_stat st
    cdef stamp none
    if stat(path, &st) == 0:
        return stamp_of(&st)
    none.device = none.inode = none.size = none.mtime_ns = none.ctime_ns = 0
    return none


cdef inline bint same_file(stamp a, stamp b) noexcept nogil:
    return a.inode == b.inode and a.device == b.device


cdef inline bint same_content(stamp a, stamp b) noexcept nogil:
    return same_file(a, b) and a.size == b.size and a.mtime_ns == b.mtime_ns and a.ctime_ns == b.ctime_ns

"""_map - mapped files that survive whatever happens to the file

A file that is cut short while mapped raises SIGBUS when the lost part is read or written.
The handler finds the mapping, puts a page of zeros there, marks the mapping as
damaged and lets the read go on: the readers check every offset, so zeros are
harmless, and the mark tells them that the answer must not be used.

A `mapped` belongs to its table. Mapping and unmapping take a lock and may run
on any thread; the handler only walks a list of regions that are linked in with
one store, are never freed, and are used again.

Source: mmap(2), sigaction(2).
"""

from libc.errno cimport EINVAL, ENOMEM, errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc
from posix.fcntl cimport O_CLOEXEC, O_NONBLOCK, O_RDONLY, open
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.signal cimport SA_SIGINFO, sigaction, sigaction_t, sigemptyset, siginfo_t
from posix.stat cimport S_ISREG, fstat, struct_stat
from posix.unistd cimport _SC_PAGESIZE, close, sysconf

from proxymap.base._os cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from proxymap.base._stamp cimport stat_ctime_ns, stat_mtime_ns

cdef extern from "<signal.h>" nogil:
    enum: SIGBUS
    void (*SIG_DFL)(int)
    int raise_signal "raise"(int)

cdef extern from *:
    """
    #include <errno.h>
    #define set_errno(number) (errno = (number))
    """
    void set_errno(int number) nogil

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_buf "statfs":
        long f_type
    int fstatfs(int, statfs_buf *)

cdef enum:
    OVERLAYFS = 0x794C7630  # statfs(2)

cdef int ZEROS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
cdef uintptr_t page_size = <uintptr_t> sysconf(_SC_PAGESIZE)
cdef pthread_mutex_t regions_lock, growing
cdef region *regions = NULL


cdef void on_sigbus(int number, siginfo_t *info, void *context) noexcept nogil:
    """Fill the hole with zeros if it is ours; else die as without a handler."""
    cdef uintptr_t address = <uintptr_t> info.si_addr
    cdef bint sent = info.si_code <= 0  # by kill(2): there is no address, and nothing that would fault again
    cdef region *r = NULL if sent else regions
    cdef sigaction_t default
    cdef int allowed
    while r != NULL:
        if <uintptr_t> r.data <= address < <uintptr_t> r.data + r.length:
            allowed = PROT_READ | PROT_WRITE if r.written else PROT_READ
            while r != NULL:
                r.damaged = 1
                r = r.grown
            address -= address % page_size
            if mmap(<void *> address, page_size, allowed, ZEROS, -1, 0) != MAP_FAILED:
                return
            break
        r = r.next
    default.sa_handler = SIG_DFL
    default.sa_flags = 0
    sigemptyset(&default.sa_mask)
    sigaction(SIGBUS, &default, NULL)
    if sent:
        raise_signal(SIGBUS)


cdef void install_handler() noexcept nogil:
    cdef sigaction_t action
    action.sa_sigaction = on_sigbus
    action.sa_flags = SA_SIGINFO
    sigemptyset(&action.sa_mask)
    sigaction(SIGBUS, &action, NULL)


cdef region *region_new(const char *data, size_t length) noexcept nogil:
    """A region that is not in use, or a new one; NULL without memory."""
    cdef region *r
    pthread_mutex_lock(&regions_lock)
    r = regions
    while r != NULL and r.length:
        r = r.next
    if r == NULL:
        r = <region *> calloc(1, sizeof(region))
        if r != NULL:
            r.next = regions
            regions_publish(r)
    if r != NULL:
        r.damaged = 0
        r.written = False
        r.grown = r.outgrown = NULL
        r.data = data
        r.length = length
    pthread_mutex_unlock(&regions_lock)
    return r


cdef inline void regions_publish(region *r) noexcept nogil:
    global regions
    regions = r


cdef int map_data(mapped *m, size_t length) noexcept nogil:
    """Map the open file, perhaps in place of a smaller mapping; 0, or -1 with errno.

    m.region says whether a page was missing in any mapping of the file.
    """
    cdef region *old = m.region
    cdef region *r
    cdef void *data = mmap(NULL, length, PROT_READ, MAP_SHARED, m.fd, 0)
    if data == MAP_FAILED:
        return -1
    r = region_new(<const char *> data, length)
    if r == NULL:
        munmap(data, length)
        set_errno(ENOMEM)
        return -1
    if old != NULL:
        r.outgrown = old
        old.grown = r
        if old.damaged:  # before the handler knew of r
            r.damaged = 1
    m.data = <const char *> data
    m.region = r
    return 0


cdef region *map_to_write(int fd, size_t length) noexcept nogil:
    """Map so much of the open file, for good, to be written to by all who map it; NULL with errno.

    Of pages that are cut off, what is written from then on is lost.
    """
    cdef void *data = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    cdef region *r
    if data == MAP_FAILED:
        return NULL
    r = region_new(<const char *> data, length)
    if r == NULL:
        munmap(data, length)
        set_errno(ENOMEM)
        return NULL
    r.written = True
    return r


cdef void unmap_data(region *r) noexcept nogil:
    """The region goes first: the addresses may be another mapping's as soon as they are free."""
    cdef const char *data = r.data
    cdef size_t length = r.length
    r.length = 0
    munmap(<void *> data, length)


cdef int map_open(mapped *m, const char *path, size_t length) noexcept nogil:
    """Map the file at path, with at least length bytes of address space; 0, or -1 with errno.

    EINVAL: empty, or no regular file.
    """
    cdef struct_stat st
    cdef statfs_buf info
    cdef int saved
    m.region = NULL
    m.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    if m.fd < 0:
        return -1
    if fstat(m.fd, &st) == 0:
        m.size = st.st_size
        m.device = st.st_dev
        m.inode = st.st_ino
        m.mtime_ns = stat_mtime_ns(st)
        m.ctime_ns = stat_ctime_ns(st)
        m.overlaid = fstatfs(m.fd, &info) == 0 and info.f_type == OVERLAYFS
        if m.size == 0 or not S_ISREG(st.st_mode):
            set_errno(EINVAL)
        elif map_data(m, length if length > m.size else m.size) == 0:
            return 0
    saved = errno
    close(m.fd)
    m.fd = -1
    set_errno(saved)
    return -1


cdef int map_grow(mapped *m) noexcept nogil:
    """Take in what was appended to the file since; 0, or -1 with errno. Any thread; old views go on."""
    cdef struct_stat st
    cdef int failed
    pthread_mutex_lock(&growing)
    failed = fstat(m.fd, &st)
    if not failed and <size_t> st.st_size > m.region.length:
        failed = map_data(m, 2 * <size_t> st.st_size)
    if not failed and <size_t> st.st_size > m.size:  # of a file that was cut the size stays, see map_cut
        store_size(&m.size, st.st_size)
    pthread_mutex_unlock(&growing)
    return failed


cdef bint map_touched(const mapped *m) noexcept nogil:
    """Was the open file itself written to or cut since it was mapped?"""
    cdef struct_stat st
    return fstat(m.fd, &st) < 0 or stat_mtime_ns(st) != m.mtime_ns or <size_t> st.st_size != m.size


cdef uint64_t map_changed_ns(const mapped *m) noexcept nogil:
    """When the open file last changed, which nobody can set; 0 if that is not known."""
    cdef struct_stat st
    return stat_ctime_ns(st) if fstat(m.fd, &st) == 0 else 0


cdef bint map_cut(const mapped *m) noexcept nogil:
    """Is the open file shorter than it was?"""
    cdef struct_stat st
    return fstat(m.fd, &st) < 0 or <size_t> st.st_size < m.size


cdef void map_close(mapped *m) noexcept nogil:
    """Let go of the file. Nothing happens if it is not open."""
    cdef region *r
    if m.fd >= 0:
        while m.region != NULL:
            r = m.region
            m.region = r.outgrown
            unmap_data(r)
        close(m.fd)
        m.fd = -1


pthread_mutex_init(&regions_lock, NULL)
pthread_mutex_init(&growing, NULL)
install_handler()

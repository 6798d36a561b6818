"""_watch - inotify: which folders and files are watched, and did anything happen to them?

Workers add what a table was loaded from; the loop takes events. An event says
that somebody should look (stat) at the tables, and whether a file is whole: from
the first write to its close it is marked as being written. A worker that has read
a file takes events itself, before it believes the mark; the loop gets notice. On the
way to a file each folder and each symbolic link is watched, since a rename of any
of them puts another file there.

What a table was loaded from is watched as long as somebody holds its `Way`.

Source: inotify(7).
"""

import os

from cython cimport no_gc_clear
from libc.errno cimport EACCES, ENOENT, errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport strlen
from posix.unistd cimport close, read

from proxymap.base._buf cimport buf_append_view, buf_free, buf_len, buf_view, view, view_equal, view_of
from proxymap.base._hash cimport hash_view
from proxymap.base._os cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock

cdef extern from "<sys/inotify.h>" nogil:
    struct inotify_event:
        int wd
        uint32_t mask
        uint32_t len
        char name[1]
    enum:
        IN_NONBLOCK, IN_CLOEXEC, IN_MASK_ADD, IN_ONLYDIR, IN_Q_OVERFLOW, IN_IGNORED
        IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE
    int inotify_init1(int)
    int inotify_add_watch(int, const char *, uint32_t)
    int inotify_rm_watch(int, int)

cdef extern from *:
    """
    #define proxymap_load_flag(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define proxymap_store_flag(p, n) __atomic_store_n(p, n, __ATOMIC_SEQ_CST)
    """
    bint load_flag "proxymap_load_flag"(const bint *p) nogil
    void store_flag "proxymap_store_flag"(bint *p, bint n) nogil

cdef enum:
    EVENTS_SIZE = 65536  # bytes read at a time
    LINKS_MAX = 40       # symbolic links on the way to a file, as path_resolution(7) has it

cdef uint32_t NAMES_CHANGE = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_MASK_ADD | IN_ONLYDIR
cdef uint32_t FILES_CHANGE = NAMES_CHANGE | IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB
cdef uint32_t CONTENT_CHANGES = IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB | IN_MASK_ADD

# File systems where a change made elsewhere causes no event; statfs(2), by their magic.
REMOTE = frozenset([0x6969, 0xFF534D42, 0xFE534D42, 0x517B, 0x65735546, 0x01021997, 0x00C36400, 0x47504653])


cdef watched_name *names_find(watch *w, int folder, view name) noexcept nogil:
    cdef watched_name *n = w.names[hash_view(name, folder) % WATCH_SLOTS]
    while n != NULL and not (n.folder == folder and is_named(n, name)):
        n = n.chain
    return n


cdef inline bint is_named(const watched_name *n, view name) noexcept nogil:
    """A name of no bytes, which stands for the content of a file, has no memory to compare."""
    return buf_len(&n.name) == 0 if name.len == 0 else view_equal(buf_view(&n.name), name)


cdef watched_name *names_add(watch *w, int folder, view name) noexcept nogil:
    """NULL without memory."""
    cdef watched_name *n = names_find(w, folder, name)
    cdef watched_name **slot = &w.names[hash_view(name, folder) % WATCH_SLOTS]
    if n != NULL:
        return n
    n = <watched_name *> calloc(1, sizeof(watched_name))
    if n == NULL or buf_append_view(&n.name, name) < 0:
        free(n)
        return NULL
    n.folder = folder
    n.chain = slot[0]
    slot[0] = n
    return n


cdef bint names_in(watch *w, int folder) noexcept nogil:
    """Is any name of that folder watched?"""
    cdef watched_name *n
    cdef int slot
    for slot in range(WATCH_SLOTS):
        n = w.names[slot]
        while n != NULL:
            if n.folder == folder:
                return True
            n = n.chain
    return False


cdef void names_forget_unused(watch *w) noexcept nogil:
    cdef watched_name **link
    cdef watched_name *n
    cdef int slot
    for slot in range(WATCH_SLOTS):
        link = &w.names[slot]
        while link[0] != NULL:
            n = link[0]
            if n.uses:
                link = &n.chain
                continue
            link[0] = n.chain
            if not names_in(w, n.folder):
                inotify_rm_watch(w.fd, n.folder)
            buf_free(&n.name)
            free(n)


cdef void names_all_whole(watch *w) noexcept nogil:
    """Events were lost, and the one that says so may be among them."""
    cdef watched_name *n
    cdef int slot
    for slot in range(WATCH_SLOTS):
        n = w.names[slot]
        while n != NULL:
            n.written = False
            n = n.chain


cdef bint take_one(watch *w, const inotify_event *e) noexcept nogil:
    """Does the event concern a name or a file that is watched?"""
    cdef watched_name *n
    if e.mask & IN_Q_OVERFLOW:
        names_all_whole(w)
        return True
    if e.mask & IN_IGNORED:
        return False
    n = names_find(w, e.wd, view_of(e.name, strlen(e.name)) if e.len else view_of(b"", 0))
    if n == NULL:
        return e.len == 0  # of a watched folder itself
    if e.mask & IN_MODIFY:
        n.written = True
        return n.eager  # the others wait for its end
    if e.mask & (IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE):
        n.written = False
    return True


cdef bint watch_take(watch *w) noexcept nogil:
    """Take the events that there are; did any of them concern a name or a file that is watched?"""
    cdef char events[EVENTS_SIZE]
    cdef const inotify_event *e
    cdef bint concerned = False
    cdef ssize_t size, at
    pthread_mutex_lock(&w.lock)
    while True:
        size = read(w.fd, events, EVENTS_SIZE)
        if size <= 0:
            break
        at = 0
        while at < size:
            e = <const inotify_event *> (events + at)
            concerned |= take_one(w, e)
            at += sizeof(inotify_event) + e.len
    pthread_mutex_unlock(&w.lock)
    return concerned


cdef bint watch_was_taken(watch *w) noexcept nogil:
    """Has somebody else taken events, which are then for the caller as well? Asked in each turn."""
    if not load_flag(&w.taken):
        return False
    store_flag(&w.taken, False)
    pthread_mutex_lock(&w.lock)  # until all of them are marked
    pthread_mutex_unlock(&w.lock)
    return True


def steps_to(bytes path) -> list:
    """The (folder, name) pairs that decide which file `path` leads to, the file's own last.

    Each symbolic link on the way adds the steps of what it points to.
    """
    steps = []
    rest = os.path.abspath(path).split(b"/")[1:]
    folder = b"/"
    links = 0
    while rest:
        name = rest.pop(0)
        if name in (b"", b"."):
            continue
        if name == b"..":
            folder = os.path.dirname(folder)
            continue
        steps.append((folder, name))
        whole = os.path.join(folder, name)
        try:
            target = os.readlink(whole)
        except OSError:
            folder = whole
            continue
        links += 1
        if links > LINKS_MAX:
            break
        rest[:0] = target.split(b"/")
        if target.startswith(b"/"):
            folder = b"/"
    return steps


@no_gc_clear
cdef class Way:
    """The names that lead to one file, watched as long as this is."""

    def __cinit__(self, of):
        self.of = of
        self.names = NULL
        self.written = self.own = NULL
        self.count = 0
        self.tells = False

    cdef int hold(self, watched_name *n) except -1:
        cdef void *names = realloc(self.names, (self.count + 1) * sizeof(watched_name *))
        if names == NULL:
            raise MemoryError
        self.names = <watched_name **> names
        self.names[self.count] = n
        self.count += 1
        n.uses += 1
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            self.names[i].uses -= 1
        free(self.names)


cdef class Watch:
    """Watches files. `fd` becomes readable when something happens; -1 where there is no inotify."""

    def __cinit__(self):
        pthread_mutex_init(&self.w.lock, NULL)
        self.w.fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)

    def __dealloc__(self):
        cdef watched_name *n
        cdef int slot
        for slot in range(WATCH_SLOTS):
            while self.w.names[slot] != NULL:
                n = self.w.names[slot]
                self.w.names[slot] = n.chain
                buf_free(&n.name)
                free(n)
        if self.w.fd >= 0:
            close(self.w.fd)

    @property
    def fd(self) -> int:
        return self.w.fd

    cdef Way add_file(self, bytes path, bint content, bint writers):
        """Watch what `path` leads to, by that name and by others; with `content`, each write is an event.

        Without `writers` nobody asks whether it is being written to, and a write wakes nobody.

        May be called by any thread with the GIL, and again for the same path.
        """
        cdef Way found = Way(self)
        cdef watched_name *last
        cdef uint32_t mask = FILES_CHANGE if writers else FILES_CHANGE & ~IN_MODIFY
        if self.w.fd < 0 or is_remote(path):
            return found
        pthread_mutex_lock(&self.w.lock)
        names_forget_unused(&self.w)
        pthread_mutex_unlock(&self.w.lock)
        *way, (folder, name) = steps_to(path)
        for above, below in way:
            # A folder above that may not be read cannot be watched; it is rarely renamed.
            if self.add_name(found, above, below, NAMES_CHANGE) == NULL and errno == ENOENT:
                found.tells = True  # when it appears there will be an event, and a reason to come here again
                return found
        last = self.add_name(found, folder, name, mask)
        if last != NULL:
            found.written = &last.written if writers else NULL
            # The file itself is like a folder with one name, of no bytes.
            last = self.add_name(found, os.path.join(folder, name), b"", mask & CONTENT_CHANGES)
        if last != NULL:
            found.own = &last.written if writers else NULL
            last.eager = last.eager or content
        # A file that this process may not read: its name tells when that changes.
        found.tells = last != NULL or errno in (ENOENT, EACCES)
        return found

    cdef watched_name *add_name(self, Way way, bytes folder, bytes name, uint32_t mask) except? NULL:
        """Watch a name in a folder; NULL with errno."""
        cdef watched_name *n
        cdef const char *path = folder
        cdef int wd
        with nogil:  # a dead file server delays nobody else
            wd = inotify_add_watch(self.w.fd, path, mask)
        if wd < 0:
            return NULL
        pthread_mutex_lock(&self.w.lock)
        n = names_add(&self.w, wd, view_of(name, len(name)))
        pthread_mutex_unlock(&self.w.lock)
        if n != NULL:
            way.hold(n)
        return n

    @property
    def names(self) -> int:
        """How many names are watched; for tests."""
        cdef watched_name *n
        cdef int slot, count = 0
        for slot in range(WATCH_SLOTS):
            n = self.w.names[slot]
            while n != NULL:
                count += 1
                n = n.chain
        return count

    def take(self) -> bool:
        """Take the events so far, on a worker; did any concern what is watched?"""
        cdef bint concerned
        if self.w.fd < 0:
            return False
        with nogil:
            store_flag(&self.w.taken, True)  # first: at no time are they gone and the loop not told
            concerned = watch_take(&self.w)
            store_flag(&self.w.taken, True)  # and of those that came after it had looked
        return concerned

    def was_taken(self) -> bool:
        """What the loop asks."""
        return watch_was_taken(&self.w)


cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_buf "statfs":
        long f_type
    int statfs(const char *, statfs_buf *)


cdef bint ask_statfs(bytes path, statfs_buf *info):
    cdef const char *name = path
    cdef int failed
    with nogil:
        failed = statfs(name, info)
    return failed == 0


def is_remote(bytes path) -> bool:
    """Does the file, or the nearest folder that exists, lie on a file system that others may change?"""
    cdef statfs_buf info
    while not ask_statfs(path, &info):
        if path in (b"/", b"."):
            return True
        path = os.path.dirname(path) or b"."
    return info.f_type & 0xFFFFFFFF in REMOTE

"""lmdb - LMDB files, read from the map without locks

A lookup takes a snapshot, walks to the key and copies the value out; if a writer
was quicker, it is done again (see _lmdb). After ROUNDS rounds in vain the fcntl
read lock is taken once, as Postfix does, without waiting for it.

A table that is asked much has an index of its records (_lmdb_index), which only
the loop uses; walks run on any thread. All without the GIL. The lock is an "open
file description" lock, which neither loses nor frees the writer's (lmdb_writer.py),
where updates are made, on a worker thread.

Source: lmdb_table(5); tables.md 4.2 to 4.4.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from posix.fcntl cimport F_RDLCK, F_UNLCK

from proxymap.base._buf cimport buf, buf_append_view, buf_clear, buf_view, view, view_until_nul
from proxymap.base._clock cimport wall_clock_ns
from proxymap.tables.indexed._lmdb cimport *
from proxymap.tables.indexed._lmdb_index cimport (
    INDEX_UNKNOWN, index, index_bytes, index_can_tell, index_find, index_foresee, index_free, index_hash,
    index_is_of, index_tend,
)
from proxymap.tables.indexed._places cimport places_prefetch
from proxymap.base._lockfile cimport F_OFD_SETLK, set_lock
from proxymap.base._map cimport map_changed_ns, map_close, map_cut, map_open, map_stamp
from proxymap.tables._table cimport (
    CHANGED_NOT, CHANGED_REPLACED, CHANGED_SPOILED, SLOW_WRITE, Table, cursor, glimpse,
    origins_changed, origins_replaced, table, table_try_nul,
)
from proxymap._words cimport *

from proxymap.tables.indexed._lmdb_survey import damage_in, reason_of

cdef enum:
    TICK_NS = 20000000   # two writes within one tick of the file system's clock leave the same time


cdef struct served:
    # What a table is served from.
    lmdb db
    bint written       # there is a writer, so damage can be mended
    bint rotten        # damage was met on the way to an answer
    uint64_t changed_ns  # when the file had last changed, when it was last looked at
    uint64_t overwrites  # looks that found it written to; not all are commits
    index index        # of its records; the loop's


cdef struct question:
    # What a round of answer() asks: a lookup, or the record after a key.
    bint is_sequence
    view key
    bint nul
    view found_key
    view found_value


cdef int answer_in(served *f, const meta *s, question *q, buf *scratch) noexcept nogil:
    """One round in snapshot s; what was found is copied to scratch."""
    cdef int status
    if q.is_sequence:
        status = next_in(&f.db, s, q.key, &q.found_key, &q.found_value)
    else:
        status = find_in(&f.db, s, q.key, q.nul, &q.found_value)
        q.found_key.len = 0
    if status != STAT_OK:
        return status
    buf_clear(scratch)
    if q.found_key.len and buf_append_view(scratch, q.found_key) < 0:
        return STAT_RETRY
    if buf_append_view(scratch, q.found_value) < 0:
        return STAT_RETRY
    return STAT_OK


cdef int answer(served *f, question *q, buf *scratch) noexcept nogil:
    """Ask until nothing that was read can have been overwritten meanwhile."""
    cdef lmdb *db = &f.db
    cdef meta s
    cdef int status, i
    cdef bint locked = False
    for i in range(ROUNDS + 1):
        if i == ROUNDS:
            locked = set_lock(db.m.fd, F_RDLCK, F_OFD_SETLK)  # Postfix's, without waiting
        if snapshot_take(db, &s) < 0:
            status = STAT_RETRY
            break
        status = answer_in(f, &s, q, scratch)
        if snapshot_intact(db, &s):
            db.latest = s.txnid
            f.rotten = status == STAT_RETRY
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


cdef int find_walking(
    table *t, view key, bint nul, const glimpse *g, buf *scratch, view *value
) noexcept nogil:
    cdef question q
    cdef int status
    if key.len + nul == 0:
        return STAT_NOKEY  # LMDB has no key of no bytes
    q.is_sequence = False
    q.key = key
    q.nul = nul
    status = answer(<served *> t.self, &q, scratch)
    value[0] = q.found_value
    return status


cdef int lookup_walking(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """Both tries count for one commit: a key may change from one form to the other. On any thread."""
    cdef lmdb *db = &(<served *> t.self).db
    cdef int before = flags[0]
    cdef int status = STAT_RETRY
    cdef uint64_t generation
    cdef int _
    for _ in range(ROUNDS):
        generation = newest(db)
        flags[0] = before
        status = table_try_nul(find_walking, t, key, NULL, flags, scratch, value)
        if status == STAT_RETRY or before & DICT_FLAGS_TRY != DICT_FLAGS_TRY or newest(db) == generation:
            return status
    flags[0] = before
    return STAT_RETRY


cdef int find_in_index(
    table *t, view key, bint nul, const glimpse *g, buf *scratch, view *value
) noexcept nogil:
    cdef served *f = <served *> t.self
    cdef uint64_t hash = g.what[nul] if g != NULL and g.at[nul] else index_hash(&f.index, key, nul)
    return index_find(&f.index, &f.db, hash, key, nul, value)


cdef int lookup_in_index(
    table *t, view key, const glimpse *g, int *flags, buf *scratch, view *value
) noexcept nogil:
    """INDEX_UNKNOWN if that does not know, or is not of the newest commit before and after."""
    cdef served *f = <served *> t.self
    cdef int before = flags[0], status
    cdef uint64_t txnid = newest(&f.db)
    if not index_can_tell(&f.index, txnid, f.overwrites) or went_back(&f.db):
        return INDEX_UNKNOWN
    read_fence()
    status = table_try_nul(find_in_index, t, key, g, flags, scratch, value)
    if status == STAT_OK:
        buf_clear(scratch)
        if buf_append_view(scratch, value[0]) < 0:
            return STAT_RETRY
        value.ptr = scratch.data + scratch.start
    read_fence()
    if status == INDEX_UNKNOWN or newest(&f.db) != txnid or is_cut(&f.db):
        flags[0] = before
        return INDEX_UNKNOWN
    f.db.latest = txnid
    return status


cdef bint lmdb_foresee(table *t, view key, int flags, glimpse *g) noexcept nogil:
    """First the slot of each form of the key, then the record that it leads to."""
    cdef served *f = <served *> t.self
    cdef int nul
    if not index_can_tell(&f.index, newest(&f.db), f.overwrites):
        return False
    g.step += 1
    for nul in range(2):
        if not flags & (DICT_FLAG_TRY1NULL if nul else DICT_FLAG_TRY0NULL):
            continue
        if g.step == 1:
            g.at[nul] = True
            g.what[nul] = index_hash(&f.index, key, nul)
            places_prefetch(&f.index.places, g.what[nul])
        elif g.at[nul]:
            index_foresee(&f.index, &f.db, g.what[nul])
    return g.step == 1


cdef int lmdb_lookup_foreseen(
    table *t, view key, const glimpse *g, int *flags, buf *scratch, view *value
) noexcept nogil:
    """On the loop."""
    cdef served *f = <served *> t.self
    cdef int status
    index_tend(&f.index, &f.db, f.overwrites)
    status = lookup_in_index(t, key, g, flags, scratch, value)
    return lookup_walking(t, key, flags, scratch, value) if status == INDEX_UNKNOWN else status


cdef int lmdb_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    return lmdb_lookup_foreseen(t, key, NULL, flags, scratch, value)


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
    status = answer(<served *> t.self, &q, scratch)
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
    cdef const served *f = <const served *> t.self
    if went_back(&f.db):
        return <uint64_t> -1  # nothing is stored for that
    return newest(&f.db) + (f.overwrites << 40)


cdef int lmdb_changed(table *t) noexcept nogil:
    """Being written to is its life; only what cannot have been LMDB's doing counts."""
    cdef served *f = <served *> t.self
    cdef lmdb *db = &f.db
    cdef uint64_t changed_ns = map_changed_ns(&db.m)
    cdef meta s
    if changed_ns != f.changed_ns or wall_clock_ns() < changed_ns + TICK_NS:
        f.changed_ns = changed_ns
        f.overwrites += 1
    if db.m.region.damaged or map_cut(&db.m) or (f.rotten and f.written):
        return CHANGED_SPOILED
    if snapshot_take(db, &s) != FITS or went_back(db):
        return CHANGED_SPOILED
    if t.origins.seen.inode != db.m.inode or t.origins.seen.device != db.m.device:
        return origins_changed(t)  # that other file was refused; by now it may be whole
    if db.m.overlaid:  # the first commit copies the file up, and ours stays what it was
        return origins_changed(t)
    return CHANGED_REPLACED if origins_replaced(t) else CHANGED_NOT


cdef class LmdbTable(Table):
    """lmdb:NAME, served from NAME.lmdb; with a writer (lmdb_writer.py), for updates too.

    Raises OSError, or ValueError for a file that we cannot read.
    """

    cdef served f
    cdef object writer

    def __cinit__(self, bytes type_name, bytes file, size_t index_limit=0, writer=None):
        cdef meta s
        cdef int found, failed
        cdef const char *path = file
        self.writer = writer
        self.f.db.m.fd = -1
        self.f.written = writer is not None
        with nogil:
            failed = map_open(&self.f.db.m, path, ADDRESS_SPACE)
        if failed:
            raise OSError(errno, os.strerror(errno), os.fsdecode(file))
        found = fit(&self.f.db, &s)
        if found != FITS:
            raise ValueError(reason_of(found, os.fsdecode(file)))
        self.f.db.latest = s.txnid
        self.f.changed_ns = self.f.db.m.ctime_ns
        self.f.index.limit = 0 if self.f.written else index_limit
        self.f.index.seed = int.from_bytes(os.urandom(8), "little")
        self.t.self = &self.f
        self.t.flags = DICT_FLAG_FIXED | DICT_FLAGS_TRY | DICT_FLAG_MULTI_WRITER
        self.t.fold_bit = DICT_FLAG_FOLD_FIX
        self.t.lookup = lmdb_lookup
        self.t.lookup_patiently = lookup_walking
        self.t.foresee = lmdb_foresee
        self.t.lookup_foreseen = lmdb_lookup_foreseen
        self.t.sequence = lmdb_sequence
        self.t.generation = lmdb_generation
        self.t.changed = lmdb_changed
        self.t.quick = True
        self.watches_writers = False  # being written to is its life; a commit is no event
        self.loaded_from([(file, map_stamp(&self.f.db.m))])
        self.t.slow = SLOW_WRITE if self.f.written else 0

    @property
    def entries(self):
        cdef meta s
        return s.main.entries if snapshot_take(&self.f.db, &s) == FITS else None

    @property
    def size(self):
        """Bytes of the file, which may have grown since it was mapped."""
        try:
            status = os.stat(self.files[0])
            if (status.st_dev, status.st_ino) == (self.f.db.m.device, self.f.db.m.inode):
                return status.st_size
        except OSError:
            pass  # a worker will say so when it opens it anew
        return self.f.db.m.size

    @property
    def index_bytes(self) -> int:
        return index_bytes(&self.f.index)

    @property
    def index_is_whole(self) -> bool:
        """Does the index have all records of the newest commit? For tests."""
        return self.f.index.whole and index_is_of(&self.f.index, newest(&self.f.db), self.f.overwrites)

    def __dealloc__(self):
        index_free(&self.f.index)
        map_close(&self.f.db.m)

    def survey(self):
        file = os.fsdecode(self.files[0])
        try:
            what = damage_in(file)
        except (OSError, ValueError) as error:  # it was replaced since it was opened
            return str(error)
        return what and f"{file}: {what}"

    def write(self, list changes, on_disk=None):
        self.writer.write(changes, on_disk)


def open_table(bytes type_name, bytes mapname, opening) -> LmdbTable:
    file = mapname + b".lmdb"
    if not opening.writes:
        if opening.doubtful and damage_in(os.fsdecode(file)):
            raise ValueError(reason_of(DAMAGED, os.fsdecode(file)))
        return LmdbTable(type_name, file, opening.host.index_size)
    try:
        from proxymap.tables.indexed.lmdb_writer import writer_for
    except ImportError as error:
        from proxymap.base.packages import how_to_install

        remedy = f"updates need the Python package lmdb: {how_to_install('lmdb')} ({error})"
        opening.host.warn(f"{os.fsdecode(type_name)}: {remedy}")
        return LmdbTable(type_name, file)
    writer = writer_for(os.fsdecode(file), opening.host, damage_in)
    return LmdbTable(type_name, file, writer=writer)

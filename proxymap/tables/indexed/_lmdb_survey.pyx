"""_lmdb_survey - is a whole LMDB file in order?

Looks at every page of the newest snapshot, where a lookup checks no more than it
needs. Any thread, without the GIL. Source: as for _lmdb.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from proxymap.base._buf cimport memcpy, view
from proxymap.tables.indexed._lmdb cimport *
from proxymap.base._map cimport map_close, map_grow, map_open


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
    return FITS  # written to all the time: that is no damage


def reason_of(int found, str file) -> str:
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

"""_service - the five requests: request -> reply, or request -> job

Finds the table of a request in the catalog, asks it (through the cache, where
that is on) and appends the reply. A table that is not open yet is opened by a
worker: the request is parked, and asked again once it is. A slow table is
asked by a worker: the reply is made when its answer is back. A writer is lent
the connection of who changes something alone (_lent).

What is wrong with a request or a table becomes a status here and nowhere else.
One thread, the loop's; no GIL. Source: proxymap(8); wire.md, tables.md 1 and 2.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from proxymap.base._buf cimport (
    buf, buf_append_view, buf_clear, buf_consume, buf_free, buf_len, buf_view, memchr, view, view_of,
    view_str,
)
from proxymap.server._cache cimport cache_find, cache_store, entry, entry_value
from proxymap.server._catalog cimport (
    catalog_add, catalog_find, catalog_free, catalog_init, catalog_is_approved, catalog_opened,
)
from proxymap.base._clock cimport now_ms
from proxymap._codec cimport (
    FAULT_MISSING, FAULT_NONE, FAULT_NUMBER, FAULT_UNEXPECTED, PARSE_BAD, PARSE_OK, PARSE_SILENT,
    PARSE_UNKNOWN, reply_append, reply_append_bare, request_flags, request_read,
    without_proxy,
)
from proxymap.base._fold cimport utf8_valid
from proxymap.tables._jobs cimport (
    JOB_CLOSE, JOB_DELETE, JOB_LOOKUP, JOB_OPEN, JOB_SEQUENCE, JOB_UPDATE, LEVEL_WARNING, job_free, job_new,
    log_line, queue_put,
)
from proxymap.base._stamp cimport same_content, stamp_at
from proxymap.tables._table cimport (
    CHANGED_SPOILED, SLOW_SEQUENCE, SLOW_WRITE, STAT_LATER, cursor, glimpse, origin, table, table_fold,
)
from proxymap._words cimport *

cdef enum:
    OPEN_RETRY_MS = 500   # between two attempts to open a table that cannot be opened
    CURSORS_MAX = 16      # sequences that one connection may have under way
    LENT_MS = 100         # how long a worker may have a connection


cdef void service_init(service *s, uint64_t seed) noexcept nogil:
    memset(s, 0, sizeof(service))
    s.lends = True
    catalog_init(&s.tables, seed)


cdef void service_free(service *s) noexcept nogil:
    catalog_free(&s.tables)
    buf_free(&s.folded)
    buf_free(&s.scratch)


cdef void session_free(session *who) noexcept nogil:
    cdef cursor *c
    while who.cursors != NULL:
        c = who.cursors
        who.cursors = c.next
        buf_free(&c.key)
        free(c)


cdef size_t service_read(service *s, session *who, scan *seen, const char *data, size_t len) noexcept nogil:
    """Read the list at data, and see whom it is for; service_request is to be next.

    Returns its length, or 0 while it is incomplete (see request_read).
    """
    cdef request *r = &who.request
    cdef size_t n = request_read(seen, data, len, r, &who.verdict)
    if n == 0 or who.verdict != PARSE_OK:
        return n
    who.found = catalog_find(&s.tables, without_proxy(r.table), r.dialect, r.inst_flags)
    who.forgotten = s.tables.forgotten
    memset(&who.glimpse, 0, sizeof(glimpse))
    return n


cdef void service_foresee(service *s, session *who) noexcept nogil:
    """Have the CPU fetch some of what the request that was read is about; the next part, each time.

    As it came, the key is hardly ever not yet folded; if it is, what is fetched is of no use.
    """
    cdef instance *i = who.found
    cdef int flags = who.request.flags
    if who.verdict != PARSE_OK or who.request.kind != REQ_LOOKUP or i == NULL:
        return
    if who.forgotten != s.tables.forgotten:
        return  # it may be gone since
    if i.t == NULL or i.t.foresee == NULL:
        return
    if who.request.dialect == DIALECT_3_6:
        flags = i.flags
    who.glimpse.of = i.t
    i.t.foresee(i.t, who.request.key, flags, &who.glimpse)


cdef int service_request(service *s, session *who, buf *out) noexcept nogil:
    """Serve the request that was read; returns SERVED, PARKED or SENT."""
    cdef request *r = &who.request
    cdef instance *i
    s.requests += 1
    if r.fault != FAULT_NONE:
        warn_of_fault(s, r)
    if who.verdict == PARSE_SILENT:
        return SERVED
    if who.verdict == PARSE_UNKNOWN:
        warn(s, view_str(b'unrecognized request: "'), r.name, view_str(b'", ignored'))
        reply_append_bare(out, STAT_BAD)
        return SERVED
    if who.verdict == PARSE_BAD:
        return refuse(r, STAT_BAD, out)
    if (r.kind == REQ_UPDATE or r.kind == REQ_DELETE) and not s.writes:
        warn(s, view_str(b"refusing "), r.table,
             view_str(b" update request on non-proxywrite service" if r.kind == REQ_UPDATE
                      else b" delete request on non-proxywrite service"))
        return refuse(r, STAT_DENY, out)
    r.table = without_proxy(r.table)
    i = who.found
    if i == NULL or who.forgotten != s.tables.forgotten:  # others were served since
        i = catalog_find(&s.tables, r.table, r.dialect, r.inst_flags)
    if i == NULL or i.refused:
        if r.table.len == 0 or memchr(r.table.ptr, c":", r.table.len) == NULL:
            return refuse(r, STAT_BAD, out)
        if not catalog_is_approved(&s.tables, r.table):
            return deny(s, r, out)
        i = add_instance(s, r)
        if i == NULL:
            return refuse(r, STAT_RETRY, out)
    if i.opening or not is_open(s, i):
        who.waits_for = i
        return PARKED
    if i.t == NULL:
        return refuse(r, STAT_RETRY, out)  # without memory to have it opened
    if r.kind == REQ_OPEN:
        reply_append(out, r, STAT_OK, i.flags if r.dialect == DIALECT_3_6 else i.open_flags, NONE, NONE)
        return SERVED
    return serve(s, who, i, r, out)


# The ladder from trouble to status

cdef view NONE = view_of(NULL, 0)


cdef int refuse(const request *r, int status, buf *out) noexcept nogil:
    reply_append(out, r, status, 0, NONE, NONE)
    return SERVED


cdef int deny(service *s, const request *r, buf *out) noexcept nogil:
    cdef view parts[4]
    warn(s, view_str(b'request for unapproved table: "'), r.table, view_str(b'"'))
    parts[0] = view_str(b"to approve this table for read-write access, list proxy:" if s.writes
                        else b"to approve this table for read-only access, list proxy:")
    parts[1] = r.table
    parts[2] = view_str(b" in main.cf:proxy_write_maps" if s.writes else b" in main.cf:proxy_read_maps")
    log_line(s.log, LEVEL_WARNING, parts, 3)
    return refuse(r, STAT_DENY, out)


cdef void warn(service *s, view before, view what, view after) noexcept nogil:
    cdef view parts[3]
    parts[0] = before
    parts[1] = what
    parts[2] = after
    log_line(s.log, LEVEL_WARNING, parts, 3)


cdef void warn_of_fault(service *s, const request *r) noexcept nogil:
    """Postfix's words for a list that is not as it should be."""
    cdef view parts[7]
    cdef view socket_name = view_str(b"proxywrite socket" if s.writes else b"proxymap socket")
    parts[2] = view_str(b" in input from " if r.fault == FAULT_MISSING else b" from ")
    parts[3] = socket_name
    if r.fault == FAULT_MISSING:
        parts[0] = view_str(b"missing attribute ")
        parts[1] = view_str(r.wanted)
        log_line(s.log, LEVEL_WARNING, parts, 4)
    elif r.fault == FAULT_UNEXPECTED:
        parts[0] = view_str(b"unexpected attribute ")
        parts[1] = r.got
        parts[4] = view_str(b" (expecting: ")
        parts[5] = view_str(r.wanted)
        parts[6] = view_str(b")")
        log_line(s.log, LEVEL_WARNING, parts, 7)
    elif r.fault == FAULT_NUMBER:
        parts[0] = view_str(b"malformed numerical data")
        parts[1] = view_str(b"")
        parts[4] = view_str(b" while reading input attribute value: ")
        parts[5] = r.got
        log_line(s.log, LEVEL_WARNING, parts, 6)


cdef void complain(service *s, instance *i, const char *what) noexcept nogil:
    """Say once of each instance what cannot be done with it."""
    if not i.complained:
        i.complained = True
        warn(s, view_str(b"table "), buf_view(&i.name), view_str(what))


# Opening

cdef void close_table(service *s, table *t) noexcept nogil:
    """Drop an instance's reference to t; later, if jobs are out that name it."""
    cdef job *j
    if t == NULL:
        return
    if t.jobs:
        t.retired += 1
        return
    j = job_new(JOB_CLOSE)
    if j != NULL:
        j.t = t
        if queue_put(s.todo, j) < 0:
            job_free(j)


cdef inline int given_flags(const request *r) noexcept nogil:
    """What a table is opened with: in 3.11 the flags of a lookup are those of an earlier reply."""
    return r.inst_flags if r.dialect == DIALECT_3_11 else r.flags


cdef instance *add_instance(service *s, const request *r) noexcept nogil:
    cdef table *retired
    cdef instance *i = catalog_add(&s.tables, r.table, r.dialect, r.inst_flags, given_flags(r), &retired)
    close_table(s, retired)
    return i


cdef void job_is_back(service *s, table *t) noexcept nogil:
    """A job that names t was answered."""
    t.jobs -= 1
    while t.jobs == 0 and t.retired:
        t.retired -= 1
        close_table(s, t)


cdef bint start_open(service *s, instance *i, bint settle, bint background) noexcept nogil:
    """Have a worker open the table, for the first time or again; until then requests wait, or do not."""
    cdef job *j = job_new(JOB_OPEN)
    if j == NULL:
        return False
    j.flags = i.given_flags
    j.asker = i
    j.settle = settle
    if buf_append_view(&j.name, buf_view(&i.name)) < 0 or queue_put(s.todo, j) < 0:
        job_free(j)
        return False
    i.opening = not background
    i.renewing = background
    return True


cdef bint is_open(service *s, instance *i) noexcept nogil:
    """Can a request be answered now? If not, a worker is opening the table, for the first time or again."""
    if i.t == NULL:
        return not start_open(s, i, False, False)
    if i.t.polled and i.looked != s.turn:
        i.looked = s.turn
        look_at(s, i)
        if i.opening:
            return False
    if (i.t.reason == NULL and not i.t.incomplete) or i.renewing or now_ms() < i.retry_ms:
        return True
    return not start_open(s, i, True, False)


cdef void look_at(service *s, instance *i) noexcept nogil:
    """Have the table opened again if its files have changed."""
    cdef int changed
    cdef bint useless
    if i.opening or i.renewing:
        i.again = True
        return
    if i.t == NULL or i.t.changed == NULL:
        return
    changed = i.t.changed(i.t)
    useless = changed == CHANGED_SPOILED or i.t.reason != NULL
    if changed:
        start_open(s, i, useless, not useless and not i.t.quick)


cdef void look_at_config(service *s) noexcept nogil:
    cdef origin *o = s.config.origins if s.config != NULL else NULL
    while o != NULL:
        if not same_content(o.seen, stamp_at(o.path)):
            o.seen = stamp_at(o.path)
            warn(s, view_str(b""), view_str(o.path), view_str(b" has changed; reload to have it obeyed"))
        o = o.next


cdef void service_turn(service *s) noexcept nogil:
    """A turn of the loop begins."""
    s.turn += 1
    if s.config != NULL and s.config.polled:
        look_at_config(s)


cdef void service_look(service *s) noexcept nogil:
    """Something happened to the files of some tables, or of the configuration."""
    cdef instance *i
    cdef size_t slot
    look_at_config(s)
    for slot in range(sizeof(s.tables.slots) // sizeof(instance *)):
        i = s.tables.slots[slot]
        while i != NULL:
            look_at(s, i)
            i = i.chain


cdef instance *service_opened(service *s, job *j) noexcept nogil:
    """Take the table that a worker opened; returns the instance, whose waiters can go on."""
    cdef instance *i = <instance *> j.asker
    cdef table *retired = catalog_opened(&s.tables, i, j.t, s.utf8_layer)
    if i.t.reason != NULL or i.t.incomplete or retired == j.t:
        i.retry_ms = now_ms() + OPEN_RETRY_MS
    i.opened_ms = now_ms()
    close_table(s, retired)
    if i.again:
        i.again = False
        look_at(s, i)
    return i


# Asking

cdef int serve(service *s, session *who, instance *i, request *r, buf *out) noexcept nogil:
    """A lookup, update, delete or sequence on an open table."""
    cdef view key = NONE, value = NONE
    cdef int flags = request_flags(r, i.flags)
    cdef size_t before = buf_len(out)
    cdef int status
    i.lookups += r.kind == REQ_LOOKUP
    if i.t.reason != NULL:
        status = unavailable(s, i, r, flags)
    elif r.kind == REQ_LOOKUP:
        status = STAT_LATER if i.t.lookup == NULL else lookup(s, who, i, r.key, &flags, &value)
    elif r.kind == REQ_SEQUENCE:
        status = sequence(s, who, i, r.function, &key, &value)
    else:
        status = write(s, i, r, &flags)
    if status == STAT_LATER:
        if r.dialect == DIALECT_3_6:
            i.flags = flags
        return send(s, who, i, r, flags, out)
    if status == STAT_RETRY and i.t.reason == NULL and i.t.changed != NULL:
        distrust(s, i)
    if r.dialect == DIALECT_3_6:
        i.flags = flags
    reply_append(out, r, status, flags, key, value)
    if (status == STAT_OK or status == STAT_NOKEY) and i.t.damaged != NULL and i.t.damaged(i.t):
        out.end = out.start + before
        if r.kind == REQ_LOOKUP and not i.renewing and start_open(s, i, True, False):
            who.waits_for = i
            return PARKED  # what is there now is to answer
        distrust(s, i)
        reply_append(out, r, STAT_RETRY, flags, NONE, NONE)
    return SERVED


cdef int unavailable(service *s, instance *i, const request *r, int flags) noexcept nogil:
    """The table could not be opened. What is not UTF-8 is still not asked for, nor stored."""
    cdef view parts[4]
    cdef view key = r.key
    cdef int status = check_request(s, i, r, flags, &key)
    if status != STAT_LATER:
        return status
    i.errors += 1
    parts[0] = buf_view(&i.name)
    parts[1] = view_str(b" is unavailable. ")
    parts[2] = view_str(i.t.reason)
    log_line(s.log, LEVEL_WARNING, parts, 3)
    return STAT_RETRY


cdef void distrust(service *s, instance *i) noexcept nogil:
    """A table gave RETRY: if its file was replaced or cut, open it again."""
    i.errors += 1
    warn(s, view_str(b"table "), buf_view(&i.name),
         view_str(b" is damaged or was changed in place; answering RETRY"))
    if now_ms() >= i.retry_ms:
        i.retry_ms = now_ms() + OPEN_RETRY_MS
        look_at(s, i)


cdef void warn_not_utf8(service *s, instance *i, const char *what, view text) noexcept nogil:
    cdef view parts[4]
    parts[0] = buf_view(&i.name)
    parts[1] = view_str(what)
    parts[2] = text
    parts[3] = view_str(b'": malformed UTF-8 or invalid codepoint')
    log_line(s.log, LEVEL_WARNING, parts, 4)


cdef int fold_key(service *s, instance *i, int flags, view *key) noexcept nogil:
    """Fold and check the key as the flags and the UTF-8 layer ask; STAT_OK to go on."""
    cdef int status = table_fold(i.t, i.open_flags & DICT_FLAG_UTF8_ACTIVE, flags, key, &s.folded)
    if status == STAT_NOKEY:
        warn_not_utf8(s, i, b': non-UTF-8 key "', key[0])
    return status


cdef int lookup(
    service *s, session *who, instance *i, view key, int *flags, view *value
) noexcept nogil:
    cdef const char *unfolded = key.ptr
    cdef int status = fold_key(s, i, flags[0], &key)
    if status != STAT_OK:
        return status
    if s.results != NULL and i.t.cached:
        status = lookup_cached(s, i, key, flags, value)
    elif who.glimpse.of == i.t and key.ptr == unfolded:
        status = i.t.lookup_foreseen(i.t, key, &who.glimpse, flags, &s.scratch, value)
    else:
        status = i.t.lookup(i.t, key, flags, &s.scratch, value)
    if status == STAT_OK and i.open_flags & DICT_FLAG_UTF8_ACTIVE and not utf8_valid(value[0]):
        warn_not_utf8(s, i, b': non-UTF-8 value "', value[0])
        return STAT_CONFIG
    return status


cdef int lookup_cached(service *s, instance *i, view key, int *flags, view *value) noexcept nogil:
    """The generation is read before the table: an answer is at least as new as it is marked."""
    cdef uint64_t owner = i.cache_id << 2 | (flags[0] & DICT_FLAGS_TRY) >> 2
    cdef uint64_t generation = i.t.generation(i.t) if i.t.generation != NULL else 0
    cdef entry *e = cache_find(s.results, owner, generation, key)
    cdef int before = flags[0]
    cdef int status
    if e != NULL:
        i.hits += 1
        flags[0] &= ~e.cleared
        value[0] = entry_value(e)
        return e.status
    status = i.t.lookup(i.t, key, flags, &s.scratch, value)
    if status == STAT_OK or status == STAT_NOKEY:
        cache_store(s.results, owner, generation, key, status, before & ~flags[0],
                    value[0] if status == STAT_OK else NONE)
    return status


cdef int sequence(service *s, session *who, instance *i, int function, view *key, view *value) noexcept nogil:
    cdef cursor *c
    if i.t.slow & SLOW_SEQUENCE:
        return STAT_LATER
    if i.t.sequence == NULL:
        complain(s, i, b" cannot do what was asked: this table type has no sequence")
        return STAT_CONFIG
    c = session_cursor(who, i)
    if c == NULL:
        return STAT_RETRY
    return i.t.sequence(i.t, c, function, &s.scratch, key, value)


cdef int write(service *s, instance *i, const request *r, int *flags) noexcept nogil:
    """An update or a delete."""
    cdef view key = r.key
    cdef int status
    if i.t.slow & SLOW_WRITE:
        return STAT_LATER
    if i.t.write == NULL:
        complain(s, i, b" cannot do what was asked: this table type has no updates")
        return STAT_CONFIG
    status = check_change(s, i, r, flags[0], &key)
    if status != STAT_LATER:
        return status
    return i.t.write(i.t, key, &r.value if r.kind == REQ_UPDATE else NULL, flags)


cdef int check_request(service *s, instance *i, const request *r, int flags, view *key) noexcept nogil:
    """Fold the request's key, if it has one; STAT_LATER to go on."""
    cdef int status
    if r.kind == REQ_SEQUENCE:
        return STAT_LATER
    if r.kind == REQ_LOOKUP:
        status = fold_key(s, i, flags, key)
        return STAT_LATER if status == STAT_OK else status
    return check_change(s, i, r, flags, key)


cdef int check_change(service *s, instance *i, const request *r, int flags, view *key) noexcept nogil:
    """Fold the key of an update or delete; STAT_LATER to go on. What is not UTF-8 is said to be done."""
    cdef int status = fold_key(s, i, flags, key)
    if status == STAT_NOKEY:
        return STAT_OK
    if status == STAT_OK and i.open_flags & DICT_FLAG_UTF8_ACTIVE and r.kind == REQ_UPDATE:
        if not utf8_valid(r.value):
            warn_not_utf8(s, i, b': non-UTF-8 value "', r.value)
            return STAT_OK
    return STAT_LATER if status == STAT_OK else status


cdef cursor *session_cursor(session *who, instance *i) noexcept nogil:
    """The connection's cursor in that instance; the oldest makes room if there are too many."""
    cdef cursor **link = &who.cursors
    cdef cursor *c
    cdef int count = 0
    while link[0] != NULL:
        if link[0].of == i.id:
            return link[0]
        count += 1
        if count == CURSORS_MAX:
            break
        link = &link[0].next
    c = link[0]
    if c != NULL:
        link[0] = c.next
    else:
        c = <cursor *> calloc(1, sizeof(cursor))
        if c == NULL:
            return NULL
    buf_clear(&c.key)
    c.position = 0
    c.of = i.id
    c.next = who.cursors
    who.cursors = c
    return c


# What workers do

cdef int send(
    service *s, session *who, instance *i, const request *r, int flags, buf *out
) noexcept nogil:
    """Have a worker do what r asks, or RETRY if there is none. The views of r are void afterwards."""
    cdef view key = r.key
    cdef bint change = r.kind == REQ_UPDATE or r.kind == REQ_DELETE
    cdef queue *to = <queue *> (i.t.changes if change else i.t.asks)
    cdef int status = check_request(s, i, r, flags, &key)
    cdef job *j
    if to == NULL and not change:
        to = s.asks
    if status == STAT_LATER:
        j = job_for(s, who, i, r, flags, key)
        who.lent = (change and j != NULL and s.lends and who.alone and i.t.jobs == 0
                    and lend(who, i, j) == 0)
        if j != NULL and to != NULL and queue_put(to, j) == 0:
            i.jobs += 1
            i.t.jobs += 1
            who.waits_for = i
            return SENT
        if j != NULL:
            job_free(j)
        status = STAT_RETRY
    reply_append(out, r, status, flags, NONE, NONE)
    return SERVED


cdef int lend(session *who, const instance *i, job *j) noexcept nogil:
    """Give the worker the connection, too; -1 without memory."""
    if buf_append_view(&j.name, buf_view(&i.name)) < 0:
        return -1
    j.lent.fd = who.fd
    j.lent.request = &who.request
    j.lent.utf8 = i.open_flags & DICT_FLAG_UTF8_ACTIVE
    j.lent.until_ms = now_ms() + LENT_MS
    return 0


cdef job *job_for(
    service *s, session *who, instance *i, const request *r, int flags, view key
) noexcept nogil:
    """What is asked of a worker, with copies of all it needs; NULL without memory."""
    cdef cursor *c
    cdef job *j = job_new(JOB_LOOKUP)
    if j == NULL:
        return NULL
    j.flags = flags
    j.asker = who
    j.t = i.t
    if r.kind == REQ_UPDATE:
        j.kind = JOB_UPDATE
        j.status = STAT_RETRY
    elif r.kind == REQ_DELETE:
        j.kind = JOB_DELETE
        j.status = STAT_RETRY
    elif r.kind == REQ_SEQUENCE:
        j.kind = JOB_SEQUENCE
        c = session_cursor(who, i)
        if c == NULL:
            job_free(j)
            return NULL
        if c.position == 0:
            s.cursors += 1
            c.position = s.cursors
        j.cursor = c.position
        j.first = r.function == FUNC_FIRST
        return j
    if buf_append_view(&j.key, key) < 0 or (
        r.kind == REQ_UPDATE and buf_append_view(&j.value, r.value) < 0
    ):
        job_free(j)
        return NULL
    return j


cdef int service_answered(service *s, session *who, job *j, buf *out) noexcept nogil:
    """Append the reply to the request that j answers."""
    cdef instance *i = who.waits_for
    cdef view key = buf_view(&j.key), value = buf_view(&j.value)
    if j.kind == JOB_UPDATE or j.kind == JOB_DELETE:
        key = value = NONE
    who.waits_for = NULL
    s.requests += j.lent.taken
    i.jobs -= 1
    job_is_back(s, j.t)
    i.errors += j.status == STAT_RETRY or j.status == STAT_CONFIG
    if (j.status == STAT_OK and j.kind == JOB_LOOKUP and i.open_flags & DICT_FLAG_UTF8_ACTIVE
            and not utf8_valid(value)):
        warn_not_utf8(s, i, b': non-UTF-8 value "', value)
        j.status = STAT_CONFIG
    if who.request.dialect == DIALECT_3_6:
        if j.lent.taken:
            i.flags = j.lent.asked_flags
        i.flags = (i.flags & DICT_FLAGS_REQUEST) | (j.flags & ~DICT_FLAGS_REQUEST)  # others asked meanwhile
    reply_append(out, &who.request, j.status, j.flags, key, value)
    buf_consume(out, min(j.lent.sent, buf_len(out)))  # there may be no memory for a reply
    return SERVED

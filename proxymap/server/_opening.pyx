"""_opening - tables are opened, opened again when their files change, swapped and closed

The loop decides when; workers do it (JOB_OPEN, JOB_CLOSE). Where no event tells
of changes a worker looks at the files, once in each turn in which the table is
asked (JOB_LOOK): on a dead file server that may take for ever. The job that
brought a table is kept with it, and sent again to have it closed, so that this
is done when memory is short, too.

One thread, the loop's; no GIL.
"""

from proxymap.base._buf cimport buf_append_view, buf_free, buf_view, view, view_equal, view_str
from proxymap.base._clock cimport now_ms, now_ns
from proxymap.base._stamp cimport same_content, stamp_at
from proxymap.metrics._counters cimport OPEN_FAILED, OPENED, OPENINGS, count_one
from proxymap.server._catalog cimport (
    AT_REST, LOOKING, OPENING, RENEWING, catalog_add, catalog_next, catalog_opened, instance,
)
from proxymap._codec cimport request
from proxymap.tables._jobs cimport JOB_CLOSE, JOB_LOOK, JOB_OPEN, job, job_free, job_new, queue, queue_put
from proxymap.server._service cimport service, service_warn
from proxymap.tables._table cimport CHANGED_SPOILED, SLOW_WRITE, origin, table
from proxymap._words cimport *

cdef enum:
    OPEN_RETRY_MS = 500  # between two attempts to open a table that cannot be opened
    CONFIG_MS = 1000     # between two looks at the configuration where no event tells of changes


cdef instance *opening_add(service *s, const request *r) noexcept nogil:
    cdef job *retired
    cdef instance *i = catalog_add(&s.tables, r.table, r.dialect, r.inst_flags, given_flags(r), &retired)
    if retired != NULL:
        opening_close(s, retired)
    return i


cdef inline int given_flags(const request *r) noexcept nogil:
    """What a table is opened with: in 3.11 the flags of a lookup are those of an earlier reply."""
    return r.inst_flags if r.dialect == DIALECT_3_11 else r.flags


cdef bint opening_look_closely(service *s, instance *i) noexcept nogil:
    """The same as opening_ready, for a table that is not simply open."""
    if i.t == NULL:
        return now_ms() < i.retry_ms or not opening_start(s, i, OPENING, False)
    if i.t.polled and i.state == AT_REST and i.looked != s.turn and opening_start(s, i, LOOKING, False):
        return False
    if i.state == RENEWING or now_ms() < i.retry_ms:
        return True
    if i.doubtful:
        i.doubtful = False
        open_anew(s, i)
        return i.state != OPENING
    if i.t.reason == NULL and not i.t.incomplete:
        return True
    return not opening_start(s, i, OPENING, True)


cdef bint opening_start(service *s, instance *i, int state, bint settle) noexcept nogil:
    """Have a worker open the table (state: OPENING or RENEWING), or LOOKING at its files.

    settle: a file may still be written to.
    """
    cdef job *j = job_new(JOB_LOOK if state == LOOKING else JOB_OPEN)
    if j == NULL:
        return put_off(i, state)
    if state == LOOKING:
        j.t = i.t
    j.flags = i.given_flags
    j.asker = i
    j.settle = settle
    if buf_append_view(&j.name, buf_view(&i.name)) < 0 or queue_put(openers_for(s, i), j) < 0:
        job_free(j)
        return put_off(i, state)
    if state == LOOKING:
        i.t.jobs += 1
        i.looked = s.turn
    i.state = state
    i.began_ms = now_ms()
    return True


cdef inline queue *openers_for(service *s, const instance *i) noexcept nogil:
    """Clients wait for the new content of a quick table: no table that hangs may have the last thread."""
    cdef const table *t = i.t
    return s.renewals if t != NULL and t.quick and not t.polled and not t.incomplete else s.todo


cdef bint put_off(instance *i, int state) noexcept nogil:
    """There is no memory to have it done now: what was to be opened again is, soon. False."""
    if state != LOOKING and i.t != NULL:
        i.doubtful = True
        i.retry_ms = now_ms() + OPEN_RETRY_MS
    return False


cdef instance *opening_done(service *s, job *j) noexcept nogil:
    """Take the table that a worker opened, or looked at; returns the instance, whose waiters can go on.

    The job is no longer the caller's.
    """
    cdef instance *i = <instance *> j.asker
    if j.kind == JOB_LOOK:
        opening_job_is_back(s, i.t)
        i.looked = s.turn
    i.state = AT_REST
    if j.kind == JOB_LOOK and j.t == i.t:
        reopen(s, i, j.status)
        job_free(j)
    elif j.t == NULL:  # no memory
        i.retry_ms = now_ms() + OPEN_RETRY_MS
        i.doubtful = i.t != NULL
        count_one(i.figures, OPENINGS + OPEN_FAILED)
        job_free(j)
    else:
        take(s, i, j)
    look_again(s, i)
    return i


cdef void take(service *s, instance *i, job *j) noexcept nogil:
    """A table was opened for the instance."""
    cdef table *t = j.t
    cdef job *retired
    count_one(i.figures, OPENINGS + (OPENED if t.reason == NULL else OPEN_FAILED))
    buf_free(&j.name)  # while it is kept
    retired = catalog_opened(&s.tables, i, j, s.utf8_layer)
    i.doubtful = retired == j
    if i.t.reason != NULL or i.t.incomplete or (retired != NULL and retired.t == t):
        i.retry_ms = now_ms() + OPEN_RETRY_MS
    i.opened_ms = now_ms()
    if i.t.timed:
        s.timed = True
        s.now_ms = i.opened_ms
    if retired != NULL:
        opening_close(s, retired)


cdef void look_again(service *s, instance *i) noexcept nogil:
    """Obey what was said while a worker was at it."""
    cdef bint anew = i.anew
    if i.look_again and i.state == AT_REST and i.t != NULL:
        i.look_again = i.anew = False
        if anew and i.t.changed != NULL:
            open_anew(s, i)
        else:
            look_at(s, i)


# When files change

cdef void opening_turn(service *s) noexcept nogil:
    """A turn of the loop begins."""
    s.turn += 1
    if s.timed:
        s.now_ms = now_ms()
    if s.tracing.count:
        s.turn_ns = now_ns()
    if s.config != NULL and s.config.polled and not s.config_looking and now_ms() >= s.config_ms:
        have_config_looked_at(s)


cdef void opening_look(service *s) noexcept nogil:
    """Something happened to the files of some tables, or of the configuration."""
    cdef instance *i = catalog_next(&s.tables, NULL)
    if s.config != NULL and not s.config.polled:
        look_at_config(s)
    while i != NULL:
        look_at(s, i)
        i = catalog_next(&s.tables, i)


cdef void opening_anew(service *s, view name) noexcept nogil:
    """Have tables opened again whatever their files look like: all, or those called name if that is not NULL.

    What is written to is left to its writer, whose locks are gone when any descriptor of the file is closed.
    """
    cdef instance *i = catalog_next(&s.tables, NULL)
    while i != NULL:
        if name.ptr == NULL or view_equal(buf_view(&i.name), name):
            if i.state != AT_REST:
                i.look_again = i.anew = True
            elif i.t != NULL and i.t.changed != NULL:
                open_anew(s, i)
        i = catalog_next(&s.tables, i)


cdef void open_anew(service *s, instance *i) noexcept nogil:
    if i.t.slow & SLOW_WRITE:
        look_at(s, i)
    else:
        opening_start(s, i, OPENING if i.t.quick or i.t.reason != NULL else RENEWING, False)


cdef void look_at(service *s, instance *i) noexcept nogil:
    """Have the table opened again if its files have changed; a polled one is looked at when it is asked."""
    if i.state != AT_REST:
        i.look_again = True
    elif i.t != NULL and i.t.changed != NULL and not i.t.polled:
        reopen(s, i, i.t.changed(i.t))


cdef void reopen(service *s, instance *i, int changed) noexcept nogil:
    """Have the table opened again, if its files have changed (CHANGED_*)."""
    cdef bint useless = changed == CHANGED_SPOILED or i.t.reason != NULL or i.t.incomplete
    if changed:
        opening_start(s, i, OPENING if useless or i.t.quick else RENEWING, useless)


cdef void look_at_config(service *s) noexcept nogil:
    cdef origin *o = s.config.origins
    while o != NULL:
        if not same_content(o.seen, stamp_at(o.path)):
            o.seen = stamp_at(o.path)
            service_warn(s, view_str(b""), view_str(o.path),
                         view_str(b" has changed; reload to have it obeyed"))
        o = o.next


cdef void have_config_looked_at(service *s) noexcept nogil:
    cdef job *j = job_new(JOB_LOOK)
    if j == NULL:
        return
    j.t = s.config
    if buf_append_view(&j.name, view_str(s.config.origins.path)) < 0 or queue_put(s.todo, j) < 0:
        job_free(j)
        return
    s.config_looking = True


cdef void opening_config_done(service *s, job *j) noexcept nogil:
    """A worker has looked at the files of the configuration; the next look is not before a while.

    The job is no longer the caller's.
    """
    s.config_looking = False
    s.config_ms = now_ms() + CONFIG_MS
    if j.t != s.config:
        opening_close(s, j)  # it says why nobody knows
        return
    if j.status:
        look_at_config(s)
    job_free(j)


cdef void opening_distrust(service *s, instance *i) noexcept nogil:
    """A table gave RETRY: if its file was replaced or cut, open it again."""
    i.errors += 1
    service_warn(s, view_str(b"table "), buf_view(&i.name),
                 view_str(b" is damaged or was changed in place; answering RETRY"))
    if now_ms() >= i.retry_ms:
        i.retry_ms = now_ms() + OPEN_RETRY_MS
        look_at(s, i)


# Closing

cdef void opening_close(service *s, job *brought) noexcept nogil:
    """Drop an instance's reference to the table that was brought; later, if jobs are out that name it."""
    cdef table *t = brought.t
    if t.jobs:
        t.retired += 1
        brought.next = s.retired
        s.retired = brought
        return
    brought.kind = JOB_CLOSE
    queue_put(s.todo, brought)  # which takes any number


cdef void opening_job_is_back(service *s, table *t) noexcept nogil:
    """A job that names t was answered."""
    cdef job **link = &s.retired
    cdef job *brought
    t.jobs -= 1
    while t.jobs == 0 and t.retired:
        brought = link[0]
        if brought.t == t:
            link[0] = brought.next
            t.retired -= 1
            opening_close(s, brought)
        else:
            link = &brought.next

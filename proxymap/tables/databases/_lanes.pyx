"""_lanes - jobs that wait for a connection, fair between tables

Each table of a server has a lane, in which its jobs stand in order of arrival;
lanes take turns. So a table that is asked for much delays the others by one
question at a time. A lane is the chain of its jobs; what it needs stands in the first.

Allocates nothing. The caller sees to locks. No GIL.
"""

from libc.stdint cimport uint64_t

from proxymap.tables._jobs cimport JOB_LOOKUP, job, job_free, job_new
from proxymap.tables._table cimport table


cdef job **lane_of(lanes *l, const table *t) noexcept nogil:
    """What points to the first job of that table; where its lane would begin, if there is none."""
    cdef job **link = &l.first
    while link[0] != NULL and link[0].t != t:
        link = &link[0].lane
    return link


cdef void lanes_put(lanes *l, job *j) noexcept nogil:
    """At the end of its lane."""
    cdef job **link = lane_of(l, j.t)
    cdef job *first = link[0]
    l.count += 1
    if first == NULL:
        begin(link, j)
        return
    j.next = NULL
    first.tail.next = j
    first.tail = j
    first.behind += 1


cdef inline void begin(job **link, job *j) noexcept nogil:
    """j alone is a lane, before the one that link leads to."""
    j.next, j.tail, j.behind, j.lane = NULL, j, 0, link[0]
    link[0] = j


cdef void lanes_return(lanes *l, job *j) noexcept nogil:
    """Put a job back that was taken; it is the next to be taken again."""
    cdef job **link = lane_of(l, j.t)
    cdef job *first = link[0]
    l.count += 1
    if first != NULL:
        link[0] = first.lane
    begin(&l.first, j)
    if first != NULL:
        j.next, j.tail, j.behind = first, first.tail, first.behind + 1


cdef job *lanes_take(lanes *l) noexcept nogil:
    """The job whose turn it is, or NULL; its lane is the last one then."""
    cdef job *j = l.first
    if j == NULL:
        return NULL
    l.first = j.lane
    l.count -= 1
    if j.next != NULL:
        j.next.tail, j.next.behind, j.next.lane = j.tail, j.behind - 1, NULL
        lane_of(l, NULL)[0] = j.next
    return j


cdef job *lanes_take_old(lanes *l, uint64_t now, uint64_t age_ms) noexcept nogil:
    """A job that has waited for so long, or NULL."""
    cdef job **link = &l.first
    cdef job *j
    while link[0] != NULL:
        j = link[0]
        if j.since_ms + age_ms <= now:  # it may have come after `now`
            l.count -= 1
            link[0] = j.lane
            if j.next != NULL:
                j.next.tail, j.next.behind, j.next.lane = j.tail, j.behind - 1, j.lane
                link[0] = j.next
            return j
        link = &j.lane
    return NULL


cdef uint64_t lanes_oldest_ms(const lanes *l) noexcept nogil:
    """Since when the oldest job waits; 0: there is none."""
    cdef const job *one = l.first
    cdef uint64_t oldest = 0
    while one != NULL:
        if not oldest or one.since_ms < oldest:
            oldest = one.since_ms
        one = one.lane
    return oldest


cdef size_t lanes_before(const lanes *l, const table *t) noexcept nogil:
    """How many jobs would be taken before one that is put now."""
    cdef const job *one = l.first
    cdef size_t own = 0, before = 0
    while one != NULL:
        if one.t == t:
            own = one.behind + 1
        one = one.lane
    one = l.first
    while one != NULL:
        before += own if one.t == t else min(own + 1, one.behind + 1)
        one = one.lane
    return before


cdef class Lanes:
    """A door for tests: jobs are numbers, their `cursor`; so are tables, and times."""

    cdef lanes l

    def put(self, uint64_t table_number, uint64_t number, uint64_t since_ms=0):
        cdef job *j = job_new(JOB_LOOKUP)
        j.t, j.cursor, j.since_ms = <table *> table_number, number, since_ms
        lanes_put(&self.l, j)

    def take(self, bint returned=False):
        """(table, number) or None; returned: it is put back as one that was taken."""
        cdef job *j = lanes_take(&self.l)
        if j != NULL and returned:
            lanes_return(&self.l, j)
            return <uint64_t> j.t, j.cursor
        return freed(j)

    def take_old(self, uint64_t now, uint64_t age_ms):
        return freed(lanes_take_old(&self.l, now, age_ms))

    def before(self, uint64_t table_number) -> int:
        return lanes_before(&self.l, <table *> table_number)

    def __len__(self):
        return self.l.count

    def __dealloc__(self):
        while freed(lanes_take(&self.l)) is not None:
            pass


cdef object freed(job *j):
    if j == NULL:
        return None
    told = <uint64_t> j.t, j.cursor
    job_free(j)
    return told

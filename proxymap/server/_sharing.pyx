"""_sharing - lookups whose answers are shared: by all who ask at once, and by those who ask later

    fresh        answered from the cache (_asking); near its end a hit has it asked anew
    past that    the question is sent, or joined if it is under way (_flight). An old value
                 stands in when that fails, or when the client has waited for long enough
    absent       the same, and there is nothing old

"No" must be fresh: an old one stands in only where cache_stale_negative_ttl says
so. Without that, and for whatever is unclear, the answer is RETRY. How long
answers are good is the table's policy (_table.pxd); a table without one (rules
that take long) keeps them until its content changes.

One thread, the loop's; no GIL. Source: RFC 8767, RFC 9520.
"""

from libc.stdint cimport uint64_t

from proxymap.base._buf cimport buf, buf_append_view, buf_view, view, view_of
from proxymap.base._clock cimport now_ns
from proxymap.base._fold cimport utf8_valid
from proxymap.metrics._counters cimport (
    FROM_CACHE, FROM_JOINED, FROM_SERVER, FROM_SHED, FROM_STALE,
)
from proxymap.server._asking cimport ask_check
from proxymap.server._cache cimport (
    FOREVER, cache_find, cache_forget, cache_store, entry, entry_value, lifetime,
)
from proxymap.server._catalog cimport instance
from proxymap._codec cimport reply_append, request
from proxymap.server._flight cimport (
    FLIGHT_NEVER, flight, flight_begin, flight_close, flight_end, flight_find, flight_join, flight_key,
)
from proxymap.server._opening cimport opening_job_is_back
from proxymap.server._service cimport (
    SENT, SERVED, answers_owner, count_deferred, count_request, generation_of, is_crowded, service,
    service_tell_slow, service_too_long, service_warn_not_utf8, session,
)
from proxymap.tables._jobs cimport JOB_LOOKUP, job, job_free, job_new, queue, queue_put
from proxymap.tables._table cimport SLOW_WRITE, STAT_LATER, policy, table
from proxymap._words cimport *

cdef enum:
    VALUE_MAX = 65536  # longer values are not kept over time
    REST_MS = 5000     # asking anew has failed: for so long an old answer is given at once
    AGAIN_MS = 1000    # a refresh was left out: the next one may come after that


cdef view NONE = view_of(NULL, 0)


cdef int sharing_send(
    service *s, session *who, instance *i, const request *r, int flags, buf *out
) noexcept nogil:
    """Have a worker answer the lookup, for all who ask the same at once. The views of r are void then."""
    cdef view key = r.key
    cdef uint64_t owner = answers_owner(i, flags)
    cdef int status = ask_check(s, i, r, flags, &key)
    cdef entry *e
    cdef flight *f = NULL
    who.lent, who.flags, who.source = False, flags, FROM_SERVER
    if status != STAT_LATER:
        count_request(s, i, who, key, status)
        reply_append(out, r, status, flags, NONE, NONE)
        return SERVED
    e = cache_find(s.results, owner, generation_of(i), key)
    if e != NULL and e.status == STAT_RETRY and e.life.fresh_until > s.now_ms:
        who.source = FROM_CACHE
        defer(s, i, who, key, out)
        return SERVED
    if e != NULL and e.rest_until > s.now_ms and is_good_enough(s, e):
        reply_old(s, i, e, who, key, out)
        return SERVED
    if not is_crowded(s, i):
        f = flight_find(&s.flights, owner, key)
        if f != NULL:
            i.joined += 1
            who.source = FROM_JOINED
        else:
            f = send(s, i, owner, flags, key, False)
            if f != NULL and s.writes and i.t.slow & SLOW_WRITE:
                flight_close(&s.flights, f)  # who joined after a change might get what was before it
    if f == NULL:
        if e != NULL and is_good_enough(s, e):
            reply_old(s, i, e, who, key, out)
        else:
            who.source = FROM_SHED
            defer(s, i, who, key, out)
        return SERVED
    who.asked_ns = now_ns()
    flight_join(&s.flights, f, &who.waits, who, old_from(s, i, e))
    return SENT


cdef void sharing_refresh(service *s, instance *i, const request *r, int flags) noexcept nogil:
    """A hit is near the end of its life: ask anew, if nobody else wants an answer of this server now."""
    cdef queue *to = <queue *> i.t.asks
    cdef uint64_t owner = answers_owner(i, flags)
    cdef view key = r.key
    if to == NULL or to.held or ask_check(s, i, r, flags, &key) != STAT_LATER:
        return
    if flight_find(&s.flights, owner, key) == NULL:
        send(s, i, owner, flags, key, True)


cdef flight *send(
    service *s, instance *i, uint64_t owner, int flags, view key, bint refresh
) noexcept nogil:
    """Send the question; NULL without memory, or if nobody takes it. refresh: nobody waits for it."""
    cdef flight *f = flight_begin(&s.flights, owner, generation_of(i), key, i, flags)
    if f == NULL:
        return NULL
    if put(s, f, i.t, refresh) < 0:
        flight_end(&s.flights, f)
        return NULL
    i.jobs += 1
    i.t.jobs += 1
    return f


cdef int put(service *s, flight *f, table *t, bint refresh) noexcept nogil:
    """Have the question of f asked; -1 without memory, or if nobody takes it."""
    cdef queue *to = <queue *> (t.asks if t.asks != NULL else s.asks)
    cdef job *j = job_new(JOB_LOOKUP)
    if j == NULL:
        return -1
    j.flags, j.asker, j.shared, j.refresh = f.flags, f, True, refresh
    j.replies, j.t = s.done, t
    if to == NULL or buf_append_view(&j.key, flight_key(f)) < 0 or queue_put(to, j) < 0:
        job_free(j)
        return -1
    return 0


cdef bint sharing_again(service *s, flight *f, const job *j) noexcept nogil:
    """Was j a refresh that was left out, but somebody has come to wait for it? It is asked after all then."""
    return j.refresh and j.shed and f.waiters != NULL and put(s, f, j.t, False) == 0


# The answer is there

cdef void sharing_landed(service *s, flight *f, job *j) noexcept nogil:
    """Keep the answer to f, if it may be; sharing_reply for each waiter and flight_end are to be next."""
    cdef instance *i = f.of
    i.jobs -= 1
    opening_job_is_back(s, j.t)
    if j.status == STAT_OK and j.value.end - j.value.start > s.value_size_limit:
        j.status = service_too_long(s, i)
    i.errors += j.status == STAT_RETRY or j.status == STAT_CONFIG
    if (j.status == STAT_OK and i.open_flags & DICT_FLAG_UTF8_ACTIVE
            and not utf8_valid(buf_view(&j.value))):
        service_warn_not_utf8(s, i, b': non-UTF-8 value "', buf_view(&j.value))
        j.status = STAT_CONFIG
    if not (j.refresh or j.shed):
        service_tell_slow(s, i, j.status, f.began_ns)
    if f.keeps and s.results != NULL and i.cache_id == f.owner >> 2:
        if i.t.timed:
            keep_for_a_time(s, f, j)
        elif j.status == STAT_OK or j.status == STAT_NOKEY:
            cache_store(s.results, f.owner, f.generation, flight_key(f), j.status, f.flags & ~j.flags,
                        buf_view(&j.value) if j.status == STAT_OK else NONE, NULL)


cdef void keep_for_a_time(service *s, const flight *f, const job *j) noexcept nogil:
    """As the table's policy says. What has come to be untrue goes, also where nothing takes its place."""
    cdef const policy *p = &f.of.t.keeps
    cdef lifetime life
    cdef entry *e
    cdef uint64_t ttl = p.ttl_ms, more = p.stale_ttl_ms
    if j.shed:
        if j.refresh:
            postpone(s, f)
        return
    if j.status == STAT_NOKEY:
        ttl, more = p.negative_ttl_ms, p.stale_negative_ttl_ms
    elif j.status != STAT_OK:
        ttl, more = p.error_ttl_ms if j.of_key and j.status == STAT_RETRY else 0, 0
    if j.status == STAT_RETRY:
        e = cache_find(s.results, f.owner, f.generation, flight_key(f))
        if e != NULL and is_good_enough(s, e):
            e.rest_until = s.now_ms + REST_MS
            return
    if ttl + more == 0 or j.value.end - j.value.start > VALUE_MAX:
        cache_forget(s.results, f.owner, flight_key(f))
        return
    ttl = shortened(s, ttl)
    life.since = s.now_ms
    life.fresh_until = s.now_ms + ttl
    life.refresh_from = <uint64_t> FOREVER
    if p.refresh_percent:
        life.refresh_from = life.fresh_until - ttl * p.refresh_percent // 100
    life.stale_until = life.fresh_until + more
    cache_store(s.results, f.owner, f.generation, flight_key(f), j.status, f.flags & ~j.flags,
                buf_view(&j.value) if j.status == STAT_OK else NONE, &life)


cdef void postpone(service *s, const flight *f) noexcept nogil:
    """The server has better things to do than to answer anew what is known."""
    cdef entry *e = cache_find(s.results, f.owner, f.generation, flight_key(f))
    if e != NULL:
        e.life.refresh_from = s.now_ms + AGAIN_MS


cdef inline uint64_t shortened(service *s, uint64_t ttl) noexcept nogil:
    """Nine tenths of it to all of it, so that what was learned together does not end together."""
    s.dice ^= s.dice << 13
    s.dice ^= s.dice >> 7
    s.dice ^= s.dice << 17
    return ttl - ttl * (s.dice % 1024) // 10240


cdef void sharing_reply(service *s, const flight *f, const job *j, session *who, buf *out) noexcept nogil:
    """Append the reply to one of the waiters."""
    cdef instance *i = f.of
    cdef int flags = who.flags & ~(f.flags & ~j.flags)
    if j.status == STAT_RETRY and sharing_old(s, f, who, out):
        return
    if who.request.dialect == DIALECT_3_6:
        i.flags = (i.flags & DICT_FLAGS_REQUEST) | (flags & ~DICT_FLAGS_REQUEST)  # others asked meanwhile
    if j.shed:
        who.source = FROM_SHED
    count_request(s, i, who, flight_key(f), j.status)
    count_deferred(i.t, j.status)
    reply_append(out, &who.request, j.status, flags, NONE, buf_view(&j.value))


cdef void defer(service *s, instance *i, const session *who, view key, buf *out) noexcept nogil:
    i.errors += 1
    count_request(s, i, who, key, STAT_RETRY)
    count_deferred(i.t, STAT_RETRY)
    reply_append(out, &who.request, STAT_RETRY, who.flags, NONE, NONE)


# Old answers

cdef bint sharing_old(service *s, const flight *f, session *who, buf *out) noexcept nogil:
    """Append what is still known, if it is good enough; was it?"""
    cdef entry *e = NULL
    if f.keeps and s.results != NULL:
        e = cache_find(s.results, f.owner, f.generation, flight_key(f))
    if e == NULL or not is_good_enough(s, e):
        return False
    reply_old(s, f.of, e, who, flight_key(f), out)
    return True


cdef inline bint is_good_enough(const service *s, const entry *e) noexcept nogil:
    """May it stand in for an answer that cannot be had?"""
    return e.status != STAT_RETRY and e.life.stale_until > s.now_ms


cdef inline uint64_t old_from(const service *s, const instance *i, const entry *e) noexcept nogil:
    """From when on a client takes the old answer e."""
    if e == NULL or not is_good_enough(s, e):
        return <uint64_t> FLIGHT_NEVER
    return s.now_ms + i.t.keeps.stale_wait_ms


cdef void reply_old(service *s, instance *i, entry *e, session *who, view key, buf *out) noexcept nogil:
    cdef queue *instead_of = <queue *> i.t.asks
    cdef int flags = who.flags & ~e.cleared
    i.stale += 1
    who.source = FROM_STALE
    s.stale_age_ms = max(s.stale_age_ms, s.now_ms - e.life.since)
    count_request(s, i, who, key, e.status)
    if instead_of != NULL:
        instead_of.stood_in += 1
    if who.request.dialect == DIALECT_3_6:
        i.flags = flags
    reply_append(out, &who.request, e.status, flags, NONE, entry_value(e))

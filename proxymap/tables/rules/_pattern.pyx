"""_pattern - rules that are tried in order until one decides: what regexp and pcre have in common

A table is an array of rules. An IF that does not hold leads behind its ENDIF.
The result of the first rule that holds is put together in the caller's scratch,
from text and groups of the match.

Most rules need no matching: /^from:.*spam/ matches no text without each of the
letters f, r, o, m, s, p, a. So a rule has a word of 64 bits, one for each such
byte, and its pattern does not match where the key lacks one (patterns.anatomy).

A lookup on the loop may cost about a millisecond. One that would cost more, by
estimate or by the clock, is STAT_LATER: a worker does it, through `ask`. Each
table has workers of its own (SLOW_LOOKUP), for those that a hostile key has got
stuck serve nobody else. No GIL, re-entrant: all that a lookup changes is in its
`attempt`.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from proxymap.base._buf cimport buf, buf_append, buf_clear, buf_free, buf_init, buf_view, view, view_of
from proxymap.base._clock cimport now_ns
from proxymap.tables._table cimport SLOW_LOOKUP, STAT_LATER, Table, table
from proxymap._words cimport *

import os

from proxymap.errors import TableRetry

cdef enum:
    LOOP_NS = 1000000    # what a lookup on the loop may take
    LOOP_KEY_MAX = 8192  # for glibc takes some 80 ns a byte to tell the groups of a match
    CLOCK_EVERY = 4096   # bytes matched, or so, between two looks at the clock
    CALL_BYTES = 64      # what a match costs besides, in bytes matched
    SHARED_BITS = 36     # where the bits begin that several bytes share


cdef inline uint64_t bit_of(unsigned char c) noexcept nogil:
    """Letters, in either case, and digits have a bit of their own; all others share the rest."""
    cdef unsigned char lower = c | 0x20
    if c"a" <= lower <= c"z":
        return (<uint64_t> 1) << (lower - c"a")
    if c"0" <= c <= c"9":
        return (<uint64_t> 1) << (26 + c - c"0")
    return (<uint64_t> 1) << (SHARED_BITS + c % (64 - SHARED_BITS))


cdef uint64_t bits_of(view text) noexcept nogil:
    cdef uint64_t bits = 0
    cdef size_t i
    for i in range(text.len):
        bits |= bit_of(text.ptr[i])
    return bits


cdef bint is_affordable(const rules *r, const attempt *a, uint64_t have) noexcept nogil:
    """May the loop try all rules that could match?"""
    cdef size_t left = r.m.budget // (a.key.len + CALL_BYTES)
    cdef uint32_t i
    if a.key.len > LOOP_KEY_MAX:
        return False
    for i in range(r.count):
        if not r.all[i].needed & ~have:
            if r.all[i].risky or left == 0:
                return False
            left -= 1
    return True


cdef int match(matcher *m, attempt *a, int32_t expression, bint groups) noexcept nogil:
    a.spent += a.key.len + CALL_BYTES
    if a.spent > CLOCK_EVERY and not a.patient:
        a.spent = 0
        if now_ns() > a.until_ns:
            return TOO_LONG
    return m.match(m, a, expression, groups)


cdef inline int holds(rules *r, attempt *a, const rule *one, uint64_t have) noexcept nogil:
    """Does the rule hold for the key? MATCHED, UNMATCHED or TOO_LONG. What fails does not, negated or not."""
    cdef int found = UNMATCHED
    if not one.needed & ~have:
        found = match(&r.m, a, one.expression, one.has_groups)
    if found == MATCHED or found == UNMATCHED:
        if found == one.negated:
            return UNMATCHED
        if one.second == NONE:
            return MATCHED
        found = match(&r.m, a, one.second, False)
        if found == MATCHED or found == UNMATCHED:
            return UNMATCHED if found == one.second_negated else MATCHED
    if found == GAVE_UP and a.skips < GIVEN_UP_MAX:
        a.skipped[a.skips].at = one
        a.skipped[a.skips].why = a.why
        a.skips += 1
    return TOO_LONG if found == TOO_LONG else UNMATCHED


cdef int decide(rules *r, attempt *a, uint64_t have) noexcept nogil:
    """Find the rule that decides: MATCHED, UNMATCHED or TOO_LONG."""
    cdef const rule *one
    cdef uint32_t i = 0
    cdef int held
    while i < r.count:
        one = &r.all[i]
        if a.patient:
            r.trying = one
        held = holds(r, a, one, have)
        i += 1
        if held == UNMATCHED:
            if one.jump != NONE:
                i = one.jump
        elif held == TOO_LONG or one.jump == NONE:
            a.at = one
            return held
    return UNMATCHED


cdef int put_together(const rules *r, const attempt *a, view *value) noexcept nogil:
    """The result of the rule that decided; 0, or -1 without memory."""
    cdef const piece *p = &r.pieces[a.at.first]
    cdef size_t start
    cdef uint32_t i
    if a.at.pieces == 1 and not a.at.has_groups:
        value[0] = view_of(p.text, p.size)
        return 0
    buf_clear(a.scratch)
    for i in range(a.at.pieces):
        if p[i].group == 0:
            if buf_append(a.scratch, p[i].text, p[i].size) < 0:
                return -1
        else:
            start = a.groups[2 * p[i].group]
            if start != NO_GROUP and buf_append(
                a.scratch, a.key.ptr + start, a.groups[2 * p[i].group + 1] - start
            ) < 0:
                return -1
    value[0] = buf_view(a.scratch)
    return 0


cdef int answer(rules *r, attempt *a, view *value) noexcept nogil:
    """The result for a.key: STAT_*, or STAT_LATER."""
    cdef uint64_t have = bits_of(a.key)
    cdef int status = STAT_LATER
    cdef int held
    a.at = NULL
    a.spent = a.skips = 0
    if a.key.len == 0:
        a.key = view_of(b"", 0)  # a pointer that may be read
    if not a.patient:
        if not is_affordable(r, a, have):
            return STAT_LATER
        a.until_ns = now_ns() + LOOP_NS
    if r.m.begin(&r.m, a) < 0:
        return STAT_LATER
    held = decide(r, a, have)
    if held == UNMATCHED:
        status = STAT_NOKEY
    elif held == MATCHED:
        status = STAT_RETRY if put_together(r, a, value) < 0 else STAT_OK
    r.m.end(&r.m, a)
    return status


cdef int pattern_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    cdef attempt a
    a.key = key
    a.scratch = scratch
    a.patient = False
    return answer(<rules *> t.self, &a, value)


cdef int pattern_lookup_patiently(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    cdef attempt a
    cdef int status
    a.key = key
    a.scratch = scratch
    a.patient = True
    status = answer(<rules *> t.self, &a, value)
    return STAT_RETRY if status == STAT_LATER else status


cdef class PatternTable(Table):
    """Rules and how they are tried. A subclass sets r.m, and then calls take_rules."""

    def __cinit__(self, bytes type_name, bytes mapname, opening):
        maptype = type_name.partition(b":")[0]
        self.title = f"{os.fsdecode(maptype)} map {os.fsdecode(mapname)}"
        self.warn = opening.host.warn
        self.t.self = &self.r
        self.t.flags = DICT_FLAG_PATTERN
        self.t.fold_bit = DICT_FLAG_FOLD_MUL
        self.t.slow = SLOW_LOOKUP
        self.t.lookup = pattern_lookup
        self.t.lookup_patiently = pattern_lookup_patiently

    cdef int take_rules(self, source, list made, examine) except -1:
        """made: of the Rules `source`, as a Reader (patterns.py) made them.

        examine: Expression -> (bytes needed to match it, is it risky?).
        """
        cdef size_t count = sum([len(one.result or ()) for one in made])
        cdef rule *r
        cdef piece *p
        self.r.all = <rule *> calloc(len(made) + 1, sizeof(rule))
        self.r.pieces = <piece *> calloc(count + 1, sizeof(piece))
        if self.r.all == NULL or self.r.pieces == NULL:
            raise MemoryError()
        self.lines = [(one.line, one.text) for one in made]
        self.texts = b"".join([part for one in made for part in one.result or () if isinstance(part, bytes)])
        cdef const char *text = self.texts
        r, p = self.r.all, self.r.pieces
        for one in made:
            needed, risky = examine(one.expression)
            r.needed = bits_of(view_of(needed, len(needed)))
            r.expression, r.negated, r.risky = one.expression.number, one.expression.negated, risky
            r.second = NONE
            if one.second is not None:
                r.second, r.second_negated = one.second.number, one.second.negated
                r.risky |= <bint> examine(one.second)[1]
            r.jump = one.jump
            r.first = p - self.r.pieces
            for part in one.result or ():
                if isinstance(part, bytes):
                    p.text, p.size = text, len(part)
                    text += p.size
                else:
                    p.group = part
                    r.has_groups = True
                p += 1
            r.pieces = p - self.r.pieces - r.first
            r += 1
        self.r.count = len(made)
        self.loaded_from(source.files)
        self.faults = source.faults
        return 0

    @property
    def entries(self):
        return self.r.count

    @property
    def under_way(self) -> str:
        return f"at line {self.lines[self.r.trying - self.r.all][0]}" if self.r.trying != NULL else ""

    cdef str reason(self, int why):
        """What an attempt's `why` means."""
        return ""

    cdef list tell_skipped(self, const attempt *a):
        """The rules that were given up on, as (line, why)."""
        cdef int i
        told = []
        for i in range(a.skips):
            told.append((self.lines[a.skipped[i].at - self.r.all][0], self.reason(a.skipped[i].why)))
        return told

    def ask(self, bytes key not None, int flags):
        """A rule on which the library gives up does not hold, negated or not, and the log says so."""
        cdef attempt a
        cdef buf scratch
        cdef view value = view_of(NULL, 0)
        cdef int status
        buf_init(&scratch)
        a.key = view_of(key, len(key))
        a.scratch = &scratch
        a.patient = True
        try:
            with nogil:
                status = answer(&self.r, &a, &value)
            for line, why in self.tell_skipped(&a):
                self.warn(f"{self.title}, line {line}: {why}")
            if status == STAT_LATER and a.at == NULL:
                raise TableRetry(f"{self.title}: too many lookups that take long are under way")
            if status == STAT_LATER:
                line = self.lines[a.at - self.r.all][0]
                raise TableRetry(f"{self.title}, line {line}: matching takes too long")
            return status, flags, value.ptr[:value.len] if status == STAT_OK else b""
        finally:
            buf_free(&scratch)

    def explain(self, bytes key not None) -> list:
        cdef attempt a
        cdef buf scratch
        cdef view value
        cdef int status
        buf_init(&scratch)
        a.key = view_of(key, len(key))
        a.scratch = &scratch
        a.patient = True
        with nogil:
            status = answer(&self.r, &a, &value)
        buf_free(&scratch)
        told = [f"line {line}: {why}; the rule is skipped" for line, why in self.tell_skipped(&a)]
        if a.at != NULL:
            line, text = self.lines[a.at - self.r.all]
            outcome = " (takes too long)" if status == STAT_LATER else ""
            told.append(f"line {line}: {text.decode(errors='surrogateescape')}{outcome}")
        return told

    def __dealloc__(self):
        free(self.r.all)
        free(self.r.pieces)

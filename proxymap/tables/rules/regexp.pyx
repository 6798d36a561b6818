"""regexp - rules of POSIX regular expressions, matched by the C library

    /pattern/flags result          [!]/this/!/but not this/ result

Patterns see bytes, in the C locale whatever the process's own is. regexec()
cannot be interrupted, and holds a lock of its regex_t: so the loop has
expressions of its own, and workers take theirs from a few copies of the whole
table, which are compiled when first needed. When all of them are at work, the
answer is RETRY at once.

glibc takes a time that doubles with each byte for back-references, and for
groups where one repetition stands within another; so such rules are tried by
workers only. A lookup that may come to try one is STAT_LATER from the start, as
is one that would take long because of its length and the number of rules; all
others stay on the loop. For a worker that is stuck, workers.py answers RETRY
after lookup_time_limit.

Source: regexp_table(5), regex(7); tables.md 6.
"""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc

from proxymap.base._buf cimport buf_append, buf_clear
from proxymap.base._os cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from proxymap.tables.rules._pattern cimport (
    MATCHED, NO_GROUP, TOO_LONG, UNMATCHED, PatternTable, attempt, matcher,
)

from proxymap.tables.rules.patterns import REGEXP, Reader, anatomy
from proxymap.tables.rules.rules import Rules

cdef extern from "<regex.h>" nogil:
    ctypedef struct regex_t:
        size_t re_nsub
    ctypedef struct regmatch_t:
        int rm_so
        int rm_eo
    enum: REG_EXTENDED
    enum: REG_ICASE
    enum: REG_NEWLINE
    enum: REG_NOSUB
    int regcomp(regex_t *, const char *, int)
    int regexec(const regex_t *, const char *, size_t, regmatch_t *, int)
    size_t regerror(int, const regex_t *, char *, size_t)
    void regfree(regex_t *)

cdef extern from "<locale.h>" nogil:
    ctypedef void *locale_t
    enum: LC_ALL_MASK
    locale_t newlocale(int, const char *, locale_t)
    locale_t uselocale(locale_t)

cdef enum:
    COPIES = 4             # lookups that workers do at the same time
    BUDGET = 250000        # about 4 ns a byte, so a millisecond
    ERROR_SIZE = 256

cdef locale_t C_LOCALE = newlocale(LC_ALL_MASK, b"C", NULL)


cdef struct source:
    const char *pattern
    int flags             # of regcomp


cdef struct copy:
    regex_t **compiled    # as many as there are sources; NULL: not made yet
    bint busy


cdef struct regexps:
    source *sources
    uint32_t count
    size_t groups_max     # of a rule whose groups are wanted
    copy own              # the loop's
    copy spare[COPIES]
    pthread_mutex_t lock  # of `busy`


cdef regex_t **compile_all(const regexps *all) noexcept nogil:
    """Another copy of all expressions, or NULL without memory."""
    cdef regex_t **made = <regex_t **> calloc(all.count + 1, sizeof(regex_t *))
    cdef uint32_t i
    for i in range(all.count if made != NULL else 0):
        made[i] = <regex_t *> malloc(sizeof(regex_t))
        if made[i] == NULL or regcomp(made[i], all.sources[i].pattern, all.sources[i].flags):
            free(made[i])
            made[i] = NULL
            free_all(made, i)
            return NULL
    return made


cdef void free_all(regex_t **made, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count if made != NULL else 0):
        regfree(made[i])
        free(made[i])
    free(made)


cdef copy *take_spare(regexps *all) noexcept nogil:
    """A copy for one lookup by a worker, or NULL: all are at work, or there is no memory."""
    cdef copy *taken = NULL
    cdef int i
    pthread_mutex_lock(&all.lock)
    for i in range(COPIES):
        if not all.spare[i].busy:
            taken = &all.spare[i]
            taken.busy = True
            break
    pthread_mutex_unlock(&all.lock)
    if taken != NULL and taken.compiled == NULL:
        taken.compiled = compile_all(all)
        if taken.compiled == NULL:
            give_back(all, taken)
            return NULL
    return taken


cdef void give_back(regexps *all, copy *taken) noexcept nogil:
    pthread_mutex_lock(&all.lock)
    taken.busy = False
    pthread_mutex_unlock(&all.lock)


cdef int regexp_begin(matcher *m, attempt *a) noexcept nogil:
    """The key with a NUL behind it into the scratch, where all patterns see it."""
    cdef regexps *all = <regexps *> m.self
    a.groups = NULL
    a.means = NULL
    a.limits = uselocale(C_LOCALE)
    buf_clear(a.scratch)
    if buf_append(a.scratch, a.key.ptr, a.key.len) == 0 and buf_append(a.scratch, b"", 1) == 0:
        if all.groups_max:
            a.groups = <size_t *> malloc((all.groups_max + 1) * (2 * sizeof(size_t) + sizeof(regmatch_t)))
        if a.groups != NULL or not all.groups_max:
            a.means = take_spare(all) if a.patient else &all.own
    if a.means == NULL:
        regexp_end(m, a)
        return TOO_LONG
    return 0


cdef void regexp_end(matcher *m, attempt *a) noexcept nogil:
    uselocale(<locale_t> a.limits)
    if a.patient and a.means != NULL:
        give_back(<regexps *> m.self, <copy *> a.means)
    free(a.groups)


cdef int regexp_match(matcher *m, attempt *a, int32_t expression, bint groups) noexcept nogil:
    cdef const regexps *all = <const regexps *> m.self
    cdef const regex_t *compiled = (<copy *> a.means).compiled[expression]
    cdef regmatch_t *found = NULL
    cdef size_t count = 0, i
    if groups:
        count = compiled.re_nsub + 1
        found = <regmatch_t *> (a.groups + 2 * (all.groups_max + 1))
    if regexec(compiled, a.scratch.data + a.scratch.start, count, found, 0):
        return UNMATCHED  # or out of memory, which Postfix takes for the same
    for i in range(count):
        a.groups[2 * i] = NO_GROUP if found[i].rm_so < 0 else found[i].rm_so
        a.groups[2 * i + 1] = found[i].rm_eo
    return MATCHED


cdef class RegexpTable(PatternTable):
    """regexp:FILE or regexp:{ {rule}, {rule} }. Raises ValueError if its rules cannot be read."""

    cdef regexps all
    cdef list patterns  # what sources point to

    def __cinit__(self, bytes type_name, bytes mapname, opening):
        pthread_mutex_init(&self.all.lock, NULL)
        self.patterns = []
        self.r.m.begin = regexp_begin
        self.r.m.end = regexp_end
        self.r.m.match = regexp_match
        self.r.m.budget = BUDGET
        self.r.m.self = &self.all
        rules = Rules("regexp", mapname, opening.host.warn)
        self.take_rules(rules, Reader(REGEXP, rules, opening, self.compile).read(), examine)

    @property
    def at_a_time(self) -> int:
        return COPIES

    def compile(self, expression) -> int:
        cdef source *one
        cdef regex_t *made
        cdef char text[ERROR_SIZE]
        cdef locale_t before
        cdef int error
        if not self.all.count & self.all.count - 1:  # no room any more: a power of two
            self.grow(2 * self.all.count + 1)
        one = &self.all.sources[self.all.count]
        one.pattern = <bytes> expression.pattern
        one.flags = flags_of(expression)
        made = <regex_t *> malloc(sizeof(regex_t))
        if made == NULL:
            raise MemoryError()
        before = uselocale(C_LOCALE)
        error = regcomp(made, one.pattern, one.flags)
        if error:
            regerror(error, made, text, sizeof(text))
        uselocale(before)
        if error:
            free(made)
            raise ValueError((<bytes> text).decode(errors="replace"))
        self.patterns.append(expression.pattern)
        self.all.own.compiled[self.all.count] = made
        expression.number = self.all.count
        self.all.count += 1
        if expression.has_groups and made.re_nsub > self.all.groups_max:
            self.all.groups_max = made.re_nsub
        return made.re_nsub

    cdef int grow(self, size_t room) except -1:
        cdef void *sources = realloc(self.all.sources, room * sizeof(source))
        if sources == NULL:
            raise MemoryError()
        self.all.sources = <source *> sources
        cdef void *compiled = realloc(self.all.own.compiled, room * sizeof(regex_t *))
        if compiled == NULL:
            raise MemoryError()
        self.all.own.compiled = <regex_t **> compiled
        return 0

    def __dealloc__(self):
        cdef int i
        free_all(self.all.own.compiled, self.all.count)
        for i in range(COPIES):
            free_all(self.all.spare[i].compiled, self.all.count)
        free(self.all.sources)
        pthread_mutex_destroy(&self.all.lock)


cdef int flags_of(expression) except -1:
    """By default extended, in any case."""
    cdef int flags = 0 if expression.has_groups else REG_NOSUB
    flags |= 0 if c"x" in expression.options else REG_EXTENDED
    flags |= 0 if c"i" in expression.options else REG_ICASE
    flags |= REG_NEWLINE if c"m" in expression.options else 0
    return flags


def examine(expression) -> tuple:
    """(bytes needed, is it risky?). Basic expressions are rare, and risky unless they are plain."""
    if c"x" in expression.options:
        return b"", bool(set(expression.pattern) & set(b"\\*"))
    seen = anatomy(expression.pattern, True)
    return seen.needed, not seen.clear or seen.nested and expression.has_groups


def open_table(bytes type_name, bytes mapname, opening) -> RegexpTable:
    return RegexpTable(type_name, mapname, opening)

"""pcre - rules of Perl-compatible regular expressions, matched by the host's PCRE2

    /pattern/flags result

The library is opened when this module is imported (see base/_dl). Where the
system allows it patterns are compiled to machine code; where not
(MemoryDenyWriteExecute), they are interpreted, with the same results.

PCRE2 counts its steps and gives up at a limit. On the loop the limit is small:
a lookup that needs more steps is done by a worker, with PCRE2's own limit. If
that is not enough either, the interpreter has the last word, as it counts for
Postfix: where it gives up the rule is skipped, and the log names it. A pattern
with a limit of its own, (*LIMIT_MATCH=n), is always interpreted, since machine
code counts otherwise. Memory is less than PCRE2 would take; what needs more is RETRY.

Match data lives as long as one lookup. Nothing else changes while matching, so
that loop and workers share compiled patterns.

Source: pcre_table(5), pcre2api(3), pcre2jit(3), whose numbers are below; tables.md 6.
"""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free, realloc

from proxymap.base._dl cimport Library
from proxymap.tables.rules._pattern cimport (
    FAILED, GAVE_UP, MATCHED, TOO_LONG, UNMATCHED, PatternTable, attempt, matcher,
)

from proxymap.tables.rules.patterns import PCRE, Reader, anatomy
from proxymap.tables.rules.rules import Rules

cdef extern from *:
    """
    #define PCRE2_ANCHORED 0x80000000u
    """
    const uint32_t PCRE2_ANCHORED

cdef enum:  # pcre2.h
    PCRE2_CASELESS = 0x8
    PCRE2_DOLLAR_ENDONLY = 0x10
    PCRE2_DOTALL = 0x20
    PCRE2_EXTENDED = 0x80
    PCRE2_MULTILINE = 0x400
    PCRE2_UNGREEDY = 0x40000
    PCRE2_UTF = 0x80000
    PCRE2_NO_JIT = 0x2000
    PCRE2_JIT_COMPLETE = 1
    PCRE2_INFO_ALLOPTIONS = 0
    PCRE2_INFO_CAPTURECOUNT = 4
    PCRE2_INFO_JITSIZE = 10
    PCRE2_INFO_MATCHLIMIT = 14
    PCRE2_INFO_DEPTHLIMIT = 21
    PCRE2_INFO_HEAPLIMIT = 25
    PCRE2_ERROR_NOMATCH = -1
    PCRE2_ERROR_JIT_STACKLIMIT = -46
    PCRE2_ERROR_MATCHLIMIT = -47
    PCRE2_ERROR_NOMEMORY = -48
    PCRE2_ERROR_DEPTHLIMIT = -53
    PCRE2_ERROR_HEAPLIMIT = -63

cdef enum:
    # Steps take 1 to 2 ns as machine code, 10 ns interpreted, if they do not look far ahead. The
    # interpreter counts them anew wherever in the text a match may begin.
    LOOP_STEPS = 20000
    LOOP_STEPS_MIN = 20
    PATIENT_STEPS = 10000000  # PCRE2's own default, which is Postfix's
    PATIENT_HEAP_KB = 65536   # PCRE2's own is 20 GB
    KEY_SIZES = 24            # powers of two
    BUDGET = 500000           # about 1 ns a byte, and the clock besides
    ERROR_SIZE = 256

ctypedef void *(*compile_function)(
    const char *pattern, size_t length, uint32_t options, int *error, size_t *offset, void *context
) noexcept nogil
ctypedef void (*free_function)(void *) noexcept nogil
ctypedef int (*jit_compile_function)(void *code, uint32_t options) noexcept nogil
ctypedef int (*match_function)(
    const void *code, const char *subject, size_t length, size_t start, uint32_t options,
    void *data, void *context
) noexcept nogil
ctypedef int (*info_function)(const void *code, uint32_t what, void *where) noexcept nogil
ctypedef int (*message_function)(int error, char *text, size_t size) noexcept nogil
ctypedef void *(*data_function)(uint32_t pairs, void *context) noexcept nogil
ctypedef size_t *(*ovector_function)(void *data) noexcept nogil
ctypedef void *(*context_function)(void *context) noexcept nogil
ctypedef int (*limit_function)(void *context, uint32_t limit) noexcept nogil

cdef Library library = Library("pcre", ["libpcre2-8.so.0"], "libpcre2-8-0 (Debian), pcre2 (Fedora, Alpine)")

cdef compile_function pcre2_compile = <compile_function> library.symbol("pcre2_compile_8")
cdef free_function pcre2_code_free = <free_function> library.symbol("pcre2_code_free_8")
cdef jit_compile_function pcre2_jit_compile = <jit_compile_function> library.symbol("pcre2_jit_compile_8")
cdef match_function pcre2_match = <match_function> library.symbol("pcre2_match_8")
cdef match_function pcre2_jit_match = <match_function> library.symbol("pcre2_jit_match_8")
cdef info_function pcre2_pattern_info = <info_function> library.symbol("pcre2_pattern_info_8")
cdef message_function pcre2_get_error_message = \
    <message_function> library.symbol("pcre2_get_error_message_8")
cdef data_function pcre2_match_data_create = <data_function> library.symbol("pcre2_match_data_create_8")
cdef free_function pcre2_match_data_free = <free_function> library.symbol("pcre2_match_data_free_8")
cdef ovector_function pcre2_get_ovector_pointer = \
    <ovector_function> library.symbol("pcre2_get_ovector_pointer_8")
cdef context_function pcre2_match_context_create = \
    <context_function> library.symbol("pcre2_match_context_create_8")
cdef limit_function pcre2_set_match_limit = <limit_function> library.symbol("pcre2_set_match_limit_8")
cdef limit_function pcre2_set_heap_limit = <limit_function> library.symbol("pcre2_set_heap_limit_8")


cdef void *limited(uint32_t steps) except NULL:
    """A match context, which is only read while matching."""
    cdef void *made = pcre2_match_context_create(NULL)
    if made == NULL:
        raise MemoryError()
    pcre2_set_match_limit(made, steps)
    pcre2_set_heap_limit(made, PATIENT_HEAP_KB)
    return made


cdef struct limits:
    void *machine      # match contexts: for machine code
    void *interpreted  # for the interpreter


cdef limits patient
patient.machine = patient.interpreted = limited(PATIENT_STEPS)
cdef limits hurried[KEY_SIZES]  # for keys of less than 2 ** n bytes: a step may look at all of the key
for _n in range(KEY_SIZES):
    hurried[_n].machine = limited(max(LOOP_STEPS >> max(_n - 6, 0), LOOP_STEPS_MIN))
    hurried[_n].interpreted = limited(max(LOOP_STEPS >> _n, LOOP_STEPS_MIN))


cdef struct compiled:
    void *code
    bint interpreted  # no machine code, or of no use: it takes it for granted that text is UTF-8
    bint own_heap     # the pattern itself limits it


cdef struct expressions:
    compiled *all
    uint32_t count
    uint32_t groups_max


cdef int pcre_begin(matcher *m, attempt *a) noexcept nogil:
    cdef size_t size = 0
    a.means = pcre2_match_data_create((<expressions *> m.self).groups_max + 1, NULL)
    if a.means == NULL:
        return TOO_LONG
    a.groups = pcre2_get_ovector_pointer(a.means)
    while size < KEY_SIZES - 1 and a.key.len >> size:
        size += 1
    a.limits = &patient if a.patient else &hurried[size]
    return 0


cdef void pcre_end(matcher *m, attempt *a) noexcept nogil:
    pcre2_match_data_free(a.means)


cdef int pcre_match(matcher *m, attempt *a, int32_t number, bint groups) noexcept nogil:
    cdef const compiled *e = &(<expressions *> m.self).all[number]
    cdef const limits *within = <const limits *> a.limits
    cdef int found = PCRE2_ERROR_JIT_STACKLIMIT
    if not e.interpreted:
        found = pcre2_jit_match(e.code, a.key.ptr, a.key.len, 0, 0, a.means, within.machine)
    if e.interpreted or a.patient and found in (PCRE2_ERROR_JIT_STACKLIMIT, PCRE2_ERROR_MATCHLIMIT):
        found = pcre2_match(e.code, a.key.ptr, a.key.len, 0, PCRE2_NO_JIT, a.means, within.interpreted)
    if found >= 0:
        return MATCHED
    if found == PCRE2_ERROR_NOMATCH:
        return UNMATCHED
    if found == PCRE2_ERROR_JIT_STACKLIMIT or found == PCRE2_ERROR_NOMEMORY:
        return TOO_LONG
    if found in (PCRE2_ERROR_MATCHLIMIT, PCRE2_ERROR_DEPTHLIMIT, PCRE2_ERROR_HEAPLIMIT):
        if not a.patient or found == PCRE2_ERROR_HEAPLIMIT and not e.own_heap:
            return TOO_LONG
        a.why = found
        return GAVE_UP
    return FAILED


cdef bint jit_is_refused = False  # has the log been told?


cdef class PcreTable(PatternTable):
    """pcre:FILE or pcre:{ {rule}, {rule} }. Raises ValueError if its rules cannot be read."""

    cdef expressions e

    def __cinit__(self, bytes type_name, bytes mapname, opening):
        self.r.m.begin = pcre_begin
        self.r.m.end = pcre_end
        self.r.m.match = pcre_match
        self.r.m.budget = BUDGET
        self.r.m.self = &self.e
        rules = Rules("pcre", mapname, opening.host.warn)
        self.take_rules(rules, Reader(PCRE, rules, opening, self.compile).read(), examine)

    def compile(self, expression) -> int:
        cdef bytes pattern = expression.pattern
        cdef char text[ERROR_SIZE]
        cdef compiled *e
        cdef uint32_t groups = 0, options = 0, limit = PATIENT_HEAP_KB
        cdef size_t offset = 0, machine_code = 0
        cdef void *moved
        cdef int error = 0
        if not self.e.count & self.e.count - 1:  # no room any more: a power of two
            moved = realloc(self.e.all, (2 * self.e.count + 1) * sizeof(compiled))
            if moved == NULL:
                raise MemoryError()
            self.e.all = <compiled *> moved
        e = &self.e.all[self.e.count]
        e.code = pcre2_compile(pattern, len(pattern), options_of(expression), &error, &offset, NULL)
        if e.code == NULL:
            pcre2_get_error_message(error, text, sizeof(text))
            raise ValueError(f"error in regex at offset {offset}: {(<bytes> text).decode(errors='replace')}")
        expression.number = self.e.count
        self.e.count += 1
        self.use_machine_code(e.code)
        pcre2_pattern_info(e.code, PCRE2_INFO_JITSIZE, &machine_code)
        pcre2_pattern_info(e.code, PCRE2_INFO_ALLOPTIONS, &options)
        pcre2_pattern_info(e.code, PCRE2_INFO_CAPTURECOUNT, &groups)
        e.own_heap = pcre2_pattern_info(e.code, PCRE2_INFO_HEAPLIMIT, &limit) == 0 and limit < PATIENT_HEAP_KB
        e.interpreted = machine_code == 0 or options & PCRE2_UTF != 0 or e.own_heap
        for what in (PCRE2_INFO_MATCHLIMIT, PCRE2_INFO_DEPTHLIMIT):
            e.interpreted = e.interpreted or pcre2_pattern_info(e.code, what, &limit) == 0
        if expression.has_groups:
            self.e.groups_max = max(self.e.groups_max, groups)
        return groups

    cdef int use_machine_code(self, void *code) except -1:
        global jit_is_refused
        if jit_is_refused:
            return 0
        if pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == PCRE2_ERROR_NOMEMORY:
            jit_is_refused = True
            self.warn("pcre: no machine code is allowed here (MemoryDenyWriteExecute?); it is interpreted")
        return 0

    cdef str reason(self, int why):
        cdef char text[ERROR_SIZE]
        pcre2_get_error_message(why, text, sizeof(text))
        return (<bytes> text).decode(errors="replace")

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.e.count):
            pcre2_code_free(self.e.all[i].code)
        free(self.e.all)


cdef uint32_t options_of(expression) except? 0:
    """By default in any case, and a dot is any byte."""
    cdef uint32_t options = PCRE2_CASELESS | PCRE2_DOTALL
    for letter in expression.options:
        options ^= OPTIONS[letter]
    return options


OPTIONS = {
    ord("i"): PCRE2_CASELESS,
    ord("m"): PCRE2_MULTILINE,
    ord("s"): PCRE2_DOTALL,
    ord("x"): PCRE2_EXTENDED,
    ord("A"): PCRE2_ANCHORED,
    ord("E"): PCRE2_DOLLAR_ENDONLY,
    ord("U"): PCRE2_UNGREEDY,
}


def examine(expression) -> tuple:
    """(bytes needed, is it risky?). It never is: PCRE2 can be stopped."""
    if c"x" in expression.options:
        return b"", False
    return anatomy(expression.pattern, False).needed, False


def open_table(bytes type_name, bytes mapname, opening) -> PcreTable:
    return PcreTable(type_name, mapname, opening)

# _pattern - rules that are tried in order until one decides (see _pattern.pyx)

from libc.stdint cimport int32_t, uint32_t, uint64_t

from proxymap.base._buf cimport buf, view
from proxymap.tables._table cimport Table

cdef enum:  # what a matcher says
    MATCHED = 1
    UNMATCHED = 0
    FAILED = -1    # this text cannot be matched, as with text that is not UTF-8 and a pattern that wants it
    TOO_LONG = -2  # there was no time or memory; what would have come of it is not known
    GAVE_UP = -3   # a patient attempt, at a limit of its library: the rule does not hold, as for Postfix

cdef enum:
    GIVEN_UP_MAX = 8  # rules that one lookup names in the log

cdef enum:
    NONE = -1  # no expression, no rule

cdef extern from *:
    """
    #define NO_GROUP ((size_t) -1)  /* took no part in the match; PCRE2_UNSET */
    """
    const size_t NO_GROUP


cdef struct piece:
    # Of a rule's result: text or, if group is not 0, a group of the match.
    const char *text
    uint32_t size
    uint32_t group


cdef struct rule:
    uint64_t needed           # see bit_of: what a key must have to match expression; 0: nothing
    int32_t expression        # the matcher's number for it
    int32_t second            # another one, which must hold as well; or NONE
    int32_t jump              # of an IF: the rule to go on with if it does not hold; else NONE
    uint32_t first            # its pieces; there is at least one, except of an IF
    uint32_t pieces
    unsigned char negated
    unsigned char second_negated
    unsigned char has_groups  # among the pieces
    unsigned char risky       # its expressions may take very long, and cannot be stopped


cdef struct given_up:
    # A rule that the matcher gave up on, and the matcher's number for why.
    const rule *at
    int why


cdef struct attempt:
    # One lookup, by one thread.
    view key
    bint patient       # takes its time, within generous limits
    uint64_t until_ns  # unless patient: when the loop wants to go on
    size_t spent       # bytes matched, or so, since the clock was last asked
    buf *scratch       # the caller's; the matcher's own from begin to end
    const rule *at     # which rule decided or, after TOO_LONG, took too long; NULL: none
    given_up skipped[GIVEN_UP_MAX]
    int skips          # how many of these there are
    int why            # after GAVE_UP
    void *means        # the matcher's own: what it matches with
    void *limits       # the matcher's own, too
    size_t *groups     # after a match: start and end of each group, or NO_GROUP


cdef struct matcher:
    # Regular expressions of one kind. No GIL.

    # Get ready; TOO_LONG if there is nothing left to match with.
    int (*begin)(matcher *m, attempt *a) noexcept nogil
    void (*end)(matcher *m, attempt *a) noexcept nogil
    # MATCHED, UNMATCHED, FAILED, TOO_LONG or GAVE_UP. Sets a.groups if they are wanted.
    int (*match)(matcher *m, attempt *a, int32_t expression, bint groups) noexcept nogil
    size_t budget        # bytes matched, or so, that a lookup on the loop may take
    void *self


cdef struct rules:
    matcher m
    rule *all
    uint32_t count
    piece *pieces
    const rule *trying   # the latest that a patient lookup came to, for the log


cdef class PatternTable(Table):
    cdef rules r
    cdef readonly str title
    cdef list lines      # of the rules: (number, text)
    cdef bytes texts     # what pieces point to

    cdef object warn     # takes a line for the log

    cdef int take_rules(self, source, list made, examine) except -1
    cdef str reason(self, int why)
    cdef list tell_skipped(self, const attempt *a)

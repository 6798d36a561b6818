# _entries - the values that entries of a directory hold (see _entries.pyx)

from libc.stdlib cimport free

from proxymap.base._buf cimport buf, view
from proxymap.base._dl cimport Library


cdef struct timeval:  # <sys/time.h>
    long tv_sec
    long tv_usec


cdef struct form:
    # What a table searches for, besides base and filter.
    int scope              # LDAP_SCOPE_*
    const char **attributes  # names, in this order: terminal, leaf, ordinary, special; then NULL
    int terminal           # how many of them are terminal,
    int leaf               # terminal or leaf,
    int wanted             # not special,
    int count              # and all of them
    int size_limit         # entries; 0: no limit
    int recursion_limit
    timeval time_limit     # what the server is told
    bint limited           # is it told one?
    bint base_varies       # does the base depend on the key?


cdef struct item:
    # A value that was found. The text follows the struct, with a NUL.
    item *next
    item *parent    # of which it is an entry's value; NULL: the first search found it
    int attribute   # number in form.attributes
    int depth       # of special values before it
    size_t len


cdef struct items:  # in order
    item *first
    item *last


cdef Library lib


cdef inline char *text_of(item *one) noexcept nogil:
    return <char *> (one + 1)


cdef inline void items_add(items *list, item *one) noexcept nogil:
    one.next = NULL
    if list.last == NULL:
        list.first = one
    else:
        list.last.next = one
    list.last = one


cdef inline item *items_take(items *list) noexcept nogil:
    """The first, which is the caller's now; NULL: there is none."""
    cdef item *one = list.first
    if one != NULL:
        list.first = one.next
        if list.first == NULL:
            list.last = NULL
    return one


cdef inline void items_put_before(items *list, items *others) noexcept nogil:
    """Move the others to the front of the list."""
    if others.last != NULL:
        others.last.next = list.first
        list.first = others.first
        if list.last == NULL:
            list.last = others.last
        others.first = others.last = NULL


cdef inline void items_free(items *list) noexcept nogil:
    cdef item *one = items_take(list)
    while one != NULL:
        free(one)
        one = items_take(list)


cdef class Form:
    cdef form f
    cdef readonly list names  # owns what f.attributes points to
    cdef readonly bytes name  # of the table that has it


cdef int take_entry(const form *f, void *ld, void *message, item *named, items *found) noexcept nogil
cdef const char **common_attributes(const form *f, char **named) noexcept nogil
cdef int quote(void *context, view text, buf *out) noexcept nogil

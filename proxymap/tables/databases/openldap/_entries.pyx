"""_entries - the values that entries of a directory hold, as far as a table wants them

What counts is decided for each entry by itself: of one with terminal values only
these, of one with special values no leaves. Stock forgets to begin anew, so the
entries after such a one lose values.

Source: ldap_table(5); ldap_get_attribute_ber(3) of OpenLDAP 2.5; RFC 4511, 4514, 4515.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcpy, strlen

from proxymap._words cimport STAT_OK, STAT_RETRY
from proxymap.base._buf cimport buf, buf_len, buf_reserve, view
from proxymap.base._dl cimport Library
from proxymap.tables._template cimport PART_KEY
from proxymap.tables.databases.database cimport DatabaseTable

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *, const char *, size_t)

cdef struct berval:
    size_t len
    char *ptr

cdef Library lib = Library(
    "ldap", ["libldap.so.2", "libldap-2.5.so.0"],
    "libldap-2.5-0 or libldap2 (Debian, Ubuntu), openldap (Fedora), libldap (Alpine)",
)

ctypedef int (*dn_function)(void *, void *, void **, berval *) noexcept nogil
ctypedef int (*attribute_function)(void *, void *, void *, berval *, berval **) noexcept nogil
ctypedef void (*free_function)(void *) noexcept nogil
ctypedef void (*free_ber_function)(void *, int) noexcept nogil

cdef dn_function ldap_get_dn_ber = <dn_function> lib.symbol("ldap_get_dn_ber")
cdef attribute_function ldap_get_attribute_ber = <attribute_function> lib.symbol("ldap_get_attribute_ber")
cdef free_function ldap_memfree = <free_function> lib.symbol("ldap_memfree")
cdef free_ber_function ber_free = <free_ber_function> lib.symbol("ber_free")


cdef int take_entry(const form *f, void *ld, void *message, item *named, items *found) noexcept nogil:
    """Add the values of an entry that count to those found; -1 without memory. named: what led to it."""
    cdef items new
    cdef void *ber = NULL
    cdef berval dn, name
    cdef berval *values
    cdef bint terminal = False
    cdef bint special = False
    cdef int attribute
    cdef int result = 0
    new.first = new.last = NULL
    if ldap_get_dn_ber(ld, message, &ber, &dn) != 0:
        return -1  # no memory, or no entry: it is not known what it has
    while True:
        values = NULL
        if ldap_get_attribute_ber(ld, message, ber, &name, &values) != 0:
            result = -1
            break
        if name.ptr == NULL:
            break
        attribute = attribute_number(f, name)
        if values != NULL and values[0].ptr != NULL and attribute >= 0:
            terminal |= is_among(f, name, 0, f.terminal)
            special |= is_among(f, name, f.wanted, f.count)
            result |= take_values(&new, attribute, named, values)
        if values != NULL:
            ldap_memfree(values)
    if ber != NULL:
        ber_free(ber, 0)
    keep(f, &new, found, terminal, special)
    return result


cdef int attribute_number(const form *f, berval name) noexcept nogil:
    """Its place among the attributes; -1: it is not wanted."""
    cdef int i
    for i in range(f.count):
        if subtype(f.attributes[i], name.ptr, name.len) > 0:
            return i
    return -1


cdef bint is_among(const form *f, berval name, int begin, int end) noexcept nogil:
    """Is it one of these attributes, and without options?"""
    cdef int i
    for i in range(begin, end):
        if strlen(f.attributes[i]) == name.len and strncasecmp(f.attributes[i], name.ptr, name.len) == 0:
            return True
    return False


cdef int take_values(items *new, int attribute, item *named, const berval *values) noexcept nogil:
    cdef item *one
    cdef int i = 0
    while values[i].ptr != NULL:
        one = <item *> malloc(sizeof(item) + values[i].len + 1)
        if one == NULL:
            return -1
        one.attribute = attribute
        one.parent = named
        one.depth = 1 if named == NULL else named.depth + 1
        one.len = values[i].len
        memcpy(text_of(one), values[i].ptr, one.len)
        text_of(one)[one.len] = 0
        items_add(new, one)
        i += 1
    return 0


cdef void keep(const form *f, items *new, items *found, bint terminal, bint special) noexcept nogil:
    """Move what counts of an entry to what was found. terminal, special: it has such values."""
    cdef item *one = items_take(new)
    while one != NULL:
        if one.attribute >= f.terminal if terminal else special and f.terminal <= one.attribute < f.leaf:
            free(one)
        else:
            items_add(found, one)
        one = items_take(new)


cdef int subtype(const char *name, const char *other, size_t len) noexcept nogil:
    """1: `other` is the attribute `name`, perhaps with options (`;lang-de`); -1: the other way round."""
    cdef size_t n = strlen(name)
    if n <= len:
        return strncasecmp(name, other, n) == 0 and (n == len or other[n] == c";")
    return -1 if strncasecmp(name, other, len) == 0 and name[len] == c";" else 0


cdef const char **common_attributes(const form *f, char **named) noexcept nogil:
    """Of the attributes that a URL names those that are wanted, the narrower of both; the caller frees it."""
    cdef const char **both
    cdef int i, relation
    cdef int n = 0
    cdef int many = 0
    while named[many] != NULL:
        many += 1
    both = <const char **> calloc(<size_t> many * f.count + 1, sizeof(char *))
    for i in range(many * f.count if both != NULL else 0):
        relation = subtype(named[i // f.count], f.attributes[i % f.count], strlen(f.attributes[i % f.count]))
        if relation:
            both[n] = f.attributes[i % f.count] if relation > 0 else named[i // f.count]
            n += 1
    return both


cdef int quote(void *context, view text, buf *out) noexcept nogil:
    """As a part of the base, or, behind the NUL that ends it, of the filter."""
    cdef const char *special = b"*()\\"
    cdef size_t i
    if not buf_len(out) or memchr(out.data + out.start, 0, buf_len(out)) == NULL:
        special = b" \t\"#+,;<>\\"
    if buf_reserve(out, 3 * text.len) < 0:
        return STAT_RETRY
    for i in range(text.len):
        if memchr(special, text.ptr[i], strlen(special)) == NULL:
            out.data[out.end] = text.ptr[i]
            out.end += 1
            continue
        out.data[out.end] = c"\\"
        out.data[out.end + 1] = b"0123456789ABCDEF"[<unsigned char> text.ptr[i] >> 4]
        out.data[out.end + 2] = b"0123456789ABCDEF"[<unsigned char> text.ptr[i] & 15]
        out.end += 3
    return STAT_OK


cdef class Form:
    """What a table searches for. attributes: four lists of names: terminal, leaf, ordinary, special.

    size_limit, recursion_limit: see ldap_table(5). time_limit: seconds; 0: none. base_varies: does
    the base depend on the key?
    """

    def __cinit__(self, int scope, list attributes not None, *, int size_limit, int recursion_limit,
                  int time_limit, bint base_varies):
        cdef int i
        terminal, leaf, ordinary, special = attributes
        self.name, self.names = b"", [*terminal, *leaf, *ordinary, *special]
        self.f.attributes = <const char **> calloc(len(self.names) + 1, sizeof(char *))
        if self.f.attributes == NULL:
            raise MemoryError
        for i in range(len(self.names)):
            self.f.attributes[i] = <bytes> self.names[i]
        self.f.terminal = len(terminal)
        self.f.leaf = self.f.terminal + len(leaf)
        self.f.wanted = self.f.leaf + len(ordinary)
        self.f.count = len(self.names)
        self.f.scope, self.f.size_limit, self.f.recursion_limit = scope, size_limit, recursion_limit
        self.f.time_limit.tv_sec = time_limit
        self.f.limited = time_limit > 0
        self.f.base_varies = base_varies

    def __dealloc__(self):
        free(self.f.attributes)

    def attach(self, DatabaseTable table not None):
        """Have the table search so; the caller keeps the form as long. All of a key is to be UTF-8."""
        table.d.form = &self.f
        self.name = table.type_name
        table.quote = quote
        table.query.p.wants |= 1u << <unsigned int> PART_KEY
        table.d.wants |= table.query.p.wants

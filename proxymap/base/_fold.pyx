"""_fold - case folding and UTF-8 checks, the one place for them

Without Postfix's UTF-8 layer a key is folded byte by byte, A-Z only. With it
(dictionary flag utf8_active) keys and values must be valid UTF-8 by RFC 3629
and the key is folded by Unicode's full case folding, which is what
str.casefold() does. The mapping of the non-ASCII code points is taken from
Python once, by `load`, before the first table with the layer is served.
Folding writes to the caller's scratch; a key that needs none is left alone.

Source: tables.md 2.6 as observed; Unicode CaseFolding (C + F).
"""

from libc.stdlib cimport malloc

from proxymap.base._buf cimport (
    buf, buf_append, buf_clear, buf_free, buf_init, buf_reserve, buf_view, memcpy, view, view_of,
)


cdef struct folding:
    unsigned int code   # folds to text
    unsigned char len
    char text[12]       # at most three code points of up to four bytes

cdef folding *foldings = NULL  # sorted by code; written once by load()
cdef int foldings_count = 0


cdef int fold_ascii(view *key, buf *scratch) noexcept nogil:
    """Lower A-Z; 0, or -1 without memory."""
    cdef size_t i
    cdef char c
    cdef char *out
    for i in range(key.len):
        if c"A" <= key.ptr[i] <= c"Z":
            break
    else:
        return 0
    buf_clear(scratch)
    if buf_reserve(scratch, key.len) < 0:
        return -1
    out = scratch.data
    for i in range(key.len):
        c = key.ptr[i]
        out[i] = c + 32 if c"A" <= c <= c"Z" else c
    scratch.end = key.len
    key[0] = buf_view(scratch)
    return 0


cdef int utf8_decode(const unsigned char *p, size_t n, unsigned int *code) noexcept nogil:
    """Bytes of the code point at p (n are there), or 0 if it is not valid by RFC 3629."""
    cdef unsigned int c = p[0]
    cdef int size, i
    if c < 0x80:
        code[0] = c
        return 1
    if c < 0xC2:
        return 0
    if c < 0xE0:
        size, c = 2, c & 0x1F
    elif c < 0xF0:
        size, c = 3, c & 0x0F
    elif c < 0xF5:
        size, c = 4, c & 0x07
    else:
        return 0
    if n < <size_t> size:
        return 0
    for i in range(1, size):
        if p[i] & 0xC0 != 0x80:
            return 0
        c = c << 6 | (p[i] & 0x3F)
    if (size == 3 and (c < 0x800 or 0xD800 <= c <= 0xDFFF)) or (size == 4 and not 0x10000 <= c <= 0x10FFFF):
        return 0
    code[0] = c
    return size


cdef bint utf8_valid(view text) noexcept nogil:
    cdef const unsigned char *p = <const unsigned char *> text.ptr
    cdef size_t i = 0
    cdef unsigned int code
    cdef int size
    while i < text.len:
        if p[i] < 0x80:
            i += 1
            continue
        size = utf8_decode(p + i, text.len - i, &code)
        if size == 0:
            return False
        i += size
    return True


cdef const folding *find_folding(unsigned int code) noexcept nogil:
    cdef int low = 0, high = foldings_count - 1, middle
    while low <= high:
        middle = (low + high) // 2
        if foldings[middle].code == code:
            return &foldings[middle]
        if foldings[middle].code < code:
            low = middle + 1
        else:
            high = middle - 1
    return NULL


cdef int fold_utf8(view *key, buf *scratch) noexcept nogil:
    """Unicode case folding of valid UTF-8; 0, or -1 without memory."""
    cdef const unsigned char *p = <const unsigned char *> key.ptr
    cdef size_t i = 0
    cdef unsigned int code
    cdef int size
    cdef const folding *f
    while i < key.len and p[i] < 0x80:
        i += 1
    if i == key.len:
        return fold_ascii(key, scratch)
    buf_clear(scratch)
    i = 0
    while i < key.len:
        size = utf8_decode(p + i, key.len - i, &code)
        if size == 0:
            return 0  # the caller has checked; leave the key as it is
        if c"A" <= code <= c"Z":
            code += 32
        f = find_folding(code) if code >= 0x80 else NULL
        if buf_reserve(scratch, 12) < 0:
            return -1
        if f != NULL:
            buf_append(scratch, f.text, f.len)
        elif size == 1:
            scratch.data[scratch.end] = <char> code
            scratch.end += 1
        else:
            buf_append(scratch, key.ptr + i, size)
        i += size
    key[0] = buf_view(scratch)
    return 0


def load() -> int:
    """Fill the mapping from str.casefold; returns its size. Needed before fold_utf8 sees a non-ASCII key.

    Takes some milliseconds at the first call and holds the GIL throughout.
    """
    global foldings, foldings_count
    if foldings_count:
        return foldings_count
    # 0x1E943 is the last code point that Unicode 17 folds; the margin costs nothing.
    pairs = [(ord(c), folded) for c in map(chr, range(0x80, 0x1F000))
             if not 0xD800 <= ord(c) <= 0xDFFF and (folded := c.casefold()) != c]
    cdef folding *table = <folding *> malloc(len(pairs) * sizeof(folding))
    cdef int i = 0
    if table == NULL:
        raise MemoryError
    for code, folded in pairs:
        text = folded.encode()
        table[i].code = code
        table[i].len = len(text)
        memcpy(table[i].text, <const char *> text, len(text))
        i += 1
    foldings = table
    foldings_count = i
    return i


# For Python: table types, build, proxymapctl.

def fold(bytes key not None, bint utf8) -> bytes:
    """The key as a table would see it, with or without the UTF-8 layer, where one that is not UTF-8 stays."""
    cdef buf scratch
    cdef view v = view_of(key, len(key))
    if utf8 and not key.isascii():
        load()
    buf_init(&scratch)
    try:
        if (fold_utf8(&v, &scratch) if utf8 else fold_ascii(&v, &scratch)) < 0:
            raise MemoryError
        return v.ptr[:v.len]
    finally:
        buf_free(&scratch)


def is_utf8(bytes text not None) -> bool:
    """Is it valid by RFC 3629?"""
    return utf8_valid(view_of(text, len(text)))

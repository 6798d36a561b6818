"""_plain - the plain lines of a source text, straight into records

Nearly all lines of a large postmap source are of one kind: key, blanks and
value in ASCII without quotes and backslashes, on one line. They, comments and
empty lines are read here, without the GIL and in the background; all that is
not plain, or calls for a warning, is left to `source`. A million lines take
a quarter of a second instead of two.

Source: postmap(1), "TABLE FORMAT"; the same as source.logical_lines and source.split_record.
"""

from libc.stdint cimport SIZE_MAX, uint64_t
from libc.string cimport memchr

from proxymap.base._background cimport do_idly
from proxymap.base._buf cimport buf_free, buf_init, view, view_of
from proxymap.base._clock cimport now_ns
from proxymap.base._fold cimport fold_ascii
from proxymap.tables.memory._records cimport Records, records_put, records_reserve

cdef enum:
    BLANK = 1
    SPECIAL = 2         # makes a line not plain
    TURN = 1 << 10      # lines between two looks at the clock
    LONG = 1 << 12      # lines that are worth a thread
    SLOWEST = 1 << 25   # bytes a second

cdef unsigned char kind[256]
cdef int c
for c in range(256):
    kind[c] = BLANK if c in b" \t\n\v\f\r" else SPECIAL if c in b'"\\\0' or c >= 0x80 else 0


cdef inline unsigned char kind_at(const reader *r, size_t at) noexcept nogil:
    return kind[<unsigned char> r.text[at]]


cdef inline size_t line_end(const reader *r, size_t at) noexcept nogil:
    cdef const char *newline = <const char *> memchr(r.text + at, c"\n", r.len - at)
    return r.len if newline == NULL else newline - r.text


cdef size_t skip_comments(const reader *r, size_t at, size_t *number) noexcept nogil:
    """Where the next line begins that is neither empty nor a comment."""
    cdef size_t first
    while at < r.len:
        first = at
        while first < r.len and r.text[first] != c"\n" and kind_at(r, first) == BLANK:
            first += 1
        if first < r.len and r.text[first] not in b"\n#":
            return at
        at = line_end(r, first) + 1
        number[0] += 1
    return r.len


cdef bint split_plain(const reader *r, size_t at, size_t end, view *key, view *value) noexcept nogil:
    """Is it a plain line? Then its key and value."""
    cdef size_t key_end = at, i
    while key_end < end and kind_at(r, key_end) == 0:
        key_end += 1
    for i in range(key_end, end):
        if kind_at(r, i) == SPECIAL:
            return False
    key[0] = view_of(r.text + at, key_end - at)
    while key_end < end and kind_at(r, key_end) == BLANK:
        key_end += 1
    while end > key_end and kind_at(r, end - 1) == BLANK:
        end -= 1
    value[0] = view_of(r.text + key_end, end - key_end)
    return key.len > 0 and value.len > 0 and key.ptr[key.len - 1] != c":"


cdef bint next_line(const reader *r, size_t *at, size_t *number, view *key, view *value) noexcept nogil:
    """Is the logical line at `at` a plain one? Go on to the next, in any case."""
    cdef size_t end = line_end(r, at[0])
    cdef bint plain = split_plain(r, at[0], end, key, value)
    number[0] += 1
    at[0] = skip_comments(r, end + 1, number)
    while at[0] < r.len and kind_at(r, at[0]) == BLANK:  # it is continued
        plain = False
        number[0] += 1
        at[0] = skip_comments(r, line_end(r, at[0]) + 1, number)
    return plain


cdef int store(reader *r, view key, view value) noexcept nogil:
    """Is it in the records? -1 without memory."""
    cdef int new
    if r.fold and fold_ascii(&key, &r.folded) < 0:
        return -1
    new = records_put(r.into, key, value, r.replace)
    return new if new else r.duplicates


cdef bint read_lines(reader *r, size_t limit, uint64_t until_ns) noexcept nogil:
    """Read on to what is not plain, to the end, or until r.no_memory; False: `limit` lines, or time is up."""
    cdef size_t at, number, seen = 0
    cdef view key, value
    cdef int stored
    while r.at < r.len:
        if seen == limit or until_ns and seen % TURN == TURN - 1 and now_ns() > until_ns:
            return False
        seen += 1
        at, number = r.at, r.number
        stored = store(r, key, value) if next_line(r, &at, &number, &key, &value) else 0
        r.no_memory = stored < 0
        if stored <= 0:
            break
        r.at, r.number = at, number
    return True


cdef bint read_all(void *what, uint64_t until_ns) noexcept nogil:
    return read_lines(<reader *> what, SIZE_MAX, until_ns)


cdef void expect_more(reader *r) noexcept nogil:
    """Have room for as many records as are likely to come, so that nothing is allocated meanwhile.

    Where there is no memory for that, they may fit all the same.
    """
    cdef size_t rest = r.len - r.at
    records_reserve(r.into, <size_t> (<double> r.into.used / r.at * rest), rest)


cdef void find_end(reader *r) noexcept nogil:
    """How far is it not plain? The line at r.at is not, whatever it looks like."""
    cdef size_t at = r.at, number = r.number, lines
    cdef view key, value
    r.end, r.end_number = at, number
    for lines in range(<size_t> LONG):
        if at == r.len or next_line(r, &at, &number, &key, &value) and lines:
            break
        r.end, r.end_number = at, number


cdef class PlainLines:
    """Puts the plain lines of a text into records; iterates over what is between them.

    fold: keys are folded. replace: a later value of a key replaces the earlier one.
    duplicates: they are allowed; else a line with the key of another is not plain.
    patience: seconds that the background has for it; by default one, and one more for each 32 MB.
    """

    cdef reader r
    cdef bytes text
    cdef Records held
    cdef uint64_t patience_ns

    def __cinit__(
        self, bytes text not None, Records held not None, *,
        bint fold=False, bint replace=False, bint duplicates=False, object patience=None,
    ):
        buf_init(&self.r.folded)
        self.text, self.held = text, held
        self.r.text, self.r.len, self.r.end_number = text, len(text), 1
        self.r.end = skip_comments(&self.r, 0, &self.r.end_number)
        self.r.into = &held.r
        self.patience_ns = <uint64_t> (1e9 * (1 + len(text) / SLOWEST if patience is None else patience))
        self.r.fold, self.r.replace, self.r.duplicates = fold, replace, duplicates

    def __dealloc__(self):
        buf_free(&self.r.folded)

    def __iter__(self):
        return self

    def __next__(self) -> tuple[int, bytes]:
        """(number of its first line, logical lines): the next part that is not plain; or MemoryError."""
        cdef reader *r = &self.r
        r.at, r.number = r.end, r.end_number
        with nogil:
            if not read_lines(r, LONG, 0):
                expect_more(r)
                if not do_idly(read_all, r, self.patience_ns):
                    self.patience_ns = 0
            find_end(r)
        if r.no_memory:
            raise MemoryError
        if r.at == r.end:
            raise StopIteration
        return r.number, self.text[r.at : r.end]

# _plain - the plain lines of a source text, straight into records (see _plain.pyx)

from proxymap.base._buf cimport buf
from proxymap.tables.memory._records cimport records


cdef struct reader:
    const char *text
    size_t len
    size_t at           # where the next line begins
    size_t number       # of that line, from 1
    size_t end          # of the lines from `at` on that are not plain
    size_t end_number   # of the line that begins there
    records *into
    buf folded          # scratch for a key
    bint fold           # keys are folded
    bint replace        # the value of a duplicate key
    bint duplicates     # are allowed
    bint no_memory

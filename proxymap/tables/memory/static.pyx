"""static - one value for every key: static:text, or static:{ text with blanks around it }

Source: DATABASE_README; tables.md 5.
"""

from proxymap.base._buf cimport buf, view, view_of
from proxymap.tables._table cimport Table, table
from proxymap._words cimport *

from proxymap.config.source import BLANKS, base64_of_files, unbraced
from proxymap.tables.flags import RHS_IS_FILE


cdef int static_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    value[0] = (<view *> t.self)[0]
    return STAT_OK


cdef class StaticTable(Table):
    cdef bytes text
    cdef view value

    def __cinit__(self, bytes type_name, bytes text not None):
        self.text = text
        self.value = view_of(text, len(text))
        self.t.self = &self.value
        self.t.flags = DICT_FLAG_FIXED
        self.t.lookup = static_lookup


def open_table(bytes type_name, bytes mapname, opening) -> StaticTable:
    text = mapname
    if text.startswith(b"{"):
        try:
            text = unbraced(text).strip(BLANKS)
        except ValueError as error:
            raise ValueError(f"bad static:name syntax: {error}") from None
    return StaticTable(type_name, base64_of_files(text) if opening.flags & RHS_IS_FILE else text)

# _dl - a library of the host, opened when a table needs it: nothing is linked, so a wheel installs anywhere
#
# A user opens it when its module is imported (so before a chroot), and takes what it calls from it,
# each function by a line of its own, as a C pointer that is called without the GIL:
#
#     cdef Library library = Library("mysql", ["libmariadb.so.3"], "libmariadb3 (Debian), ...")
#     ctypedef void (*close_function)(void *connection) noexcept nogil
#     cdef close_function mysql_close = <close_function> library.symbol("mysql_close")

cdef class Library:
    cdef void *handle
    cdef readonly str soname    # the one that was found
    cdef readonly str packages  # what has it, for the log

    # The address of a function or variable; ImportError, which tells what to install, if there is none.
    cdef void *symbol(self, str name) except NULL
    # The same, NULL if there is none: what only newer versions have.
    cdef void *optional(self, str name) except? NULL

"""_dl - a library of the host, opened when a table needs it

Source: dlopen(3).
"""

cdef extern from "<dlfcn.h>" nogil:
    enum: RTLD_NOW
    void *dlopen(const char *, int)
    void *dlsym(void *, const char *)
    char *dlerror()


cdef class Library:
    """The first of `sonames` that there is; it stays open until the process ends.

    needed_by: the table type, for the text. packages: what to install, such as
    "libpcre2-8-0 (Debian), pcre2 (Fedora, Alpine)". ImportError if there is none.
    """

    def __cinit__(self, str needed_by, sonames, str packages):
        cdef bytes name
        cdef list told = []
        cdef const char *text
        self.packages = packages
        for soname in sonames:
            name = soname.encode()
            text = name
            with nogil:  # it may take milliseconds
                self.handle = dlopen(text, RTLD_NOW)
            if self.handle != NULL:
                self.soname = soname
                return
            told.append(dlerror().decode(errors="replace"))
        raise ImportError(f"{needed_by} needs {' or '.join(sonames)} ({told[0]}); install {packages}")

    cdef void *symbol(self, str name) except NULL:
        cdef void *found = self.optional(name)
        if found == NULL:
            raise ImportError(f"{self.soname} has no {name}: a newer one is needed, of {self.packages}")
        return found

    cdef void *optional(self, str name) except? NULL:
        return dlsym(self.handle, name.encode())

    def has(self, str name) -> bool:
        """Does the library have this function or variable?"""
        return self.optional(name) != NULL

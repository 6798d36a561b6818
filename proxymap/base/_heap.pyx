"""_heap - memory that malloc keeps goes back to the system

Source: malloc_trim(3).
"""

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    #define proxymap_trim() ((void) malloc_trim(0))
    #else
    #define proxymap_trim() ((void) 0) /* musl gives back what is free by itself */
    #endif
    """
    void proxymap_trim() nogil


def give_back():
    """Whole pages that are free inside malloc's heaps. Takes milliseconds if there are many; no GIL.

    A heap shrinks at its end alone, so one small block there can keep megabytes behind
    it resident. Buffers of clients get there when memory is so short that mmap(2) fails.
    """
    with nogil:
        proxymap_trim()

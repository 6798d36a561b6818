# _eager - is it worth while to look for what comes next before going to sleep? inline, no GIL
#
# To be woken takes tens of microseconds, and as much CPU time as looking for that long. So one looks if that
# has found something lately, and else now and then.

cdef enum:
    LUCK = 4     # times in vain after which one looks
    RARELY = 64  # each so many times only


cdef struct eagerness:
    int luck          # how often it may still be in vain
    unsigned int looks


cdef inline bint is_time_to_look(eagerness *e) noexcept nogil:
    e.looks += 1
    return e.luck != 0 or e.looks % RARELY == 0


cdef inline void has_looked(eagerness *e, bint found) noexcept nogil:
    if found:
        e.luck = LUCK
    elif e.luck:
        e.luck -= 1

/* Compiles only if what this Python's pyconfig.h says of types holds for the compiler's target, too.

   packaging/wheels.py compiles for other machines against the headers of a Python of this one. Of
   pyconfig.h the layout of Python's structures depends on nothing but these. */
#include <Python.h>
#include <pthread.h>
#include <time.h>

#define HOLDS(size, type) _Static_assert(size == sizeof(type), #type " has another size on the target")

HOLDS(SIZEOF_SHORT, short);
HOLDS(SIZEOF_INT, int);
HOLDS(SIZEOF_LONG, long);
HOLDS(SIZEOF_LONG_LONG, long long);
HOLDS(SIZEOF_FLOAT, float);
HOLDS(SIZEOF_DOUBLE, double);
HOLDS(SIZEOF_VOID_P, void *);
HOLDS(SIZEOF_SIZE_T, size_t);
HOLDS(SIZEOF_OFF_T, off_t);
HOLDS(SIZEOF_TIME_T, time_t);
HOLDS(SIZEOF_WCHAR_T, wchar_t);
HOLDS(SIZEOF_PID_T, pid_t);
HOLDS(SIZEOF_PTHREAD_T, pthread_t);
HOLDS(SIZEOF_PTHREAD_KEY_T, pthread_key_t);
HOLDS(SIZEOF__BOOL, _Bool);
_Static_assert(ALIGNOF_LONG == _Alignof(long), "long is aligned in another way on the target");
_Static_assert(ALIGNOF_SIZE_T == _Alignof(size_t), "size_t is aligned in another way on the target");
#ifdef WORDS_BIGENDIAN
_Static_assert(__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__, "the target has another byte order");
#else
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the target has another byte order");
#endif
#if defined Py_DEBUG || defined Py_TRACE_REFS || defined Py_GIL_DISABLED
#error "of this Python the structures are not those of a release"
#endif

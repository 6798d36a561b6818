# _os - the system's calls and structs, declared once for all that need the same; no GIL
#
# What one file alone uses is declared there. Source: section 2 and 3 of the manual.

from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <sys/types.h>
    #include <unistd.h>
    /* libc's look twice whether somebody has cancelled the thread, at the price of parsing a request. */
    #define proxymap_recv(fd, p, n, flags) ((ssize_t) syscall(SYS_recvfrom, fd, p, n, flags, NULL, NULL))
    #define proxymap_send(fd, p, n, flags) ((ssize_t) syscall(SYS_sendto, fd, p, n, flags, NULL, 0))
    """
    ssize_t recv "proxymap_recv"(int, void *, size_t, int) nogil
    ssize_t send "proxymap_send"(int, const void *, size_t, int) nogil

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    int accept4(int, sockaddr *, unsigned int *, int)
    int shutdown(int, int)
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_RDWR, SHUT_WR, SOCK_NONBLOCK, SOCK_CLOEXEC

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum: CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME
    int clock_gettime(int, timespec *)

cdef extern from "<sys/timerfd.h>" nogil:
    struct itimerspec:
        timespec it_interval
        timespec it_value
    enum: TFD_NONBLOCK, TFD_CLOEXEC
    int timerfd_create(int, int)
    int timerfd_settime(int, int, const itimerspec *, itimerspec *)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_create(pthread_t *, const void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)

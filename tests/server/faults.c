/* faults - lets writes to disk fail or stall, as the file $FAULTS says: for LD_PRELOAD
 *
 * The file holds "CALL ERROR" or "CALL stall": CALL is sync (fdatasync, fsync), head
 * (a small pwrite: LMDB's meta page) or pages (the other writes at an offset); ERROR
 * is an errno. A stalled call creates $FAULTS.stalled and waits for another order.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEAD_MAX 512 /* bytes; a page is larger */
#define STALL (-1)

static int order(const char *call)
{
    char text[64] = "", name[16] = "", what[16] = "";
    const char *path = getenv("FAULTS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0)
        return 0;
    if (read(fd, text, sizeof text - 1) < 0)
        text[0] = 0;
    close(fd);
    if (sscanf(text, "%15s %15s", name, what) != 2 || strcmp(name, call))
        return 0;
    return strcmp(what, "stall") ? atoi(what) : STALL;
}

static int fails(const char *call)
{
    char sign[4096];
    int what = order(call);

    if (what == STALL) {
        snprintf(sign, sizeof sign, "%s.stalled", getenv("FAULTS"));
        close(open(sign, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        while ((what = order(call)) == STALL)
            usleep(1000);
    }
    errno = what;
    return what;
}

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

int fdatasync(int fd)
{
    return fails("sync") ? -1 : REAL(fdatasync)(fd);
}

int fsync(int fd)
{
    return fails("sync") ? -1 : REAL(fsync)(fd);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset)
{
    return fails(count < HEAD_MAX ? "head" : "pages") ? -1 : REAL(pwrite)(fd, data, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return fails("pages") ? -1 : REAL(writev)(fd, parts, count);
}

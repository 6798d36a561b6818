/* slow_users - a user directory that is slow, or fails: for LD_PRELOAD
 *
 * Users whose name begins with "slow" take ten seconds to be found; of one whose name
 * begins with "lost" nothing can be found out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

int getpwnam_r(const char *name, struct passwd *user, char *buffer, size_t size, struct passwd **found)
{
    if (strncmp(name, "slow", 4) == 0)
        sleep(10);
    if (strncmp(name, "lost", 4) == 0) {
        *found = NULL;
        return EIO;
    }
    return ((__typeof__(&getpwnam_r)) dlsym(RTLD_NEXT, "getpwnam_r"))(name, user, buffer, size, found);
}

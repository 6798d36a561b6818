/* slow_users - users whose name begins with "slow" take ten seconds to be found: for LD_PRELOAD */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

int getpwnam_r(const char *name, struct passwd *user, char *buffer, size_t size, struct passwd **found)
{
    if (strncmp(name, "slow", 4) == 0)
        sleep(10);
    return ((__typeof__(&getpwnam_r)) dlsym(RTLD_NEXT, "getpwnam_r"))(name, user, buffer, size, found);
}

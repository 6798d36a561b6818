/*
 * floor - the least that an epoll server can do: epoll_wait, recv, send
 *
 * usage: floor SOCKET
 *
 * Greets like proxymap and answers every attribute list with one fixed reply,
 * without a parser and without a table. What it costs is the kernel's; the
 * ratio of another server to it is that server's own share.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char greeting[] = "protocol\0proxymap_protocol\0";
static const char reply[] = "status\0000\0value\0box5@store5.example.net\0";

static void serve(int fd)
{
    static char in[65536], out[65536];
    ssize_t got = recv(fd, in, sizeof in, 0);
    size_t used = 0;

    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            close(fd);
        return;
    }
    /* A list ends with two NULs; keys of the load generator are not empty. */
    for (ssize_t i = 1; i < got; i++)
        if (in[i] == 0 && in[i - 1] == 0 && used + sizeof reply <= sizeof out) {
            memcpy(out + used, reply, sizeof reply);
            used += sizeof reply;
        }
    if (send(fd, out, used, MSG_NOSIGNAL) < 0)
        close(fd);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct epoll_event event = {.events = EPOLLIN}, ready[256];
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), ep = epoll_create1(0);

    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: floor SOCKET\n");
        return 64;
    }
    strcpy(address.sun_path, argv[1]);
    unlink(argv[1]);
    if (bind(listener, (void *) &address, sizeof address) || listen(listener, 4096)) {
        perror(argv[1]);
        return 1;
    }
    event.data.fd = listener;
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(ep, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd != listener) {
                serve(ready[i].data.fd);
                continue;
            }
            event.data.fd = accept4(listener, 0, 0, SOCK_NONBLOCK);
            if (event.data.fd < 0)
                continue;
            epoll_ctl(ep, EPOLL_CTL_ADD, event.data.fd, &event);
            if (send(event.data.fd, greeting, sizeof greeting, MSG_NOSIGNAL) < 0)
                close(event.data.fd);
        }
    }
}

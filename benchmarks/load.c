/*
 * load - closed-loop load on a proxymap socket
 *
 * usage: load [-u | -g FILE] SOCKET TABLE KEYFILE CLIENTS REQUESTS [PID]
 *
 * -u: updates of these keys in place of lookups.
 * -g: every key has a value, a generation's number said several times, which
 * must be one number, and no less than the eight bytes of FILE were when the
 * request was sent; ends at the first reply that is otherwise.
 * CLIENTS connections, one request in flight on each, as Postfix's clients do;
 * keys are drawn from KEYFILE (a key a line) in a fixed pseudo-random order.
 * SIGTERM ends it earlier. Speaks the dialect of Postfix 3.6 to 3.10. Prints one JSON object: requests
 * per second, latency in microseconds, replies by status and, with PID, the
 * CPU microseconds per request of that process (utime and stime from /proc,
 * so in steps of a clock tick: ask for enough requests).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { STATUSES = 6, IN_SIZE = 1 << 20 };

struct client {
    int fd;
    size_t used;      /* bytes of an incomplete reply */
    uint64_t sent_ns;
    uint64_t oldest;  /* generation that may be answered */
    char *in;
};

static char **keys;
static size_t key_count;
static char head[8192];  /* the request up to the key */
static size_t head_len;
static const char *tail = "\0";  /* and from the end of the key on */
static size_t tail_len = 2;
static long by_status[STATUSES];
static volatile uint64_t *oldest;  /* -g */
static volatile sig_atomic_t ending;

static void end_early(int number)
{
    ending = number;
}

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void read_keys(const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0, room = 0;
    ssize_t n;

    if (file == NULL)
        die(path);
    while ((n = getline(&line, &cap, file)) > 0) {
        if (line[n - 1] == '\n')
            line[n - 1] = 0;
        if (key_count == room)
            keys = realloc(keys, (room = room ? room * 2 : 1024) * sizeof *keys);
        keys[key_count++] = strdup(line);
    }
    fclose(file);
    if (key_count == 0) {
        fprintf(stderr, "%s: no keys\n", path);
        exit(65);
    }
}

static const char *next_key(void)
{
    static uint64_t x = 88172645463325252ull;  /* xorshift64 */
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return keys[x % key_count];
}

static void add(const char *text)
{
    size_t n = strlen(text) + 1;
    if (head_len + n > sizeof head) {
        fprintf(stderr, "table name too long\n");
        exit(64);
    }
    memcpy(head + head_len, text, n);
    head_len += n;
}

static void ask(struct client *c)
{
    char request[sizeof head + 4096];
    const char *key = next_key();
    size_t n = strnlen(key, 4000);

    memcpy(request, head, head_len);
    memcpy(request + head_len, key, n);
    memcpy(request + head_len + n, tail, tail_len);
    n += head_len + tail_len;
    c->oldest = oldest ? *oldest : 0;
    c->sent_ns = now_ns();
    if (send(c->fd, request, n, MSG_NOSIGNAL) != (ssize_t) n)
        die("send");
}

/* The length of the list at p, or 0; *status and *text are set if it has a status and a value. */
static size_t list_length(const char *p, size_t n, int *status, const char **text)
{
    const char *at = p, *end = p + n, *name, *value;

    for (;;) {
        if ((value = memchr(at, 0, end - at)) == NULL)
            return 0;
        name = at;
        at = ++value;
        if (value - name == 1)
            return at - p;
        if ((at = memchr(value, 0, end - value)) == NULL)
            return 0;
        if (strcmp(name, "status") == 0)
            *status = atoi(value);
        else if (strcmp(name, "value") == 0)
            *text = value;
        at++;
    }
}

/* Is it one generation's number, said over and over, and not older than it may be? */
static int is_right(const struct client *c, int status, const char *text)
{
    uint64_t first = strtoull(text, NULL, 10);
    char *end;

    if (status != 0 || *text == 0 || first < c->oldest)
        return 0;
    for (; *text; text = end)
        if (strtoull(text, &end, 10) != first || end == text)
            return 0;
    return 1;
}

static void connect_client(struct client *c, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *text;
    int status = 0;
    ssize_t n;

    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (void *) &address, sizeof address))
        die(path);
    c->in = malloc(IN_SIZE);
    do {  /* the greeting */
        if ((n = recv(c->fd, c->in + c->used, IN_SIZE - c->used, 0)) <= 0)
            die("greeting");
        c->used += n;
    } while (list_length(c->in, c->used, &status, &text) != c->used);
    c->used = 0;
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static double cpu_us(const char *pid)
{
    char path[64], text[1024], *after;
    unsigned long utime, stime;
    FILE *file;
    size_t n;

    snprintf(path, sizeof path, "/proc/%s/stat", pid);
    if ((file = fopen(path, "r")) == NULL)
        die(path);
    n = fread(text, 1, sizeof text - 1, file);
    text[n] = 0;
    fclose(file);
    after = strrchr(text, ')');
    if (after == NULL || sscanf(after + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &utime, &stime) != 2)
        die(path);
    return (utime + stime) * 1e6 / sysconf(_SC_CLK_TCK);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;
    return (x > y) - (x < y);
}

static double percentile(const uint32_t *ns, long count, double p)
{
    return ns[(long) ((count - 1) * p)] / 1e3;
}

int main(int argc, char **argv)
{
    struct rlimit files;
    struct epoll_event event = {.events = EPOLLIN}, ready[256];
    int ep = epoll_create1(0);
    int updates = argc > 1 && strcmp(argv[1], "-u") == 0;

    if (updates) {
        static const char update_tail[] = "\0value\0" "1700000000:2:250 ok\0";
        tail = update_tail;
        tail_len = sizeof update_tail;
        argv++, argc--;
    }
    if (argc > 2 && strcmp(argv[1], "-g") == 0) {
        int fd = open(argv[2], O_RDONLY);
        oldest = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *oldest, PROT_READ, MAP_SHARED, fd, 0);
        if (oldest == MAP_FAILED)
            die(argv[2]);
        argv += 2, argc -= 2;
    }
    if (argc < 6) {
        fprintf(stderr, "usage: load [-u | -g FILE] SOCKET TABLE KEYFILE CLIENTS REQUESTS [PID]\n");
        return 64;
    }
    signal(SIGTERM, end_early);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    read_keys(argv[3]);
    int client_count = atoi(argv[4]);
    long total = atol(argv[5]), sent = 0, done = 0;
    const char *pid = argc > 6 ? argv[6] : NULL;
    struct client *clients = calloc(client_count, sizeof *clients);
    uint32_t *latency = malloc(total * sizeof *latency);
    add("request"), add(updates ? "update" : "lookup"), add("table"), add(argv[2]), add("flags"), add("64"), add("key");
    for (int i = 0; i < client_count; i++) {
        connect_client(&clients[i], argv[1]);
        event.data.ptr = &clients[i];
        epoll_ctl(ep, EPOLL_CTL_ADD, clients[i].fd, &event);
    }
    double cpu = pid ? cpu_us(pid) : 0;
    uint64_t start = now_ns();
    for (int i = 0; i < client_count && sent < total; i++, sent++)
        ask(&clients[i]);
    while (done < total) {
        int n = epoll_wait(ep, ready, 256, 10000);
        if (ending)
            total = sent;
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            fprintf(stderr, "stalled after %ld of %ld replies\n", done, total);
            return 1;
        }
        for (int i = 0; i < n; i++) {
            struct client *c = ready[i].data.ptr;
            int status = -1;
            const char *text = "";
            ssize_t got = recv(c->fd, c->in + c->used, IN_SIZE - c->used, 0);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN)
                    continue;
                fprintf(stderr, "the server hung up after %ld of %ld replies\n", done, total);
                return 1;
            }
            c->used += got;
            if (list_length(c->in, c->used, &status, &text) == 0)
                continue;
            if (oldest && !is_right(c, status, text)) {
                fprintf(stderr, "reply %ld: status %d, value '%.80s', not from %lu on\n", done, status, text,
                        (unsigned long) c->oldest);
                return 1;
            }
            c->used = 0;
            latency[done++] = now_ns() - c->sent_ns;
            if (status >= 0 && status < STATUSES)
                by_status[status]++;
            if (sent < total) {
                ask(c);
                sent++;
            }
        }
    }
    double seconds = (now_ns() - start) / 1e9;
    double used = pid ? (cpu_us(pid) - cpu) / total : 0;
    qsort(latency, total, sizeof *latency, by_value);
    printf("{\"clients\": %d, \"requests\": %ld, \"per_second\": %.0f, \"cpu_us\": %.3f, "
           "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, "
           "\"ok\": %ld, \"nokey\": %ld, \"retry\": %ld, \"bad\": %ld, \"deny\": %ld, \"config\": %ld}\n",
           client_count, total, total / seconds, used, percentile(latency, total, .5),
           percentile(latency, total, .9), percentile(latency, total, .99), percentile(latency, total, .999),
           percentile(latency, total, 1), by_status[0], by_status[1], by_status[2], by_status[3], by_status[4],
           by_status[5]);
    return 0;
}

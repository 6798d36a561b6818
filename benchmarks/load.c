/*
 * load - closed-loop load on a proxymap socket
 *
 * usage: load [OPTION]... SOCKET TABLE KEYFILE CLIENTS REQUESTS
 *
 * CLIENTS connections, one request in flight on each, as Postfix's clients do;
 * keys are taken from KEYFILE, a key a line, in its order, beginning at any.
 * Speaks the dialect of Postfix 3.6 to 3.10.
 *
 * -t SECONDS   end after that time, if not after REQUESTS; SIGTERM ends it too
 * -w SECONDS   first the same without counting: processes start, tables open
 * -p           when that is done write "ready" on a line, begin at a line of
 *              input, and stay connected until its end: who measures the server
 *              looks at it before and after
 * -u           updates of the keys in place of lookups
 * -H TABLE     a client that has connected asks this table, which takes its time,
 *              before the next one connects: a server that gives idle processes
 *              new clients has a process for each, as under load
 * -g FILE      every key has a value, a generation's number said several times,
 *              which must be one number, and no less than the eight bytes of
 *              FILE were when the request was sent; ends at the first reply
 *              that is otherwise
 *
 * Prints one JSON object: requests per second, replies by status, and latency
 * in microseconds, from before the send until the reply was looked at.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { STATUSES = 6, IN_SIZE = 1 << 20, STALLED_MS = 10000, HELD_MS = 60000 };

struct client {
    int fd;
    size_t used;      /* bytes of an incomplete reply */
    uint64_t sent_ns;
    uint64_t oldest;  /* generation that may be answered */
    char *in;
};

static int ep;
static char **keys;
static size_t key_count, key_at;
static char head[8192];  /* the request up to the key */
static size_t head_len;
static char hold[8192];  /* -H: a whole request */
static size_t hold_len;
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
    int fd = open(path, O_RDONLY);
    struct stat status;
    char *text, *line, *end;
    size_t room = 0;

    if (fd < 0 || fstat(fd, &status))
        die(path);
    text = mmap(NULL, status.st_size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (text == MAP_FAILED)
        die(path);
    close(fd);
    for (line = text; line < text + status.st_size; line = end + 1) {
        end = memchr(line, '\n', text + status.st_size - line);
        if (end == NULL) {
            fprintf(stderr, "%s: no newline at the end\n", path);
            exit(65);
        }
        *end = 0;
        if (key_count == room)
            keys = realloc(keys, (room = room ? room * 2 : 1024) * sizeof *keys);
        keys[key_count++] = line;
    }
    if (key_count == 0) {
        fprintf(stderr, "%s: no keys\n", path);
        exit(65);
    }
    key_at = now_ns() % key_count;
}

static const char *next_key(void)
{
    key_at = key_at + 1 < key_count ? key_at + 1 : 0;
    return keys[key_at];
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

static void add_head(const char *kind, const char *table)
{
    add("request"), add(kind), add("table"), add(table), add("flags"), add("64"), add("key");
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

/* Take what there is of a reply; 1 if it is whole. */
static int take(struct client *c, long done)
{
    const char *text = "";
    int status = -1;
    ssize_t got = recv(c->fd, c->in + c->used, IN_SIZE - c->used, 0);

    if (got <= 0) {
        if (got < 0 && errno == EAGAIN)
            return 0;
        fprintf(stderr, "the server hung up after %ld replies\n", done);
        exit(1);
    }
    c->used += got;
    if (list_length(c->in, c->used, &status, &text) == 0)
        return 0;
    if (oldest && !is_right(c, status, text)) {
        fprintf(stderr, "reply %ld: status %d, value '%.80s', not from %lu on\n", done, status, text,
                (unsigned long) c->oldest);
        exit(1);
    }
    c->used = 0;
    if (status >= 0 && status < STATUSES)
        by_status[status]++;
    return 1;
}

/* The requests that were sent while others connected: wait for their replies. */
static void end_hold(int count)
{
    struct epoll_event ready[256];

    for (int done = 0, n; done < count;) {
        if ((n = epoll_wait(ep, ready, 256, HELD_MS)) <= 0)
            die("the table of -H");
        for (int i = 0; i < n; i++)
            done += take(ready[i].data.ptr, done);
    }
}

/* Ask until there are `total` replies, or `seconds` (0: any) are over; returns how many came. */
static long run(struct client *clients, int count, long total, double seconds, uint32_t *latency)
{
    struct epoll_event ready[256];
    uint64_t now, until = now_ns() + (uint64_t) (seconds * 1e9);
    long sent = 0, done = 0;

    memset(by_status, 0, sizeof by_status);
    for (int i = 0; i < count && sent < total; i++, sent++)
        ask(&clients[i]);
    while (done < sent) {
        int n = epoll_wait(ep, ready, 256, STALLED_MS);
        if (n < 0 && errno == EINTR)
            n = 0;
        else if (n <= 0) {
            fprintf(stderr, "stalled after %ld of %ld replies\n", done, sent);
            exit(1);
        }
        if (ending)
            total = sent;
        for (int i = 0; i < n; i++) {
            struct client *c = ready[i].data.ptr;
            if (!take(c, done))
                continue;
            now = now_ns();
            if (latency)
                latency[done] = now - c->sent_ns < UINT32_MAX ? now - c->sent_ns : UINT32_MAX;
            done++;
            if (seconds > 0 && now > until)
                total = sent;
            if (sent < total) {
                ask(c);
                sent++;
            }
        }
    }
    return done;
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

static void usage(void)
{
    fprintf(stderr, "usage: load [-t SECONDS] [-w SECONDS] [-p] [-u | -g FILE] [-H TABLE] SOCKET TABLE KEYFILE CLIENTS REQUESTS\n");
    exit(64);
}

int main(int argc, char **argv)
{
    static const char update_tail[] = "\0value\0" "1700000000:2:250 ok\0";
    struct rlimit files;
    struct epoll_event event = {.events = EPOLLIN};
    double seconds = 0, warm_up = 0;
    int option, updates = 0, pause = 0, fd;
    const char *held = NULL;

    while ((option = getopt(argc, argv, "t:w:pug:H:")) != -1)
        switch (option) {
        case 't': seconds = atof(optarg); break;
        case 'w': warm_up = atof(optarg); break;
        case 'p': pause = 1; break;
        case 'u':
            updates = 1;
            tail = update_tail;
            tail_len = sizeof update_tail;
            break;
        case 'g':
            fd = open(optarg, O_RDONLY);
            oldest = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *oldest, PROT_READ, MAP_SHARED, fd, 0);
            if (oldest == MAP_FAILED)
                die(optarg);
            break;
        case 'H': held = optarg; break;
        default: usage();
        }
    argv += optind;
    if (argc - optind != 5)
        usage();
    signal(SIGTERM, end_early);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    read_keys(argv[2]);
    int count = atoi(argv[3]);
    long total = atol(argv[4]), done;
    struct client *clients = calloc(count, sizeof *clients);
    uint32_t *latency = malloc(total * sizeof *latency);
    if (count < 1 || total < 1 || clients == NULL || latency == NULL)
        usage();
    if (held) {
        add_head("lookup", held), add("x"), add("");
        memcpy(hold, head, hold_len = head_len);
        head_len = 0;
    }
    add_head(updates ? "update" : "lookup", argv[1]);
    ep = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        connect_client(&clients[i], argv[0]);
        event.data.ptr = &clients[i];
        epoll_ctl(ep, EPOLL_CTL_ADD, clients[i].fd, &event);
        if (held && send(clients[i].fd, hold, hold_len, MSG_NOSIGNAL) != (ssize_t) hold_len)
            die("send");
    }
    if (held)
        end_hold(count);
    if (warm_up > 0)
        run(clients, count, LONG_MAX, warm_up, NULL);
    if (pause) {
        printf("ready\n");
        fflush(stdout);
        while ((option = getchar()) != '\n')
            if (option == EOF)
                return 1;
    }
    uint64_t start = now_ns();
    done = run(clients, count, total, seconds, latency);
    double took = (now_ns() - start) / 1e9;
    qsort(latency, done, sizeof *latency, by_value);
    printf("{\"clients\": %d, \"requests\": %ld, \"per_second\": %.0f, "
           "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, "
           "\"ok\": %ld, \"nokey\": %ld, \"retry\": %ld, \"bad\": %ld, \"deny\": %ld, \"config\": %ld}\n",
           count, done, done / took, percentile(latency, done, .5), percentile(latency, done, .9),
           percentile(latency, done, .99), percentile(latency, done, .999), percentile(latency, done, 1),
           by_status[0], by_status[1], by_status[2], by_status[3], by_status[4], by_status[5]);
    fflush(stdout);
    if (pause)  /* a stock server may end with its clients, and its figures with it */
        while (getchar() != EOF)
            ;
    return 0;
}

// Pipes and readiness: blocking, end of file, EPIPE, O_NONBLOCK, atomic writes, poll, select.
#include "abi.h"
#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/uio.h>

static int p[2];

static void write_then_read(void) {
    OK(pipe(p));
    EQ(write(p[1], "hello", 5), 5);
    char b[16];
    EQ(read(p[0], b, 2), 2);
    EQ(read(p[0], b, 16), 3);
    ERR(write(p[0], "x", 1), EBADF);
    ERR(read(p[1], b, 1), EBADF);
    ERR(lseek(p[0], 0, SEEK_SET), ESPIPE);
    ERR(pread(p[0], b, 1, 0), ESPIPE);
    struct stat st;
    OK(fstat(p[0], &st));
    TRUE(S_ISFIFO(st.st_mode));
    EQ(write(p[1], "", 0), 0);
    EQ(write(p[1], "abc", 3), 3);
    int n;
    OK(ioctl(p[0], FIONREAD, &n));
    EQ(n, 3);
}

static void reader_waits(void) {
    OK(pipe(p));
    CHILD_PID(pid) {
        sleep_ms(80);
        EQ(write(p[1], "q", 1), 1);
        _exit(0);
    }
    char c;
    double start = now();
    EQ(read(p[0], &c, 1), 1);
    TRUE(now() - start > 0.04);
    reap_ok(pid);
}

static void writer_waits_for_room(void) {
    OK(pipe(p));
    CHILD_PID(pid) {
        static char block[300000];
        for (size_t i = 0; i < sizeof block; i++) block[i] = (char)(i * 7);
        EQ(write(p[1], block, sizeof block), sizeof block);
        _exit(0);
    }
    close(p[1]);
    sleep_ms(30);
    static char got[400000];
    size_t total = 0;
    ssize_t n;
    while ((n = read(p[0], got + total, 5000)) > 0) total += n;
    EQ(total, 300000);
    for (size_t i = 0; i < total; i++) if (got[i] != (char)(i * 7)) FAIL("byte %zu differs", i);
    reap_ok(pid);
}

static void end_of_file(void) {
    OK(pipe(p));
    EQ(write(p[1], "x", 1), 1);
    close(p[1]);
    char c;
    EQ(read(p[0], &c, 1), 1);
    EQ(read(p[0], &c, 1), 0);
    EQ(read(p[0], &c, 1), 0);
}

static volatile int pipes_caught;
static void caught(int s) { (void)s; pipes_caught++; }
static void broken_pipe(void) {
    OK(pipe(p));
    close(p[0]);
    CHILD_PID(pid) {
        EQ(write(p[1], "x", 1), 1);
        _exit(0);
    }
    EQ(reap(pid), SIGPIPE);
    signal(SIGPIPE, caught);
    ERR(write(p[1], "x", 1), EPIPE);
    EQ(pipes_caught, 1);
    signal(SIGPIPE, SIG_IGN);
    ERR(write(p[1], "x", 1), EPIPE);
}

static void nonblocking(void) {
    OK(pipe2(p, O_NONBLOCK | O_CLOEXEC));
    char c;
    ERR(read(p[0], &c, 1), EAGAIN);
    EQ(fcntl(p[0], F_GETFD), FD_CLOEXEC);
    TRUE(fcntl(p[0], F_GETFL) & O_NONBLOCK);
    static char block[4096];
    long total = 0, n;
    while ((n = write(p[1], block, sizeof block)) > 0) total += n;
    EQ(errno, EAGAIN);
    EQ(total, 65536);
    EQ(fcntl(p[1], F_GETPIPE_SZ), 65536);
    EQ(read(p[0], block, 4096), 4096);
    EQ(write(p[1], block, 4096), 4096);
    ERR(pipe2(p, 0x1), EINVAL);
    ERR(syscall(SYS_pipe, 8), EFAULT);
}

static void atomic_writes(void) {
    OK(pipe(p));
    for (int w = 0; w < 4; w++) {
        CHILD_PID(pid) {
            char block[PIPE_BUF];
            memset(block, 'a' + w, sizeof block);
            for (int i = 0; i < 60; i++) EQ(write(p[1], block, sizeof block), sizeof block);
            _exit(0);
        }
    }
    close(p[1]);
    char block[PIPE_BUF];
    int blocks = 0;
    for (;;) {
        size_t have = 0;
        ssize_t n = 0;
        while (have < sizeof block && (n = read(p[0], block + have, sizeof block - have)) > 0) have += n;
        if (have == 0) break;
        EQ(have, sizeof block);
        for (size_t i = 1; i < sizeof block; i++) if (block[i] != block[0]) FAIL("block %d is mixed at %zu", blocks, i);
        blocks++;
    }
    EQ(blocks, 240);
    for (int w = 0; w < 4; w++) { int status; TRUE(wait(&status) > 0); EQ(status, 0); }
}

static void vectors(void) {
    OK(pipe(p));
    struct iovec out[3] = {{"ab", 2}, {"", 0}, {"cdef", 4}};
    EQ(writev(p[1], out, 3), 6);
    char a[3] = "", b[9] = "";
    struct iovec in[2] = {{a, 2}, {b, 8}};
    EQ(readv(p[0], in, 2), 6);
    STREQ(a, "ab"); STREQ(b, "cdef");
    ERR(readv(p[0], in, -1), EINVAL);
    ERR(writev(p[1], out, 1025), EINVAL);
    ERR(writev(p[1], (void *)8, 1), EFAULT);
    EQ(write(p[1], "12345678", 8), 8);
    ERR(read(p[0], (void *)8, 8), EFAULT);
    ERR(write(p[1], (void *)8, 8), EFAULT);
}

static void poll_states(void) {
    OK(pipe(p));
    struct pollfd f[2] = {{p[0], POLLIN, 0}, {p[1], POLLOUT, 0}};
    EQ(poll(f, 2, 0), 1);
    EQ(f[0].revents, 0); EQ(f[1].revents, POLLOUT);
    EQ(write(p[1], "x", 1), 1);
    EQ(poll(f, 2, -1), 2);
    EQ(f[0].revents, POLLIN);
    close(p[1]);
    EQ(poll(f, 1, -1), 1);
    EQ(f[0].revents, POLLIN | POLLHUP);
    f[1].fd = p[1];
    EQ(poll(f + 1, 1, 0), 1);
    EQ(f[1].revents, POLLNVAL);
    f[1].fd = -1;
    EQ(poll(f + 1, 1, 0), 0);
    OK(pipe(p));
    close(p[0]);
    struct pollfd w = {p[1], POLLOUT, 0};
    EQ(poll(&w, 1, 0), 1);
    TRUE(w.revents & POLLERR);
    ERR(poll((void *)8, 1, 0), EFAULT);
    ERR(poll(f, 1u << 30, 0), EINVAL);
}

static void poll_waits(void) {
    OK(pipe(p));
    struct pollfd f = {p[0], POLLIN, 0};
    double start = now();
    EQ(poll(&f, 1, 60), 0);
    TRUE(now() - start >= 0.059);
    CHILD_PID(pid) {
        sleep_ms(60);
        EQ(write(p[1], "x", 1), 1);
        _exit(0);
    }
    EQ(poll(&f, 1, 20000), 1);
    EQ(f.revents, POLLIN);
    reap_ok(pid);
    start = now();
    EQ(poll(NULL, 0, 50), 0);
    TRUE(now() - start >= 0.049);
}

static void select_states(void) {
    OK(pipe(p));
    fd_set r, w;
    FD_ZERO(&r); FD_ZERO(&w);
    FD_SET(p[0], &r); FD_SET(p[1], &w);
    struct timeval t = {0, 0};
    EQ(select(p[1] + 1, &r, &w, NULL, &t), 1);
    TRUE(!FD_ISSET(p[0], &r) && FD_ISSET(p[1], &w));
    FD_ZERO(&r);
    FD_SET(p[0], &r);
    t.tv_usec = 50000;
    EQ(select(p[0] + 1, &r, NULL, NULL, &t), 0);
    EQ(t.tv_sec, 0); EQ(t.tv_usec, 0); // the time left is written back
    EQ(write(p[1], "x", 1), 1);
    FD_SET(p[0], &r);
    struct timespec ts = {5, 0};
    EQ(pselect(p[0] + 1, &r, NULL, NULL, &ts, NULL), 1);
    close(p[1]);
    FD_ZERO(&r);
    FD_SET(p[1], &r);
    t.tv_usec = 0;
    ERR(select(p[1] + 1, &r, NULL, NULL, &t), EBADF);
    ERR(select(-1, NULL, NULL, NULL, &t), EINVAL);
}

static volatile int hits;
static void hit(int s) { (void)s; hits++; }
static void signals_and_poll(void) {
    OK(pipe(p));
    signal(SIGUSR1, hit);
    pid_t parent = getpid();
    sigset_t set, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    CHILD_PID(pid) {
        sleep_ms(50);
        kill(parent, SIGUSR1);
        _exit(0);
    }
    struct pollfd f = {p[0], POLLIN, 0};
    struct timespec ts = {10, 0};
    ERR(ppoll(&f, 1, &ts, &none), EINTR);
    EQ(hits, 1);
    reap_ok(pid);
    raise(SIGUSR1);
    EQ(hits, 1);
    ERR(ppoll(&f, 1, NULL, &none), EINTR); // pending already
    EQ(hits, 2);
}

static void fifo_in_the_file_system(void) {
    enter_scratch();
    OK(mkfifo("f", 0600));
    struct stat st;
    OK(stat("f", &st));
    TRUE(S_ISFIFO(st.st_mode));
    ERR(open("f", O_WRONLY | O_NONBLOCK), ENXIO);
    CHILD_PID(pid) {
        int w = open("f", O_WRONLY); // waits for the reader
        EQ(write(w, "through", 7), 7);
        _exit(0);
    }
    int r = open("f", O_RDONLY);
    char b[16];
    EQ(read(r, b, 16), 7);
    reap_ok(pid);
    EQ(read(r, b, 16), 0);
}

// Through /proc/self/fd a pipe opens at once, whoever has left, unlike a FIFO.
static void reopened(void) {
    OK(pipe(p));
    EQ(write(p[1], "kept", 4), 4);
    char path[64], b[8];
    snprintf(path, sizeof path, "/proc/self/fd/%d", p[0]);
    close(p[1]);
    int again = open(path, O_RDONLY);
    struct pollfd look = { again, POLLIN, 0 };
    EQ(poll(&look, 1, 0), 1);
    EQ(look.revents, POLLIN | POLLHUP);
    EQ(read(again, b, 8), 4);
    EQ(read(again, b, 8), 0);
    int writer = open(path, O_WRONLY | O_NONBLOCK);
    EQ(write(writer, "more", 4), 4);
    EQ(read(p[0], b, 8), 4);
    OK(fcntl(p[0], F_SETFL, O_NONBLOCK));
    ERR(read(p[0], b, 8), EAGAIN);
    close(writer);
    EQ(read(p[0], b, 8), 0);
}

// A reader that finds a writer sees it leave; one that did not wait sees no hang-up before the first writer.
static void hangup_of_a_fifo(void) {
    enter_scratch();
    OK(mkfifo("f", 0600));
    int r = open("f", O_RDONLY | O_NONBLOCK);
    struct pollfd look = { r, POLLIN, 0 };
    EQ(poll(&look, 1, 0), 0);
    int w = open("f", O_WRONLY);
    int late = open("f", O_RDONLY);
    close(w);
    EQ(poll(&look, 1, 0), 1);
    EQ(look.revents, POLLHUP);
    look.fd = late;
    EQ(poll(&look, 1, 0), 1);
    EQ(look.revents, POLLHUP);
}

static void *echo(void *arg) {
    int *q = arg;
    char c;
    while (read(q[0], &c, 1) == 1) if (write(q[3], &c, 1) != 1) break;
    return NULL;
}
static void many_round_trips(void) {
    int q[4];
    OK(pipe(q));
    OK(pipe(q + 2));
    pthread_t t;
    EQ(pthread_create(&t, NULL, echo, q), 0);
    for (int i = 0; i < 2000; i++) {
        char c = (char)i, d;
        EQ(write(q[1], &c, 1), 1);
        EQ(read(q[2], &d, 1), 1);
        EQ(c, d);
    }
    close(q[1]);
    pthread_join(t, NULL);
}

static void event_counters(void) {
    int e = eventfd(3, EFD_NONBLOCK);
    OK(e);
    uint64_t v;
    EQ(read(e, &v, 8), 8);
    EQ(v, 3);
    ERR(read(e, &v, 8), EAGAIN);
    v = 5;
    EQ(write(e, &v, 8), 8);
    EQ(write(e, &v, 8), 8);
    struct pollfd f = {e, POLLIN | POLLOUT, 0};
    EQ(poll(&f, 1, 0), 1);
    EQ(f.revents, POLLIN | POLLOUT);
    EQ(read(e, &v, 8), 8);
    EQ(v, 10);
    v = -1;
    ERR(write(e, &v, 8), EINVAL);
    ERR(read(e, &v, 4), EINVAL);
    v = 0xfffffffffffffffeull;
    EQ(write(e, &v, 8), 8);
    v = 1;
    ERR(write(e, &v, 8), EAGAIN);
    int s = syscall(SYS_eventfd2, 2, EFD_SEMAPHORE | EFD_CLOEXEC);
    EQ(read(s, &v, 8), 8);
    EQ(v, 1);
    OK(syscall(SYS_eventfd, 0));
    ERR(eventfd(0, 0x7000), EINVAL);
    CHILD_PID(pid) { // a reader waits for a writer
        EQ(read(s, &v, 8), 8);
        EQ(read(s, &v, 8), 8);
        _exit(0);
    }
    sleep_ms(50);
    v = 1;
    EQ(write(s, &v, 8), 8);
    reap_ok(pid);
}

static void epoll_sets(void) {
    OK(pipe(p));
    int set = epoll_create1(EPOLL_CLOEXEC);
    OK(set);
    OK(epoll_create(1));
    ERR(epoll_create(0), EINVAL);
    struct epoll_event e = {EPOLLIN, {.u64 = 77}}, got[4];
    OK(epoll_ctl(set, EPOLL_CTL_ADD, p[0], &e));
    ERR(epoll_ctl(set, EPOLL_CTL_ADD, p[0], &e), EEXIST);
    ERR(epoll_ctl(set, EPOLL_CTL_MOD, p[1], &e), ENOENT);
    ERR(epoll_ctl(set, EPOLL_CTL_ADD, set, &e), EINVAL);
    ERR(epoll_ctl(set, EPOLL_CTL_ADD, 999, &e), EBADF);
    EQ(epoll_wait(set, got, 4, 0), 0);
    EQ(write(p[1], "x", 1), 1);
    EQ(epoll_wait(set, got, 4, -1), 1);
    EQ(got[0].events, EPOLLIN); EQ(got[0].data.u64, 77);
    EQ(epoll_wait(set, got, 4, 0), 1); // level: still
    e.events = EPOLLIN | EPOLLET;
    OK(epoll_ctl(set, EPOLL_CTL_MOD, p[0], &e));
    EQ(epoll_wait(set, got, 4, 0), 1);
    EQ(epoll_wait(set, got, 4, 0), 0); // edge: once
    EQ(write(p[1], "y", 1), 1);
    EQ(epoll_pwait(set, got, 4, 100, NULL), 1);
    e.events = EPOLLIN | EPOLLONESHOT;
    OK(epoll_ctl(set, EPOLL_CTL_MOD, p[0], &e));
    EQ(epoll_wait(set, got, 4, 0), 1);
    EQ(write(p[1], "z", 1), 1);
    EQ(epoll_wait(set, got, 4, 0), 0); // disarmed
    OK(epoll_ctl(set, EPOLL_CTL_MOD, p[0], &e));
    EQ(epoll_wait(set, got, 4, 0), 1);
    OK(epoll_ctl(set, EPOLL_CTL_DEL, p[0], NULL));
    EQ(epoll_wait(set, got, 4, 0), 0);
    e.events = EPOLLIN;
    OK(epoll_ctl(set, EPOLL_CTL_ADD, p[0], &e));
    close(p[1]);
    struct timespec t = {1, 0};
    EQ(syscall(SYS_epoll_pwait2, set, got, 4, &t, NULL, 8), 1);
    TRUE(got[0].events & EPOLLHUP);
    close(p[0]); // leaves the set
    EQ(epoll_wait(set, got, 4, 0), 0);
    ERR(epoll_wait(set, got, 0, 0), EINVAL);
    OK(pipe(p));
    OK(epoll_ctl(set, EPOLL_CTL_ADD, p[0], &e));
    CHILD_PID(pid) {
        sleep_ms(50);
        EQ(write(p[1], "q", 1), 1);
        _exit(0);
    }
    EQ(epoll_wait(set, got, 4, 10000), 1);
    reap_ok(pid);
    double start = now();
    char c;
    EQ(read(p[0], &c, 1), 1);
    EQ(epoll_wait(set, got, 4, 60), 0);
    TRUE(now() - start >= 0.059);
    struct pollfd f = {set, POLLIN, 0}; // a set is pollable itself
    EQ(poll(&f, 1, 0), 0);
    EQ(write(p[1], "x", 1), 1);
    EQ(poll(&f, 1, 0), 1);
    enter_scratch();
    write_file("f", "x", 0644);
    int file = open("f", O_RDONLY);
    ERR(epoll_ctl(set, EPOLL_CTL_ADD, file, &e), EPERM);
}

static void splicing(void) {
    enter_scratch();
    write_file("f", "0123456789", 0644);
    int fd = open("f", O_RDWR);
    OK(pipe(p));
    loff_t at = 3;
    EQ(splice(fd, &at, p[1], NULL, 5, 0), 5);
    EQ(at, 8);
    char b[16];
    EQ(read(p[0], b, 16), 5);
    TRUE(!memcmp(b, "34567", 5));
    struct iovec v = {"mem", 3};
    EQ(vmsplice(p[1], &v, 1, 0), 3);
    at = 0;
    EQ(splice(p[0], NULL, fd, &at, 3, 0), 3);
    EQ(pread(fd, b, 4, 0), 4);
    TRUE(!memcmp(b, "mem3", 4));
    ERR(splice(fd, NULL, fd, NULL, 3, 0), EINVAL);
}

// O_DIRECT: each write is one packet, and a read takes one at most.
static void packets(void) {
    OK(pipe2(p, O_DIRECT | O_NONBLOCK));
    TRUE(fcntl(p[1], F_GETFL) & O_DIRECT);
    EQ(write(p[1], "first", 5), 5);
    EQ(write(p[1], "second", 6), 6);
    char b[100];
    EQ(read(p[0], b, 3), 3);
    EQ(memcmp(b, "fir", 3), 0);
    EQ(read(p[0], b, 100), 6);
    EQ(memcmp(b, "second", 6), 0);
    ERR(read(p[0], b, 100), EAGAIN);
    // Longer than PIPE_BUF: several packets.
    static char big[3 * 4096], got[3 * 4096];
    EQ(write(p[1], big, 2 * 4096 + 10), 2 * 4096 + 10);
    EQ(read(p[0], got, sizeof got), 4096);
    EQ(read(p[0], got, sizeof got), 4096);
    EQ(read(p[0], got, sizeof got), 10);
    // As many as there are pages.
    int n = 0;
    while (write(p[1], "x", 1) == 1) n++;
    EQ(errno, EAGAIN);
    EQ(n, 16);
    OK(fcntl(p[1], F_SETFL, O_NONBLOCK));
    for (int i = 0; i < 16; i++) EQ(read(p[0], b, 100), 1);
    EQ(write(p[1], "a", 1), 1);
    EQ(write(p[1], "b", 1), 1);
    EQ(read(p[0], b, 100), 2);
}

static void teeing(void) {
    int q[2];
    OK(pipe(p));
    OK(pipe(q));
    ERR(tee(p[0], p[1], 10, 0), EINVAL);
    ERR(tee(p[0], q[1], 10, SPLICE_F_NONBLOCK), EAGAIN);
    ERR(tee(p[1], q[1], 10, 0), EBADF);
    EQ(write(p[1], "hello", 5), 5);
    EQ(tee(p[0], q[1], 100, 0), 5);
    EQ(tee(p[0], q[1], 2, 0), 2);
    char b[16] = {0};
    EQ(read(q[0], b, 16), 7);
    STREQ(b, "hellohe");
    memset(b, 0, sizeof b);
    EQ(read(p[0], b, 16), 5);
    STREQ(b, "hello");
    CHILD_PID(pid) {
        sleep_ms(30);
        EQ(write(p[1], "late", 4), 4);
        _exit(0);
    }
    close(p[1]);
    EQ(tee(p[0], q[1], 16, 0), 4);
    reap_ok(pid);
    EQ(read(p[0], b, 16), 4);
    EQ(tee(p[0], q[1], 16, 0), 0);
}

TESTS(T(packets), T(teeing), T(write_then_read), T(reader_waits), T(writer_waits_for_room), T(end_of_file), T(broken_pipe), T(nonblocking), T(atomic_writes),
      T(vectors), T(poll_states), T(poll_waits), T(select_states), T(signals_and_poll), T(fifo_in_the_file_system),
      T(reopened), T(hangup_of_a_fifo), T(many_round_trips), T(event_counters),
      T(epoll_sets), T(splicing))

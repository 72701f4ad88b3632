// AF_UNIX sockets: pairs, names, connections, messages, ancillary data, options, readiness, ends.
#include "abi.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/sockios.h>

static int s[2];

static struct sockaddr_un path_name(const char *path, socklen_t *len) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    *len = offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1;
    return a;
}
// An abstract name of the test's own.
static struct sockaddr_un abstract_name(const char *name, socklen_t *len) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int n = snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "abi-%d-%s", getpid(), name);
    *len = offsetof(struct sockaddr_un, sun_path) + 1 + n;
    return a;
}
#define ADDR(a) ((struct sockaddr *)&(a))

static int bound(int type, struct sockaddr_un a, socklen_t len) {
    int fd = socket(AF_UNIX, type, 0);
    OK(fd);
    OK(bind(fd, ADDR(a), len));
    return fd;
}
static int revents(int fd, int events) {
    struct pollfd p = {.fd = fd, .events = events};
    OK(poll(&p, 1, 0));
    return p.revents;
}
#define ALL_EVENTS (POLLIN | POLLOUT | POLLRDHUP | POLLPRI)

static volatile int pipes_caught;
static void on_pipe(int n) { (void)n; pipes_caught++; }
static void on_alarm(int n) { (void)n; }

static void socket_arguments(void) {
    ERR(socket(AF_UNIX, 99, 0), EINVAL);
    ERR(socket(AF_UNIX, 7, 0), ESOCKTNOSUPPORT);
    ERR(socket(AF_UNIX, SOCK_STREAM, 5), EPROTONOSUPPORT);
    ERR(socket(AF_UNIX, SOCK_STREAM | 0x100, 0), EINVAL);
    ERR(socket(77, SOCK_STREAM, 0), EAFNOSUPPORT);
    ERR(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, 8), EFAULT);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, AF_UNIX);
    OK(fd);
    EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    EQ(fcntl(fd, F_GETFL), O_RDWR | O_NONBLOCK);
    struct stat st;
    OK(fstat(fd, &st));
    TRUE(S_ISSOCK(st.st_mode));
    char link[64], name[64], want[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1);
    OK(n);
    name[n] = 0;
    snprintf(want, sizeof want, "socket:[%lu]", (unsigned long)st.st_ino);
    STREQ(name, want);
    ERR(open(link, O_RDWR), ENXIO);
    ERR(lseek(fd, 0, SEEK_SET), ESPIPE);
    char c;
    ERR(pread(fd, &c, 1, 0), ESPIPE);
    int p[2];
    OK(pipe(p));
    ERR(listen(p[0], 1), ENOTSOCK);
    ERR(send(p[1], "x", 1, 0), ENOTSOCK);
    ERR(listen(99, 1), EBADF);
    ERR(shutdown(fd, 3), EINVAL);
}

static void pair_carries_bytes(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    EQ(write(s[0], "hello", 5), 5);
    EQ(write(s[1], "abc", 3), 3);
    char b[16];
    EQ(read(s[1], b, 2), 2);
    EQ(read(s[1], b, 16), 3);
    TRUE(!memcmp(b, "llo", 3));
    EQ(recv(s[0], b, 16, MSG_PEEK), 3);
    int n;
    OK(ioctl(s[0], FIONREAD, &n));
    EQ(n, 3);
    EQ(recv(s[0], b, 16, 0), 3);
    ERR(recv(s[0], b, 16, MSG_DONTWAIT), EAGAIN);
    EQ(read(s[0], b, 0), 0);
    EQ(write(s[0], "", 0), 0);
    ERR(recv(s[1], b, 16, MSG_DONTWAIT), EAGAIN);
    OK(ioctl(s[0], SIOCOUTQ, &n));
    EQ(n, 0);
    ERR(write(s[0], (void *)8, 5), EFAULT);
    ERR(recv(s[0], b, 4, MSG_DONTWAIT | MSG_OOB), s[0] < 0 ? 0 : in_sandbox() ? EOPNOTSUPP : errno);
}

static void reader_waits(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    CHILD_PID(pid) {
        sleep_ms(60);
        EQ(write(s[1], "q", 1), 1);
        _exit(0);
    }
    char c;
    double start = now();
    EQ(read(s[0], &c, 1), 1);
    TRUE(now() - start > 0.03);
    reap_ok(pid);
}

static void writer_waits_for_room(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    CHILD_PID(pid) {
        static char block[1500000];
        for (size_t i = 0; i < sizeof block; i++) block[i] = (char)(i * 7 + i / 1000);
        EQ(write(s[1], block, sizeof block), sizeof block);
        _exit(0);
    }
    close(s[1]);
    static char got[2000000];
    size_t total = 0;
    ssize_t n;
    while ((n = read(s[0], got + total, 70000)) > 0) total += n;
    EQ(n, 0);
    EQ(total, 1500000);
    for (size_t i = 0; i < total; i++) if (got[i] != (char)(i * 7 + i / 1000)) FAIL("byte %zu differs", i);
    reap_ok(pid);
}

static void waitall_and_low_water(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    CHILD_PID(pid) {
        for (int i = 0; i < 4; i++) { EQ(write(s[1], "abc", 3), 3); sleep_ms(20); }
        _exit(0);
    }
    char b[16];
    EQ(recv(s[0], b, 12, MSG_WAITALL), 12);
    TRUE(!memcmp(b, "abcabcabcabc", 12));
    reap_ok(pid);
    EQ(write(s[1], "xyz", 3), 3);
    close(s[1]);
    EQ(recv(s[0], b, 12, MSG_WAITALL), 3);
    EQ(recv(s[0], b, 12, MSG_WAITALL), 0);
}

static void full_buffer(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s));
    static char block[4096];
    long total = 0, n;
    TRUE(revents(s[0], POLLOUT) & POLLOUT);
    while ((n = write(s[0], block, sizeof block)) > 0) total += n;
    EQ(errno, EAGAIN);
    TRUE(total >= 64 << 10 && total < 1 << 20);
    EQ(revents(s[0], POLLOUT), 0);
    struct pollfd p = {.fd = s[0], .events = POLLOUT};
    CHILD_PID(pid) {
        sleep_ms(30);
        while (read(s[1], block, sizeof block) > 0) {}
        _exit(0);
    }
    EQ(poll(&p, 1, 5000), 1);
    EQ(p.revents, POLLOUT);
    reap_ok(pid);
    // A smaller buffer holds less.
    int small = 8192, got;
    socklen_t len = sizeof got;
    OK(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
    OK(getsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &got, &len));
    EQ(got, 16384);
    long less = 0;
    while ((n = write(s[0], block, 1024)) > 0) less += n;
    TRUE(less > 0 && less <= 20000);
}

static void end_of_file_and_broken_pipe(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    EQ(write(s[1], "x", 1), 1);
    close(s[1]);
    char c;
    EQ(read(s[0], &c, 1), 1);
    EQ(read(s[0], &c, 1), 0);
    EQ(read(s[0], &c, 1), 0);
    CHILD_PID(pid) {
        EQ(write(s[0], "x", 1), 1);
        _exit(0);
    }
    EQ(reap(pid), SIGPIPE);
    signal(SIGPIPE, on_pipe);
    ERR(write(s[0], "x", 1), EPIPE);
    EQ(pipes_caught, 1);
    ERR(send(s[0], "x", 1, 0), EPIPE);
    EQ(pipes_caught, 2);
    ERR(send(s[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    EQ(pipes_caught, 2);
    EQ(revents(s[0], ALL_EVENTS), POLLIN | POLLOUT | POLLHUP | POLLRDHUP);
}

static void unread_data_reset_the_other_side(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    EQ(write(s[0], "lost", 4), 4);
    EQ(write(s[1], "kept", 4), 4);
    close(s[1]);
    TRUE(revents(s[0], 0) & POLLERR);
    char b[8];
    EQ(read(s[0], b, 8), 4);
    ERR(read(s[0], b, 8), ECONNRESET);
    EQ(read(s[0], b, 8), 0);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    EQ(write(s[0], "lost", 4), 4);
    close(s[1]);
    int error;
    socklen_t len = sizeof error;
    OK(getsockopt(s[0], SOL_SOCKET, SO_ERROR, &error, &len));
    EQ(error, ECONNRESET);
    OK(getsockopt(s[0], SOL_SOCKET, SO_ERROR, &error, &len));
    EQ(error, 0);
    EQ(read(s[0], b, 8), 0);
}

static void shutdown_of_directions(void) {
    signal(SIGPIPE, SIG_IGN);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    EQ(write(s[0], "last", 4), 4);
    OK(shutdown(s[0], SHUT_WR));
    ERR(write(s[0], "x", 1), EPIPE);
    EQ(revents(s[1], ALL_EVENTS), POLLIN | POLLOUT | POLLRDHUP);
    EQ(revents(s[0], ALL_EVENTS), POLLOUT);
    char b[8];
    EQ(read(s[1], b, 8), 4);
    EQ(read(s[1], b, 8), 0);
    EQ(write(s[1], "back", 4), 4);
    EQ(read(s[0], b, 8), 4);
    OK(shutdown(s[1], SHUT_WR));
    EQ(read(s[0], b, 8), 0);
    TRUE(revents(s[0], 0) & POLLHUP);
    // The reading side: the other may not write any more.
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    OK(shutdown(s[0], SHUT_RD));
    ERR(write(s[1], "x", 1), EPIPE);
    EQ(read(s[0], b, 8), 0);
    EQ(write(s[0], "x", 1), 1);
    int lone = socket(AF_UNIX, SOCK_STREAM, 0);
    OK(shutdown(lone, SHUT_RDWR));
}

static void shutdown_wakes_waiters(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    CHILD_PID(pid) {
        char c;
        EQ(read(s[0], &c, 1), 0);
        _exit(0);
    }
    sleep_ms(30);
    OK(shutdown(s[0], SHUT_RDWR));
    reap_ok(pid);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    CHILD_PID(other) {
        close(s[1]);
        static char block[1 << 20];
        signal(SIGPIPE, SIG_IGN);
        ssize_t n = write(s[0], block, sizeof block);
        TRUE(n > 0 && n < (ssize_t)sizeof block);
        ERR(write(s[0], block, 1), EPIPE);
        _exit(0);
    }
    close(s[0]);
    // Once it has begun to write, it waits for room.
    int n = 0;
    while (n == 0) { sleep_ms(5); OK(ioctl(s[1], FIONREAD, &n)); }
    close(s[1]);
    reap_ok(other);
}

static void stream_by_path(void) {
    enter_scratch();
    socklen_t len, got;
    struct sockaddr_un a = path_name("listener", &len), b;
    umask(027);
    int l = socket(AF_UNIX, SOCK_STREAM, 0);
    ERR(listen(l, 5), EINVAL);
    // The terminating NUL is not needed.
    OK(bind(l, ADDR(a), len - 1));
    struct stat st;
    OK(stat("listener", &st));
    EQ(st.st_mode, S_IFSOCK | 0750);
    ERR(open("listener", O_RDWR), ENXIO);
    got = sizeof b;
    OK(getsockname(l, ADDR(b), &got));
    EQ(got, len);
    STREQ(b.sun_path, "listener");
    ERR(bind(l, ADDR(a), len), EADDRINUSE);
    b = path_name("second", &got);
    ERR(bind(l, ADDR(b), got), EINVAL);
    ERR(stat("second", &st), ENOENT);
    int other = socket(AF_UNIX, SOCK_STREAM, 0);
    ERR(bind(other, ADDR(a), len), EADDRINUSE);
    int wrong = socket(AF_UNIX, SOCK_DGRAM, 0);
    ERR(connect(wrong, ADDR(a), len), EPROTOTYPE);
    ERR(connect(other, ADDR(a), len), ECONNREFUSED);
    ERR(accept(l, NULL, NULL), EINVAL);
    EQ(revents(l, ALL_EVENTS), POLLOUT | POLLHUP);
    OK(listen(l, 5));
    EQ(revents(l, ALL_EVENTS), 0);
    int flag;
    got = sizeof flag;
    OK(getsockopt(l, SOL_SOCKET, SO_ACCEPTCONN, &flag, &got));
    EQ(flag, 1);
    ERR(connect(l, ADDR(a), len), EINVAL);
    OK(connect(other, ADDR(a), len));
    ERR(connect(other, ADDR(a), len), EISCONN);
    EQ(revents(l, ALL_EVENTS), POLLIN);
    // What is sent before accept waits.
    EQ(write(other, "early", 5), 5);
    got = sizeof b;
    int c = accept4(l, ADDR(b), &got, SOCK_CLOEXEC | SOCK_NONBLOCK);
    OK(c);
    EQ(got, 2);
    EQ(b.sun_family, AF_UNIX);
    EQ(fcntl(c, F_GETFD), FD_CLOEXEC);
    TRUE(fcntl(c, F_GETFL) & O_NONBLOCK);
    char text[16];
    EQ(read(c, text, 16), 5);
    ERR(read(c, text, 16), EAGAIN);
    got = sizeof b;
    OK(getsockname(c, ADDR(b), &got));
    STREQ(b.sun_path, "listener");
    got = sizeof b;
    OK(getpeername(other, ADDR(b), &got));
    EQ(got, len);
    STREQ(b.sun_path, "listener");
    got = 4;
    memset(&b, 'z', sizeof b);
    OK(getpeername(other, ADDR(b), &got));
    EQ(got, len);
    TRUE(!memcmp(b.sun_path, "lizz", 4));
    ERR(getpeername(l, ADDR(b), &got), ENOTCONN);
    ERR(sendto(other, "x", 1, 0, ADDR(a), len), EISCONN);
    ERR(accept4(l, NULL, NULL, 1), EINVAL);
    fcntl(l, F_SETFL, O_NONBLOCK);
    ERR(accept(l, NULL, NULL), EAGAIN);
    // The name stays when the socket goes, and refuses.
    close(l);
    int late = socket(AF_UNIX, SOCK_STREAM, 0);
    ERR(connect(late, ADDR(a), len), ECONNREFUSED);
    OK(unlink("listener"));
    ERR(connect(late, ADDR(a), len), ENOENT);
    write_file("plain", "", 0666);
    a = path_name("plain", &len);
    ERR(connect(late, ADDR(a), len), ECONNREFUSED);
    a = path_name("plain/x", &len);
    ERR(bind(late, ADDR(a), len), ENOTDIR);
    ERR(bind(late, ADDR(a), 111), EINVAL);
    ERR(bind(late, ADDR(a), -1), EINVAL);
    a.sun_family = 9;
    ERR(bind(late, ADDR(a), len), EINVAL);
    // Through a link, and from another directory.
    a = path_name("again", &len);
    l = bound(SOCK_STREAM, a, len);
    OK(listen(l, 1));
    OK(symlink("again", "link"));
    OK(rename("again", "moved"));
    OK(symlink("moved", "link2"));
    a = path_name("link", &len);
    ERR(connect(late, ADDR(a), len), ENOENT);
    a = path_name("link2", &len);
    OK(connect(late, ADDR(a), len));
}

static void permissions(void) {
    if (getuid() != 0) return;
    enter_scratch();
    OK(chmod(".", 0755));
    socklen_t len;
    struct sockaddr_un a = path_name("private", &len);
    umask(0);
    int l = bound(SOCK_STREAM, a, len);
    OK(listen(l, 5));
    OK(chmod("private", 0755));
    CHILD_PID(pid) {
        OK(setresgid(1000, 1000, 1000));
        OK(setresuid(1000, 1000, 1000));
        int c = socket(AF_UNIX, SOCK_STREAM, 0);
        ERR(connect(c, ADDR(a), len), EACCES);
        struct sockaddr_un n = path_name("new", &len);
        ERR(bind(c, ADDR(n), len), EACCES);
        _exit(0);
    }
    reap_ok(pid);
    OK(chmod("private", 0777));
    CHILD_PID(other) {
        OK(setresgid(1000, 1000, 1000));
        OK(setresuid(1000, 1000, 1000));
        int c = socket(AF_UNIX, SOCK_STREAM, 0);
        OK(connect(c, ADDR(a), len));
        _exit(0);
    }
    reap_ok(other);
    int c = accept(l, NULL, NULL);
    struct ucred peer;
    socklen_t size = sizeof peer;
    OK(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &peer, &size));
    EQ(peer.pid, other);
    EQ(peer.uid, 1000);
    EQ(peer.gid, 1000);
}

static void abstract_names(void) {
    socklen_t len, got;
    struct sockaddr_un a = abstract_name("x", &len), b;
    int l = bound(SOCK_STREAM, a, len);
    int other = socket(AF_UNIX, SOCK_STREAM, 0);
    ERR(bind(other, ADDR(a), len), EADDRINUSE);
    OK(listen(l, 0));
    got = sizeof b;
    OK(getsockname(l, ADDR(b), &got));
    EQ(got, len);
    TRUE(!memcmp(&a, &b, len));
    // One byte more is another name.
    ERR(connect(other, ADDR(a), len + 1), ECONNREFUSED);
    OK(connect(other, ADDR(a), len));
    int wrong = socket(AF_UNIX, SOCK_DGRAM, 0);
    // Each type has its own.
    ERR(connect(wrong, ADDR(a), len), ECONNREFUSED);
    int twin = bound(SOCK_DGRAM, a, len);
    OK(connect(wrong, ADDR(a), len));
    ERR(bind(l, ADDR(a), len), EINVAL);
    close(l);
    l = bound(SOCK_STREAM, a, len);
    // A name of the kernel's choice: NUL and five digits.
    int any = socket(AF_UNIX, SOCK_DGRAM, 0);
    sa_family_t family = AF_UNIX;
    OK(bind(any, (void *)&family, sizeof family));
    got = sizeof b;
    OK(getsockname(any, ADDR(b), &got));
    EQ(got, 8);
    EQ(b.sun_path[0], 0);
    for (int i = 1; i < 6; i++) TRUE(strchr("0123456789abcdef", b.sun_path[i]));
    got = sizeof b;
    OK(getsockname(wrong, ADDR(b), &got));
    EQ(got, 2);
}

static void backlog(void) {
    socklen_t len;
    struct sockaddr_un a = abstract_name("b", &len);
    int l = bound(SOCK_STREAM, a, len), c[8];
    OK(listen(l, 2));
    for (int i = 0; i < 8; i++) c[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    // One more than the backlog.
    for (int i = 0; i < 3; i++) OK(connect(c[i], ADDR(a), len));
    ERR(connect(c[3], ADDR(a), len), EAGAIN);
    int x = accept(l, NULL, NULL);
    OK(x);
    OK(connect(c[3], ADDR(a), len));
    fcntl(c[4], F_SETFL, 0);
    struct timeval t = {0, 50000};
    OK(setsockopt(c[4], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t));
    ERR(connect(c[4], ADDR(a), len), EAGAIN);
    CHILD_PID(pid) {
        fcntl(c[5], F_SETFL, 0);
        OK(connect(c[5], ADDR(a), len));
        _exit(0);
    }
    sleep_ms(50);
    OK(accept(l, NULL, NULL));
    reap_ok(pid);
    // Without a descriptor for it, a connection stays.
    struct rlimit { unsigned long soft, hard; } limit, old;
    OK(syscall(SYS_prlimit64, 0, 7, NULL, &old));
    limit = old;
    limit.soft = 0;
    OK(syscall(SYS_prlimit64, 0, 7, &limit, NULL));
    ERR(accept(l, NULL, NULL), EMFILE);
    OK(syscall(SYS_prlimit64, 0, 7, &old, NULL));
    OK(accept(l, NULL, NULL));
    // Those that were not accepted are reset.
    close(l);
    char b;
    ERR(read(c[3], &b, 1), ECONNRESET);
    EQ(read(c[0], &b, 1), -1);
    EQ(errno, EAGAIN);
}

static void accept_waits(void) {
    socklen_t len;
    struct sockaddr_un a = abstract_name("w", &len);
    int l = bound(SOCK_SEQPACKET, a, len);
    OK(listen(l, 2));
    struct timeval t = {0, 40000};
    OK(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    double start = now();
    ERR(accept(l, NULL, NULL), EAGAIN);
    TRUE(now() - start > 0.03);
    t.tv_sec = 10;
    OK(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    CHILD_PID(pid) {
        sleep_ms(40);
        int c = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        OK(connect(c, ADDR(a), len));
        EQ(send(c, "one", 3, 0), 3);
        EQ(send(c, "two!", 4, MSG_EOR), 4);
        char b[8];
        EQ(recv(c, b, 8, 0), 2);
        _exit(0);
    }
    int c = accept(l, NULL, NULL);
    OK(c);
    char b[16];
    EQ(recv(c, b, 16, 0), 3);
    EQ(recv(c, b, 16, 0), 4);
    EQ(send(c, "ok", 2, 0), 2);
    reap_ok(pid);
    EQ(recv(c, b, 16, 0), 0);
}

static void datagrams(void) {
    enter_scratch();
    socklen_t len, blen, got;
    struct sockaddr_un a = path_name("a", &len), b = path_name("b", &blen), from;
    int x = bound(SOCK_DGRAM, a, len), y = bound(SOCK_DGRAM, b, blen);
    ERR(send(x, "q", 1, 0), ENOTCONN);
    ERR(listen(x, 1), EOPNOTSUPP);
    ERR(accept(x, NULL, NULL), EOPNOTSUPP);
    EQ(sendto(x, "hello", 5, 0, ADDR(b), blen), 5);
    EQ(sendto(x, "", 0, 0, ADDR(b), blen), 0);
    EQ(sendto(x, "world", 5, 0, ADDR(b), blen), 5);
    int n;
    OK(ioctl(y, FIONREAD, &n));
    EQ(n, 5);
    char t[16];
    got = sizeof from;
    EQ(recvfrom(y, t, 3, MSG_PEEK, ADDR(from), &got), 3);
    EQ(got, len);
    STREQ(from.sun_path, "a");
    EQ(recvfrom(y, t, 3, MSG_TRUNC, ADDR(from), &got), 5);
    EQ(recv(y, t, 16, 0), 0);
    struct iovec v = {t, 2};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_name = &from, .msg_namelen = sizeof from};
    EQ(recvmsg(y, &m, 0), 2);
    EQ(m.msg_flags, MSG_TRUNC);
    EQ(m.msg_namelen, len);
    ERR(recv(y, t, 16, MSG_DONTWAIT), EAGAIN);
    // Without a name.
    int z = socket(AF_UNIX, SOCK_DGRAM, 0);
    EQ(sendto(z, "n", 1, 0, ADDR(b), blen), 1);
    got = sizeof from;
    EQ(recvfrom(y, t, 16, 0, ADDR(from), &got), 1);
    TRUE(got == 0 || got == 2);
    // An association takes only what its peer sends.
    OK(connect(y, ADDR(a), len));
    ERR(sendto(z, "n", 1, 0, ADDR(b), blen), EPERM);
    ERR(connect(z, ADDR(b), blen), EPERM);
    EQ(send(y, "to a", 4, 0), 4);
    EQ(sendto(x, "back", 4, 0, ADDR(b), blen), 4);
    EQ(recv(y, t, 16, 0), 4);
    got = sizeof from;
    OK(getpeername(y, ADDR(from), &got));
    STREQ(from.sun_path, "a");
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    OK(connect(y, &none, sizeof none));
    ERR(send(y, "x", 1, 0), ENOTCONN);
    EQ(sendto(z, "n", 1, 0, ADDR(b), blen), 1);
    // A peer that has gone.
    OK(connect(z, ADDR(b), blen));
    close(y);
    ERR(send(z, "x", 1, 0), ECONNREFUSED);
    ERR(send(z, "x", 1, 0), ENOTCONN);
    ERR(sendto(x, "x", 1, 0, ADDR(b), blen), ECONNREFUSED);
    static char big[1 << 20];
    ERR(sendto(x, big, sizeof big, 0, ADDR(a), len), EMSGSIZE);
    EQ(sendto(x, big, 60000, 0, ADDR(a), len), 60000);
}

static void datagram_queue_is_bounded(void) {
    socklen_t len;
    struct sockaddr_un a = abstract_name("q", &len);
    int r = bound(SOCK_DGRAM, a, len), w = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    OK(connect(w, ADDR(a), len));
    int sent = 0;
    while (sent < 5000 && send(w, "m", 1, 0) == 1) sent++;
    EQ(errno, EAGAIN);
    TRUE(sent >= 10 && sent < 1000);
    EQ(revents(w, POLLOUT), 0);
    CHILD_PID(pid) {
        sleep_ms(40);
        char c;
        for (int i = 0; i < sent; i++) EQ(recv(r, &c, 1, MSG_DONTWAIT), 1);
        _exit(0);
    }
    struct pollfd p = {.fd = w, .events = POLLOUT};
    EQ(poll(&p, 1, 5000), 1);
    reap_ok(pid);
    EQ(send(w, "m", 1, 0), 1);
}

static void datagram_pairs(void) {
    signal(SIGPIPE, on_pipe);
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    EQ(send(s[0], "abc", 3, 0), 3);
    EQ(write(s[0], "de", 2), 2);
    EQ(write(s[0], "", 0), 0);
    char b[8];
    EQ(read(s[1], b, 8), 3);
    EQ(read(s[1], b, 1), 1);
    EQ(read(s[1], b, 8), 0);
    ERR(recv(s[1], b, 8, MSG_DONTWAIT), EAGAIN);
    OK(shutdown(s[1], SHUT_RD));
    ERR(send(s[0], "abc", 3, 0), EPIPE);
    EQ(pipes_caught, 0);
    OK(shutdown(s[0], SHUT_WR));
    ERR(write(s[0], "abc", 3), EPIPE);
    EQ(pipes_caught, 0);
    EQ(read(s[1], b, 8), 0);
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    close(s[1]);
    EQ(revents(s[0], ALL_EVENTS), POLLOUT);
    ERR(send(s[0], "x", 1, 0), ECONNREFUSED);
    ERR(recv(s[0], b, 8, MSG_DONTWAIT), EAGAIN);
}

static void packets(void) {
    signal(SIGPIPE, on_pipe);
    OK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
    for (int i = 0; i < 40; i++) EQ(send(s[0], "abcdef", 1 + i % 6, 0), 1 + i % 6);
    int n;
    char b[8];
    for (int i = 0; i < 40; i++) EQ(recv(s[1], b, 8, 0), 1 + i % 6);
    EQ(send(s[0], "abcdef", 6, 0), 6);
    EQ(recv(s[1], b, 2, 0), 2);
    ERR(recv(s[1], b, 2, MSG_DONTWAIT), EAGAIN);
    OK(ioctl(s[1], FIONREAD, &n));
    EQ(n, 0);
    EQ(send(s[0], "last", 4, 0), 4);
    close(s[0]);
    EQ(revents(s[1], ALL_EVENTS), POLLIN | POLLOUT | POLLHUP | POLLRDHUP);
    EQ(recv(s[1], b, 8, 0), 4);
    EQ(recv(s[1], b, 8, 0), 0);
    EQ(recv(s[1], b, 8, MSG_DONTWAIT), 0);
    ERR(send(s[1], "x", 1, 0), EPIPE);
    int got = pipes_caught;
    EQ(got, 0);
    int lone = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    ERR(recv(lone, b, 8, 0), ENOTCONN);
    ERR(send(lone, b, 8, 0), ENOTCONN);
    EQ(revents(lone, ALL_EVENTS), POLLOUT | POLLHUP);
}

static void unconnected_streams(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char b[8];
    ERR(read(fd, b, 8), EINVAL);
    ERR(send(fd, b, 8, 0), ENOTCONN);
    socklen_t len;
    struct sockaddr_un a = abstract_name("n", &len);
    ERR(sendto(fd, b, 8, 0, ADDR(a), len), EOPNOTSUPP);
    ERR(getpeername(fd, ADDR(a), &len), ENOTCONN);
    EQ(revents(fd, ALL_EVENTS), POLLOUT | POLLHUP);
    struct ucred peer;
    len = sizeof peer;
    OK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len));
    EQ(peer.pid, 0);
    EQ(peer.uid, -1u);
}

// Control data with descriptors.
static ssize_t send_fds(int to, const int *fds, int count, const char *text, size_t len) {
    char control[CMSG_SPACE(sizeof(int) * 300)];
    struct iovec v = {(void *)text, len};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(count * 4)};
    memset(control, 0, sizeof control);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(count * 4);
    memcpy(CMSG_DATA(c), fds, count * 4);
    return sendmsg(to, &m, 0);
}
// Receives with room for `room` descriptors; how many came.
static int recv_fds(int from, int *fds, int room, char *text, size_t size, ssize_t *got, int flags, int *out_flags) {
    char control[CMSG_SPACE(sizeof(int) * 300)];
    struct iovec v = {text, size};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_LEN(room * 4)};
    if (room == 0) m.msg_control = NULL, m.msg_controllen = 0;
    *got = recvmsg(from, &m, flags);
    if (out_flags) *out_flags = m.msg_flags;
    struct cmsghdr *c = *got < 0 ? NULL : CMSG_FIRSTHDR(&m);
    if (!c) return 0;
    EQ(c->cmsg_level, SOL_SOCKET);
    EQ(c->cmsg_type, SCM_RIGHTS);
    int count = (c->cmsg_len - CMSG_LEN(0)) / 4;
    memcpy(fds, CMSG_DATA(c), count * 4);
    return count;
}

static void rights(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    int p[2], got[8], flags;
    OK(pipe(p));
    ssize_t n;
    char t[16];
    EQ(send_fds(s[0], p, 2, "fd", 2), 2);
    close(p[0]);
    EQ(recv_fds(s[1], got, 8, t, 16, &n, MSG_CMSG_CLOEXEC, &flags), 2);
    EQ(n, 2);
    EQ(fcntl(got[0], F_GETFD), FD_CLOEXEC);
    EQ(write(p[1], "through", 7), 7);
    EQ(read(got[0], t, 16), 7);
    EQ(write(got[1], "again", 5), 5);
    EQ(read(got[0], t, 16), 5);
    close(got[0]);
    close(got[1]);
    // No further than the bytes that they came with.
    EQ(write(s[0], "ab", 2), 2);
    EQ(send_fds(s[0], p + 1, 1, "cd", 2), 2);
    EQ(write(s[0], "ef", 2), 2);
    EQ(recv_fds(s[1], got, 8, t, 16, &n, 0, &flags), 1);
    EQ(n, 4);
    EQ(fcntl(got[0], F_GETFD), 0);
    close(got[0]);
    EQ(recv_fds(s[1], got, 8, t, 16, &n, 0, &flags), 0);
    EQ(n, 2);
    // A part of the bytes takes them all.
    EQ(send_fds(s[0], p + 1, 1, "xyz", 3), 3);
    EQ(recv_fds(s[1], got, 8, t, 1, &n, 0, &flags), 1);
    close(got[0]);
    EQ(recv_fds(s[1], got, 8, t, 8, &n, 0, &flags), 0);
    EQ(n, 2);
    // Peeking copies.
    EQ(send_fds(s[0], p + 1, 1, "p", 1), 1);
    EQ(recv_fds(s[1], got, 8, t, 8, &n, MSG_PEEK, &flags), 1);
    EQ(recv_fds(s[1], got + 1, 8, t, 8, &n, 0, &flags), 1);
    close(got[0]);
    close(got[1]);
    // No room: MSG_CTRUNC, and what does not fit is closed.
    int both[2] = {p[1], p[1]};
    EQ(send_fds(s[0], both, 2, "p", 1), 1);
    EQ(recv_fds(s[1], got, 1, t, 8, &n, 0, &flags), 1);
    TRUE(flags & MSG_CTRUNC);
    close(got[0]);
    EQ(send_fds(s[0], both, 2, "p", 1), 1);
    EQ(recv_fds(s[1], got, 0, t, 8, &n, 0, &flags), 0);
    TRUE(flags & MSG_CTRUNC);
    EQ(send_fds(s[0], both, 2, "p", 1), 1);
    EQ(read(s[1], t, 8), 1);
    OK(pipe(p));
    EQ(send_fds(s[0], p + 1, 1, "p", 1), 1);
    close(p[1]);
    // In flight it is open.
    struct pollfd f = {.fd = p[0], .events = POLLIN};
    EQ(poll(&f, 1, 0), 0);
    close(s[0]);
    close(s[1]);
    EQ(read(p[0], t, 1), 0);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    int bad = 99;
    ERR(send_fds(s[0], &bad, 1, "p", 1), EBADF);
    int many[254];
    for (int i = 0; i < 254; i++) many[i] = s[0];
    ERR(send_fds(s[0], many, 254, "p", 1), EINVAL);
    EQ(send_fds(s[0], many, 253, "p", 1), 1);
    static int all[300];
    EQ(recv_fds(s[1], all, 300, t, 8, &n, 0, &flags), 253);
}

static void rights_in_messages(void) {
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    int p[2], got[4], flags;
    ssize_t n;
    char t[8];
    OK(pipe(p));
    EQ(send_fds(s[0], p, 1, "", 0), 0);
    EQ(send_fds(s[0], p, 2, "ab", 2), 2);
    EQ(recv_fds(s[1], got, 4, t, 8, &n, MSG_PEEK, &flags), 1);
    EQ(recv_fds(s[1], got, 4, t, 8, &n, 0, &flags), 1);
    EQ(n, 0);
    EQ(recv_fds(s[1], got, 4, t, 1, &n, 0, &flags), 2);
    EQ(n, 1);
    EQ(flags, MSG_TRUNC);
    // A descriptor limit cuts.
    struct rlimit { unsigned long soft, hard; } limit = {got[1] + 1, 1024};
    EQ(send_fds(s[0], p, 2, "ab", 2), 2);
    OK(syscall(SYS_prlimit64, 0, 7, &limit, NULL));
    EQ(recv_fds(s[1], got, 4, t, 8, &n, 0, &flags), 0);
    EQ(flags, MSG_CTRUNC);
    EQ(n, 2);
}

static void too_many_in_flight(void) {
    if (getuid() == 0) {
        OK(setresgid(1234, 1234, 1234));
        OK(setresuid(54321, 54321, 54321));
    }
    struct rlimit { unsigned long soft, hard; } limit = {64, 1024};
    OK(syscall(SYS_prlimit64, 0, 7, &limit, NULL));
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    int many[40], sent = 0;
    for (int i = 0; i < 40; i++) many[i] = s[0];
    while (sent < 10 && send_fds(s[0], many, 40, "x", 1) == 1) sent++;
    EQ(errno, ETOOMANYREFS);
    TRUE(sent >= 1 && sent <= 3);
    char c;
    for (int i = 0; i < sent; i++) EQ(recv(s[1], &c, 1, 0), 1);
    EQ(send_fds(s[0], many, 40, "x", 1), 1);
}

// The write end of a pipe goes into a cycle of sockets that nobody holds: it is closed all the same.
static void cycles_are_collected(void) {
    int p[2];
    char c;
    OK(pipe(p));
    for (int round = 0; round < 3; round++) {
        OK(socketpair(AF_UNIX, round == 1 ? SOCK_DGRAM : SOCK_STREAM, 0, s));
        if (round < 2) {
            // Each in the other's queue.
            int to_a[2] = {s[0], p[1]}, to_b[2] = {s[1], p[1]};
            EQ(send_fds(s[0], to_b, 2, "x", 1), 1);
            EQ(send_fds(s[1], to_a, 2, "x", 1), 1);
            EQ(send_fds(s[0], to_a, 2, "x", 1), 1);
        } else {
            // In a connection that waits at a listener that is in flight there.
            socklen_t len;
            struct sockaddr_un a = abstract_name("cycle", &len);
            int l = bound(SOCK_STREAM, a, len), k = socket(AF_UNIX, SOCK_STREAM, 0);
            OK(listen(l, 3));
            OK(connect(k, ADDR(a), len));
            int both[2] = {l, p[1]};
            EQ(send_fds(k, both, 2, "x", 1), 1);
            close(l);
            close(k);
        }
        close(s[0]);
        close(s[1]);
    }
    close(p[1]);
    // The end of any socket looks for what is left.
    for (int i = 0; i < 100; i++) {
        close(socket(AF_UNIX, SOCK_STREAM, 0));
        struct pollfd f = {.fd = p[0], .events = POLLIN};
        if (poll(&f, 1, 20) == 1) break;
    }
    EQ(read(p[0], &c, 1), 0);
}

// A long chain of sockets in sockets: its end is not a deep recursion.
static void nested_sockets_go(void) {
    if (!in_sandbox()) return;
    int p[2], last, prev = -1;
    char c;
    OK(pipe(p));
    last = p[1];
    for (int i = 0; i < 800; i++) {
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
        EQ(send_fds(s[0], &last, 1, "x", 1), 1);
        close(last);
        if (prev >= 0) close(prev);
        close(s[0]);
        last = s[1];
    }
    close(last);
    EQ(read(p[0], &c, 1), 0);
}

static struct ucred *cred_of(struct msghdr *m) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) return (void *)CMSG_DATA(c);
    return NULL;
}
static ssize_t recv_cred(int fd, struct ucred *out, char *text, size_t size) {
    static char control[256];
    struct iovec v = {text, size};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
    struct ucred *c = n < 0 ? NULL : cred_of(&m);
    if (c) *out = *c; else out->pid = -1;
    return n;
}
static ssize_t send_cred(int fd, struct ucred c) {
    char control[CMSG_SPACE(sizeof c)] = {0};
    struct iovec v = {"c", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_CREDENTIALS;
    h->cmsg_len = CMSG_LEN(sizeof c);
    memcpy(CMSG_DATA(h), &c, sizeof c);
    return sendmsg(fd, &m, 0);
}

static void credentials(void) {
    int on = 1;
    struct ucred c;
    char t[32];
    socklen_t len = sizeof c;
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    OK(getsockopt(s[0], SOL_SOCKET, SO_PEERCRED, &c, &len));
    EQ(c.pid, getpid());
    EQ(c.uid, geteuid());
    EQ(write(s[0], "before", 6), 6);
    EQ(recv_cred(s[1], &c, t, 32), 6);
    EQ(c.pid, -1);
    EQ(write(s[0], "unnamed", 7), 7);
    OK(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    EQ(write(s[0], "named", 5), 5);
    // Not joined: the senders differ.
    EQ(recv_cred(s[1], &c, t, 32), 7);
    EQ(c.pid, 0);
    EQ(c.uid, 65534);
    EQ(recv_cred(s[1], &c, t, 32), 5);
    EQ(c.pid, getpid());
    EQ(c.uid, getuid());
    EQ(c.gid, getgid());
    CHILD_PID(pid) {
        EQ(write(s[0], "child", 5), 5);
        _exit(0);
    }
    reap_ok(pid);
    EQ(write(s[0], "parent", 6), 6);
    EQ(recv_cred(s[1], &c, t, 32), 5);
    EQ(c.pid, pid);
    EQ(recv_cred(s[1], &c, t, 32), 6);
    EQ(c.pid, getpid());
    EQ(send_cred(s[0], (struct ucred){getpid(), getuid(), getgid()}), 1);
    EQ(recv_cred(s[1], &c, t, 32), 1);
    if (getuid() == 0) {
        EQ(send_cred(s[0], (struct ucred){getpid(), 77, 78}), 1);
        EQ(recv_cred(s[1], &c, t, 32), 1);
        EQ(c.uid, 77);
        EQ(c.gid, 78);
        OK(setresuid(1000, 1000, 1000));
    }
    ERR(send_cred(s[0], (struct ucred){getpid(), 0, getgid()}), EPERM);
    ERR(send_cred(s[0], (struct ucred){1, getuid(), getgid()}), getpid() == 1 ? 0 : EPERM);
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    OK(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    EQ(write(s[0], "dgram", 5), 5);
    EQ(recv_cred(s[1], &c, t, 32), 5);
    EQ(c.pid, getpid());
    // It has had itself named by then.
    socklen_t alen;
    struct sockaddr_un a;
    EQ(write(s[1], "x", 1), 1);
    alen = sizeof a;
    OK(getsockname(s[1], ADDR(a), &alen));
    EQ(alen, 8);
}

static void malformed_control_data(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    char control[64] = {0};
    struct iovec v = {"c", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 32};
    struct cmsghdr *h = (void *)control;
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = 33;
    ERR(sendmsg(s[0], &m, 0), EINVAL);
    h->cmsg_len = 3;
    ERR(sendmsg(s[0], &m, 0), EINVAL);
    h->cmsg_len = 20;
    h->cmsg_type = 77;
    ERR(sendmsg(s[0], &m, 0), EINVAL);
    h->cmsg_type = SCM_CREDENTIALS;
    ERR(sendmsg(s[0], &m, 0), EINVAL);
    h->cmsg_level = 123;
    EQ(sendmsg(s[0], &m, 0), 1);
    m.msg_control = (void *)8;
    ERR(sendmsg(s[0], &m, 0), EFAULT);
    m.msg_control = control;
    m.msg_controllen = 1 << 30;
    TRUE(sendmsg(s[0], &m, 0) == -1);
    m.msg_controllen = 0;
    m.msg_iovlen = 1025;
    ERR(sendmsg(s[0], &m, 0), EMSGSIZE);
    ERR(sendmsg(s[0], (void *)8, 0), EFAULT);
    ERR(recvmsg(s[1], (void *)8, 0), EFAULT);
    m.msg_iovlen = 0;
    EQ(sendmsg(s[0], &m, 0), 0);
}

static void options(void) {
    int v, fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t len = sizeof v;
#define GET(name) ({ v = -99; len = sizeof v; OK(getsockopt(fd, SOL_SOCKET, name, &v, &len)); EQ(len, 4); v; })
#define SET(name, value) ({ v = value; OK(setsockopt(fd, SOL_SOCKET, name, &v, sizeof v)); })
    EQ(GET(SO_TYPE), SOCK_STREAM);
    EQ(GET(SO_DOMAIN), AF_UNIX);
    EQ(GET(SO_PROTOCOL), 0);
    EQ(GET(SO_ERROR), 0);
    EQ(GET(SO_ACCEPTCONN), 0);
    EQ(GET(SO_SNDBUF), 212992);
    EQ(GET(SO_RCVBUF), 212992);
    SET(SO_RCVBUF, 10000);
    EQ(GET(SO_RCVBUF), 20000);
    SET(SO_SNDBUF, 1);
    EQ(GET(SO_SNDBUF), 4608);
    SET(SO_SNDBUF, 100 << 20);
    TRUE(GET(SO_SNDBUF) >= 212992 * 2);
    int switches[] = {SO_REUSEADDR, SO_KEEPALIVE, SO_BROADCAST, SO_DONTROUTE, SO_OOBINLINE, SO_PASSCRED};
    for (unsigned i = 0; i < sizeof switches / 4; i++) {
        EQ(GET(switches[i]), 0);
        SET(switches[i], 7);
        EQ(GET(switches[i]), 1);
        SET(switches[i], 0);
        EQ(GET(switches[i]), 0);
    }
    EQ(GET(SO_PEEK_OFF), -1);
    EQ(GET(SO_RCVLOWAT), 1);
    SET(SO_RCVLOWAT, 5);
    EQ(GET(SO_RCVLOWAT), 5);
    struct linger l = {1, 9}, l2;
    OK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    len = sizeof l2;
    OK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &l2, &len));
    EQ(l2.l_onoff, 1);
    EQ(l2.l_linger, 9);
    ERR(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, 4), EINVAL);
    struct timeval t = {2, 500000}, t2;
    OK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    len = sizeof t2;
    OK(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t2, &len));
    EQ(len, 16);
    EQ(t2.tv_sec, 2);
    EQ(t2.tv_usec, 500000);
    t.tv_usec = 1000000;
    ERR(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t), EDOM);
    ERR(setsockopt(fd, SOL_SOCKET, SO_TYPE, &v, sizeof v), ENOPROTOOPT);
    ERR(setsockopt(fd, SOL_SOCKET, 999, &v, sizeof v), ENOPROTOOPT);
    ERR(getsockopt(fd, SOL_SOCKET, 999, &v, &len), ENOPROTOOPT);
    ERR(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &v, 2), EINVAL);
    ERR(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, (void *)8, 4), EFAULT);
    ERR(setsockopt(fd, 6, 1, &v, sizeof v), EOPNOTSUPP);
    ERR(getsockopt(fd, 6, 1, &v, &len), EOPNOTSUPP);
    len = 2;
    OK(getsockopt(fd, SOL_SOCKET, SO_TYPE, &v, &len));
    EQ(len, 2);
    len = -1;
    ERR(getsockopt(fd, SOL_SOCKET, SO_TYPE, &v, &len), EINVAL);
}

static void timeouts(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    struct timeval t = {0, 50000};
    OK(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    OK(setsockopt(s[0], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t));
    char c;
    double start = now();
    ERR(read(s[0], &c, 1), EAGAIN);
    TRUE(now() - start > 0.04);
    static char block[1 << 20];
    ssize_t n = write(s[0], block, sizeof block);
    TRUE(n > 0 && n < (ssize_t)sizeof block);
    ERR(write(s[0], block, sizeof block), EAGAIN);
}

static void peek_offset(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    int off = 0;
    char b[8] = "";
    EQ(write(s[0], "abcdef", 6), 6);
    OK(setsockopt(s[1], SOL_SOCKET, SO_PEEK_OFF, &off, sizeof off));
    EQ(recv(s[1], b, 2, MSG_PEEK), 2);
    TRUE(!memcmp(b, "ab", 2));
    EQ(recv(s[1], b, 2, MSG_PEEK), 2);
    TRUE(!memcmp(b, "cd", 2));
    EQ(recv(s[1], b, 3, 0), 3);
    TRUE(!memcmp(b, "abc", 3));
    socklen_t len = sizeof off;
    OK(getsockopt(s[1], SOL_SOCKET, SO_PEEK_OFF, &off, &len));
    EQ(off, 1);
    EQ(recv(s[1], b, 8, MSG_PEEK), 2);
    TRUE(!memcmp(b, "ef", 2));
    ERR(recv(s[1], b, 8, MSG_PEEK | MSG_DONTWAIT), EAGAIN);
}

static void epoll_states(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s));
    int e = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET}, out[4];
    OK(epoll_ctl(e, EPOLL_CTL_ADD, s[0], &ev));
    EQ(epoll_wait(e, out, 4, 0), 1);
    EQ(out[0].events, EPOLLOUT);
    EQ(epoll_wait(e, out, 4, 0), 0);
    EQ(write(s[1], "x", 1), 1);
    EQ(epoll_wait(e, out, 4, 1000), 1);
    TRUE(out[0].events & EPOLLIN);
    EQ(epoll_wait(e, out, 4, 0), 0);
    OK(shutdown(s[1], SHUT_WR));
    EQ(epoll_wait(e, out, 4, 1000), 1);
    TRUE(out[0].events & EPOLLRDHUP);
    close(s[1]);
    EQ(epoll_wait(e, out, 4, 1000), 1);
    TRUE(out[0].events & EPOLLHUP);
    // A socket that is watched before it listens or connects.
    socklen_t len;
    struct sockaddr_un a = abstract_name("e", &len);
    int l = bound(SOCK_STREAM, a, len), c = socket(AF_UNIX, SOCK_STREAM, 0);
    ev = (struct epoll_event){.events = EPOLLIN};
    int e2 = epoll_create1(0);
    OK(listen(l, 4));
    OK(epoll_ctl(e2, EPOLL_CTL_ADD, l, &ev));
    EQ(epoll_wait(e2, out, 4, 0), 0);
    OK(connect(c, ADDR(a), len));
    EQ(epoll_wait(e2, out, 4, 1000), 1);
    EQ(out[0].events, EPOLLIN);
    OK(epoll_ctl(e2, EPOLL_CTL_ADD, c, &ev));
    int d = accept(l, NULL, NULL);
    EQ(epoll_wait(e2, out, 4, 0), 0);
    EQ(write(d, "y", 1), 1);
    EQ(epoll_wait(e2, out, 4, 1000), 1);
}

static volatile int alarms;
static void count_alarm(int n) { (void)n; alarms++; }
static void interrupted_waits(void) {
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    struct sigaction sa = {.sa_handler = on_alarm};
    OK(sigaction(SIGALRM, &sa, NULL));
    volatile int *phase = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHILD_PID(pid) {
        while (*phase == 0) { sleep_ms(20); kill(getppid(), SIGALRM); }
        for (int i = 0; i < 4; i++) { sleep_ms(20); kill(getppid(), SIGALRM); }
        sleep_ms(20);
        EQ(write(s[1], "x", 1), 1);
        _exit(0);
    }
    char c;
    ERR(read(s[0], &c, 1), EINTR);
    // A call with a timeout is not restarted.
    struct timeval t = {60, 0};
    sa.sa_handler = count_alarm;
    sa.sa_flags = SA_RESTART;
    OK(sigaction(SIGALRM, &sa, NULL));
    OK(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    ERR(read(s[0], &c, 1), EINTR);
    t.tv_sec = 0;
    OK(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
    alarms = 0;
    *phase = 1;
    EQ(read(s[0], &c, 1), 1);
    TRUE(alarms >= 1);
    reap_ok(pid);
}

static void many_messages(void) {
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    struct mmsghdr m[4] = {0};
    struct iovec v[4];
    char b[4][8];
    for (int i = 0; i < 4; i++) {
        v[i] = (struct iovec){"abcd", i + 1};
        m[i].msg_hdr = (struct msghdr){.msg_iov = &v[i], .msg_iovlen = 1};
    }
    EQ(sendmmsg(s[0], m, 3, 0), 3);
    EQ(m[2].msg_len, 3);
    for (int i = 0; i < 4; i++) v[i] = (struct iovec){b[i], 8};
    EQ(recvmmsg(s[1], m, 2, 0, NULL), 2);
    EQ(m[0].msg_len, 1);
    EQ(m[1].msg_len, 2);
    EQ(recvmmsg(s[1], m, 4, MSG_WAITFORONE, NULL), 1);
    EQ(m[0].msg_len, 3);
    ERR(recvmmsg(s[1], m, 4, MSG_DONTWAIT, NULL), EAGAIN);
    EQ(sendmmsg(s[0], m, 0, 0), 0);
}

static void other_ways_to_move_bytes(void) {
    enter_scratch();
    write_file("f", "0123456789", 0600);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    int f = open("f", O_RDONLY), p[2];
    char b[16] = "";
    EQ(sendfile(s[0], f, NULL, 10), 10);
    struct iovec in[2] = {{b, 4}, {b + 4, 12}};
    EQ(readv(s[1], in, 2), 10);
    STREQ(b, "0123456789");
    struct iovec out[2] = {{"ab", 2}, {"cdef", 4}};
    EQ(writev(s[0], out, 2), 6);
    OK(pipe(p));
    EQ(splice(s[1], NULL, p[1], NULL, 100, 0), 6);
    EQ(splice(p[0], NULL, s[1], NULL, 100, 0), 6);
    EQ(read(s[0], b, 16), 6);
    TRUE(!memcmp(b, "abcdef", 6));
}

static void listed_in_proc(void) {
    socklen_t len;
    struct sockaddr_un a = abstract_name("listed", &len);
    int l = bound(SOCK_STREAM, a, len);
    OK(listen(l, 1));
    struct stat st;
    OK(fstat(l, &st));
    char want[128];
    snprintf(want, sizeof want, " 00010000 0001 01 %5lu @abi-%d-listed\n", (unsigned long)st.st_ino, getpid());
    char *text = slurp("/proc/net/unix", NULL);
    if (!strstr(text, want)) FAIL("no line \"%s\" in\n%s", want, text);
    close(l);
    TRUE(!strstr(slurp("/proc/net/unix", NULL), want));
}

static void *echo(void *arg) {
    int fd = (int)(long)arg;
    char b[512];
    ssize_t n;
    while ((n = read(fd, b, sizeof b)) > 0) EQ(write(fd, b, n), n);
    close(fd);
    return NULL;
}
static void threads_talk(void) {
    socklen_t len;
    struct sockaddr_un a = abstract_name("t", &len);
    int l = bound(SOCK_STREAM, a, len);
    OK(listen(l, 64));
    pthread_t t[8], e[8];
    int c[8];
    for (int i = 0; i < 8; i++) {
        c[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        OK(connect(c[i], ADDR(a), len));
        pthread_create(&e[i], NULL, echo, (void *)(long)accept(l, NULL, NULL));
    }
    for (int round = 0; round < 200; round++)
        for (int i = 0; i < 8; i++) {
            char b[512], r[512];
            size_t n = 1 + (round * 13 + i) % 400;
            memset(b, round + i, n);
            EQ(write(c[i], b, n), n);
            EQ(recv(c[i], r, n, MSG_WAITALL), n);
            TRUE(!memcmp(b, r, n));
        }
    for (int i = 0; i < 8; i++) {
        shutdown(c[i], SHUT_WR);
        pthread_join(e[i], NULL);
        char x;
        EQ(read(c[i], &x, 1), 0);
    }
    (void)t;
}

TESTS(T(socket_arguments), T(pair_carries_bytes), T(reader_waits), T(writer_waits_for_room), T(waitall_and_low_water),
      T(full_buffer), T(end_of_file_and_broken_pipe), T(unread_data_reset_the_other_side), T(shutdown_of_directions),
      T(shutdown_wakes_waiters), T(stream_by_path), T(permissions), T(abstract_names), T(backlog), T(accept_waits),
      T(datagrams), T(datagram_queue_is_bounded), T(datagram_pairs), T(packets), T(unconnected_streams), T(rights),
      T(rights_in_messages), T(too_many_in_flight), T(cycles_are_collected), T(nested_sockets_go), T(credentials),
      T(malformed_control_data), T(options), T(timeouts), T(peek_offset), T(epoll_states), T(interrupted_waits),
      T(many_messages), T(other_ways_to_move_bytes), T(listed_in_proc), T(threads_talk))

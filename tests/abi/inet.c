// AF_INET and AF_INET6 over the loopback interface: TCP, UDP, names, ports, options, readiness; and the netlink of getifaddrs.
#include "abi.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/sockios.h>

#define ADDR(a) ((struct sockaddr *)&(a))
#define ALL_EVENTS (POLLIN | POLLOUT | POLLRDHUP | POLLPRI)

static struct sockaddr_in v4(const char *ip, int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, ip, &a.sin_addr);
    return a;
}
static struct sockaddr_in6 v6(const char *ip, int port) {
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    inet_pton(AF_INET6, ip, &a.sin6_addr);
    return a;
}
static int local_port(int fd) {
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    OK(getsockname(fd, ADDR(a), &len));
    return ntohs(((struct sockaddr_in *)&a)->sin_port);
}
static int peer_port(int fd) {
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    OK(getpeername(fd, ADDR(a), &len));
    return ntohs(((struct sockaddr_in *)&a)->sin_port);
}
static int revents(int fd, int events) {
    struct pollfd p = {.fd = fd, .events = events};
    OK(poll(&p, 1, 0));
    return p.revents;
}
static int wait_for(int fd, int events) {
    struct pollfd p = {.fd = fd, .events = events};
    EQ(poll(&p, 1, 5000), 1);
    return p.revents;
}
static int option(int fd, int level, int name) {
    int v = -99;
    socklen_t len = sizeof v;
    OK(getsockopt(fd, level, name, &v, &len));
    return v;
}
static void set(int fd, int level, int name, int v) { OK(setsockopt(fd, level, name, &v, sizeof v)); }

// A listener on 127.0.0.1 and any port.
static int listener(int backlog) {
    int l = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = v4("127.0.0.1", 0);
    OK(bind(l, ADDR(a), sizeof a));
    OK(listen(l, backlog));
    return l;
}
static int c, s;
// c is connected to s.
static void connected(void) {
    int l = listener(5);
    struct sockaddr_in a = v4("127.0.0.1", local_port(l));
    c = socket(AF_INET, SOCK_STREAM, 0);
    OK(connect(c, ADDR(a), sizeof a));
    s = accept(l, NULL, NULL);
    OK(s);
    close(l);
}

static void connect_and_talk(void) {
    int l = listener(5), port = local_port(l);
    TRUE(port > 0);
    EQ(option(l, SOL_SOCKET, SO_ACCEPTCONN), 1);
    EQ(option(l, SOL_SOCKET, SO_PROTOCOL), IPPROTO_TCP);
    EQ(option(l, SOL_SOCKET, SO_DOMAIN), AF_INET);
    EQ(revents(l, ALL_EVENTS), 0);
    c = socket(AF_INET, SOCK_STREAM, 0);
    EQ(revents(c, ALL_EVENTS), POLLOUT | POLLHUP);
    char b[16];
    ERR(recv(c, b, 1, 0), ENOTCONN);
    ERR(send(c, b, 1, MSG_NOSIGNAL), EPIPE);
    ERR(shutdown(socket(AF_INET, SOCK_STREAM, 0), SHUT_WR), ENOTCONN);
    struct sockaddr_in a = v4("127.0.0.1", port), from;
    socklen_t len = sizeof from;
    ERR(getpeername(c, ADDR(from), &len), ENOTCONN);
    OK(connect(c, ADDR(a), sizeof a));
    ERR(connect(c, ADDR(a), sizeof a), EISCONN);
    EQ(wait_for(l, POLLIN), POLLIN);
    EQ(write(c, "early", 5), 5);
    len = sizeof from;
    s = accept4(l, ADDR(from), &len, SOCK_CLOEXEC);
    OK(s);
    EQ(len, sizeof from);
    EQ(from.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
    EQ(ntohs(from.sin_port), local_port(c));
    EQ(peer_port(c), port);
    EQ(local_port(s), port);
    EQ(peer_port(s), local_port(c));
    TRUE(local_port(c) != port);
    EQ(read(s, b, 16), 5);
    EQ(write(s, "back", 4), 4);
    EQ(recv(c, b, 16, MSG_PEEK), 4);
    int n;
    OK(ioctl(c, FIONREAD, &n));
    EQ(n, 4);
    EQ(recv(c, b, 2, MSG_TRUNC), 2);
    EQ(read(c, b, 16), 2);
    EQ(revents(c, ALL_EVENTS), POLLOUT);
    ERR(recv(c, b, 16, MSG_DONTWAIT), EAGAIN);
    // An address with a connected send is of no use and does no harm.
    EQ(sendto(c, "x", 1, 0, ADDR(a), sizeof a), 1);
    EQ(wait_for(s, POLLIN), POLLIN);
}

static void refusal(void) {
    int l = listener(1), port = local_port(l);
    close(l);
    struct sockaddr_in a = v4("127.0.0.1", port);
    c = socket(AF_INET, SOCK_STREAM, 0);
    ERR(connect(c, ADDR(a), sizeof a), ECONNREFUSED);
    EQ(option(c, SOL_SOCKET, SO_ERROR), 0);
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    ERR(connect(c, ADDR(a), sizeof a), EINPROGRESS);
    TRUE(wait_for(c, POLLOUT) & POLLERR);
    EQ(option(c, SOL_SOCKET, SO_ERROR), ECONNREFUSED);
    EQ(option(c, SOL_SOCKET, SO_ERROR), 0);
    // What was told by SO_ERROR is not told again.
    ERR(connect(c, ADDR(a), sizeof a), ECONNABORTED);
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    ERR(connect(c, ADDR(a), sizeof a), EINPROGRESS);
    ERR(connect(c, ADDR(a), sizeof a), ECONNREFUSED);
    c = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_family = AF_INET6;
    ERR(connect(c, ADDR(a), sizeof a), EAFNOSUPPORT);
    ERR(connect(c, ADDR(a), 8), EINVAL);
    ERR(bind(c, ADDR(a), 8), EINVAL);
    // Tried again once there is somebody.
    l = socket(AF_INET, SOCK_STREAM, 0);
    set(l, SOL_SOCKET, SO_REUSEADDR, 1);
    a = v4("127.0.0.1", port);
    OK(bind(l, ADDR(a), sizeof a));
    OK(listen(l, 1));
    c = socket(AF_INET, SOCK_STREAM, 0);
    OK(connect(c, ADDR(a), sizeof a));
}

static void connecting_without_waiting(void) {
    int l = listener(5);
    struct sockaddr_in a = v4("127.0.0.1", local_port(l));
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int e = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLOUT | EPOLLET}, out;
    ERR(connect(c, ADDR(a), sizeof a), EINPROGRESS);
    OK(epoll_ctl(e, EPOLL_CTL_ADD, c, &ev));
    EQ(epoll_wait(e, &out, 1, 5000), 1);
    EQ(out.events, EPOLLOUT);
    EQ(option(c, SOL_SOCKET, SO_ERROR), 0);
    OK(connect(c, ADDR(a), sizeof a));
    ERR(connect(c, ADDR(a), sizeof a), EISCONN);
    fcntl(l, F_SETFL, O_NONBLOCK);
    OK(accept(l, NULL, NULL));
    ERR(accept(l, NULL, NULL), EAGAIN);
}

static void full_backlog(void) {
    int l = listener(1), more[4];
    struct sockaddr_in a = v4("127.0.0.1", local_port(l));
    for (int i = 0; i < 4; i++) {
        more[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        ERR(connect(more[i], ADDR(a), sizeof a), EINPROGRESS);
    }
    TRUE(wait_for(more[1], POLLOUT) & POLLOUT);
    EQ(revents(more[3], POLLOUT), 0);
    ERR(connect(more[3], ADDR(a), sizeof a), EALREADY);
    for (int i = 0; i < 4; i++) OK(accept(l, NULL, NULL));
    EQ(wait_for(more[3], POLLOUT), POLLOUT);
    OK(connect(more[3], ADDR(a), sizeof a));
}

static volatile int pipes_caught;
static void on_pipe(int n) { (void)n; pipes_caught++; }

static void ends(void) {
    signal(SIGPIPE, on_pipe);
    char b[8];
    connected();
    EQ(write(c, "last", 4), 4);
    OK(shutdown(c, SHUT_WR));
    ERR(write(c, "x", 1), EPIPE);
    EQ(pipes_caught, 1);
    EQ(wait_for(s, POLLRDHUP), POLLRDHUP);
    EQ(revents(s, ALL_EVENTS), POLLIN | POLLOUT | POLLRDHUP);
    EQ(read(s, b, 8), 4);
    EQ(read(s, b, 8), 0);
    EQ(write(s, "still", 5), 5);
    EQ(read(c, b, 8), 5);
    close(s);
    EQ(read(c, b, 8), 0);
    // The first write after the other side has closed goes out; the next one knows.
    connected();
    close(s);
    EQ(read(c, b, 8), 0);
    EQ(write(c, "x", 1), 1);
    sleep_ms(20);
    ERR(send(c, "x", 1, MSG_NOSIGNAL), EPIPE);
    EQ(read(c, b, 8), 0);
    // Unread data, or no lingering: reset.
    connected();
    EQ(write(c, "lost", 4), 4);
    wait_for(s, POLLIN);
    close(s);
    wait_for(c, POLLIN);
    TRUE(revents(c, ALL_EVENTS) & POLLERR);
    ERR(read(c, b, 8), ECONNRESET);
    EQ(read(c, b, 8), 0);
    connected();
    struct linger l = {1, 0};
    OK(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    close(s);
    wait_for(c, POLLIN);
    struct sockaddr_in gone;
    socklen_t len = sizeof gone;
    ERR(getpeername(c, ADDR(gone), &len), ENOTCONN);
    ERR(send(c, "x", 1, 0), ECONNRESET);
    EQ(pipes_caught, 1);
    ERR(send(c, "x", 1, 0), EPIPE);
    EQ(pipes_caught, 2);
}

static void urgent_byte(void) {
    connected();
    char b[16];
    int mark;
    ERR(recv(s, b, 1, MSG_OOB), EINVAL);
    EQ(send(c, "abcX", 4, MSG_OOB), 4);
    EQ(write(c, "def", 3), 3);
    TRUE(wait_for(s, POLLPRI) & POLLPRI);
    while (ioctl(s, FIONREAD, &mark) == 0 && mark < 3) sleep_ms(5);
    sleep_ms(20);
    OK(ioctl(s, SIOCATMARK, &mark));
    EQ(mark, 0);
    EQ(recv(s, b, 16, 0), 3);
    OK(ioctl(s, SIOCATMARK, &mark));
    EQ(mark, 1);
    EQ(recv(s, b, 16, MSG_OOB), 1);
    EQ(b[0], 'X');
    ERR(recv(s, b, 16, MSG_OOB), EINVAL);
    EQ(revents(s, POLLPRI), 0);
    EQ(recv(s, b, 16, 0), 3);
    TRUE(!memcmp(b, "def", 3));
    set(s, SOL_SOCKET, SO_OOBINLINE, 1);
    EQ(send(c, "abX", 3, MSG_OOB), 3);
    int have = 0;
    while (have < 3) { ssize_t n = recv(s, b + have, 3 - have, 0); TRUE(n > 0); have += n; }
    TRUE(!memcmp(b, "abX", 3));
}

static void listener_goes(void) {
    int l = listener(5);
    struct sockaddr_in a = v4("127.0.0.1", local_port(l));
    c = socket(AF_INET, SOCK_STREAM, 0);
    OK(connect(c, ADDR(a), sizeof a));
    CHILD_PID(pid) {
        OK(accept(l, NULL, NULL));
        ERR(accept(l, NULL, NULL), EINVAL);
        _exit(0);
    }
    sleep_ms(50);
    OK(shutdown(l, SHUT_RDWR));
    reap_ok(pid);
    ERR(connect(socket(AF_INET, SOCK_STREAM, 0), ADDR(a), sizeof a), ECONNREFUSED);
    l = listener(5);
    a = v4("127.0.0.1", local_port(l));
    c = socket(AF_INET, SOCK_STREAM, 0);
    OK(connect(c, ADDR(a), sizeof a));
    close(l);
    char b;
    ERR(read(c, &b, 1), ECONNRESET);
}

static void addresses_in_use(void) {
    int l = listener(1), port = local_port(l), o = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = v4("127.0.0.1", port), other = v4("127.0.0.2", port), any = v4("0.0.0.0", port);
    ERR(bind(o, ADDR(a), sizeof a), EADDRINUSE);
    ERR(bind(o, ADDR(any), sizeof any), EADDRINUSE);
    set(o, SOL_SOCKET, SO_REUSEADDR, 1);
    ERR(bind(o, ADDR(a), sizeof a), EADDRINUSE);
    OK(bind(o, ADDR(other), sizeof other));
    ERR(bind(o, ADDR(other), sizeof other), EINVAL);
    struct sockaddr_in far = v4("192.0.2.1", 0);
    ERR(bind(socket(AF_INET, SOCK_STREAM, 0), ADDR(far), sizeof far), EADDRNOTAVAIL);
    // Two that may share, of which one may listen.
    int x = socket(AF_INET, SOCK_STREAM, 0), y = socket(AF_INET, SOCK_STREAM, 0);
    set(x, SOL_SOCKET, SO_REUSEADDR, 1);
    set(y, SOL_SOCKET, SO_REUSEADDR, 1);
    a = v4("127.0.0.1", 0);
    OK(bind(x, ADDR(a), sizeof a));
    a = v4("127.0.0.1", local_port(x));
    OK(bind(y, ADDR(a), sizeof a));
    OK(listen(x, 1));
    ERR(listen(y, 1), EADDRINUSE);
    // A server that starts again while a connection of the last one is there.
    c = socket(AF_INET, SOCK_STREAM, 0);
    OK(connect(c, ADDR(a), sizeof a));
    s = accept(x, NULL, NULL);
    close(x);
    close(y);
    x = socket(AF_INET, SOCK_STREAM, 0);
    ERR(bind(x, ADDR(a), sizeof a), EADDRINUSE);
    set(x, SOL_SOCKET, SO_REUSEADDR, 1);
    OK(bind(x, ADDR(a), sizeof a));
    OK(listen(x, 1));
    // Listeners that share a port, all of them.
    x = socket(AF_INET, SOCK_STREAM, 0), y = socket(AF_INET, SOCK_STREAM, 0);
    set(x, SOL_SOCKET, SO_REUSEPORT, 1);
    set(y, SOL_SOCKET, SO_REUSEPORT, 1);
    a = v4("127.0.0.1", 0);
    OK(bind(x, ADDR(a), sizeof a));
    a = v4("127.0.0.1", local_port(x));
    OK(bind(y, ADDR(a), sizeof a));
    OK(listen(x, 50));
    OK(listen(y, 50));
    int n = 0;
    for (int i = 0; i < 40; i++) OK(connect(socket(AF_INET, SOCK_STREAM, 0), ADDR(a), sizeof a));
    sleep_ms(20);
    fcntl(x, F_SETFL, O_NONBLOCK);
    fcntl(y, F_SETFL, O_NONBLOCK);
    int nx = 0, ny = 0;
    while (accept(x, NULL, NULL) >= 0) nx++;
    while (accept(y, NULL, NULL) >= 0) ny++;
    EQ(nx + ny, 40);
    TRUE(nx > 0 && ny > 0);
    (void)n;
}

static void privileged_ports(void) {
    if (getuid() != 0) return;
    OK(setresuid(1000, 1000, 1000));
    int fd = open("/proc/sys/net/ipv4/ip_unprivileged_port_start", O_RDONLY);
    char text[16] = "1024";
    if (fd >= 0) OK(read(fd, text, 15));
    if (atoi(text) < 1024) return;
    struct sockaddr_in a = v4("127.0.0.1", 1023);
    ERR(bind(socket(AF_INET, SOCK_STREAM, 0), ADDR(a), sizeof a), EACCES);
}

static void much_data(void) {
    connected();
    CHILD_PID(pid) {
        close(s);
        static char block[4 << 20];
        for (size_t i = 0; i < sizeof block; i++) block[i] = (char)(i * 13 + i / 977);
        EQ(write(c, block, sizeof block), sizeof block);
        _exit(0);
    }
    close(c);
    static char got[5 << 20];
    size_t total = 0;
    ssize_t n;
    while ((n = read(s, got + total, 100000)) > 0) total += n;
    EQ(n, 0);
    EQ(total, 4 << 20);
    for (size_t i = 0; i < total; i++) if (got[i] != (char)(i * 13 + i / 977)) FAIL("byte %zu differs", i);
    reap_ok(pid);
    connected();
    fcntl(c, F_SETFL, O_NONBLOCK);
    while (write(c, got, sizeof got) > 0) {}
    EQ(errno, EAGAIN);
    EQ(revents(c, POLLOUT), 0);
    fcntl(s, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 200 && !(revents(c, POLLOUT) & POLLOUT); i++) {
        while (read(s, got, sizeof got) > 0) {}
        sleep_ms(5);
    }
    EQ(revents(c, POLLOUT), POLLOUT);
}

static void six(void) {
    int l = socket(AF_INET6, SOCK_STREAM, 0);
    EQ(option(l, IPPROTO_IPV6, IPV6_V6ONLY), 0);
    struct sockaddr_in6 a = v6("::", 0), from;
    socklen_t len = sizeof from;
    OK(bind(l, ADDR(a), sizeof a));
    ERR(setsockopt(l, IPPROTO_IPV6, IPV6_V6ONLY, &len, sizeof len), EINVAL);
    OK(listen(l, 5));
    int port = local_port(l);
    a = v6("::1", port);
    c = socket(AF_INET6, SOCK_STREAM, 0);
    OK(connect(c, ADDR(a), sizeof a));
    s = accept(l, ADDR(from), &len);
    OK(s);
    EQ(len, sizeof from);
    TRUE(IN6_IS_ADDR_LOOPBACK(&from.sin6_addr));
    EQ(ntohs(from.sin6_port), local_port(c));
    // An IPv4 client of a dual listener.
    struct sockaddr_in b = v4("127.0.0.1", port);
    c = socket(AF_INET, SOCK_STREAM, 0);
    OK(connect(c, ADDR(b), sizeof b));
    len = sizeof from;
    s = accept(l, ADDR(from), &len);
    TRUE(IN6_IS_ADDR_V4MAPPED(&from.sin6_addr));
    EQ(write(s, "6", 1), 1);
    char x;
    EQ(read(c, &x, 1), 1);
    // The port is taken for both, unless it is for IPv6 only.
    int o = socket(AF_INET, SOCK_STREAM, 0);
    b = v4("0.0.0.0", port);
    ERR(bind(o, ADDR(b), sizeof b), EADDRINUSE);
    l = socket(AF_INET6, SOCK_STREAM, 0);
    set(l, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    a = v6("::", 0);
    OK(bind(l, ADDR(a), sizeof a));
    OK(listen(l, 5));
    b = v4("0.0.0.0", local_port(l));
    OK(bind(o, ADDR(b), sizeof b));
    b = v4("127.0.0.1", local_port(l));
    ERR(connect(socket(AF_INET, SOCK_STREAM, 0), ADDR(b), sizeof b), ECONNREFUSED);
}

static void datagrams(void) {
    int x = socket(AF_INET, SOCK_DGRAM, 0), y = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = v4("127.0.0.1", 0), from, none = {.sin_family = AF_UNSPEC};
    socklen_t len = sizeof from;
    char b[64];
    EQ(option(x, SOL_SOCKET, SO_PROTOCOL), IPPROTO_UDP);
    ERR(send(y, "x", 1, 0), EDESTADDRREQ);
    OK(bind(x, ADDR(a), sizeof a));
    int port = local_port(x);
    a = v4("127.0.0.1", port);
    ERR(bind(socket(AF_INET, SOCK_DGRAM, 0), ADDR(a), sizeof a), EADDRINUSE);
    EQ(sendto(y, "hello", 5, 0, ADDR(a), sizeof a), 5);
    EQ(sendto(y, "", 0, 0, ADDR(a), sizeof a), 0);
    EQ(wait_for(x, POLLIN), POLLIN);
    EQ(recvfrom(x, b, 64, MSG_PEEK, ADDR(from), &len), 5);
    EQ(ntohs(from.sin_port), local_port(y));
    EQ(from.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
    EQ(recv(x, b, 2, MSG_TRUNC), 5);
    EQ(recv(x, b, 64, 0), 0);
    ERR(recv(x, b, 64, MSG_DONTWAIT), EAGAIN);
    OK(connect(y, ADDR(a), sizeof a));
    EQ(peer_port(y), port);
    EQ(send(y, "conn", 4, 0), 4);
    EQ(recv(x, b, 64, 0), 4);
    // Only the peer's datagrams come in.
    int z = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to_y = v4("127.0.0.1", local_port(y));
    EQ(sendto(z, "stranger", 8, 0, ADDR(to_y), sizeof to_y), 8);
    EQ(sendto(x, "peer", 4, 0, ADDR(to_y), sizeof to_y), 4);
    EQ(recv(y, b, 64, 0), 4);
    ERR(recv(y, b, 64, MSG_DONTWAIT), EAGAIN);
    // Nobody there: known to the connected.
    close(x);
    EQ(send(y, "x", 1, 0), 1);
    TRUE(wait_for(y, POLLIN) & POLLERR);
    EQ(option(y, SOL_SOCKET, SO_ERROR), ECONNREFUSED);
    EQ(send(y, "x", 1, 0), 1);
    sleep_ms(20);
    ERR(recv(y, b, 64, MSG_DONTWAIT), ECONNREFUSED);
    OK(connect(y, ADDR(none), sizeof none));
    ERR(getpeername(y, ADDR(from), &len), ENOTCONN);
    // A port that was not asked for goes with the association.
    EQ(local_port(y), 0);
    OK(bind(y, ADDR(to_y), sizeof to_y));
    static char big[70000];
    ERR(sendto(z, big, 65508, 0, ADDR(a), sizeof a), EMSGSIZE);
    EQ(sendto(z, big, 65507, 0, ADDR(to_y), sizeof to_y), 65507);
    EQ(recv(y, big, sizeof big, 0), 65507);
    // More than the receiver holds is lost, and the sender does not wait.
    for (int i = 0; i < 1000; i++) EQ(sendto(z, big, 1000, 0, ADDR(to_y), sizeof to_y), 1000);
    int n = 0;
    sleep_ms(20);
    while (recv(y, big, sizeof big, MSG_DONTWAIT) == 1000) n++;
    TRUE(n > 10 && n < 1000);
    int six = socket(AF_INET6, SOCK_DGRAM, 0), w = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 a6 = v6("::1", 0), from6;
    OK(bind(six, ADDR(a6), sizeof a6));
    a6 = v6("::1", local_port(six));
    EQ(sendto(w, "6", 1, 0, ADDR(a6), sizeof a6), 1);
    len = sizeof from6;
    EQ(recvfrom(six, b, 64, 0, ADDR(from6), &len), 1);
    TRUE(IN6_IS_ADDR_LOOPBACK(&from6.sin6_addr));
}

// What a datagram's packet says, asked for by options, and set by control data.
static void packet_information(void) {
    for (int six = 0; six < 2; six++) {
        int level = six ? IPPROTO_IPV6 : IPPROTO_IP, family = six ? AF_INET6 : AF_INET;
        int r = socket(family, SOCK_DGRAM, 0), w = socket(family, SOCK_DGRAM, 0);
        struct sockaddr_in a4 = v4("127.0.0.1", 0);
        struct sockaddr_in6 a6 = v6("::1", 0);
        struct sockaddr *a = six ? ADDR(a6) : ADDR(a4);
        socklen_t len = six ? sizeof a6 : sizeof a4;
        OK(bind(r, a, len));
        OK(getsockname(r, a, &len));
        set(r, level, six ? IPV6_RECVHOPLIMIT : IP_RECVTTL, 1);
        set(r, level, six ? IPV6_RECVPKTINFO : IP_PKTINFO, 1);
        for (int round = 0; round < 2; round++) {
            char control[256], b[8];
            memset(control, 0, sizeof control);
            struct iovec v = {b, 1};
            struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_name = a, .msg_namelen = len};
            if (round) {
                m.msg_control = control;
                m.msg_controllen = CMSG_SPACE(4);
                struct cmsghdr *h = CMSG_FIRSTHDR(&m);
                h->cmsg_level = level;
                h->cmsg_type = six ? IPV6_HOPLIMIT : IP_TTL;
                h->cmsg_len = CMSG_LEN(4);
                *(int *)CMSG_DATA(h) = 7;
            }
            EQ(sendmsg(w, &m, 0), 1);
            m = (struct msghdr){.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
            EQ(recvmsg(r, &m, 0), 1);
            int ttl = -1, index = -1;
            for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
                EQ(h->cmsg_level, level);
                if (h->cmsg_type == (six ? IPV6_HOPLIMIT : IP_TTL)) ttl = *(int *)CMSG_DATA(h);
                if (six && h->cmsg_type == IPV6_PKTINFO) {
                    struct in6_pktinfo *i = (void *)CMSG_DATA(h);
                    TRUE(IN6_IS_ADDR_LOOPBACK(&i->ipi6_addr));
                    index = i->ipi6_ifindex;
                }
                if (!six && h->cmsg_type == IP_PKTINFO) {
                    struct in_pktinfo *i = (void *)CMSG_DATA(h);
                    EQ(i->ipi_addr.s_addr, htonl(INADDR_LOOPBACK));
                    index = i->ipi_ifindex;
                }
            }
            EQ(ttl, round ? 7 : 64);
            EQ(index, if_nametoindex("lo"));
            EQ(m.msg_controllen, six ? CMSG_SPACE(20) + CMSG_SPACE(4) : CMSG_SPACE(12) + CMSG_SPACE(4));
        }
    }
}

static void options(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    EQ(option(fd, IPPROTO_TCP, TCP_NODELAY), 0);
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    EQ(option(fd, IPPROTO_TCP, TCP_NODELAY), 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 33);
    EQ(option(fd, IPPROTO_TCP, TCP_KEEPIDLE), 33);
    int bad = 0;
    ERR(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &bad, sizeof bad), EINVAL);
    ERR(setsockopt(fd, IPPROTO_TCP, 200, &bad, sizeof bad), ENOPROTOOPT);
    EQ(option(fd, IPPROTO_IP, IP_TTL), 64);
    set(fd, IPPROTO_IP, IP_TOS, 16);
    EQ(option(fd, IPPROTO_IP, IP_TOS), 16);
    ERR(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP), EPROTONOSUPPORT);
    ERR(socket(AF_INET, SOCK_SEQPACKET, 0), ESOCKTNOSUPPORT);
    ERR(socketpair(AF_INET, SOCK_STREAM, 0, (int[2]){0}), EOPNOTSUPP);
    struct tcp_info info;
    socklen_t len = sizeof info;
    connected();
    OK(getsockopt(c, IPPROTO_TCP, TCP_INFO, &info, &len));
    EQ(info.tcpi_state, TCP_ESTABLISHED);
}

static void interfaces(void) {
    struct ifaddrs *all, *i;
    int found4 = 0, index = if_nametoindex("lo");
    TRUE(index > 0);
    char name[IFNAMSIZ];
    TRUE(if_indextoname(index, name));
    STREQ(name, "lo");
    OK(getifaddrs(&all));
    for (i = all; i; i = i->ifa_next) {
        if (strcmp(i->ifa_name, "lo") || !i->ifa_addr) continue;
        TRUE(i->ifa_flags & IFF_LOOPBACK);
        if (i->ifa_addr->sa_family == AF_INET) found4 += ((struct sockaddr_in *)i->ifa_addr)->sin_addr.s_addr == htonl(INADDR_LOOPBACK);
    }
    EQ(found4, 1);
    freeifaddrs(all);
    struct ifreq r = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    OK(ioctl(fd, SIOCGIFFLAGS, &r));
    EQ(r.ifr_flags & (IFF_UP | IFF_LOOPBACK | IFF_RUNNING), IFF_UP | IFF_LOOPBACK | IFF_RUNNING);
    OK(ioctl(fd, SIOCGIFADDR, &r));
    EQ(((struct sockaddr_in *)&r.ifr_addr)->sin_addr.s_addr, htonl(INADDR_LOOPBACK));
    strcpy(r.ifr_name, "nosuch0");
    ERR(ioctl(fd, SIOCGIFFLAGS, &r), ENODEV);
}

static void listed_in_proc(void) {
    int l = listener(1);
    char want[64];
    snprintf(want, sizeof want, ": 0100007F:%04X 00000000:0000 0A ", local_port(l));
    TRUE(strstr(slurp("/proc/net/tcp", NULL), want));
    close(l);
    TRUE(!strstr(slurp("/proc/net/tcp", NULL), want));
}

static void *serve(void *arg) {
    int l = (int)(long)arg;
    for (;;) {
        int fd = accept(l, NULL, NULL);
        if (fd < 0) return NULL;
        char b[256];
        ssize_t n;
        while ((n = read(fd, b, sizeof b)) > 0) EQ(write(fd, b, n), n);
        close(fd);
    }
}
static void many_connections(void) {
    int l = listener(100);
    struct sockaddr_in a = v4("127.0.0.1", local_port(l));
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, serve, (void *)(long)l);
    for (int i = 0; i < 300; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        OK(connect(fd, ADDR(a), sizeof a));
        char b[100], r[100];
        memset(b, i, sizeof b);
        EQ(write(fd, b, sizeof b), sizeof b);
        EQ(recv(fd, r, sizeof r, MSG_WAITALL), sizeof r);
        TRUE(!memcmp(b, r, sizeof r));
        shutdown(fd, SHUT_WR);
        EQ(read(fd, r, 1), 0);
        close(fd);
    }
    shutdown(l, SHUT_RDWR);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
}

TESTS(T(connect_and_talk), T(refusal), T(connecting_without_waiting), T(full_backlog), T(ends), T(urgent_byte), T(listener_goes),
      T(addresses_in_use), T(privileged_ports), T(much_data), T(six), T(datagrams), T(packet_information), T(options), T(interfaces),
      T(listed_in_proc), T(many_connections))

// /dev: null, zero, full, random, urandom, the descriptor links, and terminals through a pty where there is one.
#include "abi.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>

static void is_device(const char *path, unsigned major_, unsigned minor_) {
    struct stat st;
    OK(stat(path, &st));
    if (!S_ISCHR(st.st_mode) || major(st.st_rdev) != major_ || minor(st.st_rdev) != minor_) FAIL("%s: mode %o device %u:%u", path, st.st_mode, major(st.st_rdev), minor(st.st_rdev));
}
static void nodes(void) {
    is_device("/dev/null", 1, 3);
    is_device("/dev/zero", 1, 5);
    is_device("/dev/full", 1, 7);
    is_device("/dev/random", 1, 8);
    is_device("/dev/urandom", 1, 9);
    is_device("/dev/tty", 5, 0);
}

static void null_device(void) {
    int fd = open("/dev/null", O_RDWR);
    OK(fd);
    char b[10];
    EQ(read(fd, b, 10), 0);
    EQ(write(fd, b, 10), 10);
    struct pollfd f = {fd, POLLIN | POLLOUT, 0};
    EQ(poll(&f, 1, 0), 1);
    EQ(f.revents, POLLIN | POLLOUT);
    OK(open("/dev/null", O_WRONLY | O_TRUNC | O_CREAT, 0666));
    ERR(ioctl(fd, TCGETS, b), ENOTTY);
    EQ(isatty(fd), 0);
}

static void zero_device(void) {
    int fd = open("/dev/zero", O_RDWR);
    char b[10000];
    memset(b, 1, sizeof b);
    EQ(read(fd, b, sizeof b), sizeof b);
    for (size_t i = 0; i < sizeof b; i++) EQ(b[i], 0);
    EQ(write(fd, b, 10), 10);
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    TRUE(p != MAP_FAILED);
    EQ(p[5000], 0);
    p[5000] = 1;
    EQ(p[5000], 1);
}

static void full_device(void) {
    int fd = open("/dev/full", O_RDWR);
    char b[10];
    ERR(write(fd, "x", 1), ENOSPC);
    EQ(read(fd, b, 10), 10);
    EQ(b[9], 0);
}

static void random_devices(void) {
    const char *names[] = {"/dev/random", "/dev/urandom"};
    for (int n = 0; n < 2; n++) {
        int fd = open(names[n], O_RDONLY);
        unsigned char a[32], b[32];
        EQ(read(fd, a, 32), 32);
        EQ(read(fd, b, 32), 32);
        TRUE(memcmp(a, b, 32));
        close(fd);
    }
}

static void descriptor_links(void) {
    int q[2];
    OK(pipe(q));
    EQ(write(q[1], "via", 3), 3);
    char path[64], b[8] = "";
    snprintf(path, sizeof path, "/dev/fd/%d", q[0]);
    int fd = open(path, O_RDONLY);
    OK(fd);
    EQ(read(fd, b, 8), 3);
    STREQ(b, "via");
    struct stat st;
    OK(lstat("/dev/stdin", &st));
    TRUE(S_ISLNK(st.st_mode));
}

static void temporary_space(void) {
    struct stat st;
    OK(stat("/tmp", &st));
    TRUE(S_ISDIR(st.st_mode));
    EQ(st.st_mode & 01777, 01777);
    if (stat("/dev/shm", &st) == 0) {
        int fd = open("/dev/shm/abi-test", O_CREAT | O_RDWR | O_EXCL, 0600);
        OK(fd);
        OK(ftruncate(fd, 4096));
        char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        TRUE(p != MAP_FAILED);
        p[0] = 'q';
        char c;
        EQ(pread(fd, &c, 1, 0), 1);
        EQ(c, 'q');
        OK(unlink("/dev/shm/abi-test"));
    }
}

// A pty pair; the test ends well where the system has none.
static int master_, slave_;
static void open_pty(void) {
    master_ = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    if (master_ < 0 && (errno == ENOENT || errno == ENXIO || errno == ENODEV)) {
        dprintf(1, "# no pty here\n");
        exit(0);
    }
    OK(master_);
    int unlock = 0, number;
    OK(ioctl(master_, TIOCSPTLCK, &unlock));
    OK(ioctl(master_, TIOCGPTN, &number));
    char path[64];
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    slave_ = open(path, O_RDWR | O_NOCTTY);
    OK(slave_);
}

static void pty_line_discipline(void) {
    open_pty();
    EQ(isatty(slave_), 1);
    char b[64];
    EQ(write(master_, "hellx\177o\n", 8), 8); // the erase character removes the x
    memset(b, 0, sizeof b);
    EQ(read(slave_, b, sizeof b), 6);
    STREQ(b, "hello\n");
    memset(b, 0, sizeof b);
    EQ(read(master_, b, sizeof b), 11); // the echo
    STREQ(b, "hellx\b \bo\r\n");
    EQ(write(slave_, "out\n", 4), 4);
    memset(b, 0, sizeof b);
    EQ(read(master_, b, sizeof b), 5); // onlcr
    STREQ(b, "out\r\n");
}

static void pty_raw_mode(void) {
    open_pty();
    struct termios t;
    OK(tcgetattr(slave_, &t));
    TRUE(t.c_lflag & ICANON);
    TRUE(t.c_lflag & ECHO);
    EQ(t.c_cc[VINTR], 3);
    cfmakeraw(&t);
    OK(tcsetattr(slave_, TCSANOW, &t));
    EQ(write(master_, "a", 1), 1);
    char c;
    EQ(read(slave_, &c, 1), 1);
    EQ(c, 'a');
    struct pollfd f = {master_, POLLIN, 0};
    EQ(poll(&f, 1, 50), 0); // no echo
}

static void pty_window_size(void) {
    open_pty();
    struct winsize w = {33, 101, 0, 0}, got;
    OK(ioctl(master_, TIOCSWINSZ, &w));
    OK(ioctl(slave_, TIOCGWINSZ, &got));
    EQ(got.ws_row, 33); EQ(got.ws_col, 101);
}

static volatile int hits, last;
static void hit(int s) { hits++; last = s; }
static void pty_job_control(void) {
    open_pty();
    CHILD_PID(pid) {
        setsid();
        OK(ioctl(slave_, TIOCSCTTY, 0));
        EQ(tcgetsid(slave_), getpid());
        OK(tcsetpgrp(slave_, getpid()));
        EQ(tcgetpgrp(slave_), getpid());
        OK(open("/dev/tty", O_RDWR));
        signal(SIGINT, hit);
        signal(SIGTTIN, hit);
        EQ(write(master_, "\003", 1), 1); // Ctrl-C
        for (int i = 0; i < 1000 && !hits; i++) sleep_ms(5);
        EQ(last, SIGINT);
        // a background group that reads stops
        CHILD_PID(background) {
            setpgid(0, 0);
            signal(SIGTTIN, SIG_DFL);
            char c;
            read(slave_, &c, 1);
            _exit(1);
        }
        int status;
        EQ(waitpid(background, &status, WUNTRACED), background);
        TRUE(WIFSTOPPED(status));
        EQ(WSTOPSIG(status), SIGTTIN);
        kill(background, SIGKILL);
        kill(background, SIGCONT);
        reap(background);
        _exit(0);
    }
    reap_ok(pid);
}

static void pty_hangup(void) {
    open_pty();
    close(slave_);
    char c;
    ERR(read(master_, &c, 1), EIO);
    open_pty();
    close(master_);
    EQ(read(slave_, &c, 1), 0);
    ERR(write(slave_, "x", 1), EIO);
}

TESTS(T(nodes), T(null_device), T(zero_device), T(full_device), T(random_devices), T(descriptor_links), T(temporary_space),
      T(pty_line_discipline), T(pty_raw_mode), T(pty_window_size), T(pty_job_control), T(pty_hangup))

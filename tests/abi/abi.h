// What every ABI test program shares: checks that say what differed, and a runner that gives each test a process of its own.
//
// A program is `TESTS(T(name), ...)` over functions `static void name(void)`. It prints TAP ("ok 1 - name", "not ok ..."),
// a line starting with '#' for what differed, and exits 0 only if everything passed. `prog NAME...` runs the named tests
// alone. A check that fails ends the process it is in with status 99; helper processes are therefore waited for by
// `reap_ok`. ABI_SANDBOX in the environment says that the program runs in a sandbox (a few tests must not run on a host).
#ifndef ABI_H
#define ABI_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

#define FAIL(...)                                            \
    do {                                                     \
        dprintf(1, "# %s:%d: ", __FILE_NAME__, __LINE__);    \
        dprintf(1, __VA_ARGS__);                             \
        dprintf(1, "\n");                                    \
        _exit(99);                                           \
    } while (0)
// got and want are integers.
#define EQ(got, want)                                                                                          \
    do {                                                                                                       \
        long long got_ = (long long)(got), want_ = (long long)(want);                                          \
        if (got_ != want_) FAIL("%s: got %lld (%#llx), want %lld (%s)", #got, got_, got_, want_, strerror(errno)); \
    } while (0)
#define STREQ(got, want)                                                     \
    do {                                                                     \
        const char *g_ = (got), *w_ = (want);                                \
        if (strcmp(g_, w_)) FAIL("%s: got \"%s\", want \"%s\"", #got, g_, w_); \
    } while (0)
#define TRUE(cond)                                                          \
    do {                                                                    \
        if (!(cond)) FAIL("not true: %s (errno %s)", #cond, strerror(errno)); \
    } while (0)
// The call succeeds (is not -1).
#define OK(call)                                                            \
    do {                                                                    \
        if ((long)(call) == -1) FAIL("%s: %s", #call, strerror(errno));     \
    } while (0)
// The call is -1 with this errno.
#define ERR(call, want)                                                                                       \
    do {                                                                                                      \
        errno = 0;                                                                                            \
        long r_ = (long)(call);                                                                               \
        int e_ = errno;                                                                                       \
        if (r_ != -1) FAIL("%s: got %ld, want -1 with %s", #call, r_, strerrorname_np(want));                 \
        if (e_ != (want)) FAIL("%s: got %s, want %s", #call, strerrorname_np(e_), strerrorname_np(want));     \
    } while (0)

// The processor is emulated without all of its exceptions.
static UNUSED int emulated_cpu(void) { return getenv("ABI_EMULATED_CPU") != NULL; }

static UNUSED int in_sandbox(void) { return getenv("ABI_SANDBOX") != NULL; }

static UNUSED void sleep_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) && errno == EINTR) {}
}

static UNUSED double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static UNUSED pid_t fork_or_fail(void) {
    pid_t pid = fork();
    if (pid < 0) FAIL("fork: %s", strerror(errno));
    return pid;
}

// Waits for `pid`; the wait status.
static UNUSED int reap(pid_t pid) {
    int status;
    pid_t got;
    while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR) {}
    if (got != pid) FAIL("waitpid(%d): %d, %s", pid, got, strerror(errno));
    return status;
}

static UNUSED void reap_ok(pid_t pid) {
    int status = reap(pid);
    if (status != 0) FAIL("helper process: wait status %#x", status);
}

// A helper process: `CHILD { ... }` runs the block in a child; its pid is `child_`.
#define CHILD_PID(var) \
    pid_t var = fork_or_fail(); \
    if (var == 0)

// A directory of the test's own, made current. TEST_DIR (or /tmp) holds it.
static char scratch[256];
static pid_t scratch_owner;
static UNUSED void remove_scratch(void) {
    if (getpid() != scratch_owner || !scratch[0] || chdir("/")) return;
    pid_t pid = fork();
    if (pid == 0) {
        execlp("rm", "rm", "-rf", scratch, (char *)0);
        execl("/bin/busybox", "busybox", "rm", "-rf", scratch, (char *)0);
        _exit(1);
    }
    if (pid > 0) waitpid(pid, NULL, 0);
}
static UNUSED void enter_scratch(void) {
    const char *base = getenv("TEST_DIR");
    snprintf(scratch, sizeof scratch, "%s/abi.XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(scratch)) FAIL("mkdtemp %s: %s", scratch, strerror(errno));
    scratch_owner = getpid();
    OK(chdir(scratch));
    atexit(remove_scratch);
}

static UNUSED void write_file(const char *path, const char *text, int mode) {
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, mode);
    if (fd < 0) FAIL("open %s: %s", path, strerror(errno));
    size_t len = strlen(text);
    EQ(write(fd, text, len), len);
    OK(close(fd));
}

// The whole of a small file, NUL terminated, in a static buffer.
static UNUSED char *slurp(const char *path, ssize_t *len) {
    static char text[1 << 18];
    int fd = open(path, O_RDONLY);
    if (fd < 0) FAIL("open %s: %s", path, strerror(errno));
    ssize_t total = 0, n;
    while ((n = read(fd, text + total, sizeof text - 1 - total)) > 0) total += n;
    if (n < 0) FAIL("read %s: %s", path, strerror(errno));
    close(fd);
    text[total] = 0;
    if (len) *len = total;
    return text;
}

struct abi_test {
    const char *name;
    void (*run)(void);
};
#define T(f) {#f, f}

static UNUSED int run_tests(const struct abi_test *tests, size_t count, int argc, char **argv) {
    int failed = 0, number = 0;
    setvbuf(stdout, NULL, _IONBF, 0);
    // What started this may ignore or block signals (nohup, & in a script).
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int s = 1; s < NSIG; s++) signal(s, SIG_DFL);
    for (size_t i = 0; i < count; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= !strcmp(argv[a], tests[i].name);
        if (!wanted) continue;
        number++;
        pid_t pid = fork();
        if (pid < 0) {
            dprintf(1, "not ok %d - %s\n# fork: %s\n", number, tests[i].name, strerror(errno));
            return 1;
        }
        if (pid == 0) {
            setpgid(0, 0);
            alarm(90);
            tests[i].run();
            exit(0);
        }
        int status = -1;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
        kill(-pid, SIGKILL);
        // As a container's init it is the parent of what the test left behind.
        for (int wait_ms = 0; getpid() == 1 && wait_ms < 1000;) {
            pid_t orphan = waitpid(-1, NULL, WNOHANG);
            if (orphan < 0) break;
            if (orphan == 0) {
                sleep_ms(10);
                wait_ms += 10;
            }
        }
        if (status != 0) {
            failed++;
            dprintf(1, "not ok %d - %s (wait status %#x)\n", number, tests[i].name, status);
        } else {
            dprintf(1, "ok %d - %s\n", number, tests[i].name);
        }
    }
    dprintf(1, "1..%d\n", number);
    if (number == 0) dprintf(1, "# no such test\n");
    return failed || !number;
}
#define TESTS(...)                                                         \
    static const struct abi_test tests_[] = {__VA_ARGS__};                 \
    int main(int argc, char **argv) { return run_tests(tests_, sizeof tests_ / sizeof *tests_, argc, argv); }
#endif

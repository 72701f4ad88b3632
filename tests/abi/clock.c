// Clocks, sleeping, interval timers, and the vDSO.
#include "abi.h"
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>

static double value(const struct timespec *t) { return t->tv_sec + t->tv_nsec * 1e-9; }

static void clocks_agree(void) {
    int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE};
    for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        struct timespec user, kernel;
        OK(clock_gettime(clocks[i], &user));
        OK(syscall(SYS_clock_gettime, clocks[i], &kernel));
        double d = value(&kernel) - value(&user);
        if (d < -0.02 || d > 1) FAIL("clock %d: the vDSO and the call differ by %g s", clocks[i], d);
        TRUE(user.tv_nsec >= 0 && user.tv_nsec < 1000000000);
    }
    struct timeval tv;
    struct timespec ts;
    OK(gettimeofday(&tv, NULL));
    OK(clock_gettime(CLOCK_REALTIME, &ts));
    double d = value(&ts) - (tv.tv_sec + tv.tv_usec * 1e-6);
    TRUE(d > -0.001 && d < 1);
    TRUE(time(NULL) >= tv.tv_sec - 1 && time(NULL) <= tv.tv_sec + 2);
    TRUE(tv.tv_sec > 1600000000);
}

static void monotonic_never_goes_back(void) {
    struct timespec last = {0, 0}, t;
    double end = now() + 0.3;
    do {
        for (int i = 0; i < 100; i++) {
            OK(i % 10 ? clock_gettime(CLOCK_MONOTONIC, &t) : syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t));
            if (value(&t) < value(&last)) FAIL("went back by %g", value(&last) - value(&t));
            last = t;
        }
    } while (value(&t) < end);
}

static void time_passes_at_the_right_rate(void) {
    struct timespec m0, m1, r0, r1;
    clock_gettime(CLOCK_MONOTONIC, &m0);
    clock_gettime(CLOCK_REALTIME, &r0);
    sleep_ms(300);
    clock_gettime(CLOCK_MONOTONIC, &m1);
    clock_gettime(CLOCK_REALTIME, &r1);
    double m = value(&m1) - value(&m0), r = value(&r1) - value(&r0);
    TRUE(m >= 0.2999 && m < 10);
    TRUE(r - m < 0.1 && m - r < 0.1);
}

static void resolution_and_errors(void) {
    struct timespec t;
    OK(clock_getres(CLOCK_MONOTONIC, &t));
    TRUE(t.tv_sec == 0 && t.tv_nsec > 0);
    ERR(clock_gettime(99, &t), EINVAL);
    ERR(clock_getres(99, &t), EINVAL);
    ERR(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, 8), EFAULT);
    struct timespec bad = {0, 1000000000}, negative = {-1, 0};
    ERR(nanosleep(&bad, NULL), EINVAL);
    ERR(nanosleep(&negative, NULL), EINVAL);
    ERR(syscall(SYS_nanosleep, 8, 0), EFAULT);
    struct timeval tv;
    ERR(syscall(SYS_gettimeofday, 8, 0), EFAULT);
    (void)tv;
}

static void sleeps_last(void) {
    double start = now();
    struct timespec t = {0, 50000000};
    OK(nanosleep(&t, NULL));
    TRUE(now() - start >= 0.05);
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += 50000000;
    if (t.tv_nsec >= 1000000000) { t.tv_nsec -= 1000000000; t.tv_sec++; }
    EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0);
    TRUE(now() >= value(&t));
    EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0); // in the past: at once
    t.tv_sec = 0;
    t.tv_nsec = 20000000;
    EQ(clock_nanosleep(CLOCK_REALTIME, 0, &t, NULL), 0);
    start = now();
    for (int i = 0; i < 20; i++) {
        t.tv_nsec = 1000000;
        OK(nanosleep(&t, NULL));
    }
    TRUE(now() - start >= 0.02);
}

static volatile int hits;
static void hit(int s) { (void)s; hits++; }
static void real_timer(void) {
    struct sigaction a = {.sa_handler = hit};
    OK(sigaction(SIGALRM, &a, NULL));
    struct itimerval t = {{0, 20000}, {0, 30000}}, old;
    OK(setitimer(ITIMER_REAL, &t, NULL));
    double start = now();
    while (hits < 5) pause();
    TRUE(now() - start >= 0.1);
    OK(getitimer(ITIMER_REAL, &old));
    EQ(old.it_interval.tv_usec, 20000);
    TRUE(old.it_value.tv_sec == 0 && old.it_value.tv_usec <= 20000);
    memset(&t, 0, sizeof t);
    OK(setitimer(ITIMER_REAL, &t, &old));
    int seen = hits;
    sleep_ms(60);
    EQ(hits, seen);
    OK(getitimer(ITIMER_REAL, &old));
    EQ(old.it_value.tv_sec, 0); EQ(old.it_value.tv_usec, 0);
    ERR(setitimer(99, &t, NULL), EINVAL);
    t.it_value.tv_usec = 1000000;
    ERR(setitimer(ITIMER_REAL, &t, NULL), EINVAL);
    CHILD_PID(pid) { // not inherited
        OK(getitimer(ITIMER_REAL, &old));
        EQ(old.it_value.tv_usec, 0);
        _exit(0);
    }
    reap_ok(pid);
}

static void cpu_timers(void) {
    signal(SIGVTALRM, hit);
    struct itimerval t = {{0, 0}, {0, 50000}};
    OK(setitimer(ITIMER_VIRTUAL, &t, NULL));
    sleep_ms(200);
    EQ(hits, 0); // sleeping is no CPU time
    double end = now() + 60;
    while (!hits && now() < end) {}
    EQ(hits, 1);
    signal(SIGPROF, hit);
    OK(setitimer(ITIMER_PROF, &t, NULL));
    while (hits < 2 && now() < end) {}
    EQ(hits, 2);
}

static void cpu_clocks(void) {
    struct timespec a, b, c;
    OK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a));
    double end = now() + 0.2;
    while (now() < end) {}
    OK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b));
    double used = value(&b) - value(&a);
    if (used < 0.02 || used > 1) FAIL("0.2 s of a busy loop cost %g s", used);
    sleep_ms(200);
    OK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &c));
    TRUE(value(&c) - value(&b) < 0.15);
    OK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &c));
    TRUE(value(&c) > 0.01);
    struct tms tms;
    TRUE(times(&tms) != (clock_t)-1);
    struct rusage u;
    OK(getrusage(RUSAGE_SELF, &u));
    TRUE(u.ru_utime.tv_sec * 1e6 + u.ru_utime.tv_usec + u.ru_stime.tv_sec * 1e6 + u.ru_stime.tv_usec > 10000);
}

static void preemption(void) {
    // more busy processes than CPUs: all of them get on
    volatile long *progress = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[6];
    for (int i = 0; i < 6; i++) {
        pids[i] = fork_or_fail();
        if (pids[i] == 0) for (;;) progress[i * 8]++;
    }
    double end = now() + 20;
    for (int i = 0; i < 6; i++)
        while (progress[i * 8] < 1000) {
            if (now() > end) FAIL("process %d starved", i);
            sleep_ms(10);
        }
    long before[6];
    for (int i = 0; i < 6; i++) before[i] = progress[i * 8];
    for (int i = 0; i < 6; i++)
        while (progress[i * 8] == before[i]) {
            if (now() > end) FAIL("process %d stopped", i);
            sleep_ms(10);
        }
    for (int i = 0; i < 6; i++) {
        kill(pids[i], SIGKILL);
        EQ(reap(pids[i]), SIGKILL);
    }
}

static void vdso_is_there(void) {
    unsigned char *vdso = (unsigned char *)getauxval(AT_SYSINFO_EHDR);
    if (vdso) TRUE(!memcmp(vdso, "\177ELF", 4));
}

static void setting_is_refused(void) {
    if (!in_sandbox()) return;
    struct timespec t = {1000000000, 0};
    ERR(clock_settime(CLOCK_REALTIME, &t), EPERM);
}

TESTS(T(clocks_agree), T(monotonic_never_goes_back), T(time_passes_at_the_right_rate), T(resolution_and_errors), T(sleeps_last),
      T(real_timer), T(cpu_timers), T(cpu_clocks), T(preemption), T(vdso_is_there), T(setting_is_refused))

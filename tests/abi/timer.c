// POSIX timers and timerfds.
#include "abi.h"
#include <poll.h>
#include <sys/timerfd.h>
#include <sys/time.h>

static volatile sig_atomic_t fired;
static volatile int value;

static void handler(int s, siginfo_t *i, void *c) {
    (void)s;
    (void)c;
    fired++;
    value = i->si_value.sival_int;
}

static void wait_until_fired(int n) {
    for (int i = 0; i < 5000 && fired < n; i++) sleep_ms(1);
    TRUE(fired >= n);
}

static void a_timer_sends_its_signal(void) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGUSR1, &sa, NULL));
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 77};
    timer_t t;
    OK(timer_create(CLOCK_MONOTONIC, &e, &t));
    struct itimerspec s = {{0, 0}, {0, 5000000}}, old;
    OK(timer_gettime(t, &old));
    EQ(old.it_value.tv_nsec, 0);
    OK(timer_settime(t, 0, &s, NULL));
    wait_until_fired(1);
    EQ(value, 77);
    sleep_ms(20);
    EQ(fired, 1);
    OK(timer_gettime(t, &old));
    EQ(old.it_value.tv_sec, 0);
    EQ(old.it_value.tv_nsec, 0);
    s.it_interval.tv_nsec = 3000000;
    OK(timer_settime(t, 0, &s, NULL));
    wait_until_fired(4);
    OK(timer_gettime(t, &old));
    EQ(old.it_interval.tv_nsec, 3000000);
    TRUE(old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 3000000);
    OK(timer_delete(t));
    ERR(timer_delete(t), EINVAL);
    ERR(timer_settime(t, 0, &s, NULL), EINVAL);
    e.sigev_signo = 99;
    ERR(timer_create(CLOCK_MONOTONIC, &e, &t), EINVAL);
    ERR(timer_create(99, NULL, &t), EINVAL);
}

static void missed_expiries_are_counted(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    timer_t t;
    OK(timer_create(CLOCK_MONOTONIC, &e, &t));
    struct itimerspec s = {{0, 1000000}, {0, 1000000}};
    OK(timer_settime(t, 0, &s, NULL));
    sleep_ms(60);
    siginfo_t info;
    EQ(sigwaitinfo(&set, &info), SIGUSR1);
    EQ(info.si_code, SI_TIMER);
    TRUE(info.si_overrun >= 10);
    TRUE(timer_getoverrun(t) >= 10);
    OK(timer_delete(t));
}

static void absolute_times(void) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGALRM, &sa, NULL));
    timer_t t;
    OK(timer_create(CLOCK_REALTIME, NULL, &t));
    struct itimerspec s = {{0, 0}, {1, 0}};
    OK(timer_settime(t, TIMER_ABSTIME, &s, NULL));
    wait_until_fired(1);
    OK(timer_delete(t));
}

static void a_timerfd_counts(void) {
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    OK(fd);
    uint64_t n;
    ERR(read(fd, &n, 8), EAGAIN);
    struct itimerspec s = {{0, 2000000}, {0, 2000000}}, now_;
    OK(timerfd_settime(fd, 0, &s, NULL));
    sleep_ms(30);
    EQ(read(fd, &n, 8), 8);
    TRUE(n >= 5);
    ERR(read(fd, &n, 4), EINVAL);
    OK(timerfd_gettime(fd, &now_));
    EQ(now_.it_interval.tv_nsec, 2000000);
    struct pollfd p = {fd, POLLIN, 0};
    EQ(poll(&p, 1, 5000), 1);
    memset(&s, 0, sizeof s);
    OK(timerfd_settime(fd, 0, &s, &now_));
    EQ(now_.it_interval.tv_nsec, 2000000);
    ERR(read(fd, &n, 8), EAGAIN);
    EQ(poll(&p, 1, 0), 0);
    close(fd);
    fd = timerfd_create(CLOCK_REALTIME, 0);
    s.it_value.tv_sec = 1;
    OK(timerfd_settime(fd, TFD_TIMER_ABSTIME, &s, NULL));
    EQ(read(fd, &n, 8), 8);
    EQ(n, 1);
    ERR(timerfd_create(99, 0), EINVAL);
    ERR(timerfd_create(CLOCK_MONOTONIC, 0x40), EINVAL);
    ERR(timerfd_settime(0, 0, &s, NULL), EINVAL);
}

static void alarms(void) {
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    OK(sigaction(SIGALRM, &sa, NULL));
    alarm(100);
    TRUE(alarm(0) > 90);
    EQ(alarm(0), 0);
    struct itimerval v = {{0, 0}, {0, 5000}};
    OK(setitimer(ITIMER_REAL, &v, NULL));
    wait_until_fired(1);
    OK(getitimer(ITIMER_REAL, &v));
    EQ(v.it_value.tv_usec, 0);
    alarm(90);
}

TESTS(T(a_timer_sends_its_signal), T(missed_expiries_are_counted), T(absolute_times), T(a_timerfd_counts), T(alarms))

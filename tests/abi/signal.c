// Signals: handlers, masks, siginfo, restarts, alternate stacks, default actions, delivery to threads, SIGCHLD, stops.
#include "abi.h"
#include <poll.h>
#include <sys/signalfd.h>
#include <pthread.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <ucontext.h>

static volatile sig_atomic_t hits, last;
static volatile siginfo_t info;
static void count(int s) { hits++; last = s; }
static void detailed(int s, siginfo_t *i, void *context) {
    (void)context;
    hits++;
    last = s;
    memcpy((void *)&info, i, sizeof *i);
}
static void handle(int s, void *handler, int flags) {
    struct sigaction a = {0};
    a.sa_sigaction = handler;
    a.sa_flags = flags;
    OK(sigaction(s, &a, NULL));
}
static void block(int how, int s) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, s);
    OK(sigprocmask(how, &set, NULL));
}

static void handler_runs(void) {
    handle(SIGUSR1, count, 0);
    OK(raise(SIGUSR1));
    EQ(hits, 1); EQ(last, SIGUSR1);
    OK(kill(getpid(), SIGUSR1));
    EQ(hits, 2);
    struct sigaction old;
    OK(sigaction(SIGUSR1, NULL, &old));
    TRUE(old.sa_handler == count);
}

static void siginfo_of_kill_and_queue(void) {
    handle(SIGUSR1, detailed, SA_SIGINFO);
    OK(kill(getpid(), SIGUSR1));
    EQ(info.si_signo, SIGUSR1); EQ(info.si_code, SI_USER); EQ(info.si_pid, getpid()); EQ(info.si_uid, getuid());
    OK(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1));
    EQ(info.si_code, SI_TKILL);
    OK(syscall(SYS_tkill, syscall(SYS_gettid), SIGUSR1));
    EQ(info.si_code, SI_TKILL);
    EQ(pthread_sigqueue(pthread_self(), SIGUSR1, (union sigval){.sival_int = 12}), 0);
    EQ(info.si_code, SI_QUEUE); EQ(info.si_value.sival_int, 12);
    union sigval v = {.sival_int = 4711};
    OK(sigqueue(getpid(), SIGUSR1, v));
    EQ(info.si_code, SI_QUEUE); EQ(info.si_value.sival_int, 4711);
}

static void blocked_is_pending(void) {
    handle(SIGUSR1, count, 0);
    block(SIG_BLOCK, SIGUSR1);
    raise(SIGUSR1);
    raise(SIGUSR1); // standard signals do not queue
    EQ(hits, 0);
    sigset_t set;
    OK(sigpending(&set));
    EQ(sigismember(&set, SIGUSR1), 1); EQ(sigismember(&set, SIGUSR2), 0);
    block(SIG_UNBLOCK, SIGUSR1);
    EQ(hits, 1);
    OK(sigpending(&set));
    EQ(sigismember(&set, SIGUSR1), 0);
}

static int order[8];
static void record(int s, siginfo_t *i, void *c) {
    (void)s; (void)c;
    order[hits++] = i->si_value.sival_int;
}
static void realtime_signals_queue(void) {
    handle(SIGRTMIN + 1, record, SA_SIGINFO);
    block(SIG_BLOCK, SIGRTMIN + 1);
    for (int n = 1; n <= 4; n++) {
        union sigval v = {.sival_int = n};
        OK(sigqueue(getpid(), SIGRTMIN + 1, v));
    }
    block(SIG_UNBLOCK, SIGRTMIN + 1);
    EQ(hits, 4);
    for (int n = 1; n <= 4; n++) EQ(order[n - 1], n);
}

static sigset_t during;
static void look_at_mask(int s) {
    (void)s;
    sigprocmask(SIG_BLOCK, NULL, &during);
    hits++;
}
static void mask_during_handler(void) {
    struct sigaction a = {0};
    a.sa_handler = look_at_mask;
    sigaddset(&a.sa_mask, SIGUSR2);
    OK(sigaction(SIGUSR1, &a, NULL));
    raise(SIGUSR1);
    EQ(sigismember(&during, SIGUSR1), 1); EQ(sigismember(&during, SIGUSR2), 1); EQ(sigismember(&during, SIGTERM), 0);
    a.sa_flags = SA_NODEFER;
    sigemptyset(&a.sa_mask);
    OK(sigaction(SIGUSR1, &a, NULL));
    raise(SIGUSR1);
    EQ(sigismember(&during, SIGUSR1), 0);
    sigset_t after;
    sigprocmask(SIG_BLOCK, NULL, &after);
    EQ(sigismember(&after, SIGUSR1), 0); EQ(sigismember(&after, SIGUSR2), 0);
}

static void resethand(void) {
    handle(SIGUSR1, count, SA_RESETHAND);
    raise(SIGUSR1);
    struct sigaction a;
    OK(sigaction(SIGUSR1, NULL, &a));
    TRUE(a.sa_handler == SIG_DFL);
}


static volatile int depth, deepest;
static void nest(int s) {
    if (++depth > deepest) deepest = depth;
    if (s == SIGUSR1) raise(SIGUSR2);
    depth--;
}
static void nested_handlers_unwind(void) {
    handle(SIGUSR1, nest, 0);
    handle(SIGUSR2, nest, 0);
    volatile double d = 1.5;
    raise(SIGUSR1);
    EQ(deepest, 2);
    EQ(depth, 0);
    TRUE(d == 1.5);
}

static void change_context(int s, siginfo_t *i, void *context) {
    (void)s; (void)i;
    ucontext_t *u = context;
    u->uc_mcontext.gregs[REG_R12] = 0x1234567;
    sigaddset(&u->uc_sigmask, SIGUSR2);
}
static void context_is_written_back(void) {
    handle(SIGUSR1, change_context, SA_SIGINFO);
    long pid = getpid(), result, r12;
    __asm__ volatile("xor %%r12d, %%r12d\n\tsyscall\n\tmov %%r12, %1"
                     : "=a"(result), "=r"(r12)
                     : "a"(SYS_kill), "D"(pid), "S"((long)SIGUSR1)
                     : "rcx", "r11", "r12", "memory");
    EQ(result, 0);
    EQ(r12, 0x1234567);
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    EQ(sigismember(&set, SIGUSR2), 1);
}

static void hit_after(long us, int s) {
    pid_t parent = getpid();
    CHILD_PID(pid) {
        usleep(us);
        kill(parent, s);
        _exit(0);
    }
}
static void restart_and_eintr(void) {
    int p[2];
    OK(pipe(p));
    char c;
    handle(SIGUSR1, count, 0);
    hit_after(50000, SIGUSR1);
    ERR(read(p[0], &c, 1), EINTR);
    EQ(hits, 1);
    handle(SIGUSR1, count, SA_RESTART);
    pid_t parent = getpid();
    CHILD_PID(pid) {
        usleep(50000);
        kill(parent, SIGUSR1);
        usleep(50000);
        EQ(write(p[1], "z", 1), 1);
        _exit(0);
    }
    EQ(read(p[0], &c, 1), 1);
    EQ(c, 'z');
    EQ(hits, 2);
}

static void restart_of_wait(void) {
    handle(SIGUSR1, count, SA_RESTART);
    CHILD_PID(slow) {
        usleep(200000);
        _exit(3);
    }
    hit_after(50000, SIGUSR1);
    int status;
    EQ(waitpid(slow, &status, 0), slow);
    EQ(status, 3 << 8);
    EQ(hits, 1);
}

static void nanosleep_reports_remaining(void) {
    handle(SIGUSR1, count, SA_RESTART); // nanosleep does not restart after a handler
    hit_after(100000, SIGUSR1);
    struct timespec t = {20, 0}, left = {0, 0};
    ERR(nanosleep(&t, &left), EINTR);
    TRUE(left.tv_sec >= 10 && left.tv_sec < 20);
}

static void ignored_does_not_interrupt(void) {
    signal(SIGUSR1, SIG_IGN);
    hit_after(30000, SIGUSR1);
    struct timespec t = {0, 150000000};
    double start = now();
    OK(nanosleep(&t, NULL));
    TRUE(now() - start >= 0.149);
}

static char *on_stack;
static void where(int s) {
    char here;
    (void)s;
    on_stack = &here;
    stack_t st;
    sigaltstack(NULL, &st);
    EQ(st.ss_flags, SS_ONSTACK);
    ERR(sigaltstack(&st, NULL), EPERM);
}
static void alternate_stack(void) {
    static char area[65536];
    stack_t st = {.ss_sp = area, .ss_size = sizeof area}, old;
    OK(sigaltstack(&st, &old));
    EQ(old.ss_flags, SS_DISABLE);
    handle(SIGUSR1, where, SA_ONSTACK);
    raise(SIGUSR1);
    TRUE(on_stack >= area && on_stack < area + sizeof area);
    OK(sigaltstack(NULL, &old));
    EQ(old.ss_size, sizeof area); EQ(old.ss_flags, 0);
    st.ss_size = 100;
    ERR(sigaltstack(&st, NULL), ENOMEM);
    st.ss_flags = 0x77;
    ERR(sigaltstack(&st, NULL), EINVAL);
    st.ss_flags = SS_DISABLE;
    OK(sigaltstack(&st, NULL));
}

static void overflow_handler(int s, siginfo_t *i, void *c) {
    (void)s; (void)i; (void)c;
    _exit(33);
}
static int (*volatile again)(int);
static int recurse(int n) {
    volatile char waste[4096];
    waste[n % 4096] = (char)n;
    return again(n + 1) + waste[0];
}
static void stack_overflow_on_alternate_stack(void) {
    CHILD_PID(pid) {
        static char area[65536];
        stack_t st = {.ss_sp = area, .ss_size = sizeof area};
        OK(sigaltstack(&st, NULL));
        handle(SIGSEGV, overflow_handler, SA_ONSTACK | SA_SIGINFO);
        _exit((again = recurse)(0));
    }
    EQ(reap(pid), 33 << 8);
    CHILD_PID(without) _exit((again = recurse)(0));
    int status = reap(without);
    TRUE(WIFSIGNALED(status));
    EQ(WTERMSIG(status), SIGSEGV);
}

static void default_actions(void) {
    int ignored[] = {SIGCHLD, SIGURG, SIGWINCH, SIGCONT};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        CHILD_PID(pid) {
            signal(ignored[i], SIG_DFL);
            raise(ignored[i]);
            _exit(0);
        }
        EQ(reap(pid), 0);
    }
    int deadly[] = {SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM,
                    SIGSTKFLT, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSYS, 40};
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++) {
        CHILD_PID(pid) {
            signal(deadly[i], SIG_DFL);
            raise(deadly[i]);
            _exit(0);
        }
        int status = reap(pid);
        TRUE(WIFSIGNALED(status));
        EQ(WTERMSIG(status), deadly[i]);
    }
}

static void refused(void) {
    struct sigaction a = {.sa_handler = count};
    ERR(sigaction(SIGKILL, &a, NULL), EINVAL);
    ERR(sigaction(SIGSTOP, &a, NULL), EINVAL);
    ERR(syscall(SYS_rt_sigaction, 65, &a, NULL, 8), EINVAL);
    ERR(syscall(SYS_rt_sigaction, SIGUSR1, &a, NULL, 4), EINVAL);
    ERR(syscall(SYS_rt_sigprocmask, SIG_BLOCK, 8, NULL, 8), EFAULT);
    sigset_t set;
    sigemptyset(&set);
    ERR(syscall(SYS_rt_sigprocmask, 77, &set, NULL, 8), EINVAL);
    ERR(kill(getpid(), 65), EINVAL);
    ERR(kill(getpid(), -1), EINVAL);
    ERR(kill(999999999, 0), ESRCH);
    ERR(syscall(SYS_tgkill, getpid(), -1, SIGUSR1), EINVAL);
    ERR(syscall(SYS_tgkill, getpid(), 999999999, 0), ESRCH);
    OK(kill(getpid(), 0));
    sigfillset(&set);
    OK(sigprocmask(SIG_SETMASK, &set, NULL));
    OK(sigprocmask(SIG_SETMASK, NULL, &set));
    EQ(sigismember(&set, SIGKILL), 0); EQ(sigismember(&set, SIGSTOP), 0);
}

static void sigsuspend_and_pause(void) {
    handle(SIGUSR1, count, 0);
    block(SIG_BLOCK, SIGUSR1);
    hit_after(50000, SIGUSR1);
    sigset_t none;
    sigemptyset(&none);
    ERR(sigsuspend(&none), EINTR);
    EQ(hits, 1);
    sigset_t now_set;
    sigprocmask(SIG_BLOCK, NULL, &now_set);
    EQ(sigismember(&now_set, SIGUSR1), 1); // the old mask is back
    block(SIG_UNBLOCK, SIGUSR1);
    hit_after(50000, SIGUSR1);
    ERR(pause(), EINTR);
}

static void sigwait_family(void) {
    block(SIG_BLOCK, SIGUSR1);
    block(SIG_BLOCK, SIGUSR2);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    siginfo_t i;
    struct timespec zero = {0, 0}, some = {5, 0};
    ERR(sigtimedwait(&set, &i, &zero), EAGAIN);
    raise(SIGUSR1);
    EQ(sigtimedwait(&set, &i, &zero), SIGUSR1);
    hit_after(50000, SIGUSR1);
    EQ(sigtimedwait(&set, &i, &some), SIGUSR1);
    EQ(i.si_code, SI_USER);
    TRUE(i.si_pid > 0);
    struct timespec bad = {0, 2000000000};
    ERR(sigtimedwait(&set, &i, &bad), EINVAL);
}

static void sigchld(void) {
    handle(SIGCHLD, detailed, SA_SIGINFO);
    CHILD_PID(pid) _exit(17);
    for (int n = 0; n < 1000 && !hits; n++) sleep_ms(5);
    EQ(info.si_signo, SIGCHLD); EQ(info.si_pid, pid); EQ(info.si_code, CLD_EXITED); EQ(info.si_status, 17);
    EQ(reap(pid), 17 << 8);
    CHILD_PID(killed) for (;;) pause();
    hits = 0;
    kill(killed, SIGKILL);
    for (int n = 0; n < 1000 && !hits; n++) sleep_ms(5);
    EQ(info.si_code, CLD_KILLED); EQ(info.si_status, SIGKILL);
    reap(killed);
    // ignoring SIGCHLD reaps children by themselves
    signal(SIGCHLD, SIG_IGN);
    CHILD_PID(gone) _exit(0);
    ERR(waitpid(gone, NULL, 0), ECHILD);
    handle(SIGCHLD, count, SA_NOCLDWAIT);
    CHILD_PID(gone2) _exit(0);
    int r;
    while ((r = waitpid(gone2, NULL, 0)) < 0 && errno == EINTR) {}
    EQ(r, -1);
}

static void stop_and_continue(void) {
    handle(SIGCHLD, detailed, SA_SIGINFO | SA_RESTART);
    int p[2], go[2], status;
    OK(pipe(p));
    OK(pipe(go));
    CHILD_PID(pid) {
        char dummy;
        for (char c = 'a';; c++) {
            EQ(write(p[1], &c, 1), 1);
            raise(SIGSTOP);
            EQ(read(go[0], &dummy, 1), 1);
        }
    }
    char c;
    EQ(read(p[0], &c, 1), 1);
    EQ(waitpid(pid, &status, WUNTRACED), pid);
    TRUE(WIFSTOPPED(status));
    EQ(WSTOPSIG(status), SIGSTOP);
    EQ(info.si_code, CLD_STOPPED); EQ(info.si_status, SIGSTOP);
    EQ(waitpid(pid, &status, WUNTRACED | WNOHANG), 0); // reported once
    OK(kill(pid, SIGCONT));
    EQ(waitpid(pid, &status, WCONTINUED), pid);
    TRUE(WIFCONTINUED(status));
    EQ(write(go[1], "g", 1), 1);
    EQ(read(p[0], &c, 1), 1);
    EQ(c, 'b');
    EQ(waitpid(pid, &status, WUNTRACED), pid);
    OK(kill(pid, SIGTERM)); // stays pending until it continues
    sleep_ms(50);
    EQ(waitpid(pid, &status, WNOHANG), 0);
    OK(kill(pid, SIGKILL)); // does not wait
    EQ(waitpid(pid, &status, 0), pid);
    EQ(WTERMSIG(status), SIGKILL);
}

static pthread_t main_thread;
static volatile pid_t handled_by;
static void who(int s) {
    (void)s;
    handled_by = (pid_t)syscall(SYS_gettid);
    hits++;
}
static void *sends(void *arg) {
    pthread_kill(main_thread, SIGUSR1);
    return arg;
}
static volatile pid_t taker_tid;
static volatile int taker_stop;
static void *takes(void *arg) {
    block(SIG_UNBLOCK, SIGUSR2);
    taker_tid = (pid_t)syscall(SYS_gettid);
    while (!taker_stop) sleep_ms(5);
    return arg;
}
static void threads(void) {
    handle(SIGUSR1, who, 0);
    main_thread = pthread_self();
    pthread_t t;
    EQ(pthread_create(&t, NULL, sends, NULL), 0);
    pthread_join(t, NULL);
    for (int n = 0; n < 1000 && !hits; n++) sleep_ms(5);
    EQ(handled_by, getpid());
    // to the process: a thread that does not block it takes it
    handle(SIGUSR2, who, 0);
    block(SIG_BLOCK, SIGUSR2);
    EQ(pthread_create(&t, NULL, takes, NULL), 0);
    while (!taker_tid) sleep_ms(5);
    hits = 0;
    kill(getpid(), SIGUSR2);
    for (int n = 0; n < 1000 && !hits; n++) sleep_ms(5);
    EQ(handled_by, taker_tid);
    taker_stop = 1;
    pthread_join(t, NULL);
}

static void kill_ends_busy_threads(void);
static void *spins(void *arg) {
    for (volatile long n = 0;; n++) {}
    return arg;
}
static void kill_ends_busy_threads(void) {
    CHILD_PID(pid) {
        pthread_t t;
        for (int i = 0; i < 3; i++) EQ(pthread_create(&t, NULL, spins, NULL), 0);
        spins(NULL);
    }
    sleep_ms(100);
    kill(pid, SIGKILL);
    EQ(reap(pid), SIGKILL);
}

static void alarm_interrupts_busy_loop(void) {
    handle(SIGALRM, count, 0);
    alarm(1);
    double start = now();
    while (!hits) {}
    TRUE(now() - start > 0.8);
    EQ(alarm(100), 0);
    long left = alarm(0);
    TRUE(left == 99 || left == 100);
}

static void pending_on_fork_and_mask_inherited(void) {
    block(SIG_BLOCK, SIGUSR1);
    raise(SIGUSR1);
    CHILD_PID(pid) {
        sigset_t set;
        sigpending(&set);
        EQ(sigismember(&set, SIGUSR1), 0); // pending signals are not inherited
        sigprocmask(SIG_BLOCK, NULL, &set);
        EQ(sigismember(&set, SIGUSR1), 1); // the mask is
        _exit(0);
    }
    reap_ok(pid);
}

// A handler's frame leaves the red zone below the stack pointer alone.
static void red_zone_is_kept(void) {
    handle(SIGUSR1, count, 0);
    long pid = getpid(), value;
    __asm__ volatile("movq $0x55aa, -64(%%rsp)\n\tsyscall\n\tmovq -64(%%rsp), %0"
                     : "=&r"(value)
                     : "a"(SYS_kill), "D"(pid), "S"((long)SIGUSR1)
                     : "rcx", "r11", "memory");
    EQ(value, 0x55aa);
    EQ(hits, 1);
}

static void storm(void) {
    handle(SIGUSR1, count, 0);
    struct itimerval t = {{0, 500}, {0, 500}};
    handle(SIGALRM, count, 0);
    OK(setitimer(ITIMER_REAL, &t, NULL));
    double end = now() + 1;
    long sum = 0, check = 0;
    for (long i = 0; now() < end; i++) { sum += i; check ^= i; raise(SIGUSR1); }
    TRUE(hits > 100);
    TRUE(sum != 0 && check != -1);
}

// Pending signals read from a descriptor; poll says when.
static void signal_descriptor(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    OK(fd);
    struct signalfd_siginfo info[3];
    ERR(read(fd, info, sizeof info), EAGAIN);
    ERR(read(fd, info, 100), EINVAL);
    struct pollfd p = {fd, POLLIN, 0};
    EQ(poll(&p, 1, 0), 0);
    CHILD_PID(pid) {
        sleep_ms(30);
        OK(sigqueue(getppid(), SIGRTMIN + 1, (union sigval){.sival_int = 77}));
        _exit(0);
    }
    EQ(poll(&p, 1, 10000), 1);
    EQ(p.revents, POLLIN);
    raise(SIGUSR1);
    EQ(read(fd, info, sizeof info), 2 * (int)sizeof info[0]);
    EQ(info[0].ssi_signo, SIGUSR1); EQ(info[0].ssi_code, SI_TKILL); EQ(info[0].ssi_pid, getpid());
    EQ(info[1].ssi_signo, SIGRTMIN + 1); EQ(info[1].ssi_code, SI_QUEUE); EQ(info[1].ssi_int, 77); EQ(info[1].ssi_pid, pid);
    EQ(poll(&p, 1, 0), 0);
    reap_ok(pid);
    // another mask; blocking until one comes
    sigdelset(&set, SIGUSR1);
    EQ(signalfd(fd, &set, 0), fd);
    raise(SIGUSR1);
    ERR(read(fd, info, sizeof info), EAGAIN);
    OK(fcntl(fd, F_SETFL, 0));
    CHILD_PID(other) {
        sleep_ms(30);
        kill(getppid(), SIGRTMIN + 1);
        _exit(0);
    }
    EQ(read(fd, info, sizeof info), (int)sizeof info[0]);
    EQ(info[0].ssi_signo, SIGRTMIN + 1);
    reap_ok(other);
}

TESTS(T(signal_descriptor), T(handler_runs), T(siginfo_of_kill_and_queue), T(blocked_is_pending), T(realtime_signals_queue), T(mask_during_handler),
      T(resethand), T(nested_handlers_unwind), T(context_is_written_back), T(restart_and_eintr), T(restart_of_wait),
      T(nanosleep_reports_remaining), T(ignored_does_not_interrupt), T(alternate_stack), T(stack_overflow_on_alternate_stack),
      T(default_actions), T(refused), T(sigsuspend_and_pause), T(sigwait_family), T(sigchld), T(stop_and_continue), T(threads),
      T(kill_ends_busy_threads), T(alarm_interrupts_busy_loop), T(pending_on_fork_and_mask_inherited), T(red_zone_is_kept), T(storm))

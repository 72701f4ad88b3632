// fork, vfork, clone, wait, exit.
#include "abi.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <linux/sched.h>

static void exit_codes(void) {
    for (int code = 0; code < 256; code += 51) {
        CHILD_PID(pid) _exit(code);
        int status = reap(pid);
        TRUE(WIFEXITED(status));
        EQ(WEXITSTATUS(status), code);
    }
    CHILD_PID(pid) _exit(0x1234);
    EQ(reap(pid), 0x34 << 8);
}

static void killed_status(void) {
    int signals[] = {SIGKILL, SIGTERM, SIGHUP, SIGUSR1, SIGALRM, SIGPIPE};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        CHILD_PID(pid) for (;;) pause();
        OK(kill(pid, signals[i]));
        int status = reap(pid);
        TRUE(WIFSIGNALED(status));
        EQ(WTERMSIG(status), signals[i]);
    }
}

static void fork_memory_is_private(void) {
    static volatile int data = 1;
    volatile int stack = 2;
    volatile int *heap = malloc(sizeof *heap * 5000);
    for (int i = 0; i < 5000; i++) heap[i] = i;
    CHILD_PID(pid) {
        EQ(data, 1); EQ(stack, 2); EQ(heap[4999], 4999);
        data = 10; stack = 20;
        for (int i = 0; i < 5000; i++) heap[i] = -i;
        _exit(0);
    }
    heap[0] = 77;
    reap_ok(pid);
    EQ(data, 1); EQ(stack, 2); EQ(heap[4999], 4999); EQ(heap[0], 77);
}

static void fork_shares_offsets(void) {
    enter_scratch();
    write_file("f", "abcdef", 0644);
    int fd = open("f", O_RDONLY);
    char c;
    CHILD_PID(pid) {
        EQ(read(fd, &c, 1), 1); EQ(c, 'a');
        _exit(0);
    }
    reap_ok(pid);
    EQ(read(fd, &c, 1), 1);
    EQ(c, 'b');
}

static void pids(void) {
    pid_t me = getpid();
    CHILD_PID(pid) {
        EQ(getppid(), me);
        TRUE(getpid() != me);
        EQ(syscall(SYS_gettid), getpid());
        _exit(0);
    }
    TRUE(pid > 0);
    reap_ok(pid);
}

static void orphan_is_reparented(void) {
    int p[2];
    OK(pipe(p));
    CHILD_PID(pid) {
        pid_t parent = getpid();
        CHILD_PID(grandchild) {
            for (int i = 0; i < 2000 && getppid() == parent; i++) sleep_ms(5);
            pid_t now_parent = getppid();
            TRUE(now_parent != parent);
            EQ(write(p[1], &now_parent, sizeof now_parent), sizeof now_parent);
            _exit(0);
        }
        _exit(0);
    }
    reap_ok(pid);
    close(p[1]);
    pid_t parent;
    EQ(read(p[0], &parent, sizeof parent), sizeof parent);
    TRUE(parent >= 1 && parent != pid);
}

static void subreaper(void) {
    OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
    CHILD_PID(pid) {
        CHILD_PID(grandchild) {
            sleep_ms(100);
            _exit(7);
        }
        _exit(0);
    }
    reap_ok(pid);
    int status;
    TRUE(wait(&status) > 0);
    EQ(status, 7 << 8);
    ERR(wait(&status), ECHILD);
}

static volatile int vfork_mark;
static void vfork_shares_memory(void) {
    vfork_mark = 0;
    pid_t pid = vfork();
    if (pid == 0) {
        vfork_mark = 42; // the parent is stopped and sees it
        _exit(3);
    }
    EQ(vfork_mark, 42);
    EQ(reap(pid), 3 << 8);
}

static void wait_any_and_nohang(void) {
    int status;
    ERR(waitpid(-1, &status, 0), ECHILD);
    ERR(waitpid(-1, &status, WNOHANG), ECHILD);
    int p[2];
    OK(pipe(p));
    CHILD_PID(pid) {
        char c;
        EQ(read(p[0], &c, 1), 1);
        _exit(5);
    }
    EQ(waitpid(-1, &status, WNOHANG), 0);
    EQ(write(p[1], "x", 1), 1);
    EQ(waitpid(-1, &status, 0), pid);
    EQ(status, 5 << 8);
    ERR(waitpid(pid, &status, 0), ECHILD);
    ERR(waitpid(-1, &status, 0x40000000 | 0x1000), EINVAL);
}

static void waitid_kinds(void) {
    siginfo_t info;
    CHILD_PID(pid) _exit(9);
    OK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
    EQ(info.si_pid, pid); EQ(info.si_code, CLD_EXITED); EQ(info.si_status, 9); EQ(info.si_signo, SIGCHLD);
    OK(waitid(P_ALL, 0, &info, WEXITED));
    EQ(info.si_pid, pid);
    ERR(waitid(P_PID, pid, &info, WEXITED), ECHILD);
    CHILD_PID(killed) for (;;) pause();
    memset(&info, 0x5a, sizeof info);
    OK(waitid(P_PID, killed, &info, WEXITED | WNOHANG));
    EQ(info.si_pid, 0);
    OK(kill(killed, SIGKILL));
    OK(waitid(P_PID, killed, &info, WEXITED));
    EQ(info.si_code, CLD_KILLED); EQ(info.si_status, SIGKILL);
    ERR(waitid(P_PID, 1, &info, 0), EINVAL);
}

static void wait_by_group(void) {
    CHILD_PID(own) {
        setpgid(0, 0);
        sleep_ms(50);
        _exit(1);
    }
    setpgid(own, own);
    CHILD_PID(same) _exit(2);
    int status;
    EQ(waitpid(0, &status, 0), same);
    EQ(status, 2 << 8);
    EQ(waitpid(-own, &status, 0), own);
    EQ(status, 1 << 8);
}

static void wait4_usage(void) {
    CHILD_PID(pid) {
        double end = now() + 0.05;
        while (now() < end) {}
        _exit(0);
    }
    struct rusage usage;
    memset(&usage, 0xff, sizeof usage);
    EQ(wait4(pid, NULL, 0, &usage), pid);
    TRUE(usage.ru_utime.tv_sec >= 0 && usage.ru_utime.tv_sec < 60);
    OK(getrusage(RUSAGE_SELF, &usage));
    OK(getrusage(RUSAGE_CHILDREN, &usage));
    ERR(getrusage(77, &usage), EINVAL);
}

static void exit_group_ends_threads(void);
static void *forever(void *arg) {
    for (;;) pause();
    return arg;
}
static void *ends_all(void *arg) {
    sleep_ms(50);
    exit_group_ends_threads();
    return arg;
}
static void exit_group_ends_threads(void) { syscall(SYS_exit_group, 21); }
static void exit_group(void) {
    CHILD_PID(pid) {
        pthread_t t;
        for (int i = 0; i < 4; i++) EQ(pthread_create(&t, NULL, i == 3 ? ends_all : forever, NULL), 0);
        for (;;) pause();
    }
    EQ(reap(pid), 21 << 8);
}

static void main_thread_may_exit_first(void) {
    CHILD_PID(pid) {
        pthread_t t;
        EQ(pthread_create(&t, NULL, ends_all, NULL), 0);
        syscall(SYS_exit, 5); // the group lives until the last thread; its status is that of exit_group
    }
    EQ(reap(pid), 21 << 8);
}

static char clone_stack[65536] __attribute__((aligned(16)));
static int clone_body(void *arg) {
    *(volatile int *)arg += 1;
    return 13;
}
static void clone_flags(void) {
    volatile int value = 1;
    int pid = clone(clone_body, clone_stack + sizeof clone_stack, SIGCHLD, (void *)&value);
    TRUE(pid > 0);
    EQ(reap(pid), 13 << 8);
    EQ(value, 1);
    pid = clone(clone_body, clone_stack + sizeof clone_stack, CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)&value);
    EQ(value, 2);
    EQ(reap(pid), 13 << 8);
    int parent_tid = 0;
    pid = clone(clone_body, clone_stack + sizeof clone_stack, CLONE_PARENT_SETTID | SIGCHLD, (void *)&value, &parent_tid);
    EQ(parent_tid, pid);
    EQ(reap(pid), 13 << 8);
    // threads need shared handlers, shared handlers need shared memory
    ERR(syscall(SYS_clone, CLONE_THREAD | SIGCHLD, clone_stack + sizeof clone_stack, 0, 0, 0), EINVAL);
    ERR(syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, clone_stack + sizeof clone_stack, 0, 0, 0), EINVAL);
}

static int other_signal_body(void *arg) {
    (void)arg;
    return 4;
}
static volatile int usr1_hits;
static void on_usr1(int s) { (void)s; usr1_hits++; }
static void clone_exit_signal(void) {
    signal(SIGUSR1, on_usr1);
    int pid = clone(other_signal_body, clone_stack + sizeof clone_stack, SIGUSR1, NULL);
    TRUE(pid > 0);
    int status, r;
    while ((r = waitpid(pid, &status, __WALL)) < 0 && errno == EINTR) {}
    EQ(r, pid);
    EQ(status, 4 << 8);
    EQ(usr1_hits, 1);
}

static int files_body(void *arg) {
    close(*(int *)arg);
    chdir("/");
    umask(0123);
    return 0;
}
static void clone_shares_files_and_fs(void) {
    OK(chdir("/tmp"));
    umask(022);
    int fd = dup(1);
    int pid = clone(files_body, clone_stack + sizeof clone_stack, CLONE_FILES | CLONE_FS | SIGCHLD, &fd);
    reap_ok(pid);
    ERR(fcntl(fd, F_GETFD), EBADF);
    char cwd[100];
    OK(getcwd(cwd, sizeof cwd));
    STREQ(cwd, "/");
    EQ(umask(022), 0123);
    OK(chdir("/tmp"));
    fd = dup(1);
    pid = clone(files_body, clone_stack + sizeof clone_stack, SIGCHLD, &fd);
    reap_ok(pid);
    OK(fcntl(fd, F_GETFD));
    OK(getcwd(cwd, sizeof cwd));
    STREQ(cwd, "/tmp");
}

static void clone3_call(void) {
    struct clone_args args;
    memset(&args, 0, sizeof args);
    args.exit_signal = SIGCHLD;
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) _exit(6);
    if (pid < 0) FAIL("clone3: %s", strerror(errno));
    EQ(reap(pid), 6 << 8);
    ERR(syscall(SYS_clone3, &args, 8), EINVAL);
    ERR(syscall(SYS_clone3, (void *)8, sizeof args), EFAULT);
}

static void many_children(void) {
    pid_t pids[60];
    for (int i = 0; i < 60; i++) {
        pids[i] = fork_or_fail();
        if (pids[i] == 0) _exit(i);
    }
    for (int i = 59; i >= 0; i--) EQ(reap(pids[i]), i << 8);
}

static void deep_fork_chain(void) {
    for (int depth = 0; depth < 25; depth++) {
        pid_t pid = fork_or_fail();
        if (pid) {
            int status = reap(pid);
            _exit(WEXITSTATUS(status) ? WEXITSTATUS(status) : 0);
        }
    }
    _exit(0);
}

static void *forker(void *arg) {
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork_or_fail();
        if (pid == 0) _exit(i + 1);
        EQ(reap(pid), (i + 1) << 8);
    }
    return arg;
}
static void threads_fork_at_once(void) {
    pthread_t t[4];
    for (int i = 0; i < 4; i++) EQ(pthread_create(&t[i], NULL, forker, NULL), 0);
    for (int i = 0; i < 4; i++) EQ(pthread_join(t[i], NULL), 0);
}

static void process_name(void) {
    char name[16];
    OK(prctl(PR_SET_NAME, "a-name-longer-than-fifteen"));
    OK(prctl(PR_GET_NAME, name));
    STREQ(name, "a-name-longer-t");
}

static void parent_death_signal(void) {
    int p[2];
    OK(pipe(p));
    CHILD_PID(pid) {
        CHILD_PID(grandchild) {
            OK(prctl(PR_SET_PDEATHSIG, SIGKILL));
            EQ(write(p[1], "r", 1), 1);
            for (;;) pause();
        }
        char c;
        EQ(read(p[0], &c, 1), 1);
        _exit(0);
    }
    reap_ok(pid);
    close(p[1]);
    char c;
    EQ(read(p[0], &c, 1), 0); // the grandchild's end closes when it dies
}

// A descriptor for a process: readable at its end, a target for signals and for waitid.
static void process_descriptors(void) {
    CHILD_PID(pid) {
        for (;;) pause();
    }
    int fd = syscall(SYS_pidfd_open, pid, 0);
    OK(fd);
    EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    ERR(syscall(SYS_pidfd_open, -1, 0), EINVAL);
    ERR(syscall(SYS_pidfd_open, 30000, 0), ESRCH);
    struct pollfd p = {fd, POLLIN, 0};
    EQ(poll(&p, 1, 0), 0);
    OK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
    ERR(syscall(SYS_pidfd_send_signal, 0, 0, NULL, 0), EBADF);
    OK(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0));
    EQ(poll(&p, 1, 10000), 1);
    siginfo_t info;
    OK(waitid((idtype_t)3 /* P_PIDFD */, fd, &info, WEXITED));
    EQ(info.si_pid, pid); EQ(info.si_code, CLD_KILLED); EQ(info.si_status, SIGTERM);
    ERR(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), ESRCH);
    close(fd);
    // from clone
    int got = -1;
    pid = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, &got, 0, 0);
    if (pid == 0) _exit(3);
    OK(pid);
    TRUE(got >= 0);
    p.fd = got;
    EQ(poll(&p, 1, 10000), 1);
    EQ(reap(pid), 3 << 8);
}

TESTS(T(process_descriptors), T(exit_codes), T(killed_status), T(fork_memory_is_private), T(fork_shares_offsets), T(pids), T(orphan_is_reparented),
      T(subreaper), T(vfork_shares_memory), T(wait_any_and_nohang), T(waitid_kinds), T(wait_by_group), T(wait4_usage),
      T(exit_group), T(main_thread_may_exit_first), T(clone_flags), T(clone_exit_signal), T(clone_shares_files_and_fs),
      T(clone3_call), T(many_children), T(deep_fork_chain), T(threads_fork_at_once), T(process_name), T(parent_death_signal))

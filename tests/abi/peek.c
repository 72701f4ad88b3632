// Reaching into other processes: memory, descriptors, what they share.
#include "abi.h"
#include <sys/prctl.h>
#include <sys/uio.h>

#define KCMP_FILE 0
#define KCMP_VM 1
#define KCMP_FILES 2

static char secret[20000];

static long kcmp(pid_t a, pid_t b, int kind, long i, long j) { return syscall(SYS_kcmp, a, b, kind, i, j); }

static pid_t sleeper(int *in, int *out) {
    int a[2], b[2];
    OK(pipe(a));
    OK(pipe(b));
    pid_t pid = fork();
    OK(pid);
    if (pid == 0) {
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        strcpy(secret + 9000, "of the child");
        char c = 'r';
        EQ(write(b[1], &c, 1), 1);
        EQ(read(a[0], &c, 1), 1);
        _exit(strcmp(secret + 12000, "from outside") != 0);
    }
    char c;
    EQ(read(b[0], &c, 1), 1);
    *in = a[1];
    *out = b[0];
    return pid;
}

static void memory_of_another(void) {
    int in, out;
    pid_t pid = sleeper(&in, &out);
    char one[5] = {0}, two[40] = {0};
    struct iovec local[2] = {{one, 4}, {two, 39}}, remote[2] = {{secret + 9000, 8}, {secret + 9008, 100}};
    EQ(process_vm_readv(pid, local, 2, remote, 2, 0), 43);
    STREQ(one, "of t");
    STREQ(two, "he child");
    EQ(secret[9000], 0);
    struct iovec from = {"from outside", 13}, to = {secret + 12000, 13};
    EQ(process_vm_writev(pid, &from, 1, &to, 1, 0), 13);
    struct iovec bad = {(void *)16, 8};
    ERR(process_vm_readv(pid, local, 1, &bad, 1, 0), EFAULT);
    ERR(process_vm_readv(pid, local, 1, remote, 1, 1), EINVAL);
    EQ(process_vm_readv(getpid(), local, 1, &(struct iovec){secret, 2}, 1, 0), 2);
    EQ(write(in, "x", 1), 1);
    reap_ok(pid);
    ERR(process_vm_readv(pid, local, 1, remote, 1, 0), ESRCH);
}

static void not_of_everybody(void) {
    if (geteuid() != 0) return;
    int in, out;
    pid_t pid = sleeper(&in, &out);
    CHILD_PID(other) {
        OK(setgid(4242));
        OK(setuid(4242));
        char b[8];
        struct iovec local = {b, 8}, remote = {secret, 8};
        ERR(process_vm_readv(pid, &local, 1, &remote, 1, 0), EPERM);
        ERR(kcmp(getpid(), pid, KCMP_VM, 0, 0), EPERM);
        _exit(0);
    }
    reap_ok(other);
    strcpy(secret + 12000, "from outside");
    struct iovec from = {"from outside", 13}, to = {secret + 12000, 13};
    EQ(process_vm_writev(pid, &from, 1, &to, 1, 0), 13);
    EQ(write(in, "x", 1), 1);
    reap_ok(pid);
}

static void descriptors_of_another(void) {
    int p[2];
    OK(pipe(p));
    CHILD_PID(pid) {
        int q[2];
        OK(pipe(q));
        OK(dup2(q[0], 77));
        EQ(write(q[1], "held", 4), 4);
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        EQ(write(p[1], "r", 1), 1);
        pause();
    }
    char c[8] = {0};
    EQ(read(p[0], c, 1), 1);
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    OK(pidfd);
    int fd = syscall(SYS_pidfd_getfd, pidfd, 77, 0);
    OK(fd);
    EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    EQ(read(fd, c, 8), 4);
    EQ(memcmp(c, "held", 4), 0);
    ERR(syscall(SYS_pidfd_getfd, pidfd, 78, 0), EBADF);
    ERR(syscall(SYS_pidfd_getfd, p[0], 1, 0), EBADF);
    ERR(syscall(SYS_pidfd_getfd, pidfd, 77, 1), EINVAL);
    long same = kcmp(getpid(), pid, KCMP_FILE, fd, 77);
    if (same == -1 && errno == ENOSYS && !in_sandbox()) same = 0;
    EQ(same, 0);
    OK(kill(pid, SIGKILL));
    EQ(waitpid(pid, NULL, 0), pid);
}

static void what_is_shared(void) {
    if (kcmp(getpid(), getpid(), KCMP_VM, 0, 0) == -1 && errno == ENOSYS && !in_sandbox()) return;
    int a = dup(1), b = open("/dev/null", O_RDONLY);
    EQ(kcmp(getpid(), getpid(), KCMP_FILE, a, 1), 0);
    long order = kcmp(getpid(), getpid(), KCMP_FILE, a, b);
    TRUE(order == 1 || order == 2);
    EQ(kcmp(getpid(), getpid(), KCMP_FILE, b, a), 3 - order);
    ERR(kcmp(getpid(), getpid(), KCMP_FILE, a, 999), EBADF);
    ERR(kcmp(getpid(), getpid(), 99, 0, 0), EINVAL);
    int in, out;
    pid_t pid = sleeper(&in, &out);
    TRUE(kcmp(getpid(), pid, KCMP_VM, 0, 0) > 0);
    TRUE(kcmp(getpid(), pid, KCMP_FILES, 0, 0) > 0);
    EQ(kcmp(getpid(), getpid(), KCMP_FILES, 0, 0), 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

TESTS(T(memory_of_another), T(not_of_everybody), T(descriptors_of_another), T(what_is_shared))

// Garbage arguments to every system call: each answers or kills the task that asked, nothing hangs, the kernel lives.
// On a host only calls that cannot harm it are tried; in a sandbox (ABI_SANDBOX) all of them.
#include "abi.h"
#include <sys/resource.h>
#include <sys/time.h>

static const long harmless[] = {0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 28, 32, 33, 35, 36,
                                39, 51, 61, 63, 72, 77, 78, 79, 96, 97, 98, 99, 100, 127, 128, 130, 131, 137, 138, 158, 186, 201, 202, 204,
                                217, 218, 228, 229, 230, 247, 257, 262, 267, 269, 270, 271, 273, 274, 292, 293, 295, 302, 309, 318, 332, 334};
static int is_harmless(long number) {
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) if (harmless[i] == number) return 1;
    return 0;
}
// Calls whose very point is to end or stop the caller, or that fork with garbage stacks.
static int skipped(long n) {
    return n == SYS_exit || n == SYS_exit_group || n == SYS_pause || n == SYS_rt_sigsuspend || n == SYS_reboot;
}

static unsigned long random_ = 88172645463325252ul;
static unsigned long next_random(void) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
}
static char *page;
static unsigned long pick(void) {
    unsigned long r = next_random();
    switch (r % 16) {
    case 0: return 0;
    case 1: return -1;
    case 2: return (unsigned long)page;
    case 3: return (unsigned long)page + 4090;
    case 4: return 0xffff888000000000ul;
    case 5: return 0x8000000000000000ul;
    case 6: return 0x7fffffffffff;
    case 7: return 0x7fffffff;
    case 8: return 0x80000000ul;
    case 9: return r >> 8 & 7;
    case 10: return r >> 8 & 0xfff;
    case 11: return 1ul << (r >> 8 & 63);
    case 12: return 4096;
    case 13: return (unsigned long)&random_;
    case 14: return 8;
    default: return r;
    }
}

static void one_call(long number, int rounds) {
    pid_t pid = fork_or_fail();
    if (pid == 0) {
        setpgid(0, 0);
        struct rlimit r = {64ul << 20, 64ul << 20};
        setrlimit(RLIMIT_FSIZE, &r);
        int null = open("/dev/null", O_RDWR);
        for (int fd = 0; fd < 8; fd++) if (fd != null) dup2(null, fd);
        random_ ^= (unsigned long)(number + 2) * 0x9e3779b97f4a7c15ul;
        for (int i = 0; i < rounds; i++) {
            unsigned long a[6];
            for (int k = 0; k < 6; k++) a[k] = pick();
            if (number == SYS_kill || number == SYS_tgkill || number == SYS_tkill || number == SYS_rt_sigqueueinfo || number == SYS_rt_tgsigqueueinfo) a[0] |= 0x40000000, a[0] &= 0x7fffffff;
            if (number == SYS_fork || number == SYS_vfork || number == SYS_clone || number == SYS_clone3 || number == SYS_execve) alarm(1);
            pid_t before = getpid();
            syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
            if (getpid() != before) _exit(0);
        }
        _exit(0);
    }
    setpgid(pid, pid);
    // 1.5 s is plenty; a call that sleeps by design is killed like anything else
    int status;
    for (int i = 0; i < 300; i++) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid) {
            kill(-pid, SIGKILL);
            return;
        }
        sleep_ms(i < 20 ? 1 : 5);
    }
    kill(-pid, SIGKILL);
    for (int i = 0; i < 1000; i++) {
        if (waitpid(pid, &status, WNOHANG) == pid) return;
        sleep_ms(10);
    }
    FAIL("system call %ld cannot be killed", number);
}

static void sweep(int rounds) {
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    alarm(0);
    for (long number = 0; number < 470; number++) {
        if (skipped(number) || (!in_sandbox() && !is_harmless(number))) continue;
        one_call(number, rounds);
    }
    long odd[] = {-1, 470, 512, 547, 0x40000000, 0x40000001, 0x7fffffff, (long)0x8000000000000000ul};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) if (in_sandbox()) one_call(odd[i], 3);
}

static void every_call(void) { sweep(in_sandbox() ? 40 : 10); }

static void afterwards_all_is_well(void) {
    CHILD_PID(pid) _exit(3);
    EQ(reap(pid), 3 << 8);
    int fd = open("/dev/zero", O_RDONLY);
    char b[16];
    EQ(read(fd, b, 16), 16);
    sleep_ms(5);
    char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1;
}

// Jumps and pointers into places where the kernel may live, with a call right behind.
static void pointers_into_the_kernel(void) {
    unsigned long bad[] = {0xffff800000000000ul, 0xffff888000000000ul, 0xffffffff80000000ul, 0xfffffffffffff000ul, 0x800000000000ul,
                           0x7ffffffff000ul, 0xffffc90000000000ul, 0x8000000000000000ul, 0x600000000000ul, 0x500000000000ul, 0x100000000000ul};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int z = open("/dev/zero", O_RDONLY), n = open("/dev/null", O_WRONLY);
        ERR(read(z, (void *)bad[i], 100), EFAULT);
        int q[2];
        OK(pipe(q));
        ERR(write(q[1], (void *)bad[i], 100), EFAULT);
        ERR(open((char *)bad[i], O_RDONLY), EFAULT);
        ERR(syscall(SYS_clock_gettime, 1, bad[i]), EFAULT);
        ERR(syscall(SYS_uname, bad[i]), EFAULT);
        close(z); close(n); close(q[0]); close(q[1]);
        CHILD_PID(pid) {
            ((void (*)(void))bad[i])();
            _exit(0);
        }
        int status = reap(pid);
        TRUE(WIFSIGNALED(status));
        EQ(WTERMSIG(status), SIGSEGV);
        CHILD_PID(stack) {
            __asm__ volatile("mov %0, %%rsp\n\tpush %%rax" ::"r"(bad[i]) : "memory");
            _exit(0);
        }
        status = reap(stack);
        TRUE(WIFSIGNALED(status));
        TRUE(WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
        CHILD_PID(call) { // a system call with such a stack, and one with such a return address
            __asm__ volatile("mov %0, %%rsp\n\tsyscall\n\tmov $60, %%eax\n\txor %%edi, %%edi\n\tsyscall" ::"r"(bad[i]), "a"(SYS_getpid) : "memory", "rcx", "r11");
            __builtin_unreachable();
        }
        EQ(reap(call), 0);
    }
}

TESTS(T(every_call), T(afterwards_all_is_well), T(pointers_into_the_kernel))

// User and group ids, resource limits, uname, sysinfo, random numbers, prctl, unknown calls.
#include "abi.h"
#include <sys/personality.h>
#include <sys/klog.h>
#include <sched.h>
#include <pthread.h>
#include <grp.h>
#include <linux/random.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/fsuid.h>

static void ids(void) {
    uid_t r, e, s;
    OK(getresuid(&r, &e, &s));
    EQ(r, getuid()); EQ(e, geteuid());
    gid_t gr, ge, gs;
    OK(getresgid(&gr, &ge, &gs));
    EQ(gr, getgid()); EQ(ge, getegid());
    ERR(syscall(SYS_getresuid, 8, 8, 8), EFAULT);
}

static void changing_ids(void) {
    if (geteuid() != 0) return;
    CHILD_PID(pid) {
        OK(setresuid(-1, 1000, -1));
        EQ(geteuid(), 1000); EQ(getuid(), 0);
        OK(seteuid(0)); // the saved id allows it
        OK(setresgid(5, 6, 7));
        EQ(getgid(), 5); EQ(getegid(), 6);
        gid_t groups[3] = {10, 20, 30};
        OK(setgroups(3, groups));
        gid_t got[10];
        EQ(getgroups(10, got), 3);
        EQ(got[2], 30);
        EQ(getgroups(0, NULL), 3);
        ERR(getgroups(1, got), EINVAL);
        OK(setuid(1000));
        EQ(getuid(), 1000); EQ(geteuid(), 1000);
        ERR(setuid(0), EPERM);
        ERR(setresuid(0, -1, -1), EPERM);
        ERR(setgroups(3, groups), EPERM);
        ERR(setgid(0), EPERM);
        OK(setuid(1000));
        _exit(0);
    }
    reap_ok(pid);
    CHILD_PID(reuid) {
        OK(setreuid(1000, 2000));
        EQ(getuid(), 1000); EQ(geteuid(), 2000);
        uid_t r, e, s;
        getresuid(&r, &e, &s);
        EQ(s, 2000);
        _exit(0);
    }
    reap_ok(reuid);
    CHILD_PID(fs) {
        EQ(setfsuid(77), 0);
        EQ(setfsuid(-1), 77);
        _exit(0);
    }
    reap_ok(fs);
}

static void kill_needs_permission(void) {
    if (geteuid() != 0) return;
    CHILD_PID(target) for (;;) pause();
    CHILD_PID(pid) {
        OK(setuid(1000));
        ERR(kill(target, SIGTERM), EPERM);
        _exit(0);
    }
    reap_ok(pid);
    kill(target, SIGKILL);
    reap(target);
}

static void limits(void) {
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit r;
        OK(getrlimit(i, &r));
        TRUE(r.rlim_cur <= r.rlim_max);
    }
    struct rlimit r = {10, 20};
    ERR(getrlimit(99, &r), EINVAL);
    r.rlim_cur = 30;
    r.rlim_max = 20;
    ERR(setrlimit(RLIMIT_NOFILE, &r), EINVAL);
    CHILD_PID(pid) {
        struct rlimit n;
        OK(getrlimit(RLIMIT_NOFILE, &n));
        n.rlim_cur = 12;
        OK(setrlimit(RLIMIT_NOFILE, &n));
        int fd, last = -1;
        while ((fd = dup(1)) >= 0) last = fd;
        EQ(errno, EMFILE);
        EQ(last, 11);
        ERR(open("/dev/null", O_RDONLY), EMFILE);
        int q[2];
        ERR(pipe(q), EMFILE);
        ERR(dup2(1, 12), EBADF);
        ERR(fcntl(1, F_DUPFD, 12), EINVAL);
        _exit(0);
    }
    reap_ok(pid);
    CHILD_PID(inherit) {
        struct rlimit n = {4096 * 5, 4096 * 500};
        OK(setrlimit(RLIMIT_CORE, &n));
        CHILD_PID(inner) {
            struct rlimit m;
            OK(prlimit(0, RLIMIT_CORE, NULL, &m));
            EQ(m.rlim_cur, n.rlim_cur); EQ(m.rlim_max, n.rlim_max);
            _exit(0);
        }
        reap_ok(inner);
        _exit(0);
    }
    reap_ok(inherit);
    CHILD_PID(size) {
        enter_scratch();
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit n = {1000, 1000};
        OK(setrlimit(RLIMIT_FSIZE, &n));
        int fd = open("f", O_CREAT | O_WRONLY, 0644);
        char b[2000] = {0};
        EQ(write(fd, b, 2000), 1000); // up to the limit
        ERR(write(fd, b, 1), EFBIG);
        exit(0);
    }
    reap_ok(size);
    CHILD_PID(address) {
        struct rlimit n = {256ul << 20, 256ul << 20};
        OK(setrlimit(RLIMIT_AS, &n));
        ERR(mmap(NULL, 512ul << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), ENOMEM);
        _exit(0);
    }
    reap_ok(address);
}

static void names(void) {
    struct utsname u;
    OK(uname(&u));
    STREQ(u.sysname, "Linux"); STREQ(u.machine, "x86_64");
    TRUE(strlen(u.release) > 0 && strlen(u.version) > 0 && strlen(u.nodename) > 0);
    if (in_sandbox()) TRUE(!strncmp(u.release, "6.1.0", 5));
    char name[256];
    OK(gethostname(name, sizeof name));
    STREQ(name, u.nodename);
    ERR(syscall(SYS_uname, 8), EFAULT);
}

static void system_information(void) {
    struct sysinfo i;
    OK(sysinfo(&i));
    TRUE(i.uptime >= 0 && i.totalram > 0 && i.freeram <= i.totalram && i.mem_unit >= 1 && i.procs >= 1);
    EQ(sysconf(_SC_PAGESIZE), 4096);
    TRUE(sysconf(_SC_NPROCESSORS_CONF) >= 1);
}

static void random_numbers(void) {
    unsigned char a[64] = {0}, b[64] = {0};
    EQ(getrandom(a, sizeof a, 0), sizeof a);
    EQ(getrandom(b, sizeof b, GRND_NONBLOCK), sizeof b);
    TRUE(memcmp(a, b, sizeof a));
    int zeros = 0;
    for (size_t i = 0; i < sizeof a; i++) zeros += a[i] == 0;
    TRUE(zeros < 20);
    ERR(getrandom(a, sizeof a, 0x77), EINVAL);
    ERR(getrandom((void *)8, 16, 0), EFAULT);
    // a child does not repeat its parent's numbers
    int q[2];
    OK(pipe(q));
    CHILD_PID(pid) {
        EQ(getrandom(a, 32, 0), 32);
        EQ(write(q[1], a, 32), 32);
        _exit(0);
    }
    EQ(getrandom(b, 32, 0), 32);
    reap_ok(pid);
    EQ(read(q[0], a, 32), 32);
    TRUE(memcmp(a, b, 32));
}

static void process_controls(void) {
    OK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
    ERR(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0), EINVAL);
    EQ(prctl(PR_GET_DUMPABLE), 1);
    OK(prctl(PR_SET_DUMPABLE, 0));
    EQ(prctl(PR_GET_DUMPABLE), 0);
    ERR(prctl(123456, 0, 0, 0, 0), EINVAL);
    unsigned long base = 0;
    OK(syscall(SYS_arch_prctl, 0x1003 /* ARCH_GET_FS */, &base));
    TRUE(base != 0);
    ERR(syscall(SYS_arch_prctl, 0x1002 /* ARCH_SET_FS */, 0xffff800000000000ul), EPERM);
    ERR(syscall(SYS_arch_prctl, 0x9999, 0), EINVAL);
    OK(syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, &base));
    unsigned long gs = 0;
    OK(syscall(SYS_arch_prctl, 0x1004 /* ARCH_GET_GS */, &gs));
    EQ(gs, (unsigned long)&base);
    unsigned long through = 0;
    base = 0x1122334455667788ul;
    __asm__ volatile("mov %%gs:0, %0" : "=r"(through));
    EQ(through, base);
    OK(syscall(SYS_getpid));
    __asm__ volatile("mov %%gs:0, %0" : "=r"(through)); // kept over system calls
    EQ(through, base);
}

static void unknown_calls(void) {
    ERR(syscall(9999), ENOSYS);
    ERR(syscall(-1), ENOSYS);
    ERR(syscall(1000000000), ENOSYS);
    ERR(syscall(0x40000000 | SYS_getpid), ENOSYS); // x32 is not built in
}

struct caps {
    uint32_t effective, permitted, inheritable;
};

static void capabilities(void) {
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522, 0};
    struct caps caps[2];
    OK(syscall(SYS_capget, &header, caps));
    header.version = 1;
    ERR(syscall(SYS_capget, &header, caps), EINVAL);
    EQ(header.version, 0x20080522);
    header.pid = 0x3ffffff;
    ERR(syscall(SYS_capget, &header, caps), ESRCH);
    header.pid = 0;
    OK(syscall(SYS_capget, &header, caps));
    // What is given up is gone.
    uint32_t had = caps[0].permitted;
    caps[0].effective &= ~(1u << 6);
    caps[0].permitted &= ~(1u << 6);
    OK(syscall(SYS_capset, &header, caps));
    OK(syscall(SYS_capget, &header, caps));
    EQ(caps[0].permitted & 1u << 6, 0);
    if (had & 1u << 6) ERR(setgid(12345), EPERM);
    caps[0].permitted |= 1u << 6;
    ERR(syscall(SYS_capset, &header, caps), EPERM);
}

static void groups_of_the_file_system(void) {
    if (geteuid() != 0) return;
    EQ(setfsgid(500), 0);
    EQ(setfsgid(-1), 500);
    OK(setregid(600, 700));
    EQ(getgid(), 600);
    EQ(getegid(), 700);
    EQ(setfsgid(-1), 700);
    OK(setregid(-1, 600));
    EQ(getegid(), 600);
    OK(setuid(12345));
    ERR(setregid(800, -1), EPERM);
    OK(setregid(-1, 700));
    EQ(setfsgid(800), 700);
    EQ(setfsgid(-1), 700);
}

static void execution_domain(void) {
    EQ(personality(0xffffffff) & 0xff, 0);
    OK(personality(ADDR_NO_RANDOMIZE));
    EQ(personality(0xffffffff), ADDR_NO_RANDOMIZE);
    CHILD_PID(pid) { _exit(personality(0xffffffff) != ADDR_NO_RANDOMIZE); }
    reap_ok(pid);
    OK(personality(0));
}

static void kernel_log(void) {
    TRUE(klogctl(10, NULL, 0) >= 0 || errno == EPERM);
    ERR(klogctl(99, NULL, 0), EINVAL);
}

static void names_can_be_set(void) {
    // A host keeps its names.
    if (geteuid() != 0 || !in_sandbox() && unshare(CLONE_NEWUTS)) return;
    OK(sethostname("new-name", 8));
    OK(setdomainname("example", 7));
    struct utsname u;
    OK(uname(&u));
    STREQ(u.nodename, "new-name");
    STREQ(u.domainname, "example");
    ERR(sethostname("x", 65), EINVAL);
    ERR(setdomainname("x", -1), EINVAL);
    OK(setuid(12345));
    ERR(sethostname("x", 1), EPERM);
}

static void *alone(void *arg) {
    OK(unshare(CLONE_FS | CLONE_FILES));
    OK(chdir("/"));
    OK(close(*(int *)arg));
    return NULL;
}

static void what_was_shared(void) {
    ERR(unshare(1), EINVAL);
    OK(unshare(0));
    enter_scratch();
    int fd = open("/dev/null", O_RDONLY);
    pthread_t t;
    EQ(pthread_create(&t, NULL, alone, &fd), 0);
    EQ(pthread_join(t, NULL), 0);
    OK(fcntl(fd, F_GETFD));
    char here[300];
    TRUE(getcwd(here, sizeof here));
    STREQ(here, scratch);
}

TESTS(T(capabilities), T(groups_of_the_file_system), T(execution_domain), T(kernel_log), T(names_can_be_set),
      T(what_was_shared), T(ids), T(changing_ids), T(kill_needs_permission), T(limits), T(names), T(system_information), T(random_numbers),
      T(process_controls), T(unknown_calls))

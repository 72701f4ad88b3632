// Micro-benchmarks of what a sandbox costs. Static; needs only libc.
//
//   micro [-t MILLISECONDS] [-n SAMPLES] [-d DIRECTORY] all|ROW...
//
// Prints a line for each row: "ROW UNIT SAMPLE...", nanoseconds an operation or megabytes a second. A row runs in a process of
// its own; one that fails prints "ROW failed REASON". How many operations make a sample is found by trying, so that it takes
// about MILLISECONDS on any platform. DIRECTORY is where the file rows work.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double sample_seconds = 0.1;
static int samples = 3;
static const char *directory = "/tmp";
static const char *row_name;

static void fail(const char *what) {
    printf("%s failed %s: %s\n", row_name, what, strerror(errno));
    fflush(stdout);
    _exit(1);
}
#define NEED(condition) \
    do { if (!(condition)) fail(#condition); } while (0)

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

// Measures `operations(count)`.
static void measure(void (*operations)(long)) {
    long count = 1;
    double took;
    for (;;) {
        double start = seconds();
        operations(count);
        took = seconds() - start;
        if (took >= sample_seconds / 6) break;
        count *= took < sample_seconds / 100 ? 10 : 2;
    }
    count = (long)(count * sample_seconds / took) + 1;
    printf("%s ns", row_name);
    for (int i = 0; i < samples; i++) {
        double start = seconds();
        operations(count);
        printf(" %.1f", (seconds() - start) / count * 1e9);
    }
    printf("\n");
    fflush(stdout);
}

// System calls.
static void call_getpid(long n) { while (n-- > 0) syscall(SYS_getpid); }
static void row_getpid(void) { measure(call_getpid); }
// The number as an immediate right before the instruction, as libc's wrappers have it.
static void call_getpid_immediate(long n) {
    while (n-- > 0) {
        long result;
        __asm__ volatile("mov %1, %%eax\n\tsyscall" : "=a"(result) : "i"(SYS_getpid) : "rcx", "r11", "memory");
    }
}
static void row_getpid_imm(void) { measure(call_getpid_immediate); }
static int fd;
static void read_byte(long n) { char c; while (n-- > 0) NEED(read(fd, &c, 1) == 1); }
static void row_read_devzero_1b(void) { fd = open("/dev/zero", O_RDONLY); NEED(fd >= 0); measure(read_byte); }
static void fstat_fd(long n) { struct stat st; while (n-- > 0) fstat(fd, &st); }
static void row_fstat(void) { fd = open("/dev/zero", O_RDONLY); NEED(fd >= 0); measure(fstat_fd); }
static void read_clock(long n) { struct timespec t; while (n-- > 0) clock_gettime(CLOCK_MONOTONIC, &t); }
static void row_clock_gettime_vdso(void) { measure(read_clock); }
static void call_clock(long n) { struct timespec t; while (n-- > 0) syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t); }
static void row_clock_gettime_syscall(void) { measure(call_clock); }
static void yield(long n) { while (n-- > 0) sched_yield(); }
static void row_sched_yield(void) { measure(yield); }

// Signals.
static volatile long caught;
static void on_signal(int s) { (void)s; caught++; }
static void signal_myself(long n) { pid_t me = getpid(); while (n-- > 0) kill(me, SIGUSR1); }
static void row_signal_self(void) { signal(SIGUSR1, on_signal); measure(signal_myself); NEED(caught > 0); }

// Processes and threads.
static void fork_and_wait(long n) {
    while (n-- > 0) {
        pid_t pid = fork();
        NEED(pid >= 0);
        if (pid == 0) _exit(0);
        NEED(waitpid(pid, NULL, 0) == pid);
    }
}
static void row_fork_exit_wait(void) { measure(fork_and_wait); }
static char self[4096];
static void exec_and_wait(long n) {
    while (n-- > 0) {
        pid_t pid = fork();
        NEED(pid >= 0);
        if (pid == 0) {
            execl(self, self, "nothing", (char *)0);
            _exit(1);
        }
        int status;
        NEED(waitpid(pid, &status, 0) == pid && status == 0);
    }
}
static void row_fork_exec_wait(void) { NEED(readlink("/proc/self/exe", self, sizeof self - 1) > 0); measure(exec_and_wait); }
static void *nothing(void *arg) { return arg; }
static void thread_and_join(long n) {
    while (n-- > 0) {
        pthread_t t;
        NEED(pthread_create(&t, NULL, nothing, NULL) == 0);
        pthread_join(t, NULL);
    }
}
static void row_thread_create_join(void) { measure(thread_and_join); }

// Between processes and threads.
static int to_peer[2], from_peer[2];
static void ping(long n) { char c = 1; while (n-- > 0) NEED(write(to_peer[1], &c, 1) == 1 && read(from_peer[0], &c, 1) == 1); }
static void pingpong(void) {
    NEED(pipe(to_peer) == 0 && pipe(from_peer) == 0);
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0) {
        char c;
        close(to_peer[1]);
        while (read(to_peer[0], &c, 1) == 1 && write(from_peer[1], &c, 1) == 1) {}
        _exit(0);
    }
    measure(ping);
    close(to_peer[1]);
    waitpid(pid, NULL, 0);
}
static void row_pipe_pingpong(void) { pingpong(); }
static void row_ctxsw_pipe_1cpu_rt(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    pingpong();
}
static void through_pipe(long n) { char c = 1; while (n-- > 0) NEED(write(to_peer[1], &c, 1) == 1 && read(to_peer[0], &c, 1) == 1); }
static void row_pipe_write_read_1b(void) { NEED(pipe(to_peer) == 0); measure(through_pipe); }
static int word;
static void futex(int operation, int value) { syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0); }
static void *futex_peer(void *arg) {
    for (;;) {
        int value;
        while ((value = __atomic_load_n(&word, __ATOMIC_ACQUIRE)) == 0) futex(FUTEX_WAIT, 0);
        if (value < 0) return arg;
        __atomic_store_n(&word, 0, __ATOMIC_RELEASE);
        futex(FUTEX_WAKE, 1);
    }
}
static void futex_ping(long n) {
    while (n-- > 0) {
        __atomic_store_n(&word, 1, __ATOMIC_RELEASE);
        futex(FUTEX_WAKE, 1);
        while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 1) futex(FUTEX_WAIT, 1);
    }
}
static void row_futex_pingpong(void) {
    pthread_t t;
    NEED(pthread_create(&t, NULL, futex_peer, NULL) == 0);
    measure(futex_ping);
    __atomic_store_n(&word, -1, __ATOMIC_RELEASE);
    futex(FUTEX_WAKE, 1);
    pthread_join(t, NULL);
}

// Memory.
static void map_touch_unmap(long n) {
    while (n-- > 0) {
        char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        NEED(p != MAP_FAILED);
        for (int at = 0; at < 1 << 20; at += 4096) p[at] = 1;
        munmap(p, 1 << 20);
    }
}
static void row_mmap_touch_munmap_1m(void) { measure(map_touch_unmap); }
static void map_unmap(long n) {
    while (n-- > 0) {
        void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        NEED(p != MAP_FAILED);
        munmap(p, 4096);
    }
}
static void row_mmap_munmap_4k(void) { measure(map_unmap); }
enum { REGION = 64 << 20 };
static char *region;
static void touch_pages(long n) {
    while (n > 0) {
        long pages = n < REGION / 4096 ? n : REGION / 4096;
        for (long i = 0; i < pages; i++) region[i * 4096] = 1;
        madvise(region, REGION, MADV_DONTNEED);
        n -= pages;
    }
}
static void row_page_fault(void) {
    region = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(region != MAP_FAILED);
    madvise(region, REGION, MADV_NOHUGEPAGE);
    measure(touch_pages);
}

// Files.
static char path[4096];
static const char *name(const char *leaf) {
    snprintf(path, sizeof path, "%s/micro.%s.%d", directory, leaf, getpid());
    return path;
}
static void make_file(const char *leaf, long size) {
    static char block[65536];
    fd = open(name(leaf), O_CREAT | O_TRUNC | O_RDWR, 0644);
    NEED(fd >= 0);
    for (long at = 0; at < size; at += sizeof block) NEED(write(fd, block, sizeof block) == sizeof block);
}
static void open_and_close(long n) {
    while (n-- > 0) {
        int f = open(path, O_RDONLY);
        NEED(f >= 0);
        close(f);
    }
}
static void row_open_close(void) { make_file("open", 65536); measure(open_and_close); unlink(path); }
static void stat_path(long n) { struct stat st; while (n-- > 0) NEED(stat(path, &st) == 0); }
static void row_stat(void) { make_file("stat", 65536); measure(stat_path); unlink(path); }
static void create_and_unlink(long n) {
    while (n-- > 0) {
        int f = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
        NEED(f >= 0);
        close(f);
        NEED(unlink(path) == 0);
    }
}
static void row_create_close_unlink(void) { name("create"); measure(create_and_unlink); }
static char page[4096];
static void read_page(long n) { while (n-- > 0) NEED(pread(fd, page, 4096, 0) == 4096); }
static void row_pread_4k(void) { make_file("pread", 65536); measure(read_page); unlink(path); }
static void write_page(long n) { while (n-- > 0) NEED(pwrite(fd, page, 4096, 0) == 4096); }
static void row_pwrite_4k(void) { make_file("pwrite", 65536); measure(write_page); unlink(path); }
static void list(long n) {
    while (n-- > 0) {
        DIR *d = opendir(path);
        NEED(d != NULL);
        int entries = 0;
        while (readdir(d)) entries++;
        closedir(d);
        NEED(entries == 102);
    }
}
static void row_readdir_100(void) {
    char entry[4200];
    NEED(mkdir(name("dir"), 0755) == 0);
    for (int i = 0; i < 100; i++) {
        snprintf(entry, sizeof entry, "%s/%d", path, i);
        int f = open(entry, O_CREAT | O_WRONLY, 0644);
        NEED(f >= 0);
        close(f);
    }
    measure(list);
    for (int i = 0; i < 100; i++) {
        snprintf(entry, sizeof entry, "%s/%d", path, i);
        unlink(entry);
    }
    rmdir(path);
}
// Sequential, 64 KB a call.
static void sequential(int writing) {
    static char block[65536];
    long total = 64L << 20;
    make_file("seq", writing ? 0 : total);
    printf("%s MB/s", row_name);
    for (int i = 0; i < samples; i++) {
        if (writing) NEED(ftruncate(fd, 0) == 0);
        lseek(fd, 0, SEEK_SET);
        double start = seconds();
        for (long at = 0; at < total; at += sizeof block)
            NEED((writing ? write(fd, block, sizeof block) : read(fd, block, sizeof block)) == sizeof block);
        printf(" %.1f", total / (seconds() - start) / 1e6);
    }
    printf("\n");
    unlink(path);
}
static void row_seqwrite_64k(void) { sequential(1); }
static void row_seqread_64k(void) { sequential(0); }

// What a ptrace platform cannot beat without another mechanism: a stopped system call, its registers read and written.
static pid_t tracee;
static void ptrace_round(long n) {
    struct user_regs_struct registers;
    while (n-- > 0) {
        int status;
        NEED(ptrace(PTRACE_SYSEMU, tracee, 0, 0) == 0 && waitpid(tracee, &status, 0) == tracee && WIFSTOPPED(status));
        NEED(ptrace(PTRACE_GETREGS, tracee, 0, &registers) == 0);
        registers.rax = 1;
        NEED(ptrace(PTRACE_SETREGS, tracee, 0, &registers) == 0);
    }
}
static void row_ptrace_pingpong(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one); // both on one CPU, the quick way
    tracee = fork();
    NEED(tracee >= 0);
    if (tracee == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (;;) syscall(SYS_getpid);
    }
    int status;
    NEED(waitpid(tracee, &status, 0) == tracee);
    measure(ptrace_round);
    kill(tracee, SIGKILL);
    waitpid(tracee, &status, 0);
}

static const struct {
    const char *name;
    void (*run)(void);
} rows[] = {
#define ROW(r) {#r, row_##r}
    ROW(getpid), ROW(getpid_imm), ROW(ptrace_pingpong), ROW(read_devzero_1b), ROW(fstat), ROW(clock_gettime_vdso), ROW(clock_gettime_syscall), ROW(sched_yield),
    ROW(signal_self), ROW(fork_exit_wait), ROW(fork_exec_wait), ROW(thread_create_join), ROW(pipe_pingpong), ROW(ctxsw_pipe_1cpu_rt),
    ROW(pipe_write_read_1b), ROW(futex_pingpong), ROW(mmap_touch_munmap_1m), ROW(mmap_munmap_4k), ROW(page_fault), ROW(open_close), ROW(stat),
    ROW(create_close_unlink), ROW(pread_4k), ROW(pwrite_4k), ROW(readdir_100), ROW(seqwrite_64k), ROW(seqread_64k),
};

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "nothing")) return 0;
    int option;
    while ((option = getopt(argc, argv, "t:n:d:")) != -1) {
        if (option == 't') sample_seconds = atof(optarg) / 1e3;
        else if (option == 'n') samples = atoi(optarg);
        else if (option == 'd') directory = optarg;
        else return 2;
    }
    int known = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int wanted = 0;
        for (int a = optind; a < argc; a++)
            // The baseline is for the host alone and asked for by name.
            wanted |= !strcmp(argv[a], rows[i].name) || (!strcmp(argv[a], "all") && rows[i].run != row_ptrace_pingpong);
        if (!wanted) continue;
        known = 1;
        row_name = rows[i].name;
        fflush(stdout);
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid == 0) {
            alarm(60);
            rows[i].run();
            exit(0);
        }
        int status;
        if (waitpid(pid, &status, 0) == pid && status != 0 && WIFSIGNALED(status)) printf("%s failed signal %d\n", row_name, WTERMSIG(status));
    }
    fflush(stdout);
    return known ? 0 : 2;
}

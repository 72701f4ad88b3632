// Exhaustion: fork bombs, memory, descriptors, mappings, threads. Errors or a dead task, and everything works afterwards.
#include "abi.h"
#include <dirent.h>
#include <pthread.h>
#include <sys/resource.h>

static void still_works(void) {
    CHILD_PID(pid) {
        char *p = malloc(1 << 20);
        memset(p, 1, 1 << 20);
        _exit(p[77] == 1 ? 0 : 1);
    }
    reap_ok(pid);
}

static void fork_bomb_bounded_by_rlimit(void) {
    // root is exempt from RLIMIT_NPROC, so somebody else drops the bomb
    CHILD_PID(pid) {
        if (geteuid() == 0) {
            OK(setgid(54321));
            OK(setuid(54321));
        } else {
            _exit(0);
        }
        struct rlimit r = {50, 50};
        OK(setrlimit(RLIMIT_NPROC, &r));
        int made = 0, refused = 0;
        for (int i = 0; i < 200; i++) {
            pid_t child = fork();
            if (child == 0) for (;;) pause();
            if (child < 0) {
                EQ(errno, EAGAIN);
                refused = 1;
                break;
            }
            made++;
        }
        TRUE(refused && made < 51 && made > 5);
        kill(0, SIGKILL); // all of this test's group
        _exit(1);
    }
    setpgid(pid, pid);
    int status = reap(pid);
    if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) FAIL("wait status %#x", status);
    still_works();
}

static void bomb(int depth) {
    for (;;) {
        pid_t pid = fork();
        if (pid == 0 && ++depth > 40) for (;;) pause();
        if (pid < 0) for (;;) pause();
    }
}
static void fork_bomb(void) {
    if (!in_sandbox()) return; // a host is not the place
    int q[2];
    OK(pipe(q));
    CHILD_PID(pid) {
        setpgid(0, 0);
        close(q[0]);
        bomb(0);
    }
    close(q[1]);
    setpgid(pid, pid);
    sleep_ms(1500);
    for (int i = 0; i < 2000; i++) {
        if (kill(-pid, SIGKILL) < 0 && errno == ESRCH) break;
        if (waitpid(pid, NULL, WNOHANG) < 0 && errno == ECHILD && kill(-pid, 0) < 0) break;
        sleep_ms(5);
    }
    char c;
    EQ(read(q[0], &c, 1), 0); // nobody of them is left
    sleep_ms(200);
    still_works();
}

static void descriptors(void) {
    CHILD_PID(pid) {
        int count = 0, fd;
        while ((fd = open("/dev/null", O_RDONLY)) >= 0 && count < 2000000) count++;
        TRUE(errno == EMFILE || errno == ENFILE);
        TRUE(count > 100);
        int q[2];
        TRUE(pipe(q) < 0 && (errno == EMFILE || errno == ENFILE));
        OK(close(10));
        OK(open("/dev/null", O_RDONLY));
        _exit(0);
    }
    reap_ok(pid);
    still_works();
}

static void address_space(void) {
    CHILD_PID(pid) {
        int count = 0;
        // alternate protections, so that nothing merges
        for (; count < 300000; count++)
            if (mmap(NULL, 4096, count % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) break;
        if (count < 300000) EQ(errno, ENOMEM);
        TRUE(count > 1000);
        _exit(0);
    }
    reap_ok(pid);
    still_works();
}

static void memory(void) {
    if (!in_sandbox()) return;
    CHILD_PID(pid) {
        size_t block = 16 << 20;
        for (size_t n = 0; n < 20000; n++) {
            char *p = mmap(NULL, block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) {
                EQ(errno, ENOMEM);
                _exit(0);
            }
            for (size_t i = 0; i < block; i += 4096) p[i] = 1;
        }
        _exit(2);
    }
    int status = reap(pid);
    if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) FAIL("wait status %#x", status);
    still_works();
}

static void temporary_files(void) {
    if (!in_sandbox()) return;
    CHILD_PID(pid) {
        int fd = open("/dev/shm/big", O_CREAT | O_WRONLY, 0600);
        if (fd < 0) _exit(0);
        static char block[1 << 20];
        memset(block, 1, sizeof block);
        ssize_t n;
        long total = 0;
        while ((n = write(fd, block, sizeof block)) > 0 && total < 200000) total++;
        int e = errno;
        unlink("/dev/shm/big");
        _exit(n < 0 && (e == ENOSPC || e == ENOMEM || e == EFBIG) ? 0 : 3);
    }
    int status = reap(pid);
    unlink("/dev/shm/big");
    if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) FAIL("wait status %#x", status);
    still_works();
}

static void *waits(void *arg) {
    for (;;) pause();
    return arg;
}
static void threads(void) {
    CHILD_PID(pid) {
        pthread_attr_t a;
        pthread_attr_init(&a);
        pthread_attr_setstacksize(&a, 32768);
        int count = 0;
        pthread_t t;
        while (count < 3000 && pthread_create(&t, &a, waits, NULL) == 0) count++;
        TRUE(count > 100);
        _exit(0);
    }
    reap_ok(pid);
    still_works();
}

static void path_depth(void) {
    enter_scratch();
    int made = 0;
    for (; made < 400; made++)
        if (mkdir("d", 0755) || chdir("d")) break;
    TRUE(made > 200);
    char cwd[8192];
    TRUE(syscall(SYS_getcwd, cwd, sizeof cwd) > 0 || errno == ENAMETOOLONG);
    OK(chdir(scratch));
}

static void big_directory(void) {
    enter_scratch();
    char name[32];
    for (int i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "%d", i);
        int fd = open(name, O_CREAT | O_WRONLY, 0644);
        OK(fd);
        close(fd);
    }
    DIR *d = opendir(".");
    int count = 0;
    while (readdir(d)) count++;
    closedir(d);
    EQ(count, 3002);
}

// A second of CPU time, whatever the clock says.
static void cpu_time(void) {
    CHILD_PID(pid) {
        struct rlimit l = {1, 3};
        OK(setrlimit(RLIMIT_CPU, &l));
        CHILD_PID(heir) {
            OK(getrlimit(RLIMIT_CPU, &l));
            EQ(l.rlim_cur, 1);
            for (volatile long i = 0;; i++) {}
        }
        int status;
        EQ(waitpid(heir, &status, 0), heir);
        TRUE(WIFSIGNALED(status));
        EQ(WTERMSIG(status), SIGXCPU);
        _exit(0);
    }
    reap_ok(pid);
}

TESTS(T(cpu_time), T(fork_bomb_bounded_by_rlimit), T(fork_bomb), T(descriptors), T(address_space), T(memory), T(temporary_files), T(threads),
      T(path_depth), T(big_directory))

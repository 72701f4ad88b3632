// execve: arguments, environment, interpreters, what survives, and the errors.
#include "abi.h"
#include <elf.h>
#include <pthread.h>
#include <sys/auxv.h>

static char self[512];
static void find_self(void) {
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) FAIL("readlink /proc/self/exe: %s", strerror(errno));
    self[n] = 0;
}
// Runs this program again as `exec-helper KIND args` and returns the wait status.
static int run_helper(char *const argv[], char *const envp[]) {
    find_self();
    CHILD_PID(pid) {
        execve(self, argv, envp);
        FAIL("execve %s: %s", self, strerror(errno));
    }
    return reap(pid);
}

static void arguments_and_environment(void) {
    char *argv[] = {"helper:args", "one", "", "three four", NULL};
    char *envp[] = {"A=1", "B=", "EMPTY", NULL};
    EQ(run_helper(argv, envp), 0);
}

// What runs is not written, and what is written does not run.
static void busy_text(void) {
    enter_scratch();
    find_self();
    ssize_t n;
    char block[65536];
    int from = open(self, O_RDONLY), to = open("copy", O_CREAT | O_WRONLY, 0755);
    while ((n = read(from, block, sizeof block)) > 0) EQ(write(to, block, n), n);
    char *argv[] = {"helper:args", "one", "", "three four", NULL}, *envp[] = {"A=1", "B=", "EMPTY", NULL};
    ERR(execve("copy", argv, envp), ETXTBSY);
    OK(close(to));
    int p[2];
    OK(pipe(p));
    CHILD_PID(pid) {
        dup2(p[0], 0);
        execlp("./copy", "helper:wait", (char *)0);
        _exit(1);
    }
    char exe[600], link[64], want[600];
    snprintf(link, sizeof link, "/proc/%d/exe", pid);
    snprintf(want, sizeof want, "%s/copy", scratch);
    do {
        sleep_ms(1);
        n = readlink(link, exe, sizeof exe - 1);
        if (n > 0) exe[n] = 0;
    } while (n < 0 || strcmp(exe, want));
    ERR(open("copy", O_WRONLY), ETXTBSY);
    ERR(open("copy", O_RDWR | O_TRUNC), ETXTBSY);
    ERR(truncate("copy", 0), ETXTBSY);
    // The name is free.
    OK(rename("copy", "other"));
    EQ(write(p[1], "x", 1), 1);
    reap_ok(pid);
    to = open("other", O_WRONLY);
    OK(to);
}

static void close_on_exec(void) {
    char keep[16], gone[16];
    int a = dup(1), b = fcntl(1, F_DUPFD_CLOEXEC, 0);
    snprintf(keep, sizeof keep, "%d", a);
    snprintf(gone, sizeof gone, "%d", b);
    char *argv[] = {"helper:fds", keep, gone, NULL};
    EQ(run_helper(argv, (char *[]){NULL}), 0);
}

static void on_signal(int s) { (void)s; }
static void signals_across_exec(void) {
    signal(SIGUSR1, on_signal); // becomes default
    signal(SIGUSR2, SIG_IGN);   // stays ignored
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM); // stays blocked, and stays pending
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGTERM);
    find_self();
    CHILD_PID(pid) {
        raise(SIGTERM);
        char *argv[] = {"helper:signals", NULL};
        execve(self, argv, (char *[]){NULL});
        _exit(1);
    }
    EQ(reap(pid), 0);
}

static void script(void) {
    enter_scratch();
    find_self();
    char text[1024];
    snprintf(text, sizeof text, "#! %s an argument \nnever read\n", self);
    write_file("script", text, 0755);
    CHILD_PID(pid) {
        char *argv[] = {"ignored", "x", "y", NULL};
        execve("./script", argv, (char *[]){"HELPER=script", NULL});
        FAIL("execve: %s", strerror(errno));
    }
    EQ(reap(pid), 0);
    // a script of a script is followed
    write_file("second", "#!./script\n", 0755);
    CHILD_PID(second) {
        char *argv[] = {"ignored", NULL};
        execve("./second", argv, (char *[]){"HELPER=nested", NULL});
        FAIL("execve: %s", strerror(errno));
    }
    EQ(reap(second), 0);
    write_file("loop", "#!./loop\n", 0755);
    char *argv[] = {"x", NULL};
    ERR(execve("./loop", argv, NULL), ELOOP);
    write_file("dangling", "#!/nonexistent/interpreter\n", 0755);
    ERR(execve("./dangling", argv, NULL), ENOENT);
    write_file("none", "#!\n", 0755);
    ERR(execve("./none", argv, NULL), ENOEXEC);
}

static void errors(void) {
    enter_scratch();
    char *argv[] = {"x", NULL};
    ERR(execve("./missing", argv, NULL), ENOENT);
    ERR(execve("", argv, NULL), ENOENT);
    ERR(execve("/tmp", argv, NULL), EACCES);
    write_file("plain", "text\n", 0644);
    ERR(execve("./plain", argv, NULL), EACCES);
    write_file("text", "just text\n", 0755);
    ERR(execve("./text", argv, NULL), ENOEXEC);
    write_file("empty", "", 0755);
    ERR(execve("./empty", argv, NULL), ENOEXEC);
    ERR(execve("./text/below", argv, NULL), ENOTDIR);
    ERR(execve((char *)8, argv, NULL), EFAULT);
    ERR(execve("./text", (char **)8, NULL), EFAULT);
    char *bad[] = {"x", (char *)8, NULL};
    ERR(execve("./text", bad, NULL), EFAULT);
    OK(symlink("l2", "l1"));
    OK(symlink("l1", "l2"));
    ERR(execve("./l1", argv, NULL), ELOOP);
    char name[300];
    memset(name, 'n', sizeof name);
    name[299] = 0;
    ERR(execve(name, argv, NULL), ENAMETOOLONG);
}

// Variants of this program's own image with something wrong: an error or a dead process, never anything else.
static void corrupt_images(void) {
    enter_scratch();
    find_self();
    int fd = open(self, O_RDONLY);
    static unsigned char head[4096], image[4096];
    ssize_t size = read(fd, head, sizeof head);
    close(fd);
    EQ(size, sizeof head);
    for (int kind = 0; kind < 12; kind++) {
        memcpy(image, head, sizeof image);
        Elf64_Ehdr *eh = (Elf64_Ehdr *)image;
        Elf64_Phdr *ph = (Elf64_Phdr *)(image + eh->e_phoff);
        size_t length = sizeof image;
        switch (kind) {
        case 0: length = 20; break;
        case 1: eh->e_machine = EM_ARM; break;
        case 2: eh->e_type = ET_REL; break;
        case 3: eh->e_phentsize = 3; break;
        case 4: eh->e_phnum = 0; break;
        case 5: eh->e_phoff = 0xfffffffffffff000ul; break;
        case 6: for (int i = 0; i < eh->e_phnum; i++) ph[i].p_memsz = 0xfffffffffffffffful; break;
        case 7: for (int i = 0; i < eh->e_phnum; i++) ph[i].p_vaddr = 0xffff800000000000ul; break;
        case 8: for (int i = 0; i < eh->e_phnum; i++) ph[i].p_offset = 0x7fffffffffffffff; break;
        case 9: for (int i = 0; i < eh->e_phnum; i++) ph[i].p_filesz = ph[i].p_memsz + 4096; break;
        case 10: eh->e_phnum = 0xffff; break;
        case 11: eh->e_entry = 0xdeadbeefcafe0000ul; break;
        }
        int out = open("image", O_CREAT | O_TRUNC | O_WRONLY, 0755);
        EQ(write(out, image, length), length);
        close(out);
        CHILD_PID(pid) {
            char *argv[] = {"x", NULL};
            execve("./image", argv, NULL);
            _exit(errno == ENOEXEC || errno == EINVAL || errno == ENOMEM || errno == EIO || errno == EFAULT ? 0 : 98);
        }
        int status = reap(pid);
        if (!(WIFEXITED(status) && WEXITSTATUS(status) == 0) && !(WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGBUS || WTERMSIG(status) == SIGILL)))
            FAIL("corrupt image %d: wait status %#x", kind, status);
    }
}

static void too_big(void) {
    char *long_argument = malloc(256 * 1024);
    memset(long_argument, 'a', 256 * 1024 - 1);
    long_argument[256 * 1024 - 1] = 0;
    char *argv[] = {"helper:args", long_argument, NULL};
    find_self();
    ERR(execve(self, argv, (char *[]){NULL}), E2BIG);
    // 100 KB of arguments is fine
    char *many[202];
    many[0] = "helper:count";
    long_argument[500] = 0;
    for (int i = 1; i < 201; i++) many[i] = long_argument;
    many[201] = NULL;
    EQ(run_helper(many, (char *[]){NULL}), 0);
}

static void auxiliary_vector(void) {
    EQ(getauxval(AT_PAGESZ), 4096);
    EQ(getauxval(AT_UID), getuid());
    EQ(getauxval(AT_EGID), getegid());
    EQ(getauxval(AT_CLKTCK), 100);
    TRUE(getauxval(AT_RANDOM) != 0);
    TRUE(getauxval(AT_PHDR) != 0);
    TRUE(getauxval(AT_PHNUM) > 0);
    TRUE(getauxval(AT_ENTRY) != 0);
    EQ(getauxval(AT_SECURE), 0);
    STREQ((char *)getauxval(AT_PLATFORM), "x86_64");
    TRUE(getauxval(AT_EXECFN) != 0 && strlen((char *)getauxval(AT_EXECFN)) > 0);
}

static void *stays(void *arg) {
    for (;;) pause();
    return arg;
}
static void *executes(void *arg) {
    char *argv[] = {"helper:alone", NULL};
    execve(self, argv, (char *[]){NULL});
    FAIL("execve: %s", strerror(errno));
    return arg;
}
static void exec_from_a_thread(void) {
    find_self();
    CHILD_PID(pid) {
        char leader[16];
        snprintf(leader, sizeof leader, "%d", getpid());
        pthread_t t;
        for (int i = 0; i < 3; i++) EQ(pthread_create(&t, NULL, stays, NULL), 0);
        EQ(pthread_create(&t, NULL, executes, NULL), 0);
        for (;;) pause();
    }
    EQ(reap(pid), 0);
}

static void vfork_exec(void) {
    find_self();
    for (int i = 0; i < 20; i++) {
        char *argv[] = {"helper:alone", NULL};
        pid_t pid = vfork();
        if (pid == 0) {
            execve(self, argv, (char *[]){NULL});
            _exit(1);
        }
        EQ(reap(pid), 0);
    }
}

static void name_follows_exec(void) {
    char *argv[] = {"helper:name", NULL};
    EQ(run_helper(argv, (char *[]){NULL}), 0);
}

static void execveat_call(void) {
    find_self();
    int fd = open(self, O_RDONLY | O_CLOEXEC);
    CHILD_PID(pid) {
        char *argv[] = {"helper:alone", NULL};
        syscall(SYS_execveat, fd, "", argv, (char *[]){NULL}, AT_EMPTY_PATH);
        FAIL("execveat: %s", strerror(errno));
    }
    EQ(reap(pid), 0);
}

static const struct abi_test all[] = {
    T(arguments_and_environment), T(busy_text), T(close_on_exec), T(signals_across_exec), T(script), T(errors), T(corrupt_images), T(too_big),
    T(auxiliary_vector), T(exec_from_a_thread), T(vfork_exec), T(name_follows_exec), T(execveat_call)};

static int helper(int argc, char **argv, const char *kind) {
    if (!strcmp(kind, "wait")) {
        char c;
        return read(0, &c, 1) != 1;
    }
    extern char **environ;
    if (!strcmp(kind, "args")) {
        EQ(argc, 4);
        STREQ(argv[1], "one"); STREQ(argv[2], ""); STREQ(argv[3], "three four");
        TRUE(argv[4] == NULL);
        STREQ(environ[0], "A=1"); STREQ(environ[1], "B="); STREQ(environ[2], "EMPTY");
        TRUE(environ[3] == NULL);
    } else if (!strcmp(kind, "fds")) {
        OK(fcntl(atoi(argv[1]), F_GETFD));
        ERR(fcntl(atoi(argv[2]), F_GETFD), EBADF);
    } else if (!strcmp(kind, "signals")) {
        struct sigaction a;
        OK(sigaction(SIGUSR1, NULL, &a)); TRUE(a.sa_handler == SIG_DFL);
        OK(sigaction(SIGUSR2, NULL, &a)); TRUE(a.sa_handler == SIG_IGN);
        sigset_t set;
        OK(sigprocmask(SIG_BLOCK, NULL, &set)); TRUE(sigismember(&set, SIGTERM));
        OK(sigpending(&set)); TRUE(sigismember(&set, SIGTERM));
    } else if (!strcmp(kind, "script")) {
        EQ(argc, 5);
        STREQ(argv[1], "an argument"); STREQ(argv[2], "./script"); STREQ(argv[3], "x"); STREQ(argv[4], "y");
    } else if (!strcmp(kind, "nested")) {
        EQ(argc, 4);
        STREQ(argv[1], "an argument"); STREQ(argv[2], "./script"); STREQ(argv[3], "./second");
    } else if (!strcmp(kind, "count")) {
        EQ(argc, 201);
        EQ(strlen(argv[200]), 500);
    } else if (!strcmp(kind, "name")) {
        char *text = slurp("/proc/self/comm", NULL), *want = strrchr(self, '/') + 1;
        if (strncmp(text, want, 15 < strlen(want) ? 15 : strlen(want))) FAIL("comm %s, executed %s", text, want);
    } else if (!strcmp(kind, "alone")) {
        EQ(syscall(SYS_gettid), getpid());
    }
    return 0;
}

int main(int argc, char **argv) {
    find_self();
    const char *kind = argc && !strncmp(argv[0], "helper:", 7) ? argv[0] + 7 : getenv("HELPER");
    if (kind) return helper(argc, argv, kind);
    return run_tests(all, sizeof all / sizeof *all, argc, argv);
}

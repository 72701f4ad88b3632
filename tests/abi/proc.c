// /proc as glibc, ps and shells read it. Every file is computed from state: two different states give different text.
#include "abi.h"
#include <ctype.h>
#include <dirent.h>
#include <sys/prctl.h>

// The value of "Name:\tvalue" in /proc/PATH/status.
static char *status_field(const char *path, const char *name) {
    static char value[256];
    char *text = slurp(path, NULL), want[64];
    snprintf(want, sizeof want, "\n%s:", name);
    char *at = strstr(text, want);
    if (!at && strncmp(text, want + 1, strlen(want) - 1)) FAIL("%s has no %s", path, name);
    at = at ? at + strlen(want) : text + strlen(want) - 1;
    while (*at == ' ' || *at == '\t') at++;
    snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\n"), at);
    return value;
}

static void self_is_this_process(void) {
    char target[64], want[64];
    ssize_t n = readlink("/proc/self", target, sizeof target - 1);
    OK(n);
    target[n] = 0;
    snprintf(want, sizeof want, "%d", getpid());
    STREQ(target, want);
    CHILD_PID(pid) {
        EQ(atoi(status_field("/proc/self/status", "Pid")), getpid());
        EQ(atoi(status_field("/proc/self/status", "PPid")), getppid());
        _exit(0);
    }
    reap_ok(pid);
    struct stat st;
    OK(stat("/proc/thread-self", &st));
}

static void command_line(void) {
    ssize_t n;
    char *text = slurp("/proc/self/cmdline", &n);
    TRUE(n > 0 && text[n - 1] == 0);
    text = slurp("/proc/self/environ", &n);
    TRUE(n >= 0);
    char exe[256];
    n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    OK(n);
    exe[n] = 0;
    TRUE(exe[0] == '/');
    struct stat a, b;
    OK(stat("/proc/self/exe", &a));
    OK(stat(exe, &b));
    EQ(a.st_ino, b.st_ino);
}

static void stat_line(void) {
    OK(prctl(PR_SET_NAME, "odd) name ("));
    char *text = slurp("/proc/self/stat", NULL);
    EQ(atoi(text), getpid());
    char *close_ = strrchr(text, ')');
    TRUE(close_ != NULL);
    TRUE(strstr(text, "(odd) name ()") != NULL);
    char state;
    int ppid, pgrp, session;
    EQ(sscanf(close_ + 1, " %c %d %d %d", &state, &ppid, &pgrp, &session), 4);
    EQ(state, 'R'); EQ(ppid, getppid()); EQ(pgrp, getpgrp()); EQ(session, getsid(0));
    int fields = 2;
    for (char *word = strtok(close_ + 1, " \n"); word; word = strtok(NULL, " \n")) fields++;
    EQ(fields, 52);
    STREQ(slurp("/proc/self/comm", NULL), "odd) name (\n");
}

static void states(void) {
    CHILD_PID(pid) for (;;) pause();
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    for (int i = 0; i < 400 && status_field(path, "State")[0] != 'S'; i++) sleep_ms(5);
    EQ(status_field(path, "State")[0], 'S');
    kill(pid, SIGSTOP);
    int status;
    waitpid(pid, &status, WUNTRACED);
    EQ(status_field(path, "State")[0], 'T');
    kill(pid, SIGKILL);
    for (int i = 0; i < 400 && status_field(path, "State")[0] != 'Z'; i++) sleep_ms(5);
    EQ(status_field(path, "State")[0], 'Z');
    reap(pid);
    ERR(open(path, O_RDONLY), ENOENT);
}

static void status_lines(void) {
    EQ(atoi(status_field("/proc/self/status", "Tgid")), getpid());
    EQ(atoi(status_field("/proc/self/status", "Uid")), getuid());
    EQ(atoi(status_field("/proc/self/status", "Threads")), 1);
    TRUE(atoi(status_field("/proc/self/status", "VmRSS")) > 0);
    TRUE(atoi(status_field("/proc/self/status", "VmSize")) > 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGUSR2, SIG_IGN);
    EQ(strtoul(status_field("/proc/self/status", "SigBlk"), NULL, 16) & (1ul << (SIGUSR1 - 1)), 1ul << (SIGUSR1 - 1));
    EQ(strtoul(status_field("/proc/self/status", "SigIgn"), NULL, 16) & (1ul << (SIGUSR2 - 1)), 1ul << (SIGUSR2 - 1));
}

static void memory_map(void) {
    char *p = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    OK(mprotect(p + 4096, 4096, PROT_READ));
    char want[128], *text = slurp("/proc/self/maps", NULL);
    snprintf(want, sizeof want, "%lx-%lx r--p", (long)p + 4096, (long)p + 8192);
    if (!strstr(text, want)) FAIL("no \"%s\" in\n%s", want, text);
    TRUE(strstr(text, "[stack]") != NULL);
    char exe[256];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n] = 0;
    TRUE(strstr(text, exe) != NULL);
    OK(munmap(p, 3 * 4096));
    TRUE(strstr(slurp("/proc/self/maps", NULL), want) == NULL);
    // ordered, without overlap
    unsigned long last = 0, from, to;
    for (char *line = slurp("/proc/self/maps", NULL); line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        EQ(sscanf(line, "%lx-%lx", &from, &to), 2);
        TRUE(from >= last && to > from);
        last = to;
    }
}

static void descriptors(void) {
    int fd = open("/dev/null", O_RDONLY);
    char path[64], target[256];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, target, sizeof target - 1);
    OK(n);
    target[n] = 0;
    STREQ(target, "/dev/null");
    int q[2];
    OK(pipe(q));
    snprintf(path, sizeof path, "/proc/self/fd/%d", q[0]);
    n = readlink(path, target, sizeof target - 1);
    OK(n);
    TRUE(!strncmp(target, "pipe:[", 6));
    DIR *d = opendir("/proc/self/fd");
    TRUE(d != NULL);
    int count = 0;
    struct dirent *e;
    while ((e = readdir(d))) count += isdigit((unsigned char)e->d_name[0]) != 0;
    TRUE(count >= 5);
    close(q[0]);
    rewinddir(d);
    int after = 0;
    while ((e = readdir(d))) after += isdigit((unsigned char)e->d_name[0]) != 0;
    EQ(after, count - 1);
    ERR(readlink(path, target, sizeof target), ENOENT);
    // opening the link opens the file anew
    enter_scratch();
    write_file("f", "content", 0644);
    fd = open("f", O_RDONLY);
    char c;
    EQ(read(fd, &c, 1), 1);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDONLY);
    OK(again);
    EQ(read(again, &c, 1), 1);
    EQ(c, 'c');
    char link_[300], cwd[256];
    n = readlink("/proc/self/cwd", link_, sizeof link_ - 1);
    OK(n);
    link_[n] = 0;
    OK(getcwd(cwd, sizeof cwd));
    STREQ(link_, cwd);
}

static void process_list(void) {
    CHILD_PID(pid) for (;;) pause();
    DIR *d = opendir("/proc");
    struct dirent *e;
    int self = 0, child = 0, numbers = 0;
    while ((e = readdir(d))) {
        int n = atoi(e->d_name);
        if (n > 0) numbers++;
        self |= n == getpid();
        child |= n == pid;
    }
    TRUE(self && child && numbers >= 2);
    closedir(d);
    kill(pid, SIGKILL);
    reap(pid);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d", pid);
    struct stat st;
    ERR(stat(path, &st), ENOENT);
    snprintf(path, sizeof path, "/proc/%d/task/%d", getpid(), getpid());
    OK(stat(path, &st));
}

static long meminfo(const char *name) {
    char *text = slurp("/proc/meminfo", NULL), *at = strstr(text, name);
    if (!at) FAIL("/proc/meminfo has no %s", name);
    return atol(at + strlen(name));
}
static void system_files(void) {
    TRUE(meminfo("MemTotal:") > 0);
    TRUE(meminfo("MemFree:") <= meminfo("MemTotal:"));
    TRUE(meminfo("MemAvailable:") > 0);
    TRUE(strstr(slurp("/proc/cpuinfo", NULL), "processor\t: 0") != NULL);
    TRUE(strstr(slurp("/proc/cpuinfo", NULL), "flags") != NULL);
    double up, idle;
    EQ(sscanf(slurp("/proc/uptime", NULL), "%lf %lf", &up, &idle), 2);
    TRUE(up >= 0);
    sleep_ms(60);
    double later;
    sscanf(slurp("/proc/uptime", NULL), "%lf", &later);
    TRUE(later > up);
    float a, b, c;
    EQ(sscanf(slurp("/proc/loadavg", NULL), "%f %f %f", &a, &b, &c), 3);
    TRUE(!strncmp(slurp("/proc/stat", NULL), "cpu ", 4));
    TRUE(strstr(slurp("/proc/stat", NULL), "btime ") != NULL);
    TRUE(!strncmp(slurp("/proc/version", NULL), "Linux version ", 14));
    TRUE(strstr(slurp("/proc/filesystems", NULL), "proc") != NULL);
    TRUE(strstr(slurp("/proc/mounts", NULL), " / ") != NULL);
    TRUE(strstr(slurp("/proc/self/mounts", NULL), " /proc proc ") != NULL);
    TRUE(strstr(slurp("/proc/self/mountinfo", NULL), " / ") != NULL);
    TRUE(atol(slurp("/proc/sys/kernel/pid_max", NULL)) > 100);
    TRUE(strlen(slurp("/proc/sys/kernel/hostname", NULL)) > 0);
}

static void memory_is_counted(void) {
    long before = atol(status_field("/proc/self/status", "VmRSS"));
    size_t size = 40 << 20;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < size; i += 4096) p[i] = 1;
    long during = atol(status_field("/proc/self/status", "VmRSS"));
    TRUE(during >= before + 35 * 1024);
    OK(munmap(p, size));
    long after = atol(status_field("/proc/self/status", "VmRSS"));
    TRUE(after < during - 30 * 1024);
}

static void seeking_and_small_reads(void) {
    static char whole[65536];
    ssize_t n;
    snprintf(whole, sizeof whole, "%s", slurp("/proc/self/status", &n));
    int fd = open("/proc/self/status", O_RDONLY);
    char first[6] = "", second[6] = "";
    EQ(read(fd, first, 5), 5);
    EQ(read(fd, second, 5), 5);
    TRUE(!memcmp(first, whole, 5) && !memcmp(second, whole + 5, 5));
    EQ(lseek(fd, 0, SEEK_SET), 0);
    EQ(read(fd, second, 5), 5);
    TRUE(!memcmp(first, second, 5));
    struct stat st;
    OK(fstat(fd, &st));
    TRUE(S_ISREG(st.st_mode));
    EQ(st.st_size, 0);
    int created = open("/proc/new", O_CREAT | O_WRONLY, 0644);
    TRUE(created < 0 && (errno == ENOENT || errno == EACCES || errno == EPERM || errno == EROFS));
    TRUE(mkdir("/proc/dir", 0755) < 0);
}

TESTS(T(self_is_this_process), T(command_line), T(stat_line), T(states), T(status_lines), T(memory_map), T(descriptors), T(process_list),
      T(system_files), T(memory_is_counted), T(seeking_and_small_reads))

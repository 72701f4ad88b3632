// mmap and its family: anonymous, private and shared files, fixed, protections, holes, growth, copy-on-write, brk, advice.
#include "abi.h"
#include <pthread.h>
#include <sys/resource.h>

enum { PAGE = 4096 };
static char *anonymous(size_t length) {
    char *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) FAIL("mmap of %zu: %s", length, strerror(errno));
    return p;
}
// Whether the page at `p` is mapped and readable, without a signal.
static int readable(const void *p) {
    static int q[2] = {-1, -1};
    if (q[0] < 0) OK(pipe(q));
    if (write(q[1], p, 1) != 1) return 0;
    char c;
    return read(q[0], &c, 1) == 1;
}
static int file_of(const char *name, size_t pages) {
    int fd = open(name, O_CREAT | O_TRUNC | O_RDWR, 0644);
    char page[PAGE];
    for (size_t i = 0; i < pages; i++) {
        memset(page, 'a' + (int)i, PAGE);
        EQ(write(fd, page, PAGE), PAGE);
    }
    return fd;
}

static void anonymous_is_zero(void) {
    char *p = anonymous(64 * PAGE);
    for (int i = 0; i < 64 * PAGE; i++) if (p[i]) FAIL("byte %d is %d", i, p[i]);
    p[5 * PAGE] = 1;
    OK(munmap(p, 64 * PAGE));
    char *q = anonymous(64 * PAGE); // reused memory is zero again
    for (int i = 0; i < 64 * PAGE; i++) if (q[i]) FAIL("byte %d is %d after reuse", i, q[i]);
}

static void errors(void) {
    ERR(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EINVAL);
    ERR(mmap(NULL, PAGE, PROT_READ, MAP_ANONYMOUS, -1, 0), EINVAL);
    ERR(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0), EBADF);
    ERR(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 5), EINVAL);
    ERR(mmap(NULL, 1ul << 60, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), ENOMEM);
    ERR(mmap((void *)0x7ffffffff000, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), ENOMEM);
    ERR(mmap((void *)5, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), EINVAL);
    ERR(munmap((void *)5, PAGE), EINVAL);
    ERR(munmap((void *)0x10000, 0), EINVAL);
    OK(munmap((void *)0x10000, PAGE)); // nothing there: fine
    ERR(munmap((void *)0x7fffffffe000, 1ul << 40), EINVAL);
    char *p = anonymous(4 * PAGE);
    ERR(mprotect(p + 1, PAGE, PROT_READ), EINVAL);
    ERR(mprotect(p, PAGE, 0x70), EINVAL);
    OK(munmap(p + PAGE, PAGE));
    ERR(mprotect(p, 3 * PAGE, PROT_READ), ENOMEM); // a hole
    ERR(madvise(p, PAGE, 9999), EINVAL);
    ERR(madvise(p + 1, PAGE, MADV_DONTNEED), EINVAL);
    ERR(msync(p + 1, PAGE, MS_SYNC), EINVAL);
    ERR(mremap(p + 1, PAGE, PAGE, 0), EINVAL);
    ERR(mincore((void *)0x10000, PAGE, (unsigned char *)p), ENOMEM);
}

static void fixed_replaces(void) {
    char *p = anonymous(4 * PAGE);
    memset(p, 7, 4 * PAGE);
    char *q = mmap(p + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    TRUE(q == p + PAGE);
    EQ(p[PAGE - 1], 7); EQ(p[PAGE], 0); EQ(p[3 * PAGE - 1], 0); EQ(p[3 * PAGE], 7);
    ERR(mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    char *hint = mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // a hint that is taken is not used
    TRUE(hint != MAP_FAILED && hint != p);
    OK(munmap(p, 4 * PAGE));
    hint = mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TRUE(hint == p); // a free one is
}

static void holes(void) {
    char *p = anonymous(10 * PAGE);
    memset(p, 1, 10 * PAGE);
    OK(munmap(p + 3 * PAGE, 2 * PAGE));
    EQ(readable(p + 2 * PAGE), 1); EQ(readable(p + 3 * PAGE), 0); EQ(readable(p + 4 * PAGE), 0); EQ(readable(p + 5 * PAGE), 1);
    OK(munmap(p + 2 * PAGE, 5 * PAGE)); // spans the hole
    EQ(readable(p + PAGE), 1); EQ(readable(p + 6 * PAGE), 0); EQ(readable(p + 7 * PAGE), 1);
    EQ(p[9 * PAGE], 1);
}

static void protections(void) {
    char *p = anonymous(6 * PAGE);
    memset(p, 3, 6 * PAGE);
    OK(mprotect(p + 2 * PAGE, PAGE, PROT_NONE));
    EQ(readable(p + 2 * PAGE), 0);
    OK(mprotect(p + 2 * PAGE, PAGE, PROT_READ));
    EQ(p[2 * PAGE], 3);
    int z = open("/dev/zero", O_RDONLY);
    ERR(read(z, p + 2 * PAGE, 1), EFAULT); // the kernel obeys it too
    OK(mprotect(p, 6 * PAGE, PROT_READ | PROT_WRITE));
    EQ(read(z, p + 2 * PAGE, 1), 1);
    EQ(p[2 * PAGE], 0);
    // code that is written, then run, then rewritten
    unsigned char *code = (unsigned char *)anonymous(PAGE);
    for (int value = 1; value < 5; value++) {
        OK(mprotect(code, PAGE, PROT_READ | PROT_WRITE));
        unsigned char text[] = {0xb8, (unsigned char)value, 0, 0, 0, 0xc3};
        memcpy(code, text, sizeof text);
        OK(mprotect(code, PAGE, PROT_READ | PROT_EXEC));
        EQ(((int (*)(void))code)(), value);
    }
}

static void private_file(void) {
    enter_scratch();
    int fd = file_of("f", 3);
    char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    EQ(p[0], 'a'); EQ(p[PAGE], 'b'); EQ(p[3 * PAGE - 1], 'c');
    p[PAGE] = 'X';
    char c;
    EQ(pread(fd, &c, 1, PAGE), 1);
    EQ(c, 'b'); // the file keeps its own
    char *second = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, PAGE);
    EQ(second[0], 'b');
    OK(close(fd)); // the mapping stays
    EQ(p[2 * PAGE], 'c');
    OK(unlink("f"));
    EQ(p[2 * PAGE + 1], 'c');
}

static void shared_file(void) {
    enter_scratch();
    int fd = file_of("f", 2);
    char *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    TRUE(p != MAP_FAILED);
    char *q = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
    p[PAGE + 5] = 'M';
    EQ(q[5], 'M'); // two mappings show one file
    char c;
    EQ(pread(fd, &c, 1, PAGE + 5), 1);
    EQ(c, 'M');
    EQ(pwrite(fd, "W", 1, 9), 1);
    EQ(p[9], 'W');
    CHILD_PID(pid) {
        p[10] = 'C';
        _exit(0);
    }
    reap_ok(pid);
    EQ(p[10], 'C');
    OK(msync(p, 2 * PAGE, MS_SYNC));
    OK(munmap(p, 2 * PAGE));
    EQ(pread(fd, &c, 1, 10), 1);
    EQ(c, 'C');
    int ro = open("f", O_RDONLY);
    ERR(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0), EACCES);
    char *r = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0);
    ERR(mprotect(r, PAGE, PROT_READ | PROT_WRITE), EACCES);
    int wo = open("f", O_WRONLY);
    ERR(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, wo, 0), EACCES);
    int dir = open(".", O_RDONLY);
    ERR(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, dir, 0), ENODEV);
}

static void file_growth_is_seen(void) {
    enter_scratch();
    int fd = file_of("f", 1);
    char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EQ(readable(p + PAGE), 0); // past the end
    OK(ftruncate(fd, 4 * PAGE));
    EQ(readable(p + PAGE), 1);
    EQ(p[3 * PAGE], 0);
    p[3 * PAGE] = 'x';
    char c;
    EQ(pread(fd, &c, 1, 3 * PAGE), 1);
    EQ(c, 'x');
    // the rest of the last page reads as zeros after the file shrinks and grows
    p[100] = 'y';
    OK(ftruncate(fd, 50));
    OK(ftruncate(fd, PAGE));
    EQ(p[100], 0);
}

static void shared_anonymous(void) {
    volatile int *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    p[0] = 1;
    CHILD_PID(pid) {
        EQ(p[0], 1);
        p[0] = 2;
        p[5000] = 3; // not touched before the fork
        _exit(0);
    }
    reap_ok(pid);
    EQ(p[0], 2); EQ(p[5000], 3);
}

static void copy_on_write(void) {
    char *p = anonymous(256 * PAGE);
    for (int i = 0; i < 256; i++) p[i * PAGE] = (char)i;
    pid_t pids[4];
    for (int n = 0; n < 4; n++) {
        pids[n] = fork_or_fail();
        if (pids[n] == 0) {
            for (int i = 0; i < 256; i++) {
                EQ(p[i * PAGE], (char)i);
                p[i * PAGE] = (char)(i + n + 1);
            }
            for (int i = 0; i < 256; i++) EQ(p[i * PAGE], (char)(i + n + 1));
            _exit(0);
        }
    }
    for (int i = 0; i < 256; i += 2) p[i * PAGE] = 'P';
    for (int n = 0; n < 4; n++) reap_ok(pids[n]);
    for (int i = 0; i < 256; i++) EQ(p[i * PAGE], i % 2 ? (char)i : 'P');
}

static void copy_on_write_by_system_call(void) {
    // a kernel write into a page shared after fork must copy as well
    char *p = anonymous(PAGE);
    p[0] = 'o';
    CHILD_PID(pid) {
        int z = open("/dev/zero", O_RDONLY);
        EQ(read(z, p, 1), 1);
        EQ(p[0], 0);
        _exit(0);
    }
    reap_ok(pid);
    EQ(p[0], 'o');
    // and the zero page is not written
    char *q = anonymous(2 * PAGE);
    EQ(q[0], 0);
    EQ(q[PAGE], 0);
    q[0] = 'z';
    EQ(q[PAGE], 0);
}

static void move_and_grow(void) {
    char *p = anonymous(4 * PAGE);
    for (int i = 0; i < 4; i++) p[i * PAGE] = (char)('0' + i);
    char *q = mremap(p, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
    TRUE(q != MAP_FAILED);
    for (int i = 0; i < 4; i++) EQ(q[i * PAGE], '0' + i);
    EQ(q[63 * PAGE], 0);
    q[63 * PAGE] = 'e';
    char *r = mremap(q, 64 * PAGE, 2 * PAGE, 0); // shrinks in place
    TRUE(r == q);
    EQ(readable(q + 2 * PAGE), 0);
    char *target = anonymous(8 * PAGE);
    r = mremap(q, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + 2 * PAGE);
    TRUE(r == target + 2 * PAGE);
    EQ(r[0], '0'); EQ(r[PAGE], '1');
    EQ(readable(q), 0);
    OK(mprotect(target + 4 * PAGE, PAGE, PROT_NONE));
    ERR(mremap(r, 2 * PAGE, 4 * PAGE, 0), ENOMEM); // no room, may not move
    ERR(mremap((void *)0x10000, PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
    ERR(mremap(r, PAGE, 0, MREMAP_MAYMOVE), EINVAL);
}

static void program_break(void) {
    char *start = sbrk(0);
    TRUE(start != (void *)-1);
    char *p = sbrk(20 * PAGE);
    TRUE(p == start);
    memset(p, 5, 20 * PAGE);
    OK(brk(start + PAGE));
    TRUE(sbrk(0) == start + PAGE);
    OK(brk(start + 20 * PAGE));
    EQ(p[0], 5);
    EQ(p[10 * PAGE], 0); // given back, so zero again
    ERR(brk((void *)0x7fffffffe000), ENOMEM);
    struct rlimit r = {4 * PAGE, RLIM_INFINITY};
    getrlimit(RLIMIT_DATA, &r);
}

static void advice(void) {
    char *p = anonymous(16 * PAGE);
    memset(p, 9, 16 * PAGE);
    OK(madvise(p + 4 * PAGE, 4 * PAGE, MADV_DONTNEED));
    EQ(p[4 * PAGE - 1], 9); EQ(p[4 * PAGE], 0); EQ(p[8 * PAGE - 1], 0); EQ(p[8 * PAGE], 9);
    OK(madvise(p, 16 * PAGE, MADV_WILLNEED));
    OK(madvise(p, 16 * PAGE, MADV_SEQUENTIAL));
    OK(madvise(p, 16 * PAGE, MADV_NORMAL));
    enter_scratch();
    int fd = file_of("f", 2);
    char *q = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    q[0] = 'X';
    OK(madvise(q, 2 * PAGE, MADV_DONTNEED));
    EQ(q[0], 'a'); // the file's byte again
    unsigned char core[16];
    OK(mincore(p, 16 * PAGE, core));
}

static void sparse(void) {
    size_t size = 64ul << 30;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TRUE(p != MAP_FAILED);
    for (size_t at = 0; at < size; at += size / 97) p[at] = (char)(at >> 20);
    for (size_t at = 0; at < size; at += size / 97) EQ(p[at], (char)(at >> 20));
    OK(munmap(p, size));
}

static void a_lot(void) {
    size_t size = 96ul << 20;
    unsigned *p = (unsigned *)anonymous(size);
    for (size_t i = 0; i < size / 4; i += 1024) p[i] = (unsigned)(i * 2654435761u);
    for (size_t i = 0; i < size / 4; i += 1024) if (p[i] != (unsigned)(i * 2654435761u)) FAIL("word %zu differs", i);
    OK(munmap(p, size));
    for (int round = 0; round < 50; round++) { // memory comes back: 50 times 32 MB
        char *q = anonymous(32ul << 20);
        for (size_t i = 0; i < 32ul << 20; i += PAGE) q[i] = 1;
        OK(munmap(q, 32ul << 20));
    }
}

static void many_mappings(void) {
    char *p = anonymous(2000 * PAGE);
    for (int i = 0; i < 2000; i += 2) OK(mprotect(p + i * PAGE, PAGE, PROT_READ));
    for (int i = 1; i < 2000; i += 2) p[i * PAGE] = (char)i;
    for (int i = 1; i < 2000; i += 2) EQ(p[i * PAGE], (char)i);
    for (int i = 0; i < 2000; i += 2) EQ(p[i * PAGE], 0);
    OK(munmap(p, 2000 * PAGE));
}

static void stack_grows(void) {
    volatile char area[3 << 20];
    for (size_t i = 0; i < sizeof area; i += 1000) area[i] = (char)i;
    EQ(area[2000000], (char)2000000);
}

static void *touch(void *arg) {
    volatile char *p = arg;
    for (int i = 0; i < 512; i++) p[i * PAGE] += 1;
    return NULL;
}
static void threads_touch_the_same_pages(void) {
    for (int round = 0; round < 5; round++) {
        char *p = anonymous(512 * PAGE);
        pthread_t t[4];
        for (int i = 0; i < 4; i++) EQ(pthread_create(&t[i], NULL, touch, p + i), 0);
        for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
        for (int i = 0; i < 512; i++) for (int k = 0; k < 4; k++) EQ(p[i * PAGE + k], 1);
        OK(munmap(p, 512 * PAGE));
    }
}

static void file_truncated_while_read(void) {
    // one process keeps truncating a mapped file; the other reads it and gets data, zeros or SIGBUS, never anything else
    enter_scratch();
    int fd = file_of("f", 16);
    CHILD_PID(reader) {
        volatile char *p = mmap(NULL, 16 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
        double end = now() + 0.5;
        while (now() < end)
            for (int i = 0; i < 16; i++) {
                char c = p[i * PAGE];
                if (c != 0 && c != 'a' + i) _exit(1);
            }
        _exit(0);
    }
    double end = now() + 0.4;
    while (now() < end) {
        OK(ftruncate(fd, 2 * PAGE));
        OK(ftruncate(fd, 16 * PAGE));
    }
    int status = reap(reader);
    if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS)) FAIL("reader: wait status %#x", status);
    // as a buffer of write
    char *p = mmap(NULL, 16 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    OK(ftruncate(fd, 0));
    int q[2];
    OK(pipe(q));
    ERR(write(q[1], p, 100), EFAULT);
}

static void locking(void) {
    char *p = anonymous(4 * PAGE);
    OK(mlock(p, 4 * PAGE));
    OK(munlock(p, 4 * PAGE));
    OK(syscall(SYS_mlock2, p, PAGE, 0));
    ERR(syscall(SYS_mlock2, p, PAGE, 77), EINVAL);
    OK(munmap(p + PAGE, PAGE));
    ERR(mlock(p, 2 * PAGE), ENOMEM); // a hole
    OK(mlockall(MCL_CURRENT));
    OK(munlockall());
    ERR(mlockall(0), EINVAL);
}

// Of a range larger than the machine's memory, nobody makes a list.
static void huge_reservations(void) {
    size_t len = 1ul << 44;
    char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED && errno == ENOMEM) return;
    TRUE(p != MAP_FAILED);
    p[len / 2] = 1;
    OK(msync(p, len, MS_ASYNC));
    unsigned char there[4];
    OK(mincore(p + len / 2, 4 * 4096, there));
    EQ(there[0] & 1, 1);
    OK(madvise(p, len, MADV_NORMAL));
    FILE *f = fopen("/proc/self/smaps", "r");
    TRUE(f);
    char line[300];
    unsigned long size = 0, largest = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "Size: %lu", &size) == 1 && size > largest) largest = size;
    fclose(f);
    TRUE(largest >= len / 1024);
    OK(munmap(p, len));
}

static void holes_in_shared_memory(void) {
    char *p = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TRUE(p != MAP_FAILED);
    memset(p, 7, 4 * 4096);
    CHILD_PID(pid) {
        OK(madvise(p + 4096, 2 * 4096, MADV_REMOVE));
        _exit(0);
    }
    reap_ok(pid);
    EQ(p[4095], 7);
    EQ(p[4096], 0);
    EQ(p[3 * 4096 - 1], 0);
    EQ(p[3 * 4096], 7);
    char *q = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ERR(madvise(q, 4096, MADV_REMOVE), EINVAL);
    // A hint of any value is only a hint.
    TRUE(mmap((void *)-4097, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
}

TESTS(T(huge_reservations), T(holes_in_shared_memory), T(anonymous_is_zero), T(errors), T(fixed_replaces), T(holes), T(protections), T(private_file), T(shared_file), T(file_growth_is_seen),
      T(shared_anonymous), T(copy_on_write), T(copy_on_write_by_system_call), T(move_and_grow), T(program_break), T(advice), T(sparse),
      T(a_lot), T(many_mappings), T(stack_grows), T(threads_touch_the_same_pages), T(file_truncated_while_read), T(locking))

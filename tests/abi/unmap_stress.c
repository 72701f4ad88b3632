// Threads unmapping, remapping, protecting and writing the same pages: no stale translation, no deadlock.
// STRESS_SECONDS (default 2) is how long each test runs.
#include "abi.h"
#include <pthread.h>
#include <setjmp.h>

enum { PAGE = 4096, PAGES = 32 };
static double seconds(void) {
    const char *text = getenv("STRESS_SECONDS");
    return text ? atof(text) : 2;
}
static char *area;
static volatile int stop;
static volatile long faults, writes;
static __thread sigjmp_buf back;
static __thread volatile int inside;
static void on_fault(int s) {
    if (!inside) {
        signal(s, SIG_DFL);
        return;
    }
    __atomic_add_fetch(&faults, 1, __ATOMIC_RELAXED);
    siglongjmp(back, 1);
}
static void watch(void) {
    struct sigaction a = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    OK(sigaction(SIGSEGV, &a, NULL));
}

// Writes tagged values wherever pages are mapped.
static void *writer(void *arg) {
    unsigned char tag = (unsigned char)(long)arg;
    unsigned n = tag;
    while (!stop) {
        n = n * 1103515245 + 12345;
        volatile unsigned char *p = (unsigned char *)area + (n >> 8) % PAGES * PAGE + tag * 8;
        inside = 1;
        if (!sigsetjmp(back, 0)) {
            *p = tag;
            __atomic_add_fetch(&writes, 1, __ATOMIC_RELAXED);
        }
        inside = 0;
    }
    return NULL;
}

static void unmap_and_write(void) {
    watch();
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t t[2];
    for (long i = 0; i < 2; i++) EQ(pthread_create(&t[i], NULL, writer, (void *)(i + 1)), 0);
    double end = now() + seconds();
    unsigned n = 1;
    long rounds = 0;
    while (now() < end) {
        n = n * 1103515245 + 12345;
        char *p = area + (n >> 8) % PAGES * PAGE;
        OK(munmap(p, PAGE));
        // what another mapping gets from the freed page must not be written by a stale translation
        unsigned char *fresh = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if ((char *)fresh >= area && (char *)fresh < area + PAGES * PAGE) FAIL("four pages in a hole of one");
        for (int i = 0; i < 4; i++) for (int k = 0; k < 64; k += 8) if (fresh[i * PAGE + k]) FAIL("a fresh page holds %d: stale translation", fresh[i * PAGE + k]);
        fresh[8] = fresh[16] = 0x77;
        sched_yield();
        if (fresh[8] != 0x77 || fresh[16] != 0x77) FAIL("a stale translation wrote into another mapping");
        OK(munmap(fresh, 4 * PAGE));
        TRUE(mmap(p, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
        rounds++;
    }
    stop = 1;
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    TRUE(writes > 0 && rounds > 10);
}

static void protect_and_write(void) {
    // after mprotect(PROT_READ) returns, no other thread's write lands
    watch();
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t t[2];
    for (long i = 0; i < 2; i++) EQ(pthread_create(&t[i], NULL, writer, (void *)(i + 1)), 0);
    double end = now() + seconds();
    unsigned n = 1;
    long rounds = 0;
    while (now() < end) {
        n = n * 1103515245 + 12345;
        volatile unsigned char *p = (unsigned char *)area + (n >> 8) % PAGES * PAGE;
        p[8] = p[16] = 0;
        OK(mprotect((void *)p, PAGE, PROT_READ));
        unsigned char a = p[8], b = p[16];
        for (int i = 0; i < 200; i++) if (p[8] != a || p[16] != b) FAIL("a write landed in a read-only page");
        OK(mprotect((void *)p, PAGE, PROT_READ | PROT_WRITE));
        rounds++;
    }
    stop = 1;
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    TRUE(writes > 0 && rounds > 10);
}

static void fork_while_writing(void) {
    // a child's memory does not change under it
    watch();
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t t[2];
    for (long i = 0; i < 2; i++) EQ(pthread_create(&t[i], NULL, writer, (void *)(i + 1)), 0);
    double end = now() + seconds();
    int rounds = 0;
    while (now() < end) {
        for (int i = 0; i < PAGES; i++) area[i * PAGE + 8] = area[i * PAGE + 16] = 0;
        CHILD_PID(pid) {
            char copy[PAGES * 2];
            for (int i = 0; i < PAGES; i++) { copy[2 * i] = area[i * PAGE + 8]; copy[2 * i + 1] = area[i * PAGE + 16]; }
            sched_yield();
            for (int i = 0; i < PAGES; i++)
                if (copy[2 * i] != area[i * PAGE + 8] || copy[2 * i + 1] != area[i * PAGE + 16]) FAIL("page %d of the child changed", i);
            _exit(0);
        }
        reap_ok(pid);
        rounds++;
    }
    stop = 1;
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    TRUE(rounds > 1);
}

static void *mapper(void *arg) {
    while (!stop) {
        char *p = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) FAIL("mmap: %s", strerror(errno));
        for (int i = 0; i < 64; i += 3) p[i * PAGE] = (char)(long)arg;
        for (int i = 0; i < 64; i += 3) if (p[i * PAGE] != (char)(long)arg) FAIL("a page of one thread holds another's value");
        OK(madvise(p, 32 * PAGE, MADV_DONTNEED));
        for (int i = 0; i < 32; i += 3) if (p[i * PAGE]) FAIL("MADV_DONTNEED left a value");
        OK(munmap(p, 64 * PAGE));
        __atomic_add_fetch(&writes, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}
static void threads_map_at_once(void) {
    pthread_t t[4];
    for (long i = 0; i < 4; i++) EQ(pthread_create(&t[i], NULL, mapper, (void *)(i + 1)), 0);
    double end = now() + seconds();
    while (now() < end) sleep_ms(20);
    stop = 1;
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    TRUE(writes > 10);
}

TESTS(T(unmap_and_write), T(protect_and_write), T(fork_while_writing), T(threads_map_at_once))

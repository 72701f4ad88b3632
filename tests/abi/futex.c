// futex and what is built on it: threads, mutexes, condition variables, robust lists, thread-local storage.
#include "abi.h"
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

static long futex(volatile int *address, int op, long value, void *timeout, volatile int *second, long value3) {
    return syscall(SYS_futex, address, op, value, timeout, second, value3);
}
static volatile int word, other;

static void value_differs(void) {
    word = 1;
    ERR(futex(&word, FUTEX_WAIT, 0, NULL, NULL, 0), EAGAIN);
    ERR(futex(&word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), EAGAIN);
    EQ(futex(&word, FUTEX_WAKE, 1, NULL, NULL, 0), 0);
}

static void errors(void) {
    ERR(futex((volatile int *)8, FUTEX_WAIT, 0, NULL, NULL, 0), EFAULT);
    ERR(futex((volatile int *)((char *)&word + 1), FUTEX_WAIT, 0, NULL, NULL, 0), EINVAL);
    ERR(futex(&word, 77, 0, NULL, NULL, 0), ENOSYS);
    struct timespec bad = {0, 1000000000};
    word = 0;
    ERR(futex(&word, FUTEX_WAIT, 0, &bad, NULL, 0), EINVAL);
    ERR(futex(&word, FUTEX_WAIT, 0, (void *)8, NULL, 0), EFAULT);
    ERR(futex(&word, FUTEX_WAIT_BITSET, 0, NULL, NULL, 0), EINVAL);
}

static void timeouts(void) {
    word = 0;
    struct timespec t = {0, 60000000};
    double start = now();
    ERR(futex(&word, FUTEX_WAIT, 0, &t, NULL, 0), ETIMEDOUT);
    TRUE(now() - start >= 0.059);
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += 60000000;
    if (t.tv_nsec >= 1000000000) { t.tv_nsec -= 1000000000; t.tv_sec++; }
    start = now();
    ERR(futex(&word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, &t, NULL, -1), ETIMEDOUT); // absolute
    TRUE(now() - start >= 0.05);
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec -= 5;
    ERR(futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &t, NULL, -1), ETIMEDOUT);
}

static volatile int woken, ready;
static void *waiter(void *arg) {
    __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
    while (futex(&word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) != 0 && word == 0) {}
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return arg;
}
static void wake_counts(void) {
    pthread_t t[5];
    word = 0;
    for (int i = 0; i < 5; i++) EQ(pthread_create(&t[i], NULL, waiter, NULL), 0);
    while (ready < 5) sleep_ms(5);
    sleep_ms(150);
    EQ(futex(&word, FUTEX_WAKE_PRIVATE, 2, NULL, NULL, 0), 2);
    for (int i = 0; i < 400 && woken < 2; i++) sleep_ms(5);
    EQ(woken, 2);
    sleep_ms(50);
    EQ(woken, 2);
    EQ(futex(&word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0), 3);
    for (int i = 0; i < 5; i++) pthread_join(t[i], NULL);
    EQ(woken, 5);
}

static void requeue(void) {
    pthread_t t[4];
    word = other = 0;
    for (int i = 0; i < 4; i++) EQ(pthread_create(&t[i], NULL, waiter, NULL), 0);
    while (ready < 4) sleep_ms(5);
    sleep_ms(150);
    ERR(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)10L, &other, 5), EAGAIN);
    long moved = futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)10L, &other, 0);
    EQ(moved, 4); // one woken, three moved
    EQ(futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0), 0);
    EQ(futex(&other, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0), 3);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
}

static void wake_op(void) {
    word = 0;
    other = 5;
    // other += 3 and, since the old value is not above 7, only the waiters on word are woken
    EQ(futex(&word, FUTEX_WAKE_OP, 1, (void *)1L, &other, FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_GT, 7)), 0);
    EQ(other, 8);
}

static void between_processes(void) {
    volatile int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHILD_PID(pid) {
        while (*shared == 0) futex(shared, FUTEX_WAIT, 0, NULL, NULL, 0);
        EQ(*shared, 9);
        *shared = 10;
        futex(shared, FUTEX_WAKE, 1, NULL, NULL, 0);
        _exit(0);
    }
    sleep_ms(50);
    *shared = 9;
    futex(shared, FUTEX_WAKE, 1, NULL, NULL, 0);
    while (*shared == 9) futex(shared, FUTEX_WAIT, 9, NULL, NULL, 0);
    EQ(*shared, 10);
    reap_ok(pid);
    // private memory after fork is not the same futex
    word = 0;
    CHILD_PID(separate) _exit(futex(&word, FUTEX_WAKE, 1, NULL, NULL, 0) == 0 ? 0 : 1);
    reap_ok(separate);
}

static volatile int hits;
static void hit(int s) { (void)s; hits++; }
static void interrupted(void) {
    struct sigaction a = {.sa_handler = hit};
    OK(sigaction(SIGUSR1, &a, NULL));
    pid_t parent = getpid();
    CHILD_PID(pid) {
        sleep_ms(50);
        kill(parent, SIGUSR1);
        _exit(0);
    }
    word = 0;
    struct timespec t = {20, 0};
    ERR(futex(&word, FUTEX_WAIT, 0, &t, NULL, 0), EINTR);
    EQ(hits, 1);
    reap_ok(pid);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long counter;
static void *add(void *arg) {
    for (int i = 0; i < 5000; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
    }
    return arg;
}
static void mutexes(void) {
    pthread_t t[8];
    for (int i = 0; i < 8; i++) EQ(pthread_create(&t[i], NULL, add, NULL), 0);
    for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
    EQ(counter, 40000);
}

static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int turn;
static void *take_turns(void *arg) {
    int me = (int)(long)arg;
    for (int i = 0; i < 300; i++) {
        pthread_mutex_lock(&mutex);
        while (turn != me) pthread_cond_wait(&condition, &mutex);
        turn = (turn + 1) % 3;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}
static void condition_variables(void) {
    pthread_t t[3];
    for (long i = 0; i < 3; i++) EQ(pthread_create(&t[i], NULL, take_turns, (void *)i), 0);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    EQ(turn, 0);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50000000;
    if (until.tv_nsec >= 1000000000) { until.tv_nsec -= 1000000000; until.tv_sec++; }
    pthread_mutex_lock(&mutex);
    EQ(pthread_cond_timedwait(&condition, &mutex, &until), ETIMEDOUT);
}

static __thread int local = 3;
static pthread_barrier_t barrier;
static void *own_storage(void *arg) {
    EQ(local, 3);
    local = (int)(long)arg;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 100; i++) {
        EQ(local, (long)arg);
        sched_yield();
    }
    return arg;
}
static void thread_local_storage(void) {
    pthread_t t[6];
    pthread_barrier_init(&barrier, NULL, 6);
    for (long i = 0; i < 6; i++) EQ(pthread_create(&t[i], NULL, own_storage, (void *)(i + 10)), 0);
    for (long i = 0; i < 6; i++) {
        void *result;
        EQ(pthread_join(t[i], &result), 0);
        EQ((long)result, i + 10);
    }
    EQ(local, 3);
}

static void *quick(void *arg) { return arg; }
static void many_threads(void) {
    for (int round = 0; round < 20; round++) {
        pthread_t t[20];
        for (long i = 0; i < 20; i++) EQ(pthread_create(&t[i], NULL, quick, (void *)i), 0);
        for (long i = 0; i < 20; i++) pthread_join(t[i], NULL);
    }
}

static void *dies_with_the_lock(void *arg) {
    pthread_mutex_lock(arg);
    return NULL;
}
static void robust_mutex(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_t m;
    EQ(pthread_mutex_init(&m, &attributes), 0);
    pthread_t t;
    EQ(pthread_create(&t, NULL, dies_with_the_lock, &m), 0);
    pthread_join(t, NULL);
    EQ(pthread_mutex_lock(&m), EOWNERDEAD);
    EQ(pthread_mutex_consistent(&m), 0);
    EQ(pthread_mutex_unlock(&m), 0);
    void *head;
    size_t size;
    OK(syscall(SYS_get_robust_list, 0, &head, &size));
    EQ(size, 24);
    ERR(syscall(SYS_set_robust_list, head, 7), EINVAL);
}

static void robust_mutex_of_a_killed_process(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_t *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EQ(pthread_mutex_init(m, &attributes), 0);
    int q[2];
    OK(pipe(q));
    CHILD_PID(pid) {
        pthread_mutex_lock(m);
        EQ(write(q[1], "x", 1), 1);
        for (;;) pause();
    }
    char c;
    EQ(read(q[0], &c, 1), 1);
    kill(pid, SIGKILL);
    EQ(pthread_mutex_lock(m), EOWNERDEAD);
    reap(pid);
}

static sem_t semaphore;
static void *posts(void *arg) {
    for (int i = 0; i < 200; i++) sem_post(&semaphore);
    return arg;
}
static void semaphores(void) {
    sem_init(&semaphore, 0, 0);
    pthread_t t;
    EQ(pthread_create(&t, NULL, posts, NULL), 0);
    for (int i = 0; i < 200; i++) EQ(sem_wait(&semaphore), 0);
    pthread_join(t, NULL);
    ERR(sem_trywait(&semaphore), EAGAIN);
}

static void affinity(void) {
    cpu_set_t set;
    OK(sched_getaffinity(0, sizeof set, &set));
    TRUE(CPU_COUNT(&set) >= 1);
    EQ(sysconf(_SC_NPROCESSORS_ONLN) >= 1, 1);
    int first = 0;
    while (!CPU_ISSET(first, &set)) first++;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    OK(sched_setaffinity(0, sizeof one, &one));
    EQ(sched_getcpu(), first);
    CPU_ZERO(&one);
    ERR(sched_setaffinity(0, sizeof one, &one), EINVAL);
    OK(sched_yield());
}

static uint32_t pi_word;

static long pi(int op, struct timespec *t) { return syscall(SYS_futex, &pi_word, op | FUTEX_PRIVATE_FLAG, 0, t, 0, 0); }

static void *take_and_give(void *arg) {
    OK(pi(FUTEX_LOCK_PI, NULL));
    EQ(pi_word & FUTEX_TID_MASK, syscall(SYS_gettid));
    *(int *)arg += 1;
    OK(pi(FUTEX_UNLOCK_PI, NULL));
    return NULL;
}

static void owner_in_the_word(void) {
    uint32_t me = syscall(SYS_gettid);
    OK(pi(FUTEX_LOCK_PI, NULL));
    EQ(pi_word, me);
    ERR(pi(FUTEX_LOCK_PI, NULL), EDEADLK);
    ERR(pi(FUTEX_TRYLOCK_PI, NULL), EDEADLK);
    int done = 0;
    pthread_t t;
    EQ(pthread_create(&t, NULL, take_and_give, &done), 0);
    while (!(*(volatile uint32_t *)&pi_word & FUTEX_WAITERS)) sleep_ms(1);
    EQ(done, 0);
    OK(pi(FUTEX_UNLOCK_PI, NULL));
    EQ(pthread_join(t, NULL), 0);
    EQ(done, 1);
    EQ(pi_word, 0);
    ERR(pi(FUTEX_UNLOCK_PI, NULL), EPERM);
    OK(pi(FUTEX_TRYLOCK_PI, NULL));
    OK(pi(FUTEX_UNLOCK_PI, NULL));
    // Of nobody who lives.
    pi_word = 0x3ffffff0;
    ERR(pi(FUTEX_LOCK_PI, NULL), ESRCH);
    pi_word = 0;
}

static void *hold(void *arg) {
    OK(pi(FUTEX_LOCK_PI, NULL));
    *(volatile int *)arg = 1;
    while (*(volatile int *)arg == 1) sleep_ms(1);
    OK(pi(FUTEX_UNLOCK_PI, NULL));
    return NULL;
}

static void owner_keeps_it_too_long(void) {
    volatile int state = 0;
    pthread_t t;
    EQ(pthread_create(&t, NULL, hold, (void *)&state), 0);
    while (state == 0) sleep_ms(1);
    ERR(pi(FUTEX_TRYLOCK_PI, NULL), EAGAIN);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 30000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    ERR(pi(FUTEX_LOCK_PI, &until), ETIMEDOUT);
    state = 2;
    EQ(pthread_join(t, NULL), 0);
    OK(pi(FUTEX_LOCK_PI, NULL));
    OK(pi(FUTEX_UNLOCK_PI, NULL));
}

static pthread_mutex_t pi_mutex;
static long pi_count;

static void *count_up(void *arg) {
    for (int i = 0; i < 2000; i++) {
        EQ(pthread_mutex_lock(&pi_mutex), 0);
        pi_count++;
        if (i % 50 == 0) sched_yield();
        EQ(pthread_mutex_unlock(&pi_mutex), 0);
    }
    return arg;
}

static void *lock_and_end(void *arg) {
    EQ(pthread_mutex_lock(&pi_mutex), 0);
    *(volatile int *)arg = 1;
    sleep_ms(60);
    return NULL;
}

static void priority_inheriting_mutex(void) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    EQ(pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT), 0);
    EQ(pthread_mutex_init(&pi_mutex, &a), 0);
    pthread_t t[4];
    for (int i = 0; i < 4; i++) EQ(pthread_create(&t[i], NULL, count_up, NULL), 0);
    for (int i = 0; i < 4; i++) EQ(pthread_join(t[i], NULL), 0);
    EQ(pi_count, 8000);
    EQ(pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST), 0);
    EQ(pthread_mutex_init(&pi_mutex, &a), 0);
    volatile int locked = 0;
    EQ(pthread_create(&t[0], NULL, lock_and_end, (void *)&locked), 0);
    while (!locked) sleep_ms(1);
    EQ(pthread_mutex_lock(&pi_mutex), EOWNERDEAD);
    EQ(pthread_mutex_consistent(&pi_mutex), 0);
    EQ(pthread_mutex_unlock(&pi_mutex), 0);
    EQ(pthread_join(t[0], NULL), 0);
    EQ(pthread_mutex_lock(&pi_mutex), 0);
    EQ(pthread_mutex_unlock(&pi_mutex), 0);
}

struct waitv {
    uint64_t val, addr;
    uint32_t flags, reserved;
};

static uint32_t words[3];

static void *wake_second(void *arg) {
    while (syscall(SYS_futex, &words[1], FUTEX_WAKE_PRIVATE, 1, 0, 0, 0) == 0) sleep_ms(1);
    return arg;
}

static void any_of_several(void) {
    struct waitv w[3];
    for (int i = 0; i < 3; i++) w[i] = (struct waitv){0, (uintptr_t)&words[i], 2 | FUTEX_PRIVATE_FLAG, 0};
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    ERR(syscall(SYS_futex_waitv, w, 3, 0, &until, CLOCK_MONOTONIC), ETIMEDOUT);
    ERR(syscall(SYS_futex_waitv, w, 0, 0, NULL, 0), EINVAL);
    ERR(syscall(SYS_futex_waitv, w, 129, 0, NULL, 0), EINVAL);
    ERR(syscall(SYS_futex_waitv, w, 3, 1, NULL, 0), EINVAL);
    w[2].val = 1;
    ERR(syscall(SYS_futex_waitv, w, 3, 0, NULL, 0), EAGAIN);
    // Nobody is left waiting.
    EQ(syscall(SYS_futex, &words[0], FUTEX_WAKE_PRIVATE, 9, 0, 0, 0), 0);
    w[2].val = 0;
    w[2].reserved = 1;
    ERR(syscall(SYS_futex_waitv, w, 3, 0, NULL, 0), EINVAL);
    w[2].reserved = 0;
    pthread_t t;
    EQ(pthread_create(&t, NULL, wake_second, NULL), 0);
    EQ(syscall(SYS_futex_waitv, w, 3, 0, NULL, 0), 1);
    EQ(pthread_join(t, NULL), 0);
    EQ(syscall(SYS_futex, &words[2], FUTEX_WAKE_PRIVATE, 9, 0, 0, 0), 0);
}

TESTS(T(owner_in_the_word), T(owner_keeps_it_too_long), T(priority_inheriting_mutex), T(any_of_several), T(value_differs), T(errors), T(timeouts), T(wake_counts), T(requeue), T(wake_op), T(between_processes), T(interrupted), T(mutexes),
      T(condition_variables), T(thread_local_storage), T(many_threads), T(robust_mutex), T(robust_mutex_of_a_killed_process),
      T(semaphores), T(affinity))

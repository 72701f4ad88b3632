// Scheduling: policies and their parameters, priorities, affinity, I/O priorities, memory barriers.
#include "abi.h"
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

struct attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t util_min, util_max;
};

static void ranges_of_priorities(void) {
    EQ(sched_get_priority_min(SCHED_OTHER), 0);
    EQ(sched_get_priority_max(SCHED_OTHER), 0);
    EQ(sched_get_priority_min(SCHED_FIFO), 1);
    EQ(sched_get_priority_max(SCHED_FIFO), 99);
    EQ(sched_get_priority_max(SCHED_RR), 99);
    EQ(sched_get_priority_max(SCHED_IDLE), 0);
    ERR(sched_get_priority_max(77), EINVAL);
    ERR(sched_get_priority_min(-1), EINVAL);
}

static void policies(void) {
    EQ(sched_getscheduler(0), SCHED_OTHER);
    struct sched_param p = {7};
    OK(sched_getparam(0, &p));
    EQ(p.sched_priority, 0);
    p.sched_priority = 5;
    ERR(sched_setscheduler(0, SCHED_OTHER, &p), EINVAL);
    ERR(sched_setparam(0, &p), EINVAL);
    ERR(sched_setscheduler(0, 55, &p), EINVAL);
    ERR(sched_getscheduler(-1), EINVAL);
    ERR(sched_getscheduler(0x3ffffff), ESRCH);
    ERR(sched_getparam(0, NULL), EINVAL);
    p.sched_priority = 0;
    OK(sched_setscheduler(0, SCHED_BATCH, &p));
    EQ(sched_getscheduler(0), SCHED_BATCH);
    CHILD_PID(pid) { _exit(sched_getscheduler(0) != SCHED_BATCH); }
    reap_ok(pid);
    OK(sched_setparam(0, &p));
    struct timespec t = {-1, -1};
    OK(sched_rr_get_interval(0, &t));
    TRUE(t.tv_sec == 0 && t.tv_nsec >= 0 && t.tv_nsec < 1000000000);
    ERR(sched_rr_get_interval(-1, &t), EINVAL);
}

static void attributes(void) {
    struct attr a;
    memset(&a, 0xff, sizeof a);
    OK(syscall(SYS_sched_getattr, 0, &a, sizeof a, 0));
    EQ(a.size, sizeof a);
    EQ(a.policy, SCHED_OTHER);
    EQ(a.nice, 0);
    ERR(syscall(SYS_sched_getattr, 0, &a, 8, 0), EINVAL);
    ERR(syscall(SYS_sched_getattr, 0, NULL, sizeof a, 0), EINVAL);
    memset(&a, 0, sizeof a);
    a.size = 48;
    a.policy = SCHED_BATCH;
    a.nice = 7;
    OK(syscall(SYS_sched_setattr, 0, &a, 0));
    memset(&a, 0, sizeof a);
    OK(syscall(SYS_sched_getattr, 0, &a, 48, 0));
    EQ(a.policy, SCHED_BATCH);
    EQ(a.nice, 7);
    EQ(getpriority(PRIO_PROCESS, 0), 7);
    ERR(syscall(SYS_sched_setattr, 0, &a, 1), EINVAL);
}

static void nice_values(void) {
    errno = 0;
    EQ(getpriority(PRIO_PROCESS, 0), 0);
    OK(setpriority(PRIO_PROCESS, 0, 5));
    EQ(getpriority(PRIO_PROCESS, 0), 5);
    EQ(syscall(SYS_getpriority, PRIO_PROCESS, 0), 15);
    CHILD_PID(pid) {
        EQ(getpriority(PRIO_PROCESS, 0), 5);
        OK(setpriority(PRIO_PROCESS, 0, 100));
        EQ(getpriority(PRIO_PROCESS, 0), 19);
        _exit(0);
    }
    reap_ok(pid);
    EQ(getpriority(PRIO_PROCESS, 0), 5);
    ERR(setpriority(9, 0, 1), EINVAL);
    ERR(getpriority(PRIO_PROCESS, 0x3ffffff), ESRCH);
    OK(setpriority(PRIO_PGRP, 0, 6));
    EQ(getpriority(PRIO_PGRP, 0), 6);
    CHILD_PID(user) {
        if (geteuid() == 0) OK(setuid(12345));
        ERR(setpriority(PRIO_PROCESS, 0, 1), EACCES);
        _exit(0);
    }
    reap_ok(user);
}

static void processors(void) {
    cpu_set_t all, one;
    CPU_ZERO(&all);
    OK(sched_getaffinity(0, sizeof all, &all));
    TRUE(CPU_COUNT(&all) >= 1);
    int first = 0;
    while (!CPU_ISSET(first, &all)) first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    OK(sched_setaffinity(0, sizeof one, &one));
    unsigned cpu = 999, node = 999;
    for (int i = 0; i < 50; i++) {
        OK(syscall(SYS_getcpu, &cpu, &node, NULL));
        EQ(cpu, first);
        EQ(sched_getcpu(), first);
        sched_yield();
    }
    CPU_ZERO(&one);
    ERR(sched_setaffinity(0, sizeof one, &one), EINVAL);
    ERR(sched_getaffinity(0, 1, &one), EINVAL);
    OK(sched_setaffinity(0, sizeof all, &all));
}

#define IOPRIO(class, data) ((class) << 13 | (data))

static void io_priorities(void) {
    OK(syscall(SYS_ioprio_get, 1, 0));
    OK(syscall(SYS_ioprio_set, 1, 0, IOPRIO(2, 6)));
    EQ(syscall(SYS_ioprio_get, 1, 0), IOPRIO(2, 6));
    ERR(syscall(SYS_ioprio_get, 9, 0), EINVAL);
    ERR(syscall(SYS_ioprio_set, 1, 0, IOPRIO(7, 0)), EINVAL);
    ERR(syscall(SYS_ioprio_get, 1, 0x3ffffff), ESRCH);
}

static volatile int ready, seen;

static void *spin(void *arg) {
    ready = 1;
    while (!seen) sched_yield();
    return arg;
}

static void barriers(void) {
    long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    OK(commands);
    TRUE(commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    ERR(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0), EPERM);
    OK(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
    pthread_t t;
    EQ(pthread_create(&t, NULL, spin, NULL), 0);
    while (!ready) sched_yield();
    OK(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
    OK(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0));
    seen = 1;
    EQ(pthread_join(t, NULL), 0);
    ERR(syscall(SYS_membarrier, 1 << 20, 0, 0), EINVAL);
}

TESTS(T(ranges_of_priorities), T(policies), T(attributes), T(nice_values), T(processors), T(io_priorities), T(barriers))

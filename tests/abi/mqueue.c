// POSIX message queues: order, limits, waiting, notification, names.
#include "abi.h"
#include <mqueue.h>
#include <poll.h>
#include <sys/resource.h>

static char name[40];

static mqd_t fresh(long messages, long size, int flags) {
    snprintf(name, sizeof name, "/abi-%d", getpid());
    mq_unlink(name);
    struct mq_attr a = {0, messages, size, 0};
    mqd_t q = mq_open(name, O_CREAT | O_EXCL | O_RDWR | flags, 0600, &a);
    OK(q);
    return q;
}

static void order(void) {
    mqd_t q = fresh(4, 16, O_NONBLOCK);
    EQ(fcntl(q, F_GETFD), FD_CLOEXEC);
    struct mq_attr a;
    OK(mq_getattr(q, &a));
    EQ(a.mq_maxmsg, 4);
    EQ(a.mq_msgsize, 16);
    EQ(a.mq_curmsgs, 0);
    EQ(a.mq_flags, O_NONBLOCK);
    char b[16];
    unsigned priority;
    ERR(mq_receive(q, b, 16, &priority), EAGAIN);
    OK(mq_send(q, "low", 3, 1));
    OK(mq_send(q, "high", 4, 9));
    OK(mq_send(q, "low again", 9, 1));
    OK(mq_send(q, "", 0, 0));
    ERR(mq_send(q, "x", 1, 0), EAGAIN);
    ERR(mq_send(q, "seventeen letters", 17, 0), EMSGSIZE);
    ERR(mq_send(q, "x", 1, 32768), EINVAL);
    ERR(mq_receive(q, b, 15, NULL), EMSGSIZE);
    OK(mq_getattr(q, &a));
    EQ(a.mq_curmsgs, 4);
    EQ(mq_receive(q, b, 16, &priority), 4);
    EQ(priority, 9);
    EQ(memcmp(b, "high", 4), 0);
    EQ(mq_receive(q, b, 16, &priority), 3);
    EQ(priority, 1);
    EQ(mq_receive(q, b, 16, NULL), 9);
    EQ(mq_receive(q, b, 16, &priority), 0);
    EQ(priority, 0);
    OK(mq_unlink(name));
    // It lives on until it is closed.
    OK(mq_send(q, "x", 1, 0));
    EQ(mq_receive(q, b, 16, NULL), 1);
    ERR(mq_unlink(name), ENOENT);
}

static void names(void) {
    mqd_t q = fresh(2, 8, 0);
    ERR(mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, NULL), EEXIST);
    mqd_t again = mq_open(name, O_WRONLY);
    OK(again);
    OK(mq_send(again, "via", 3, 0));
    char b[8];
    ERR(mq_receive(again, b, 8, NULL), EBADF);
    EQ(mq_receive(q, b, 8, NULL), 3);
    ERR(mq_open("/none-of-this-name", O_RDWR), ENOENT);
    ERR(mq_open("/a/b", O_CREAT | O_RDWR, 0600, NULL), EACCES);
    struct mq_attr bad = {0, 0, 8, 0};
    ERR(mq_open("/bad", O_CREAT | O_RDWR, 0600, &bad), EINVAL);
    bad.mq_maxmsg = 1 << 20;
    ERR(mq_open("/bad", O_CREAT | O_RDWR, 0600, &bad), EINVAL);
    if (geteuid() == 0) {
        CHILD_PID(pid) {
            OK(setuid(12345));
            ERR(mq_open(name, O_RDONLY), EACCES);
            ERR(mq_unlink(name), EACCES);
            struct mq_attr big = {0, 11, 8, 0};
            ERR(mq_open("/bad", O_CREAT | O_RDWR, 0600, &big), EINVAL);
            struct rlimit l = {1000, 1000};
            OK(setrlimit(RLIMIT_MSGQUEUE, &l));
            big.mq_maxmsg = 10;
            big.mq_msgsize = 1000;
            ERR(mq_open("/bad", O_CREAT | O_RDWR, 0600, &big), EMFILE);
            _exit(0);
        }
        int status;
        EQ(waitpid(pid, &status, 0), pid);
        EQ(status, 0);
    }
    OK(mq_close(again));
    ERR(mq_getattr(again, &bad), EBADF);
    OK(mq_unlink(name));
}

static void waiting(void) {
    mqd_t q = fresh(1, 8, 0);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    char b[8];
    ERR(mq_timedreceive(q, b, 8, NULL, &until), ETIMEDOUT);
    until.tv_nsec = 1000000000;
    ERR(mq_timedreceive(q, b, 8, NULL, &until), EINVAL);
    struct pollfd p = {q, POLLIN | POLLOUT, 0};
    EQ(poll(&p, 1, 0), 1);
    EQ(p.revents, POLLOUT);
    CHILD_PID(pid) {
        sleep_ms(30);
        OK(mq_send(q, "one", 3, 0));
        OK(mq_send(q, "two", 3, 0));
        _exit(0);
    }
    EQ(mq_receive(q, b, 8, NULL), 3);
    EQ(memcmp(b, "one", 3), 0);
    sleep_ms(20);
    EQ(poll(&p, 1, 5000), 1);
    EQ(mq_receive(q, b, 8, NULL), 3);
    reap_ok(pid);
    OK(mq_send(q, "full", 4, 0));
    clock_gettime(CLOCK_REALTIME, &until);
    ERR(mq_timedsend(q, "more", 4, 0, &until), ETIMEDOUT);
    EQ(poll(&p, 1, 0), 1);
    EQ(p.revents, POLLIN);
    struct mq_attr a = {O_NONBLOCK, 0, 0, 0}, old;
    OK(mq_setattr(q, &a, &old));
    EQ(old.mq_flags, 0);
    ERR(mq_send(q, "more", 4, 0), EAGAIN);
    OK(mq_unlink(name));
}

static void notification(void) {
    mqd_t q = fresh(4, 8, 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    OK(sigprocmask(SIG_BLOCK, &set, NULL));
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 5};
    OK(mq_notify(q, &e));
    ERR(mq_notify(q, &e), EBUSY);
    CHILD_PID(pid) {
        ERR(mq_notify(q, &e), EBUSY);
        OK(mq_send(q, "told", 4, 0));
        _exit(0);
    }
    siginfo_t info;
    EQ(sigwaitinfo(&set, &info), SIGUSR1);
    EQ(info.si_code, SI_MESGQ);
    EQ(info.si_pid, pid);
    EQ(info.si_value.sival_int, 5);
    reap_ok(pid);
    // Once only, and only for an empty queue.
    OK(mq_notify(q, &e));
    OK(mq_send(q, "second", 6, 0));
    struct timespec soon = {0, 20000000};
    ERR(sigtimedwait(&set, &info, &soon), EAGAIN);
    OK(mq_notify(q, NULL));
    OK(mq_notify(q, &e));
    OK(mq_notify(q, NULL));
    e.sigev_signo = 99;
    ERR(mq_notify(q, &e), EINVAL);
    OK(mq_unlink(name));
}

TESTS(T(order), T(names), T(waiting), T(notification))

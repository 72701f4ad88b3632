// Process groups, sessions, and signals to groups.
#include "abi.h"
#include <sys/resource.h>

static void inherit_and_set(void) {
    EQ(getpgrp(), getpid()); // the runner made a group of this test
    EQ(getpgid(0), getpid());
    CHILD_PID(pid) {
        EQ(getpgrp(), getppid());
        OK(setpgid(0, 0));
        EQ(getpgrp(), getpid());
        _exit(0);
    }
    reap_ok(pid);
}

static void set_by_parent(void) {
    CHILD_PID(pid) for (;;) pause();
    OK(setpgid(pid, pid));
    EQ(getpgid(pid), pid);
    OK(setpgid(pid, getpid()));
    EQ(getpgid(pid), getpid());
    kill(pid, SIGKILL);
    reap(pid);
    ERR(setpgid(pid, pid), ESRCH);
}

static void errors(void) {
    ERR(setpgid(0, -5), EINVAL);
    ERR(setpgid(999999999, 0), ESRCH);
    ERR(setpgid(0, 999999999), EPERM);
    ERR(getpgid(999999999), ESRCH);
    ERR(getsid(999999999), ESRCH);
    ERR(setsid(), EPERM); // a group leader
}

static void sessions(void) {
    pid_t old = getsid(0);
    TRUE(old >= 0);
    CHILD_PID(pid) {
        EQ(getsid(0), old);
        EQ(setsid(), getpid());
        EQ(getsid(0), getpid());
        EQ(getpgrp(), getpid());
        ERR(setsid(), EPERM);
        ERR(setpgid(0, 0), EPERM); // a session leader stays
        CHILD_PID(inner) {
            EQ(getsid(0), getppid());
            _exit(0);
        }
        reap_ok(inner);
        ERR(open("/dev/tty", O_RDWR), ENXIO); // no controlling terminal
        _exit(0);
    }
    reap_ok(pid);
}

static void no_join_across_sessions(void) {
    int p[2];
    OK(pipe(p));
    CHILD_PID(pid) {
        setsid();
        EQ(write(p[1], "x", 1), 1);
        for (;;) pause();
    }
    char c;
    EQ(read(p[0], &c, 1), 1);
    ERR(setpgid(pid, getpid()), EPERM);
    ERR(setpgid(0, pid), EPERM);
    kill(pid, SIGKILL);
    reap(pid);
}

static void kill_a_group(void) {
    pid_t pids[4];
    for (int i = 0; i < 4; i++) {
        pids[i] = fork_or_fail();
        if (pids[i] == 0) for (;;) pause();
        OK(setpgid(pids[i], pids[0]));
    }
    OK(kill(-pids[0], SIGTERM));
    for (int i = 0; i < 4; i++) EQ(reap(pids[i]), SIGTERM);
    ERR(kill(-pids[0], SIGTERM), ESRCH);
}

static void kill_own_group(void) {
    CHILD_PID(pid) {
        setpgid(0, 0);
        CHILD_PID(other) for (;;) pause();
        signal(SIGUSR1, SIG_IGN);
        OK(kill(0, SIGUSR1));
        EQ(reap(other), SIGUSR1);
        _exit(0);
    }
    reap_ok(pid);
}

static void orphaned_stopped_group_gets_hup_and_cont(void) {
    int p[2];
    OK(pipe(p));
    CHILD_PID(leader) {
        setsid();
        CHILD_PID(middle) {
            CHILD_PID(member) {
                setpgid(0, 0);
                raise(SIGSTOP);
                for (;;) pause();
            }
            int status;
            EQ(waitpid(member, &status, WUNTRACED), member);
            TRUE(WIFSTOPPED(status));
            EQ(write(p[1], &member, sizeof member), sizeof member);
            _exit(0); // orphans the stopped group: SIGHUP ends it
        }
        reap_ok(middle);
        _exit(0);
    }
    close(p[1]);
    pid_t member;
    EQ(read(p[0], &member, sizeof member), sizeof member);
    reap_ok(leader);
    char c;
    EQ(read(p[0], &c, 1), 0); // the member's write end closed: it died
}

static void stop_signals_in_orphaned_group_are_ignored(void) {
    CHILD_PID(pid) {
        setsid(); // an orphaned group
        raise(SIGTSTP);
        raise(SIGTTIN);
        _exit(0);
    }
    EQ(reap(pid), 0);
}

static void priorities(void) {
    errno = 0;
    int old = getpriority(PRIO_PROCESS, 0);
    EQ(errno, 0);
    CHILD_PID(pid) {
        OK(setpriority(PRIO_PROCESS, 0, old + 3));
        EQ(getpriority(PRIO_PROCESS, 0), old + 3);
        _exit(0);
    }
    reap_ok(pid);
    ERR(getpriority(77, 0), EINVAL);
    ERR(getpriority(PRIO_PROCESS, 999999999), ESRCH);
}

TESTS(T(inherit_and_set), T(set_by_parent), T(errors), T(sessions), T(no_join_across_sessions), T(kill_a_group), T(kill_own_group),
      T(orphaned_stopped_group_gets_hup_and_cont), T(stop_signals_in_orphaned_group_are_ignored), T(priorities))

// System V shared memory, semaphores and message queues.
#include "abi.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
    struct seminfo *info;
};

static void shm_is_shared(void) {
    ERR(shmget(IPC_PRIVATE, 0, 0600), EINVAL);
    int id = shmget(IPC_PRIVATE, 10000, 0600);
    OK(id);
    char *a = shmat(id, NULL, 0), *b = shmat(id, NULL, SHM_RDONLY);
    TRUE(a != (void *)-1 && b != (void *)-1 && a != b);
    strcpy(a + 5000, "seen");
    STREQ(b + 5000, "seen");
    struct shmid_ds ds;
    OK(shmctl(id, IPC_STAT, &ds));
    EQ(ds.shm_segsz, 10000);
    EQ(ds.shm_nattch, 2);
    EQ(ds.shm_cpid, getpid());
    EQ(ds.shm_perm.mode & 0777, 0600);
    CHILD_PID(pid) {
        EQ(shmctl(id, IPC_STAT, &ds), 0);
        EQ(ds.shm_nattch, 4);
        STREQ(a + 5000, "seen");
        strcpy(a, "child");
        OK(shmdt(a));
        ERR(shmdt(a), EINVAL);
        _exit(0);
    }
    reap_ok(pid);
    STREQ(b, "child");
    OK(shmctl(id, IPC_STAT, &ds));
    EQ(ds.shm_nattch, 2);
    TRUE(ds.shm_dtime != 0);
    // Marked for removal, it stays until the last detach.
    OK(shmctl(id, IPC_RMID, NULL));
    OK(shmctl(id, IPC_STAT, &ds));
    TRUE(ds.shm_perm.mode & SHM_DEST);
    OK(shmdt(a));
    STREQ(b, "child");
    OK(shmdt(b));
    ERR(shmctl(id, IPC_STAT, &ds), EINVAL);
}

static void shm_keys_and_places(void) {
    key_t key = 0x51000000 | getpid();
    ERR(shmget(key, 4096, 0), ENOENT);
    int id = shmget(key, 8192, IPC_CREAT | 0640);
    OK(id);
    ERR(shmget(key, 4096, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    EQ(shmget(key, 4096, 0), id);
    ERR(shmget(key, 8193, 0), EINVAL);
    char *a = shmat(id, NULL, 0);
    TRUE(a != (void *)-1);
    ERR(shmat(id, a, 0), EINVAL);
    ERR(shmat(id, a + 1, 0), EINVAL);
    TRUE(shmat(id, a + 1, SHM_RND | SHM_REMAP) == a);
    // An unmapped first page leaves the rest attached at the same place.
    a[4096] = 7;
    OK(munmap(a, 4096));
    OK(shmdt(a));
    struct shmid_ds ds;
    OK(shmctl(id, IPC_STAT, &ds));
    EQ(ds.shm_nattch, 0);
    ds.shm_perm.mode = 0400;
    OK(shmctl(id, IPC_SET, &ds));
    OK(shmctl(id, IPC_STAT, &ds));
    EQ(ds.shm_perm.mode & 0777, 0400);
    OK(shmctl(id, IPC_RMID, NULL));
    ERR(shmget(key, 4096, 0), ENOENT);
    ERR(shmat(id, NULL, 0), EINVAL);
    struct shminfo info;
    OK(shmctl(0, IPC_INFO, (struct shmid_ds *)&info));
    EQ(info.shmmin, 1);
}

static void shm_permissions(void) {
    if (geteuid() != 0) return;
    int id = shmget(IPC_PRIVATE, 4096, 0640);
    OK(id);
    CHILD_PID(pid) {
        OK(setgid(12345));
        OK(setuid(12345));
        ERR(shmat(id, NULL, SHM_RDONLY), EACCES);
        ERR(shmctl(id, IPC_RMID, NULL), EPERM);
        _exit(0);
    }
    reap_ok(pid);
    OK(shmctl(id, IPC_RMID, NULL));
}

static void sem_values(void) {
    ERR(semget(IPC_PRIVATE, 0, 0600), EINVAL);
    ERR(semget(IPC_PRIVATE, -1, 0600), EINVAL);
    int id = semget(IPC_PRIVATE, 3, 0600);
    OK(id);
    unsigned short all[3] = {1, 2, 3};
    OK(semctl(id, 0, SETALL, (union semun){.array = all}));
    EQ(semctl(id, 1, GETVAL), 2);
    OK(semctl(id, 2, SETVAL, (union semun){.val = 9}));
    ERR(semctl(id, 2, SETVAL, (union semun){.val = 40000}), ERANGE);
    ERR(semctl(id, 3, GETVAL), EINVAL);
    // All or nothing.
    struct sembuf ops[2] = {{0, -1, 0}, {1, -5, IPC_NOWAIT}};
    ERR(semop(id, ops, 2), EAGAIN);
    EQ(semctl(id, 0, GETVAL), 1);
    ops[1].sem_op = -2;
    OK(semop(id, ops, 2));
    memset(all, 0xff, sizeof all);
    OK(semctl(id, 0, GETALL, (union semun){.array = all}));
    EQ(all[0], 0);
    EQ(all[1], 0);
    EQ(all[2], 9);
    EQ(semctl(id, 0, GETPID), getpid());
    struct sembuf zero = {2, 0, IPC_NOWAIT};
    ERR(semop(id, &zero, 1), EAGAIN);
    struct sembuf far = {3, 1, 0};
    ERR(semop(id, &far, 1), EFBIG);
    ERR(semop(id, &far, 0), EINVAL);
    struct semid_ds ds;
    OK(semctl(id, 0, IPC_STAT, (union semun){.buf = &ds}));
    EQ(ds.sem_nsems, 3);
    TRUE(ds.sem_otime != 0);
    OK(semctl(id, 0, IPC_RMID));
    ERR(semctl(id, 0, GETVAL), EINVAL);
}

static void sem_waits(void) {
    int id = semget(IPC_PRIVATE, 2, 0600);
    OK(id);
    CHILD_PID(pid) {
        struct sembuf down = {0, -2, 0};
        OK(semop(id, &down, 1));
        struct sembuf gone = {1, -1, 0};
        ERR(semop(id, &gone, 1), EIDRM);
        _exit(0);
    }
    while (semctl(id, 0, GETNCNT) == 0) sleep_ms(1);
    struct sembuf up = {0, 1, 0};
    OK(semop(id, &up, 1));
    sleep_ms(20);
    EQ(semctl(id, 0, GETNCNT), 1);
    OK(semop(id, &up, 1));
    while (semctl(id, 1, GETNCNT) == 0) sleep_ms(1);
    EQ(semctl(id, 0, GETVAL), 0);
    struct timespec t = {0, 30000000};
    struct sembuf down = {0, -1, 0};
    double start = now();
    ERR(semtimedop(id, &down, 1, &t), EAGAIN);
    TRUE(now() - start > 0.025);
    OK(semctl(id, 0, IPC_RMID));
    reap_ok(pid);
}

static void on_alarm(int s) { (void)s; }

static void sem_is_interrupted(void) {
    int id = semget(IPC_PRIVATE, 1, 0600);
    OK(id);
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    OK(sigaction(SIGUSR1, &sa, NULL));
    pid_t me = getpid();
    CHILD_PID(pid) {
        while (semctl(id, 0, GETNCNT) == 0) sleep_ms(1);
        OK(kill(me, SIGUSR1));
        _exit(0);
    }
    struct sembuf down = {0, -1, 0};
    ERR(semop(id, &down, 1), EINTR);
    reap_ok(pid);
    OK(semctl(id, 0, IPC_RMID));
}

static void sem_undo(void) {
    int id = semget(IPC_PRIVATE, 1, 0600);
    OK(id);
    OK(semctl(id, 0, SETVAL, (union semun){.val = 4}));
    CHILD_PID(pid) {
        struct sembuf down = {0, -3, SEM_UNDO};
        OK(semop(id, &down, 1));
        EQ(semctl(id, 0, GETVAL), 1);
        _exit(0);
    }
    reap_ok(pid);
    EQ(semctl(id, 0, GETVAL), 4);
    CHILD_PID(other) {
        struct sembuf down = {0, -3, SEM_UNDO};
        OK(semop(id, &down, 1));
        // SETVAL forgets what would have been undone.
        OK(semctl(id, 0, SETVAL, (union semun){.val = 2}));
        _exit(0);
    }
    reap_ok(other);
    EQ(semctl(id, 0, GETVAL), 2);
    OK(semctl(id, 0, IPC_RMID));
}

struct message {
    long type;
    char text[64];
};

static void msg_types(void) {
    int id = msgget(IPC_PRIVATE, 0600);
    OK(id);
    struct message m = {0, ""};
    ERR(msgsnd(id, &m, 4, 0), EINVAL);
    for (long type = 3; type >= 1; type--) {
        m.type = type;
        sprintf(m.text, "number %ld", type);
        OK(msgsnd(id, &m, strlen(m.text) + 1, 0));
    }
    struct msqid_ds ds;
    OK(msgctl(id, IPC_STAT, &ds));
    EQ(ds.msg_qnum, 3);
    EQ(ds.msg_lspid, getpid());
    EQ(msgrcv(id, &m, sizeof m.text, 2, 0), 9);
    STREQ(m.text, "number 2");
    EQ(m.type, 2);
    ERR(msgrcv(id, &m, sizeof m.text, 2, IPC_NOWAIT), ENOMSG);
    ERR(msgrcv(id, &m, 3, 0, 0), E2BIG);
    EQ(msgrcv(id, &m, sizeof m.text, -3, 0), 9);
    EQ(m.type, 1);
    EQ(msgrcv(id, &m, 6, 1, MSG_EXCEPT | MSG_NOERROR), 6);
    EQ(m.type, 3);
    EQ(strncmp(m.text, "number", 6), 0);
    OK(msgctl(id, IPC_RMID, NULL));
    ERR(msgsnd(id, &m, 1, 0), EINVAL);
}

static void msg_waits(void) {
    key_t key = 0x52000000 | getpid();
    int id = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    OK(id);
    EQ(msgget(key, 0), id);
    struct msqid_ds ds;
    OK(msgctl(id, IPC_STAT, &ds));
    ds.msg_qbytes = 100;
    OK(msgctl(id, IPC_SET, &ds));
    struct message m = {5, "abc"};
    OK(msgsnd(id, &m, 60, 0));
    ERR(msgsnd(id, &m, 60, IPC_NOWAIT), EAGAIN);
    CHILD_PID(pid) {
        struct message got;
        sleep_ms(30);
        EQ(msgrcv(id, &got, sizeof got.text, 0, 0), 60);
        EQ(msgrcv(id, &got, sizeof got.text, 0, 0), 60);
        // Nothing is left: the queue goes away under the waiter.
        ERR(msgrcv(id, &got, sizeof got.text, 0, 0), EIDRM);
        _exit(0);
    }
    OK(msgsnd(id, &m, 60, 0));
    do {
        sleep_ms(5);
        OK(msgctl(id, IPC_STAT, &ds));
    } while (ds.msg_qnum != 0);
    sleep_ms(20);
    OK(msgctl(id, IPC_RMID, NULL));
    reap_ok(pid);
}

static void proc_lists_them(void) {
    int shm = shmget(IPC_PRIVATE, 12345, 0612), sem = semget(IPC_PRIVATE, 7, 0600), msg = msgget(IPC_PRIVATE, 0600);
    OK(shm);
    OK(sem);
    OK(msg);
    const char *names[3] = {"/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg"};
    int ids[3] = {shm, sem, msg};
    for (int i = 0; i < 3; i++) {
        FILE *f = fopen(names[i], "r");
        TRUE(f);
        char line[400];
        int seen = 0, key, id, perms, size;
        TRUE(fgets(line, sizeof line, f));
        while (fgets(line, sizeof line, f))
            if (sscanf(line, "%d %d %o %d", &key, &id, &perms, &size) == 4 && id == ids[i]) {
                seen = 1;
                if (i == 0) EQ(perms, 0612);
                if (i == 0) EQ(size, 12345);
                if (i == 1) EQ(size, 7);
            }
        fclose(f);
        TRUE(seen);
    }
    OK(shmctl(shm, IPC_RMID, NULL));
    OK(semctl(sem, 0, IPC_RMID));
    OK(msgctl(msg, IPC_RMID, NULL));
}

TESTS(T(shm_is_shared), T(shm_keys_and_places), T(shm_permissions), T(sem_values), T(sem_waits), T(sem_is_interrupted),
      T(sem_undo), T(msg_types), T(msg_waits), T(proc_lists_them))

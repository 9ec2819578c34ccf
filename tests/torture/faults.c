/* An LD_PRELOAD library that counts the file-system calls of a process below some paths, and spoils
   one of them.

   It does nothing until `faults_arm` is called, or if the environment's FAULTS is set at the start,
   with lines of name=value:

     under=/a/S      paths that count: this one and all below it; may be given several times
     starts=/a/.S.   paths that count: every one that begins so
     except=/a/S/x   paths that do not count, with all below
     class=link      the calls of this class are spoiled (see `names`), counted from 1
     n=3             the first that is spoiled
     many=1          how many in a row; 0: all from there on
     every=2         of these only every second one is spoiled; 1: each
     inodes=lie      each look at a file finds another inode number
     action=fail     not done, fails with errno
            did      done, and reported failed with errno
            half     (writes) the first is cut short in the middle, the others fail with errno
            before   the process is killed before the call
            after    the process is killed when the call is done
            lie      (locks) not done, and reported done
     errno=28
     record=/tmp/r   every call that counts is appended to this file: "class n path", and "!" if it
                     was spoiled

   Without class it only counts. Each arming starts anew; "" disarms. A descriptor's path is looked
   up when it is used, so files that were renamed or unlinked since they were opened count too. The
   library's own calls are plain system calls: they are neither counted nor spoiled. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum {
    CREATE, OPEN, READ, WRITE, SYNC, LINK, RENAME, UNLINK, MKDIR, LIST, STAT, LOCK, WATCH, CLASSES
};
static const char *names[CLASSES] = {"create", "open", "read", "write", "sync", "link", "rename",
                                     "unlink", "mkdir", "list", "stat", "lock", "watch"};
enum action { PASS, FAIL, DID, HALF, BEFORE, AFTER, LIE };
static const char *actions[] = {"pass", "fail", "did", "half", "before", "after", "lie"};

enum kind { UNDER, STARTS, EXCEPT };
#define RULES 8
static struct {
    int is_armed, class, action, error, record;
    long n, many, every;
    int lies;
    struct { enum kind kind; char path[PATH_MAX]; } rules[RULES];
    int rule_count;
} plan = {.record = -1};
static atomic_long counted[CLASSES];

static int index_of(const char *word, const char **words, int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(word, words[i])) return i;
    abort(); /* Nobody can mean such a plan. */
}

static void add_rule(enum kind kind, const char *path) {
    if (plan.rule_count == RULES) abort();
    plan.rules[plan.rule_count].kind = kind;
    snprintf(plan.rules[plan.rule_count++].path, PATH_MAX, "%s", path);
}

static void set(const char *name, const char *value) {
    if (!strcmp(name, "under")) add_rule(UNDER, value);
    else if (!strcmp(name, "starts")) add_rule(STARTS, value);
    else if (!strcmp(name, "except")) add_rule(EXCEPT, value);
    else if (!strcmp(name, "class")) plan.class = index_of(value, names, CLASSES);
    else if (!strcmp(name, "action"))
        plan.action = index_of(value, actions, sizeof actions / sizeof *actions);
    else if (!strcmp(name, "n")) plan.n = atol(value);
    else if (!strcmp(name, "many")) plan.many = atol(value);
    else if (!strcmp(name, "every")) plan.every = atol(value);
    else if (!strcmp(name, "inodes")) plan.lies = !strcmp(value, "lie");
    else if (!strcmp(name, "errno")) plan.error = atoi(value);
    else if (!strcmp(name, "record")) {
        int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
        int fd = syscall(SYS_openat, AT_FDCWD, value, flags, 0644);
        /* A high number is out of the way of the program's own descriptors. */
        plan.record = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
        syscall(SYS_close, fd);
    } else abort();
}

void faults_arm(const char *text) {
    if (plan.record >= 0) syscall(SYS_close, plan.record);
    memset(&plan, 0, sizeof plan);
    plan.record = -1;
    plan.class = -1;
    plan.every = 1;
    for (int i = 0; i < CLASSES; i++) counted[i] = 0;
    char *copy = strdup(text), *rest = copy, *line;
    while ((line = strsep(&rest, "\n"))) {
        char *value = strchr(line, '=');
        if (!value) continue;
        *value++ = 0;
        set(line, value);
        plan.is_armed = 1;
    }
    free(copy);
}

__attribute__((constructor)) static void arm_by_environment(void) {
    const char *text = getenv("FAULTS");
    if (text) faults_arm(text);
}

static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

/* The absolute path that a call means: that of a descriptor (name is NULL), or of a name below the
   descriptor of a folder, which may also be spelled /proc/self/fd/N/name. */
static void resolve(int fd, const char *name, char *path) {
    char *rest = NULL;
    if (name && !strncmp(name, "/proc/self/fd/", 14)) {
        int held = (int)strtol(name + 14, &rest, 10);
        if (*rest == '/') {
            fd = held;
            name = rest + 1;
        }
    }
    if (name && name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (fd == AT_FDCWD) {
        if (syscall(SYS_getcwd, path, PATH_MAX) < 0) path[0] = 0;
    } else path_of(fd, path);
    if (name && name[0]) {
        size_t length = strlen(path);
        snprintf(path + length, PATH_MAX - length, "/%s", name);
    }
}

static int counts(const char *path) {
    int is_meant = 0;
    for (int i = 0; i < plan.rule_count; i++) {
        size_t length = strlen(plan.rules[i].path);
        if (strncmp(path, plan.rules[i].path, length)) continue;
        /* A blank: the path of a deleted file ends with " (deleted)". */
        int is_whole = path[length] == 0 || path[length] == '/' || path[length] == ' ';
        if (plan.rules[i].kind == EXCEPT && is_whole) return 0;
        is_meant |= plan.rules[i].kind == STARTS || is_whole;
    }
    return is_meant;
}

static void note(int class, long n, const char *path, const char *other, int action) {
    char line[3 * PATH_MAX];
    if (plan.record < 0) return;
    const char *arrow = other[0] ? " -> " : "";
    const char *mark = action ? " ! " : "", *what = action ? actions[action] : "";
    int size = snprintf(line, sizeof line, "%s %ld %s%s%s%s%s\n", names[class], n, path, arrow,
                        other, mark, what);
    syscall(SYS_write, plan.record, line, size);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Count and note a call, and say what is to be done about it. For the paths see `resolve`. */
static enum action judge(int class, int fd, const char *name, int other_fd,
                         const char *other_name) {
    if (!plan.is_armed) return PASS;
    int saved = errno;
    char path[PATH_MAX], other[PATH_MAX] = "";
    resolve(fd, name, path);
    if (other_name) resolve(other_fd, other_name, other);
    enum action action = PASS;
    if (counts(path) || (other[0] && counts(other))) {
        long n = ++counted[class];
        int is_hit = class == plan.class && n >= plan.n && (!plan.many || n < plan.n + plan.many)
                     && (n - plan.n) % plan.every == 0;
        if (is_hit) action = plan.action == HALF && n > plan.n ? FAIL : plan.action;
        note(class, n, path, other, action);
        if (action == BEFORE) die();
    }
    errno = saved;
    return action;
}

#define REAL(name)                                                                                 \
    ({                                                                                             \
        static typeof(&name) real;                                                                 \
        if (!real) real = (typeof(real))dlsym(RTLD_NEXT, #name);                                   \
        real;                                                                                      \
    })
#define SPOIL(failed) ({ errno = plan.error; failed; })

/* The body of a call: it fails, or is done and then reported failed, or kills, or is just done. */
#define PLAY(verdict, failed, call)                                                                \
    ({                                                                                             \
        enum action action_ = (verdict);                                                           \
        if (action_ == FAIL) return SPOIL(failed);                                                 \
        typeof(call) result_ = (call);                                                             \
        if (action_ == AFTER) die();                                                               \
        if (action_ == DID && result_ != (failed)) return SPOIL(failed);                           \
        result_;                                                                                   \
    })
#define NAMED(class, fd, name) judge(class, fd, name, 0, NULL)
#define FILED(class, fd) judge(class, fd, NULL, 0, NULL)

static int open_class(int flags) {
    return flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC) ? CREATE : OPEN;
}

#define MODE(flags, after)                                                                         \
    ({                                                                                             \
        mode_t mode_ = 0;                                                                          \
        if ((flags) & (O_CREAT | O_TMPFILE)) {                                                     \
            va_list list;                                                                          \
            va_start(list, after);                                                                 \
            mode_ = va_arg(list, mode_t);                                                          \
            va_end(list);                                                                          \
        }                                                                                          \
        mode_;                                                                                     \
    })

int open(const char *path, int flags, ...) {
    mode_t mode = MODE(flags, flags);
    return PLAY(NAMED(open_class(flags), AT_FDCWD, path), -1, REAL(open)(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    mode_t mode = MODE(flags, flags);
    return PLAY(NAMED(open_class(flags), AT_FDCWD, path), -1, REAL(open64)(path, flags, mode));
}
int openat(int fd, const char *path, int flags, ...) {
    mode_t mode = MODE(flags, flags);
    return PLAY(NAMED(open_class(flags), fd, path), -1, REAL(openat)(fd, path, flags, mode));
}
int openat64(int fd, const char *path, int flags, ...) {
    mode_t mode = MODE(flags, flags);
    return PLAY(NAMED(open_class(flags), fd, path), -1, REAL(openat64)(fd, path, flags, mode));
}
ssize_t read(int fd, void *data, size_t size) {
    return PLAY(FILED(READ, fd), -1, REAL(read)(fd, data, size));
}
ssize_t write(int fd, const void *data, size_t size) {
    enum action action = FILED(WRITE, fd);
    if (action == HALF) return REAL(write)(fd, data, (size + 1) / 2);
    return PLAY(action, -1, REAL(write)(fd, data, size));
}
int ftruncate64(int fd, off64_t size) {
    return PLAY(FILED(WRITE, fd), -1, REAL(ftruncate64)(fd, size));
}
int fsync(int fd) { return PLAY(FILED(SYNC, fd), -1, REAL(fsync)(fd)); }
int fdatasync(int fd) { return PLAY(FILED(SYNC, fd), -1, REAL(fdatasync)(fd)); }
int link(const char *from, const char *to) {
    return PLAY(judge(LINK, AT_FDCWD, from, AT_FDCWD, to), -1, REAL(link)(from, to));
}
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    return PLAY(judge(LINK, from_fd, from, to_fd, to), -1,
                REAL(linkat)(from_fd, from, to_fd, to, flags));
}
int rename(const char *from, const char *to) {
    return PLAY(judge(RENAME, AT_FDCWD, from, AT_FDCWD, to), -1, REAL(rename)(from, to));
}
int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    return PLAY(judge(RENAME, from_fd, from, to_fd, to), -1,
                REAL(renameat)(from_fd, from, to_fd, to));
}
int unlink(const char *path) { return PLAY(NAMED(UNLINK, AT_FDCWD, path), -1, REAL(unlink)(path)); }
int unlinkat(int fd, const char *path, int flags) {
    return PLAY(NAMED(UNLINK, fd, path), -1, REAL(unlinkat)(fd, path, flags));
}
int rmdir(const char *path) { return PLAY(NAMED(UNLINK, AT_FDCWD, path), -1, REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) {
    return PLAY(NAMED(MKDIR, AT_FDCWD, path), -1, REAL(mkdir)(path, mode));
}
int mkdirat(int fd, const char *path, mode_t mode) {
    return PLAY(NAMED(MKDIR, fd, path), -1, REAL(mkdirat)(fd, path, mode));
}
DIR *opendir(const char *path) {
    return PLAY(NAMED(LIST, AT_FDCWD, path), NULL, REAL(opendir)(path));
}
DIR *fdopendir(int fd) { return PLAY(FILED(LIST, fd), NULL, REAL(fdopendir)(fd)); }
struct dirent64 *readdir64(DIR *folder) {
    /* Only the first call of a listing counts, since it asks the kernel. One call for each name
       would be too many. */
    enum action action = telldir(folder) == 0 ? FILED(LIST, dirfd(folder)) : PASS;
    return PLAY(action, NULL, REAL(readdir64)(folder));
}
/* A file system that makes up an inode number at each look. */
static int lied(int result, struct stat64 *to) {
    static atomic_long made_up = 1;
    if (!result && plan.lies) to->st_ino = ++made_up;
    return result;
}
int stat64(const char *restrict path, struct stat64 *restrict to) {
    return lied(PLAY(NAMED(STAT, AT_FDCWD, path), -1, REAL(stat64)(path, to)), to);
}
int lstat64(const char *restrict path, struct stat64 *restrict to) {
    return lied(PLAY(NAMED(STAT, AT_FDCWD, path), -1, REAL(lstat64)(path, to)), to);
}
int fstat64(int fd, struct stat64 *to) {
    return lied(PLAY(FILED(STAT, fd), -1, REAL(fstat64)(fd, to)), to);
}
int fstatat64(int fd, const char *restrict path, struct stat64 *restrict to, int flags) {
    return lied(PLAY(NAMED(STAT, fd, path), -1, REAL(fstatat64)(fd, path, to, flags)), to);
}
int flock(int fd, int how) {
    enum action action = FILED(LOCK, fd);
    if (action == LIE) return 0;
    return PLAY(action, -1, REAL(flock)(fd, how));
}
int inotify_add_watch(int fd, const char *path, uint32_t mask) {
    return PLAY(NAMED(WATCH, AT_FDCWD, path), -1, REAL(inotify_add_watch)(fd, path, mask));
}

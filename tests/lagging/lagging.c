/* A folder seen late: a FUSE file system that passes everything through, and remembers what it saw.
 *
 *     lagging FOLDER MOUNT [attributes=S] [missing=S] [listings=S] [open=fresh|late]
 *             [locks=shared|local|none]
 *
 * Each mount is to the folder what a client of NFS is to its server. What it changes is done in the
 * folder at once: link(2), rename(2), O_EXCL, appends and fsync(2) are those of the folder, so they
 * are as atomic as there. What others change it sees late, since for so many seconds it believes
 *
 *     attributes   what it was told of a name that was there: that it is there, its size, its times
 *     missing      that a name was not there
 *     listings     which names a folder had
 *
 * What it changes itself it sees at once: the attributes of that file, the listing of that folder.
 * What it knows of the other names there stays as old as it is. With open=fresh, the default, open(2)
 * asks anew for the attributes of the file, as NFS does (close-to-open), but not whether a name is
 * there after all that was missing.
 *
 * flock(2) is passed on, or known to this mount alone (local), or refused (none).
 *
 * The kernel keeps nothing by itself: all its times are 0, so each of its questions comes here.
 *
 * It prints "mounted" once it is, and unmounts and ends at the end of its standard input: whoever
 * started it holds a pipe, which the kernel closes however that process ends.
 */

#define FUSE_USE_VERSION 31
#define _GNU_SOURCE

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 1 << 16 };

/* How often a lock is tried for that another mount holds. */
enum { LOCK_LOOK_US = 5000 };

static const char *folder;
static const char *mount_point;
static double attributes_s, missing_s, listings_s;
static int is_open_fresh = 1;
static int refuses_locks;

/* What was seen of a path: its attributes, or the error that told that it is not there; and when
 * this mount itself last made or removed the name. A look that began before that is worth nothing. */
typedef struct fact {
    struct fact *next;
    char *path;
    int error;
    struct stat attributes;
    double at;
    double changed_at;
} fact;

/* When this mount itself last changed a file. What it had seen of it before is worth nothing. */
typedef struct change {
    struct change *next;
    ino_t inode;
    double at;
} change;

/* The names that a folder had. It stays as long as somebody reads it, or the folder has it. */
typedef struct listing {
    int users;
    double at;
    size_t count;
    struct dirent *entries;
} listing;

/* A folder that is open: what is told of it, and itself, for fsync(2). */
typedef struct {
    listing *names;
    int fd;
} open_folder;

typedef struct listed {
    struct listed *next;
    char *path;
    listing *names;
} listed;

/* Everything that this mount remembers, and the lock over it. Nothing is ever forgotten but by
 * being wrong: a test ends before that is much. */
static pthread_mutex_t memory = PTHREAD_MUTEX_INITIALIZER;
static fact *facts[SLOTS];
static change *changes[SLOTS];
static listed *listings[SLOTS];

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static unsigned slot_of(const char *path)
{
    unsigned hash = 5381;

    while (*path)
        hash = hash * 33 + (unsigned char)*path++;
    return hash % SLOTS;
}

static void *allocated(void *memory_or_null)
{
    if (memory_or_null == NULL)
        abort();
    return memory_or_null;
}

/* Where a path of this mount is in the folder. */
typedef struct {
    char path[PATH_MAX];
} place;

static const char *real(const char *path, place *at)
{
    snprintf(at->path, sizeof at->path, "%s%s", folder, path);
    return at->path;
}

/* The memory. Whoever calls these holds its lock. */

static fact *fact_of(const char *path)
{
    fact **slot = &facts[slot_of(path)];
    fact *one;

    for (one = *slot; one != NULL; one = one->next)
        if (strcmp(one->path, path) == 0)
            return one;
    one = allocated(calloc(1, sizeof *one));
    one->path = allocated(strdup(path));
    one->at = one->changed_at = -1;
    one->next = *slot;
    *slot = one;
    return one;
}

static void forget_fact(const char *path)
{
    fact *one = fact_of(path);

    one->at = -1;
    one->changed_at = now();
}

static double *change_of(ino_t inode)
{
    change **slot = &changes[inode % SLOTS];
    change *one;

    for (one = *slot; one != NULL; one = one->next)
        if (one->inode == inode)
            return &one->at;
    one = allocated(calloc(1, sizeof *one));
    one->inode = inode;
    one->at = -1;
    one->next = *slot;
    *slot = one;
    return &one->at;
}

static int is_believed(const fact *one)
{
    if (one->at < 0)
        return 0;
    if (one->error)
        return now() < one->at + missing_s;
    return now() < one->at + attributes_s && *change_of(one->attributes.st_ino) <= one->at;
}

static listed *listed_of(const char *path)
{
    listed **slot = &listings[slot_of(path)];
    listed *one;

    for (one = *slot; one != NULL; one = one->next)
        if (strcmp(one->path, path) == 0)
            return one;
    one = allocated(calloc(1, sizeof *one));
    one->path = allocated(strdup(path));
    one->next = *slot;
    *slot = one;
    return one;
}

static void let_go(listing *names)
{
    if (names != NULL && --names->users == 0) {
        free(names->entries);
        free(names);
    }
}

static void forget_listing(const char *path)
{
    listed *one = listed_of(path);

    let_go(one->names);
    one->names = NULL;
}

/* What this mount has changed. */

/* A file was changed: its size, times, permissions, or how many names it has. */
static void changed_file(int fd)
{
    struct stat now_is;

    if (fstat(fd, &now_is) == 0) {
        pthread_mutex_lock(&memory);
        *change_of(now_is.st_ino) = now();
        pthread_mutex_unlock(&memory);
    }
}

static void changed_path(const char *path)
{
    struct stat now_is;
    place at;

    if (lstat(real(path, &at), &now_is) == 0) {
        pthread_mutex_lock(&memory);
        *change_of(now_is.st_ino) = now();
        pthread_mutex_unlock(&memory);
    }
}

/* A name was made or removed, or turned out to be otherwise than was believed. */
static void changed_name(const char *path)
{
    place parent;
    char *slash;

    snprintf(parent.path, sizeof parent.path, "%s", path);
    slash = strrchr(parent.path, '/');
    slash[slash == parent.path] = '\0';
    pthread_mutex_lock(&memory);
    forget_fact(path);
    forget_fact(parent.path);
    forget_listing(parent.path);
    pthread_mutex_unlock(&memory);
    changed_path(path);
}

/* The end of a call that makes or removes names: 0, or the error of the folder's own file system. */
static int end_of(int result, const char *path, const char *other)
{
    int error = result == -1 ? errno : 0;

    changed_name(path);
    if (other != NULL)
        changed_name(other);
    return -error;
}

/* Looking. */

static int do_getattr(const char *path, struct stat *attributes, struct fuse_file_info *info)
{
    place at;
    fact seen = {0};
    fact *known;

    (void)info;
    pthread_mutex_lock(&memory);
    known = fact_of(path);
    if (is_believed(known)) {
        *attributes = known->attributes;
        seen.error = known->error;
        pthread_mutex_unlock(&memory);
        return -seen.error;
    }
    pthread_mutex_unlock(&memory);
    /* Time and again the moment before the look counts: what happens meanwhile may not be in it. */
    seen.at = now();
    if (lstat(real(path, &at), &seen.attributes) == -1)
        seen.error = errno;
    *attributes = seen.attributes;
    if (seen.error == 0 || seen.error == ENOENT) {
        pthread_mutex_lock(&memory);
        if (seen.at > known->changed_at) {
            known->error = seen.error;
            known->attributes = seen.attributes;
            known->at = seen.at;
        }
        pthread_mutex_unlock(&memory);
    }
    return -seen.error;
}

static listing *read_folder(int fd)
{
    struct dirent *entry;
    listing *names = allocated(calloc(1, sizeof *names));
    size_t room = 0;
    DIR *stream = allocated(fdopendir(dup(fd)));

    names->users = 1;
    names->at = now();
    while ((entry = readdir(stream)) != NULL) {
        if (names->count == room) {
            room = room ? 2 * room : 64;
            names->entries = allocated(realloc(names->entries, room * sizeof *entry));
        }
        names->entries[names->count++] = *entry;
    }
    closedir(stream);
    return names;
}

static int do_opendir(const char *path, struct fuse_file_info *info)
{
    place at;
    listed *known;
    open_folder *handle;
    int fd = open(real(path, &at), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd == -1)
        return -errno;
    handle = allocated(calloc(1, sizeof *handle));
    handle->fd = fd;
    pthread_mutex_lock(&memory);
    known = listed_of(path);
    if (known->names == NULL || now() >= known->names->at + listings_s) {
        let_go(known->names);
        known->names = read_folder(fd);
    }
    handle->names = known->names;
    handle->names->users++;
    pthread_mutex_unlock(&memory);
    info->fh = (uintptr_t)handle;
    return 0;
}

static int do_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
    const listing *names = ((open_folder *)(uintptr_t)info->fh)->names;

    (void)path, (void)flags;
    for (size_t number = offset; number < names->count; number++) {
        const struct dirent *entry = &names->entries[number];
        struct stat attributes = {.st_ino = entry->d_ino, .st_mode = DTTOIF(entry->d_type)};

        if (fill(buffer, entry->d_name, &attributes, number + 1, 0))
            break;
    }
    return 0;
}

static int do_fsyncdir(const char *path, int is_data_only, struct fuse_file_info *info)
{
    (void)path, (void)is_data_only;
    return fsync(((open_folder *)(uintptr_t)info->fh)->fd) == -1 ? -errno : 0;
}

static int do_releasedir(const char *path, struct fuse_file_info *info)
{
    open_folder *handle = (open_folder *)(uintptr_t)info->fh;

    (void)path;
    pthread_mutex_lock(&memory);
    let_go(handle->names);
    pthread_mutex_unlock(&memory);
    close(handle->fd);
    free(handle);
    return 0;
}

static int do_readlink(const char *path, char *target, size_t size)
{
    place at;
    ssize_t length = readlink(real(path, &at), target, size - 1);

    if (length == -1)
        return -errno;
    target[length] = '\0';
    return 0;
}

static int do_statfs(const char *path, struct statvfs *what)
{
    place at;

    return statvfs(real(path, &at), what) == -1 ? -errno : 0;
}

/* Names. */

static int do_mknod(const char *path, mode_t mode, dev_t device)
{
    place at;

    return end_of(mknod(real(path, &at), mode, device), path, NULL);
}

static int do_mkdir(const char *path, mode_t mode)
{
    place at;

    return end_of(mkdir(real(path, &at), mode), path, NULL);
}

static int do_symlink(const char *target, const char *path)
{
    place at;

    return end_of(symlink(target, real(path, &at)), path, NULL);
}

static int do_link(const char *old, const char *new)
{
    place from, to;

    return end_of(link(real(old, &from), real(new, &to)), old, new);
}

static int do_rename(const char *old, const char *new, unsigned flags)
{
    place from, to;

    changed_path(new);
    return end_of(renameat2(AT_FDCWD, real(old, &from), AT_FDCWD, real(new, &to), flags), old, new);
}

static int do_unlink(const char *path)
{
    place at;

    /* Its other names are told that it has one less. */
    changed_path(path);
    return end_of(unlink(real(path, &at)), path, NULL);
}

static int do_rmdir(const char *path)
{
    place at;

    return end_of(rmdir(real(path, &at)), path, NULL);
}

/* Attributes. */

static int do_chmod(const char *path, mode_t mode, struct fuse_file_info *info)
{
    place at;
    int result = info ? fchmod(info->fh, mode) : chmod(real(path, &at), mode);
    int error = result == -1 ? errno : 0;

    info ? changed_file(info->fh) : changed_path(path);
    return -error;
}

static int do_chown(const char *path, uid_t user, gid_t group, struct fuse_file_info *info)
{
    place at;
    int result = info ? fchown(info->fh, user, group) : lchown(real(path, &at), user, group);
    int error = result == -1 ? errno : 0;

    info ? changed_file(info->fh) : changed_path(path);
    return -error;
}

static int do_truncate(const char *path, off_t size, struct fuse_file_info *info)
{
    place at;
    int result = info ? ftruncate(info->fh, size) : truncate(real(path, &at), size);
    int error = result == -1 ? errno : 0;

    info ? changed_file(info->fh) : changed_path(path);
    return -error;
}

static int do_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *info)
{
    place at;
    int result = info ? futimens(info->fh, times)
                      : utimensat(AT_FDCWD, real(path, &at), times, AT_SYMLINK_NOFOLLOW);
    int error = result == -1 ? errno : 0;

    info ? changed_file(info->fh) : changed_path(path);
    return -error;
}

/* Files. */

/* A file that is written to is not kept in the kernel's cache: the kernel would place an append at
 * the end that it knows of, while the folder's file system places it at the true end. */
static void opened(int fd, struct fuse_file_info *info)
{
    info->fh = fd;
    info->direct_io = (info->flags & O_ACCMODE) != O_RDONLY;
}

static int do_create(const char *path, mode_t mode, struct fuse_file_info *info)
{
    place at;
    int fd = open(real(path, &at), info->flags | O_CLOEXEC, mode);
    int error = end_of(fd, path, NULL);

    if (fd == -1)
        return error;
    opened(fd, info);
    return 0;
}

static int do_open(const char *path, struct fuse_file_info *info)
{
    place at;
    int fd = open(real(path, &at), info->flags | O_CLOEXEC);

    if (fd == -1 || is_open_fresh || info->flags & O_TRUNC) {
        int error = fd == -1 ? errno : 0;

        pthread_mutex_lock(&memory);
        fact_of(path)->at = -1;
        pthread_mutex_unlock(&memory);
        if (error)
            return -error;
    }
    opened(fd, info);
    return 0;
}

static int do_read(const char *path, char *data, size_t size, off_t offset,
                   struct fuse_file_info *info)
{
    ssize_t count = pread(info->fh, data, size, offset);

    (void)path;
    return count == -1 ? -errno : count;
}

static int do_write(const char *path, const char *data, size_t size, off_t offset,
                    struct fuse_file_info *info)
{
    ssize_t count = pwrite(info->fh, data, size, offset);
    int error = count == -1 ? errno : 0;

    (void)path;
    changed_file(info->fh);
    return error ? -error : count;
}

static int do_fallocate(const char *path, int mode, off_t offset, off_t size,
                        struct fuse_file_info *info)
{
    int error = fallocate(info->fh, mode, offset, size) == -1 ? errno : 0;

    (void)path;
    changed_file(info->fh);
    return -error;
}

static int do_fsync(const char *path, int is_data_only, struct fuse_file_info *info)
{
    (void)path;
    return (is_data_only ? fdatasync(info->fh) : fsync(info->fh)) == -1 ? -errno : 0;
}

static int do_release(const char *path, struct fuse_file_info *info)
{
    (void)path;
    close(info->fh);
    return 0;
}

/* The folder's file system would let this thread wait where nobody could wake it. */
static int do_flock(const char *path, struct fuse_file_info *info, int operation)
{
    (void)path;
    if (refuses_locks)
        return -ENOLCK;
    while (flock(info->fh, operation | LOCK_NB) == -1) {
        if (errno != EWOULDBLOCK || operation & LOCK_NB)
            return -errno;
        if (fuse_interrupted())
            return -EINTR;
        usleep(LOCK_LOOK_US);
    }
    return 0;
}

static void *do_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    /* A listing that came with attributes would make everything in it fresh. */
    connection->want &= ~(FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO);
    config->use_ino = 1;
    config->entry_timeout = config->negative_timeout = config->attr_timeout = 0;
    return NULL;
}

static struct fuse_operations operations = {
    .init = do_init,
    .getattr = do_getattr,
    .opendir = do_opendir,
    .readdir = do_readdir,
    .releasedir = do_releasedir,
    .readlink = do_readlink,
    .statfs = do_statfs,
    .mknod = do_mknod,
    .mkdir = do_mkdir,
    .symlink = do_symlink,
    .link = do_link,
    .rename = do_rename,
    .unlink = do_unlink,
    .rmdir = do_rmdir,
    .chmod = do_chmod,
    .chown = do_chown,
    .truncate = do_truncate,
    .utimens = do_utimens,
    .create = do_create,
    .open = do_open,
    .read = do_read,
    .write = do_write,
    .fallocate = do_fallocate,
    .fsync = do_fsync,
    .fsyncdir = do_fsyncdir,
    .release = do_release,
    .flock = do_flock,
};

static void *end_with_input(void *nothing)
{
    char byte;

    while (read(0, &byte, 1) > 0)
        continue;
    umount2(mount_point, MNT_DETACH);
    _exit(0);
    return nothing;
}

static int refuse(const char *word)
{
    fprintf(stderr, "lagging: %s: not understood; see the head of lagging.c\n", word);
    return 2;
}

static int take_setting(const char *word)
{
    if (sscanf(word, "attributes=%lf", &attributes_s) == 1
        || sscanf(word, "missing=%lf", &missing_s) == 1
        || sscanf(word, "listings=%lf", &listings_s) == 1)
        return 1;
    if (strcmp(word, "open=late") == 0)
        is_open_fresh = 0;
    else if (strcmp(word, "locks=none") == 0)
        refuses_locks = 1;
    else if (strcmp(word, "locks=local") == 0)
        operations.flock = NULL;
    else
        return strcmp(word, "open=fresh") == 0 || strcmp(word, "locks=shared") == 0;
    return 1;
}

int main(int count, char **words)
{
    char *options[] = {
        words[0],
        "-o",
        "fsname=lagging,subtype=lagging,allow_other,default_permissions",
    };
    struct fuse_args arguments = FUSE_ARGS_INIT(3, options);
    struct fuse *fuse;
    pthread_t watcher;

    if (count < 3)
        return refuse("two folders are needed");
    folder = words[1];
    mount_point = words[2];
    for (int i = 3; i < count; i++)
        if (!take_setting(words[i]))
            return refuse(words[i]);
    umask(0);
    fuse = fuse_new(&arguments, &operations, sizeof operations, NULL);
    if (fuse == NULL || fuse_mount(fuse, mount_point) != 0)
        return 1;
    if (pthread_create(&watcher, NULL, end_with_input, NULL) != 0)
        return 1;
    puts("mounted");
    fflush(stdout);
    return fuse_loop_mt(fuse, 0) != 0;
}

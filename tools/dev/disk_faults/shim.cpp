// Preloaded before the C library: counts and records the operations of a process on the files below
// one folder. At a chosen operation it returns an error or kills the process.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

char root[PATH_MAX];
long target = -1, done = 0;
int error = 0;  // of the failing operation; 0: SIGKILL the process there
bool lasting = false, exchange_works = true;
int record_file = -1;

// Absolute form of a path relative to a folder's descriptor; false if it is not below root.
bool locate(int folder, const char* path, char* out) {
  if (root[0] == 0) return false;
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
  } else {
    char link[64], base[PATH_MAX];
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return false;
    base[length] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return false;
  }
  size_t length = strlen(root);
  return strncmp(out, root, length) == 0 && (out[length] == '/' || out[length] == 0);
}

bool locate(int file, char* out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = root[0] ? readlink(link, out, PATH_MAX - 1) : -1;
  if (length < 0) return false;
  out[length] = 0;
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s", out);
  return locate(AT_FDCWD, path, out);
}

// Whether the next operation has to fail.
bool fails() {
  long number = done++;
  if (target < 0 || number < target || (number > target && !lasting)) return false;
  if (error == 0) syscall(SYS_kill, getpid(), SIGKILL);
  errno = error;
  return true;
}

void record(const char* name, long first, long second, const char* one, const char* two,
            size_t size = 0, const void* data = nullptr) {
  if (record_file < 0) return;
  char line[2 * PATH_MAX + 100];
  int kept = errno;
  int length = snprintf(line, sizeof line, "%s\t%ld\t%ld\t%s\t%s\t%zu\n", name, first, second, one,
                        two, size);
  syscall(SYS_write, record_file, line, length);
  if (size) syscall(SYS_write, record_file, data, size);
  errno = kept;
}

long number_of(int file) {
  struct stat status;
  return fstat(file, &status) ? -1 : long(status.st_ino);
}

int open_at(int folder, const char* path, int flags, mode_t mode) {
  char full[PATH_MAX];
  bool changes = (flags & (O_CREAT | O_TRUNC)) && locate(folder, path, full);
  bool exists = changes && access(full, F_OK) == 0;
  if (changes && fails()) return -1;
  int file = syscall(SYS_openat, folder, path, flags, mode);
  if (changes && file >= 0) {
    if (!exists) record("create", number_of(file), 0, full, "");
    else if (flags & O_TRUNC) record("truncate", number_of(file), 0, "", "");
  }
  return file;
}

int rename_at(int from, const char* source, int to, const char* target_path, unsigned flags) {
  char first[PATH_MAX], second[PATH_MAX];
  bool ours = locate(from, source, first) && locate(to, target_path, second);
  if (flags && !exchange_works) return errno = EINVAL, -1;
  if (ours && fails()) return -1;
  int result = syscall(SYS_renameat2, from, source, to, target_path, flags);
  if (ours && result == 0) record(flags ? "exchange" : "rename", 0, 0, first, second);
  return result;
}

int remove_at(int folder, const char* path, int flags) {
  char full[PATH_MAX];
  bool ours = locate(folder, path, full);
  if (ours && fails()) return -1;
  int result = syscall(SYS_unlinkat, folder, path, flags);
  if (ours && result == 0) record("remove", 0, 0, full, "");
  return result;
}

int make_folder(int folder, const char* path, mode_t mode) {
  char full[PATH_MAX];
  bool ours = locate(folder, path, full);
  if (ours && fails()) return -1;
  int result = syscall(SYS_mkdirat, folder, path, mode);
  if (ours && result == 0) {
    struct stat status;
    stat(full, &status);
    record("mkdir", status.st_ino, 0, full, "");
  }
  return result;
}

int sync_file(int file, long call) {
  char full[PATH_MAX];
  bool ours = locate(file, full);
  if (ours && fails()) return -1;
  int result = syscall(call, file);
  if (ours && result == 0) record("sync", number_of(file), 0, "", "");
  return result;
}

}  // namespace

extern "C" {

void faults_arm(const char* folder, long number, int what, int stays, int exchanges, int log) {
  snprintf(root, sizeof root, "%s", folder);
  target = number, error = what, lasting = stays, exchange_works = exchanges, record_file = log;
  done = 0;
}

long faults_count() { return done; }

int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_at(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_at(AT_FDCWD, path, flags, mode);
}
int openat(int folder, const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_at(folder, path, flags, mode);
}
int openat64(int folder, const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_at(folder, path, flags, mode);
}

ssize_t write(int file, const void* data, size_t size) {
  char full[PATH_MAX];
  bool ours = locate(file, full);
  if (ours && fails()) return -1;
  long offset = ours ? lseek(file, 0, SEEK_CUR) : 0;
  ssize_t result = syscall(SYS_write, file, data, size);
  if (ours && result > 0) record("write", number_of(file), offset, "", "", result, data);
  return result;
}
ssize_t pwrite64(int file, const void* data, size_t size, off64_t offset) {
  char full[PATH_MAX];
  bool ours = locate(file, full);
  if (ours && fails()) return -1;
  ssize_t result = syscall(SYS_pwrite64, file, data, size, offset);
  if (ours && result > 0) record("write", number_of(file), offset, "", "", result, data);
  return result;
}
int ftruncate64(int file, off64_t size) {
  char full[PATH_MAX];
  bool ours = locate(file, full);
  if (ours && fails()) return -1;
  int result = syscall(SYS_ftruncate, file, size);
  if (ours && result == 0) record("truncate", number_of(file), size, "", "");
  return result;
}
int fsync(int file) { return sync_file(file, SYS_fsync); }
int fdatasync(int file) { return sync_file(file, SYS_fdatasync); }

int rename(const char* a, const char* b) { return rename_at(AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int from, const char* a, int to, const char* b) {
  return rename_at(from, a, to, b, 0);
}
int renameat2(int from, const char* a, int to, const char* b, unsigned flags) {
  return rename_at(from, a, to, b, flags);
}
int unlink(const char* path) { return remove_at(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char* path, int flags) { return remove_at(folder, path, flags); }
int rmdir(const char* path) { return remove_at(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdir(const char* path, mode_t mode) { return make_folder(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char* path, mode_t mode) { return make_folder(folder, path, mode); }

}  // extern "C"

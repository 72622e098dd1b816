/* A slow disk for one process: every write below $SLOW_DISK waits first.

cc -shared -fPIC -o slow_disk.so slow_disk.c -ldl
LD_PRELOAD=slow_disk.so SLOW_DISK=/folder SLOW_MILLISECONDS=50 command */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static void wait_if_below(int fd) {
  const char *folder = getenv("SLOW_DISK"), *milliseconds = getenv("SLOW_MILLISECONDS");
  char link[64], path[PATH_MAX];
  if (!folder || !milliseconds) return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length > 0 && !strncmp(path, folder, strlen(folder))) usleep(1000 * atoi(milliseconds));
}

#define SLOW(type, name, parameters, arguments)                 \
  type name parameters {                                        \
    static type(*real) parameters;                              \
    if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
    wait_if_below(fd);                                          \
    return real arguments;                                      \
  }

SLOW(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
SLOW(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
SLOW(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
SLOW(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
SLOW(int, fsync, (int fd), (fd))
SLOW(int, fdatasync, (int fd), (fd))

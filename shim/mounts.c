#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

/* From <sys/mount.h>, which cannot be included together with <linux/mount.h>. */
extern int mount(const char *, const char *, const char *, unsigned long, const void *);

/* below opens a directory at a relative path under the sandbox, making what does not exist. The sandbox belongs to the
 * program, which may have left symbolic links there in an earlier run: none is followed, so nothing outside of it can be
 * covered. */
static int below(const char *sandbox, const char *path)
{
	char part[NAME_MAX + 1];
	int dir = open(sandbox, O_PATH | O_DIRECTORY | O_CLOEXEC);

	while (dir >= 0 && *path) {
		size_t n = strcspn(path, "/");
		int next;

		if (n >= sizeof part || (n == 2 && memcmp(path, "..", 2) == 0)) {
			errno = EINVAL;
			return -1;
		}
		memcpy(part, path, n);
		part[n] = 0;
		path += n + strspn(path + n, "/");
		if (n == 0 || strcmp(part, ".") == 0)
			continue;
		if (mkdirat(dir, part, 0755) < 0 && errno != EEXIST)
			return -1;
		next = openat(dir, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		close(dir);
		dir = next;
	}
	return dir;
}

/* protect makes the mount at fd's directory, and those below it, read-only. */
static int protect(const char *path)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };

	if (syscall(SYS_mount_setattr, AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof attr) == 0)
		return 0;
	if (errno != ENOSYS) /* before Linux 5.12 */
		return -1;
	return mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL);
}

static void bind_one(const struct config *c, const struct bind *b)
{
	char source[32], target[32];
	int from = open(b->source, O_PATH | O_CLOEXEC), to, top;

	if (from < 0)
		fail("source", b->source);
	if (b->target[0] == '/')
		to = open(b->target, O_PATH | O_CLOEXEC);
	else
		to = below(c->sandbox, b->target);
	if (to < 0)
		fail("target", b->target);
	snprintf(source, sizeof source, "/proc/self/fd/%d", from);
	snprintf(target, sizeof target, "/proc/self/fd/%d", to);
	if (mount(source, target, NULL, MS_BIND | MS_REC, NULL) < 0)
		fail("mount", b->target);
	if (b->readonly) {
		/* The descriptor still means the directory under the mount. */
		top = b->target[0] == '/' ? open(b->target, O_PATH | O_CLOEXEC) : below(c->sandbox, b->target);
		snprintf(target, sizeof target, "/proc/self/fd/%d", top);
		if (top < 0 || protect(target) < 0)
			fail("mount", b->target);
		close(top);
	}
	close(from);
	close(to);
}

void mount_all(const struct config *c)
{
	/* What is mounted here stays here; what the node mounts later is seen here too. */
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		fail("namespace", "/");
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		fail("namespace", "/proc");
	for (size_t i = 0; i < c->nbinds; i++)
		bind_one(c, &c->binds[i]);
}

/* The configuration: records "key=value", each ended by a NUL. Keys may repeat; unknown ones are for other readers. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

static char *read_all(int fd, size_t *size)
{
	size_t used = 0, room = 4096;
	char *text = malloc(room);

	for (;;) {
		ssize_t n;

		if (!text)
			fail("memory", "");
		n = read(fd, text + used, room - used - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail("config", "");
		if (n == 0)
			break;
		used += (size_t)n;
		if (used == room - 1)
			text = realloc(text, room *= 2);
	}
	text[used] = 0;
	*size = used;
	return text;
}

/* grow returns list with room for n+1 elements of the given size. It copies only at powers of two. */
static void *grow(void *list, size_t n, size_t size)
{
	if (n != 0 && (n & (n - 1)) != 0)
		return list;
	list = realloc(list, (n ? 2 * n : 1) * size);
	if (!list)
		fail("memory", "");
	return list;
}

static long long number(const char *text)
{
	char *end;
	long long n;

	errno = 0;
	n = strtoll(text, &end, 10);
	if (errno || end == text || *end) {
		errno = EINVAL;
		fail("config", text);
	}
	return n;
}

static int opened(const char *step, const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	if (fd < 0)
		fail(step, path);
	return fd;
}

struct lists {
	size_t args, env;
};

static void add_bind(struct config *c, const char *source, int readonly)
{
	c->binds = grow(c->binds, c->nbinds, sizeof *c->binds);
	c->binds[c->nbinds++] = (struct bind){ source, NULL, readonly };
}

static void set(struct config *c, struct lists *l, const char *key, char *value)
{
	if (strcmp(key, "arg") == 0) {
		c->argv = grow(c->argv, l->args, sizeof *c->argv);
		c->argv[l->args++] = value;
	} else if (strcmp(key, "env") == 0) {
		c->env = grow(c->env, l->env, sizeof *c->env);
		c->env[l->env++] = value;
	} else if (strcmp(key, "group") == 0) {
		c->groups = grow(c->groups, c->ngroups, sizeof *c->groups);
		c->groups[c->ngroups++] = (gid_t)number(value);
	} else if (strcmp(key, "tasks") == 0) {
		c->joins = grow(c->joins, c->njoins, sizeof *c->joins);
		c->joins[c->njoins++] = opened("cgroup", value, O_WRONLY);
	} else if (strcmp(key, "cgroup") == 0) {
		c->cgroup = opened("cgroup", value, O_RDONLY | O_DIRECTORY);
	} else if (strcmp(key, "rw") == 0 || strcmp(key, "ro") == 0) {
		add_bind(c, value, key[1] == 'o');
	} else if (strcmp(key, "at") == 0 && c->nbinds > 0) {
		c->binds[c->nbinds - 1].target = value;
	} else if (strcmp(key, "isolate") == 0) {
		c->isolate = (int)number(value);
	} else if (strcmp(key, "tty") == 0) {
		c->tty = (int)number(value);
	} else if (strcmp(key, "uid") == 0) {
		c->uid = (uid_t)number(value);
		c->identity = 1;
	} else if (strcmp(key, "gid") == 0) {
		c->gid = (gid_t)number(value);
	} else if (strcmp(key, "logsize") == 0) {
		c->logsize = number(value);
	} else if (strcmp(key, "logkeep") == 0) {
		c->logkeep = (int)number(value);
	} else if (strcmp(key, "sandbox") == 0) {
		c->sandbox = value;
	} else if (strcmp(key, "logs") == 0) {
		c->logs = value;
	} else if (strcmp(key, "dir") == 0) {
		c->dir = value;
	} else if (strcmp(key, "oom") == 0) {
		c->oom = value;
	} else if (strcmp(key, "peak") == 0) {
		c->peak = value;
	}
}

void config_read(struct config *c, int fd)
{
	struct lists l = { 0 };
	size_t size;
	char *text = read_all(fd, &size);

	memset(c, 0, sizeof *c);
	c->cgroup = -1;
	c->proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (char *p = text; p < text + size; ) {
		char *next = p + strlen(p) + 1;
		char *value = strchr(p, '=');

		if (value) {
			*value = 0;
			set(c, &l, p, value + 1);
		}
		p = next;
	}
	c->argv = grow(c->argv, l.args, sizeof *c->argv);
	c->argv[l.args] = NULL;
	c->env = grow(c->env, l.env, sizeof *c->env);
	c->env[l.env] = NULL;
	if (l.args == 0 || !c->dir) {
		errno = EINVAL;
		fail("config", "");
	}
}

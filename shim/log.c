#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void reopen(struct log *l)
{
	struct stat st;

	l->fd = openat(l->dir, l->name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (l->fd < 0)
		return;
	l->size = fstat(l->fd, &st) == 0 ? st.st_size : 0;
}

void log_open(struct log *l, int dir, const char *name, long long max, int keep)
{
	memset(l, 0, sizeof *l);
	l->dir = dir;
	l->name = name;
	l->max = max;
	l->keep = keep;
	reopen(l);
}

/* numbered writes the name of the nth rotated file, or of the live one for 0. */
static void numbered(char *out, size_t n, const struct log *l, int number)
{
	if (number > 0)
		snprintf(out, n, "%s.%d", l->name, number);
	else
		snprintf(out, n, "%s", l->name);
}

/* rotate moves each file one up; the last falls off. */
static void rotate(struct log *l)
{
	char from[64], to[64];

	if (l->keep == 0)
		unlinkat(l->dir, l->name, 0);
	for (int i = l->keep; i > 0; i--) {
		numbered(from, sizeof from, l, i - 1);
		numbered(to, sizeof to, l, i);
		/* A file that cannot be moved is appended to further: its bytes matter more than its size. */
		if (renameat(l->dir, from, l->dir, to) < 0 && i == 1 && errno != ENOENT)
			return;
	}
	close(l->fd);
	reopen(l);
}

/* put writes all n bytes or returns how many it did. */
static size_t put(struct log *l, const char *p, size_t n)
{
	size_t done = 0;

	while (done < n) {
		ssize_t k = write(l->fd, p + done, n - done);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			break;
		done += (size_t)k;
	}
	l->size += (long long)done;
	return done;
}

/* confess notes in the log that bytes are missing before what follows. */
static int confess(struct log *l)
{
	char note[128];
	int n = snprintf(note, sizeof note, "\n[gantry: %llu bytes of output could not be written to disk]\n", l->lost);

	if (put(l, note, (size_t)n) < (size_t)n)
		return -1;
	l->lost = 0;
	return 0;
}

static void drop(struct log *l, size_t n)
{
	l->lost += n;
	l->dropped += n;
}

/* fitting returns how many of n bytes go into the file before it is rotated: whole lines where there are any. */
static size_t fitting(const struct log *l, const char *p, size_t n)
{
	const char *end;
	size_t room;

	if (l->max <= 0 || l->size + (long long)n <= l->max)
		return n;
	if (l->size >= l->max)
		return 0;
	room = (size_t)(l->max - l->size);
	end = memrchr(p, '\n', room);
	return end ? (size_t)(end - p) + 1 : room;
}

void log_write(struct log *l, const char *p, size_t n)
{
	while (n > 0) {
		size_t part, done;

		if (l->fd < 0)
			reopen(l);
		if (l->fd < 0 || (l->lost > 0 && confess(l) < 0)) {
			drop(l, n);
			return;
		}
		part = fitting(l, p, n);
		done = put(l, p, part);
		if (done < part) {
			drop(l, n - done);
			return;
		}
		p += part;
		n -= part;
		if (n > 0 || (l->max > 0 && l->size >= l->max)) {
			long long before = l->size;

			rotate(l);
			if (n > 0 && l->fd >= 0 && l->size >= before) { /* it did not rotate */
				if (put(l, p, n) < n)
					drop(l, n);
				return;
			}
		}
	}
}

int log_pump(struct log *l, int pipe, size_t limit)
{
	static char buffer[32 << 10];

	while (limit > 0) {
		ssize_t n = read(pipe, buffer, limit < sizeof buffer ? limit : sizeof buffer);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		if (n == 0)
			return 0;
		log_write(l, buffer, (size_t)n);
		limit -= (size_t)n;
	}
	return 1;
}

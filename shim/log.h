/* Log files that rotate by size. */
#ifndef GANTRY_LOG_H
#define GANTRY_LOG_H

#include <stddef.h>

struct log {
	int dir;                    /* descriptor of the directory */
	const char *name;           /* "stdout" or "stderr" */
	int fd;                     /* the file now written to, or -1 */
	long long size;             /* its bytes */
	long long max;              /* bytes at which it is rotated; 0 for never */
	int keep;                   /* how many rotated files are kept */
	unsigned long long lost;    /* bytes dropped since the last one that could be written */
	unsigned long long dropped; /* bytes dropped in all */
};

/* log_open begins to append to dir/name. A file that cannot be opened now is tried again at each write. */
void log_open(struct log *l, int dir, const char *name, long long max, int keep);

/* log_write appends n bytes, rotating as needed and between lines where it can. It never fails: what the disk does not
 * take is counted and dropped, since a full disk must not stop the program that writes. A line in the log says so later. */
void log_write(struct log *l, const char *p, size_t n);

/* log_pump moves what a non-blocking pipe holds now into the log, at most limit bytes. It returns 0 at the end of the
 * pipe and 1 otherwise. */
int log_pump(struct log *l, int pipe, size_t limit);

#endif

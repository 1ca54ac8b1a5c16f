/* gantry-log keeps the output of one container: containerd starts it as a "binary" logger, with the container's stdout on
 * descriptor 3 and stderr on 4, and waits until it closes 5. It ends when both streams have ended, or, when asked by a
 * signal to end, after it has written what they hold. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "log.h"

struct options {
	const char *dir;
	long long size;
	int keep;
};

static void usage(const char *why)
{
	dprintf(2, "gantry-log: %s\nusage: gantry-log --dir DIRECTORY --size BYTES --keep FILES\n", why);
	exit(2);
}

static long long number(const char *text, long long most)
{
	char *end;
	long long n;

	errno = 0;
	n = strtoll(text, &end, 10);
	if (errno || end == text || *end || n < 0 || n > most)
		usage("not a number in range");
	return n;
}

/* Pairs come in any order: containerd keeps them in a map. */
static struct options parse(int argc, char **argv)
{
	struct options o = { 0 };

	for (int i = 1; i < argc; i += 2) {
		if (i + 1 == argc)
			usage("an option lacks its value");
		if (strcmp(argv[i], "--dir") == 0)
			o.dir = argv[i + 1];
		else if (strcmp(argv[i], "--size") == 0)
			o.size = number(argv[i + 1], 1LL << 62);
		else if (strcmp(argv[i], "--keep") == 0)
			o.keep = (int)number(argv[i + 1], 10000);
		else
			usage("unknown option");
	}
	if (!o.dir)
		usage("--dir is missing");
	return o;
}

/* asked returns a descriptor that becomes readable when a signal asks the process to end. */
static int asked(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char **argv)
{
	struct options o = parse(argc, argv);
	int dir = open(o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct pollfd fds[3] = { { .fd = 3, .events = POLLIN }, { .fd = 4, .events = POLLIN }, { .fd = -1, .events = POLLIN } };
	struct log logs[2];

	if (dir < 0)
		usage(strerror(errno));
	if (chdir("/") < 0)
		usage(strerror(errno));
	log_open(&logs[0], dir, "stdout", o.size, o.keep);
	log_open(&logs[1], dir, "stderr", o.size, o.keep);
	fcntl(3, F_SETFL, O_NONBLOCK);
	fcntl(4, F_SETFL, O_NONBLOCK);
	fds[2].fd = asked();
	close(5);
	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		if (poll(fds, 3, -1) < 0 && errno != EINTR)
			return 1;
		for (int i = 0; i < 2; i++)
			if (fds[i].fd >= 0 && fds[i].revents && !log_pump(&logs[i], fds[i].fd, 256 << 10))
				fds[i].fd = -1;
		if (fds[2].revents) {
			for (int i = 0; i < 2; i++)
				if (fds[i].fd >= 0)
					log_pump(&logs[i], fds[i].fd, (size_t)-1);
			return 0;
		}
	}
	return 0;
}

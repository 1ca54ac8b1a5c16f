/* gantry-shim runs one program of the node for an agent that may come and go.
 *
 *	gantry-shim run DIRECTORY   holds a task: starts its program, keeps its output and writes down how it ended
 *	gantry-shim exec            runs a further program beside that of a task
 *
 * The directory of a task holds, for the agent and this program:
 *
 *	config    what to run, written by the agent before
 *	lock      locked (fcntl) as long as this process lives; by the lock the agent finds its pid
 *	started   written once the program executes: its pid and the time
 *	exit      written once it and all its descendants have ended: its wait status, the time and what is known of memory
 *
 * With a pid namespace, this process is its init, so that killing it ends everything inside, and the program is an
 * ordinary process in it, for which signals have their default actions. The shim stays out of the task's cgroup: when the
 * program is killed for memory, it lives to tell. */
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
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "log.h"

int failure_fd = -1;

void report(const char *a, const char *b, const char *c, const char *d)
{
	char text[4096];
	/* One write of less than PIPE_BUF bytes arrives whole; the agent may be gone, which is no matter. */
	int n = snprintf(text, sizeof text, "%s%c%s%c%s%c%.3000s%c", a, 0, b, 0, c, 0, d, 0);

	if (write(STATUS, text, (size_t)n) < 0)
		return;
}

_Noreturn void fail(const char *step, const char *subject)
{
	char number[16];

	snprintf(number, sizeof number, "%d", errno);
	report("error", step, number, subject);
	if (failure_fd >= 0 && write(failure_fd, "fail", 4) < 0)
		_exit(2);
	_exit(1);
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

struct task {
	const char *path; /* of its directory */
	int dir;
	struct config config;
	struct child child;
	int status; /* wait status of the program */
	long long ended;
	int out[2], err[2];
	struct log logs[2];
};

/* take locks the task's directory. Where someone else holds it, or it was removed or has been used, the process ends. */
static void take(struct task *t)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct stat held, named;
	char path[4096];
	int fd;

	t->dir = open(t->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->dir < 0)
		fail("state", t->path);
	fd = openat(t->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		fail("state", "lock");
	if (fcntl(fd, F_SETLK, &lock) < 0) {
		if (errno != EAGAIN && errno != EACCES)
			fail("state", "lock");
		report("held", "", "", "");
		_exit(3);
	}
	/* The descriptor stays open, and the lock with it, as long as the process lives. */
	snprintf(path, sizeof path, "%s/lock", t->path);
	if (fstat(fd, &held) < 0 || stat(path, &named) < 0)
		fail("state", "lock");
	if (held.st_ino != named.st_ino || held.st_dev != named.st_dev || faccessat(t->dir, "started", F_OK, 0) == 0 ||
	    faccessat(t->dir, "exit", F_OK, 0) == 0) {
		report("over", "", "", "");
		_exit(4);
	}
}

/* store makes text the content of a file at once or not at all. */
static int store(struct task *t, const char *temporary, const char *name, const char *text)
{
	int fd = openat(t->dir, temporary, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	close(fd);
	if (n != (ssize_t)strlen(text))
		return -1;
	return name ? renameat(t->dir, temporary, t->dir, name) : 0;
}

enum { EXIT_SIZE = 512 };

/* reserve takes the disk space of the exit file in advance: the disk may be full when the program ends. */
static void reserve(struct task *t)
{
	char blank[EXIT_SIZE + 1];

	memset(blank, '\n', EXIT_SIZE);
	blank[EXIT_SIZE] = 0;
	if (store(t, "exit.new", NULL, blank) < 0)
		fail("state", "exit");
}

/* value reads the number after prefix at the start of a line of a file, or of the file when prefix is empty. */
static long long value(const char *path, const char *prefix)
{
	char text[2048] = "\n", *p;
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t n;

	if (fd < 0)
		return 0;
	n = read(fd, text + 1, sizeof text - 2);
	close(fd);
	if (n <= 0)
		return 0;
	text[n + 1] = 0;
	p = *prefix ? strstr(text, prefix) : text;
	return p ? atoll(p + strlen(prefix)) : 0;
}

static void record(struct task *t)
{
	char text[EXIT_SIZE];

	snprintf(text, sizeof text, "code=%d\nsignal=%d\ntime=%lld\noom=%lld\npeak=%lld\ndropped=%llu\n",
		 exit_code(t->status), WIFSIGNALED(t->status) ? WTERMSIG(t->status) : 0, t->ended,
		 value(t->config.oom, "\noom_kill "), value(t->config.peak, ""), t->logs[0].dropped + t->logs[1].dropped);
	store(t, "exit.new", "exit", text);
}

/* spare makes the kernel choose others when the node runs out of memory, and notes what programs get back. */
static void spare(struct config *c)
{
	int fd = openat(c->proc, "self/oom_score_adj", O_RDWR | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return;
	n = read(fd, c->score, sizeof c->score - 1);
	if (n <= 0 || pwrite(fd, "-999", 4, 0) < 0) /* an ordinary user may not */
		n = 0;
	c->score[n] = 0;
	close(fd);
}

static void open_pipe(int fds[2], const struct config *c)
{
	if (pipe2(fds, O_CLOEXEC) < 0 || fcntl(fds[0], F_SETFL, O_NONBLOCK) < 0)
		fail("output", "");
	/* So that the program can open its /dev/stdout. */
	if (c->identity && fchown(fds[1], c->uid, c->gid) < 0 && geteuid() == 0)
		fail("output", "");
}

static void open_logs(struct task *t)
{
	const struct config *c = &t->config;
	int dir = open(c->logs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		fail("logs", c->logs);
	log_open(&t->logs[0], dir, "stdout", c->logsize, c->logkeep);
	log_open(&t->logs[1], dir, "stderr", c->logsize, c->logkeep);
	open_pipe(t->out, c);
	open_pipe(t->err, c);
}

static void start(struct task *t)
{
	char pid[32], time[32], text[128];
	long long begun;

	open_logs(t);
	t->child = spawn(&t->config, (int[]){ 0, t->out[1], t->err[1] });
	begun = now();
	close(t->out[1]);
	close(t->err[1]);
	snprintf(pid, sizeof pid, "%d", t->child.host);
	snprintf(time, sizeof time, "%lld", begun);
	snprintf(text, sizeof text, "pid=%s\ntime=%s\n", pid, time);
	if (store(t, "started.new", "started", text) < 0) {
		int err = errno;

		end_children(t->config.isolate);
		errno = err;
		fail("state", "started");
	}
	report("started", pid, time, "");
	close(STATUS);
}

/* reap collects ended children and reports whether the program was among them. */
static int reap(struct task *t)
{
	int status, over = 0;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != t->child.pid)
			continue;
		t->status = status;
		t->ended = now();
		over = 1;
	}
	return over;
}

/* attend handles what the signal descriptor has and reports whether the program has ended. */
static int attend(struct task *t, int signals)
{
	struct signalfd_siginfo info;

	if (reap(t)) /* before a signal is passed on: after this the pid may mean another process */
		return 1;
	while (read(signals, &info, sizeof info) == sizeof info)
		if (info.ssi_signo == FORWARD && info.ssi_code == SI_QUEUE && info.ssi_int > 0 && info.ssi_int < NSIG)
			kill(t->child.pid, info.ssi_int);
	return reap(t);
}

/* serve keeps the output until the program has ended. */
static void serve(struct task *t, int signals)
{
	struct pollfd fds[3] = {
		{ .fd = signals, .events = POLLIN },
		{ .fd = t->out[0], .events = POLLIN },
		{ .fd = t->err[0], .events = POLLIN },
	};

	for (;;) {
		if (poll(fds, 3, -1) < 0 && errno != EINTR)
			_exit(5);
		if (fds[0].revents && attend(t, signals))
			return;
		for (int i = 1; i < 3; i++)
			if (fds[i].fd >= 0 && fds[i].revents && !log_pump(&t->logs[i - 1], fds[i].fd, 256 << 10))
				fds[i].fd = -1;
	}
}

static _Noreturn void run_main(const char *path)
{
	static struct task t;
	int signals = block_signals(), fd;

	t.path = path;
	take(&t);
	fd = openat(t.dir, "config", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("config", "");
	config_read(&t.config, fd);
	close(fd);
	reserve(&t);
	spare(&t.config);
	if (t.config.isolate)
		mount_all(&t.config);
	else if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		fail("fork", "");
	if (chdir("/") < 0)
		fail("directory", "/");
	start(&t);
	serve(&t, signals);
	end_children(t.config.isolate);
	log_pump(&t.logs[0], t.out[0], (size_t)-1);
	log_pump(&t.logs[1], t.err[0], (size_t)-1);
	record(&t);
	_exit(0);
}

int main(int argc, char **argv)
{
	umask(022);
	for (int fd = STATUS; fd <= CONFIG; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC); /* fails for those that are not open */
	if (argc == 3 && strcmp(argv[1], "run") == 0)
		run_main(argv[2]);
	if (argc == 2 && strcmp(argv[1], "exec") == 0)
		exec_main();
	dprintf(2, "gantry-shim is started by gantry: it holds a program of the node while gantry may restart\n");
	return 2;
}

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

/* fork_into forks, in cgroup version 2 right into the group: moving later takes a lock that stalls the whole machine.
 * *joined tells whether that was possible. */
static pid_t fork_into(int cgroup, int *joined)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)cgroup };
	pid_t pid;

	*joined = 1;
	if (cgroup < 0)
		return fork();
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	if (pid >= 0 || (errno != ENOSYS && errno != EINVAL && errno != E2BIG && errno != EPERM))
		return pid;
	*joined = 0;
	return fork();
}

static void put(int fd, const char *text)
{
	if (write(fd, text, strlen(text)) < 0)
		fail("cgroup", "");
}

static void join(const struct config *c, int joined)
{
	for (size_t i = 0; i < c->njoins; i++)
		put(c->joins[i], "0");
	if (!joined) {
		int fd = openat(c->cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			fail("cgroup", "cgroup.procs");
		put(fd, "0");
	}
}

/* host_pid returns the pid of the process as the agent sees it. */
static pid_t host_pid(const struct config *c)
{
	char link[32] = "";

	if (c->proc < 0 || readlinkat(c->proc, "self", link, sizeof link - 1) < 0)
		return getpid();
	return (pid_t)atoi(link);
}

static void become(const struct config *c)
{
	char name[32];

	if (!c->identity)
		return;
	snprintf(name, sizeof name, "%u:%u", c->uid, c->gid);
	/* An ordinary user may keep being what it is. */
	if (c->uid == geteuid() && c->gid == getegid() && geteuid() != 0)
		return;
	if (setgroups(c->ngroups, c->groups) < 0 || setresgid(c->gid, c->gid, c->gid) < 0 ||
	    setresuid(c->uid, c->uid, c->uid) < 0)
		fail("user", name);
}

static void reset_signals(void)
{
	struct sigaction sa = { .sa_handler = SIG_DFL };
	sigset_t none;

	for (int i = 1; i < NSIG; i++)
		sigaction(i, &sa, NULL); /* fails for the few that cannot be changed */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* restore_score undoes what the shim did to its own chance of being killed when the node is out of memory. */
static void restore_score(const struct config *c)
{
	int fd;

	if (!c->score[0])
		return;
	fd = openat(c->proc, "self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, c->score, strlen(c->score)) < 0)
		fail("score", c->score);
	close(fd);
}

/* replace turns the process into the program. */
static _Noreturn void replace(const struct config *c, const int fds[3], int joined, pid_t parent)
{
	restore_score(c);
	join(c, joined);
	if (setsid() < 0)
		fail("session", "");
	for (int i = 0; i < 3; i++)
		if (fds[i] != i && dup2(fds[i], i) < 0)
			fail("output", "");
	if (c->tty && ioctl(0, TIOCSCTTY, 0) < 0)
		fail("terminal", "");
	become(c);
	if (!c->isolate) {
		/* Without a pid namespace, this is what ends the program when its shim is killed. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	umask(022);
	if (chdir(c->dir) < 0)
		fail("directory", c->dir);
	reset_signals();
	environ = c->env;
	execvp(c->argv[0], c->argv);
	fail("program", c->argv[0]);
}

struct child spawn(const struct config *c, const int fds[3])
{
	struct child child = { 0 };
	int news[2], joined, failed;
	pid_t parent = getpid();

	if (pipe2(news, O_CLOEXEC) < 0)
		fail("fork", "");
	child.pid = fork_into(c->cgroup, &joined);
	if (child.pid < 0)
		fail("fork", "");
	if (child.pid == 0) {
		pid_t self = host_pid(c);

		close(news[0]);
		failure_fd = news[1];
		if (write(news[1], &self, sizeof self) < 0)
			fail("fork", "");
		close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
		replace(c, fds, joined, parent);
	}
	close(news[1]);
	/* First comes its pid. The pipe ends when the program executes; before that comes a word when it does not. */
	if (read(news[0], &child.host, sizeof child.host) != sizeof child.host || read(news[0], &failed, sizeof failed) > 0) {
		/* In exec mode nobody inside the namespace would reap it, and the namespace cannot end before. */
		waitpid(child.pid, NULL, 0);
		_exit(1);
	}
	close(news[0]);
	return child;
}

int block_signals(void)
{
	sigset_t set;

	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, FORWARD);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* parent_of returns the parent of a process, or 0. */
static pid_t parent_of(int proc, const char *pid)
{
	char path[NAME_MAX + 8], text[512], *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "%s/stat", pid);
	fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	p = strrchr(text, ')'); /* the name before it may hold anything */
	return p && p[1] && p[2] && p[3] ? (pid_t)atoi(p + 4) : 0;
}

/* kill_children sends SIGKILL to all direct children and returns how many it could. */
static int kill_children(void)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;
	int n = 0;

	if (!dir)
		return 0;
	while ((e = readdir(dir)))
		if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && parent_of(dirfd(dir), e->d_name) == getpid())
			n += kill((pid_t)atoi(e->d_name), SIGKILL) == 0;
	closedir(dir);
	return n;
}

void end_children(int init)
{
	if (init)
		kill(-1, SIGKILL);
	/* Without a namespace, orphans come to this process as their subreaper: kill the children until none come. */
	for (;;) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid > 0)
			continue;
		if (pid < 0 && errno == ECHILD)
			return;
		if (!init && kill_children() == 0)
			return;
		if (waitpid(-1, NULL, 0) < 0 && errno == ECHILD)
			return;
	}
}

int exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

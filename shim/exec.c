/* The exec mode: a further program in the namespaces and cgroup of a task. It reports like a start does, and exits with
 * the code of the program. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

/* await waits for the program, and ends it when the agent or the task does. */
static int await(const struct config *c, pid_t pid, int signals)
{
	struct pollfd fds[3] = {
		{ .fd = signals, .events = POLLIN },
		{ .fd = CONTROL, .events = POLLIN },
		{ .fd = TASK, .events = POLLIN },
	};
	struct signalfd_siginfo info;
	int status;

	for (;;) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			break;
		if (poll(fds, 3, -1) < 0 && errno != EINTR)
			fds[1].revents = POLLHUP;
		if (fds[1].revents || fds[2].revents) {
			kill(-pid, SIGKILL); /* the program leads a session of its own */
			kill(pid, SIGKILL);
			if (waitpid(pid, &status, 0) == pid)
				break;
		}
		while (read(signals, &info, sizeof info) == sizeof info)
			;
	}
	/* In a namespace, what the program leaves behind belongs to the task; without, nobody else would end it. */
	if (!c->isolate)
		end_children(0);
	return exit_code(status);
}

_Noreturn void exec_main(void)
{
	struct config c;
	struct child child;
	int signals = block_signals();

	config_read(&c, CONFIG);
	close(CONFIG);
	if (c.isolate && setns(TASK, CLONE_NEWNS | CLONE_NEWPID) < 0)
		fail("namespace", "");
	if (!c.isolate && prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		fail("fork", "");
	child = spawn(&c, (int[]){ 0, 1, 2 });
	/* The program alone holds its streams: their ends are seen when it ends. */
	close(0);
	close(1);
	close(2);
	report("started", "", "", "");
	close(STATUS);
	_exit(await(&c, child.pid, signals));
}

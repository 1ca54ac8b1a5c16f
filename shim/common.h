/* What the parts of gantry-shim share. */
#ifndef GANTRY_COMMON_H
#define GANTRY_COMMON_H

#include <sys/types.h>

/* Descriptors that the agent hands over. */
enum {
	STATUS = 3,  /* write end of a pipe: how the start went */
	CONTROL = 4, /* exec: a pipe that ends when the program is no longer wanted */
	TASK = 5,    /* exec: pidfd of the task's shim */
	CONFIG = 6,  /* exec: the configuration */
};

/* FORWARD is the queued signal by which the agent asks for a signal to the program; its value is the signal's number.
 * The shim knows whether its child still exists, so no other process can be hit. It is SIGRTMIN. */
#define FORWARD 34

struct bind {
	const char *source;
	const char *target; /* relative ones are below the sandbox */
	int readonly;
};

/* config is what to run. See runtime/process for what each means. */
struct config {
	int isolate; /* the shim is init of its own pid namespace, and in its own mount namespace */
	int tty;     /* descriptor 0 becomes the controlling terminal */
	const char *sandbox;
	const char *logs;
	long long logsize;
	int logkeep;
	int identity; /* uid, gid and groups are set */
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	size_t ngroups;
	const char *dir;
	char **argv;
	char **env;
	struct bind *binds;
	size_t nbinds;
	int *joins; /* descriptors of the tasks files of cgroup version 1 */
	size_t njoins;
	int cgroup;       /* descriptor of a cgroup version 2, or -1 */
	const char *oom;  /* file with a line "oom_kill N", or NULL */
	const char *peak; /* file with the most memory used, or NULL */

	int proc;       /* /proc as it was at start, where "self" is the pid that the agent knows */
	char score[16]; /* oom_score_adj that programs get back, or empty */
};

/* failure_fd, when not -1, is where fail writes a word to, for the parent of a process that was to become the program. */
extern int failure_fd;

/* fail reports to the agent that a step went wrong with errno at subject, and ends the process. */
_Noreturn void fail(const char *step, const char *subject);

/* report sends NUL-separated words to the agent. */
void report(const char *a, const char *b, const char *c, const char *d);

/* config_read reads the configuration up to its end and opens what it names. */
void config_read(struct config *c, int fd);

/* mount_all gives the process its own /proc and the volumes. */
void mount_all(const struct config *c);

struct child {
	pid_t pid;  /* as this process knows it */
	pid_t host; /* as the agent does */
};

/* spawn runs the program with fds as 0, 1 and 2. It returns once the program executes, or fails. */
struct child spawn(const struct config *c, const int fds[3]);

/* block_signals blocks all signals and returns a descriptor to read SIGCHLD and FORWARD from. */
int block_signals(void);

/* end_children kills and reaps all children and their descendants; init says that this is the init of a namespace. */
void end_children(int init);

/* exit_code returns the code by which a shell would tell of a wait status. */
int exit_code(int status);

_Noreturn void exec_main(void);

#endif

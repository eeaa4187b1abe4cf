/* Makes containers as cheap as they get: a sleeping process in namespaces of its own.
 *
 * An order is a line with a number: so many are made, and their pids printed on one line. They wait,
 * for their ids to be mapped and to be put into cgroups, until the next line, whatever it says;
 * after that they have a cgroup namespace as well, and "ready" is printed. They end with us, and we
 * with our standard input.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void sleep_inside(int go, int ready)
{
	char byte;
	if (read(go, &byte, 1) != 0)
		_exit(1);
	if (setresgid(0, 0, 0) || setresuid(0, 0, 0) || unshare(CLONE_NEWCGROUP) ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL))
		_exit(1);
	if (write(ready, "r", 1) != 1)
		_exit(1);
	closefrom(0);
	for (;;)
		pause();
}

int main(void)
{
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		int count = atoi(line), go[2], ready[2];
		if (pipe(go) || pipe(ready))
			return 1;
		for (int each = 0; each < count; each++) {
			long flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | SIGCHLD;
			long child = syscall(SYS_clone, flags, 0, 0, 0, 0);
			if (child < 0) {
				perror("clone");
				return 1;
			}
			if (child == 0) {
				close(go[1]);
				close(ready[0]);
				sleep_inside(go[0], ready[1]);
			}
			printf("%ld ", child);
		}
		printf("\n");
		fflush(stdout);
		if (!fgets(line, sizeof line, stdin))
			return 1;
		close(go[0]);
		close(go[1]);
		close(ready[1]);
		int there = 0;
		char byte;
		while (read(ready[0], &byte, 1) == 1)
			there++;
		close(ready[0]);
		printf("%s\n", there == count ? "ready" : "failed");
		fflush(stdout);
	}
	return 0;
}

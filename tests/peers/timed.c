/*
 * timed MARK NAME COMMAND...: writes "begin NAME" to standard output, starts the command, reads its output until a line
 * is MARK, writes "reached NAME", and waits for its end. Whoever reads that has the time: an emulated machine's own
 * clock loses some while it is busy. The command's output goes to standard error.
 *
 * Fails if the command ends without that line, or is killed.
 */
#define _GNU_SOURCE /* pipe2, environ */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { LONGEST_LINE = 4096 };

int main(int count, char **arguments)
{
	int ends[2];
	posix_spawn_file_actions_t files;
	pid_t child;
	if (count < 4 || pipe2(ends, O_CLOEXEC) || posix_spawn_file_actions_init(&files))
		return 2;
	char **command = arguments + 3;
	posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&files, ends[1], 1);
	dprintf(1, "begin %s\n", arguments[2]);
	/* Fails on a pipe, which needs no waiting. */
	tcdrain(1);
	if (posix_spawnp(&child, command[0], &files, 0, command, environ)) {
		dprintf(2, "timed: %s cannot be started\n", command[0]);
		return 2;
	}
	close(ends[1]);

	char line[LONGEST_LINE], bytes[1024];
	size_t len = 0, mark = strlen(arguments[1]);
	int reached = 0;
	for (ssize_t got; (got = read(ends[0], bytes, sizeof(bytes))) > 0;) {
		for (ssize_t at = 0; at < got; at++) {
			if (bytes[at] == '\n') {
				/* A line of a terminal ends with \r\n. */
				len -= len > 0 && line[len - 1] == '\r';
				if (!reached && len == mark && !memcmp(line, arguments[1], mark)) {
					reached = 1;
					dprintf(1, "reached %s\n", arguments[2]);
				}
				len = 0;
			} else if (len < sizeof(line)) {
				line[len++] = bytes[at];
			}
		}
		fwrite(bytes, 1, (size_t)got, stderr);
	}
	int status;
	return waitpid(child, &status, 0) == child && WIFEXITED(status) && reached ? 0 : 1;
}

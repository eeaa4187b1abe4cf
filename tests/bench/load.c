/* Reads a file as fast as it can and says how long each time took.
 *
 * Runs inside a container for as long as its standard input lasts. Each line there is an order,
 *
 *     WAY KIND CLIENTS MILLISECONDS PATH
 *
 * WAY is "cat" (open, read to the end, close) or "pread" (from the start of a file held open), KIND
 * is what the clients are, "threads" or "processes". The answer is a line,
 *
 *     NANOSECONDS OPERATIONS BYTES INDEX:COUNT INDEX:COUNT ...
 *
 * or "error TEXT". Times are counted in buckets (figures.py knows what they stand for), so that
 * nothing grows and nothing is written while it measures. In C, because an interpreter costs more
 * than what is measured, and its lock would have clients wait for each other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 64
#define BUFFER 131072 /* what cat(1) of coreutils reads at once */
#define SUB_BITS 6    /* buckets a doubling: 64, so a bucket is 1.6 % wide */
#define BUCKETS 2560

struct client {
	struct shared *shared;
	uint64_t operations, bytes, started, ended;
	int error;
	uint32_t buckets[BUCKETS];
};

/* Between processes as well as between threads. */
struct shared {
	pthread_barrier_t ready;
	uint64_t nanoseconds;
	int held; /* 1: pread */
	char path[4096];
	struct client clients[MAX_CLIENTS];
};

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time); /* without a system call, where the vDSO can */
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static unsigned bucket(uint64_t value)
{
	unsigned shift = 0;
	while (value >> shift >= 2u << SUB_BITS)
		shift++;
	unsigned index = (shift << SUB_BITS) + (unsigned)(value >> shift);
	return index < BUCKETS ? index : BUCKETS - 1;
}

static ssize_t read_all(int fd, char *buffer)
{
	ssize_t total = 0, count;
	while ((count = read(fd, buffer, BUFFER)) > 0)
		total += count;
	return count < 0 ? -1 : total;
}

static ssize_t once(struct shared *shared, int fd, char *buffer)
{
	if (shared->held)
		return pread(fd, buffer, BUFFER, 0);
	fd = open(shared->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t total = read_all(fd, buffer);
	int error = errno;
	close(fd);
	errno = error;
	return total;
}

static void *work(void *argument)
{
	struct client *client = argument;
	struct shared *shared = client->shared;
	/* From the heap it would be fresh pages, faulted in while we measure. */
	char *buffer = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int fd = -1;
	if (buffer == MAP_FAILED)
		client->error = errno;
	else if (shared->held && (fd = open(shared->path, O_RDONLY | O_CLOEXEC)) < 0)
		client->error = errno;
	pthread_barrier_wait(&shared->ready);
	uint64_t started = client->started = now(), end = started + shared->nanoseconds;
	while (!client->error && started < end) {
		ssize_t length = once(shared, fd, buffer);
		uint64_t done = now();
		if (length <= 0) { /* none of these files is ever empty */
			client->error = length < 0 ? errno : ENODATA;
			break;
		}
		client->buckets[bucket(done - started)]++;
		client->operations++;
		client->bytes += (uint64_t)length;
		started = done;
	}
	client->ended = started;
	if (fd >= 0)
		close(fd);
	if (buffer != MAP_FAILED)
		munmap(buffer, BUFFER);
	return NULL;
}

static void fail(const char *what, int error)
{
	printf("error %s: %s\n", what, strerror(error));
}

static void answer(struct shared *shared, int clients)
{
	uint64_t first = UINT64_MAX, last = 0, operations = 0, bytes = 0;
	static uint64_t sums[BUCKETS];
	memset(sums, 0, sizeof sums);
	for (int each = 0; each < clients; each++) {
		struct client *client = &shared->clients[each];
		if (client->error) {
			fail(shared->path, client->error);
			return;
		}
		operations += client->operations;
		bytes += client->bytes;
		if (client->started < first)
			first = client->started;
		if (client->ended > last)
			last = client->ended;
		for (int index = 0; index < BUCKETS; index++)
			sums[index] += client->buckets[index];
	}
	printf("%ju %ju %ju", (uintmax_t)(last - first), (uintmax_t)operations, (uintmax_t)bytes);
	for (int index = 0; index < BUCKETS; index++)
		if (sums[index])
			printf(" %d:%ju", index, (uintmax_t)sums[index]);
	printf("\n");
}

static void obey(struct shared *shared, int clients, int threads)
{
	pthread_t ids[MAX_CLIENTS];
	pthread_barrierattr_t attributes;
	pthread_barrierattr_init(&attributes);
	pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->ready, &attributes, (unsigned)clients + 1);
	memset(shared->clients, 0, sizeof shared->clients);
	for (int each = 0; each < clients; each++) {
		shared->clients[each].shared = shared;
		if (threads) {
			if (pthread_create(&ids[each], NULL, work, &shared->clients[each]))
				exit(1); /* those that run would wait for ever */
			continue;
		}
		pid_t child = fork();
		if (child < 0)
			exit(1);
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			work(&shared->clients[each]);
			_exit(0);
		}
	}
	pthread_barrier_wait(&shared->ready);
	for (int each = 0; each < clients; each++)
		if (threads)
			pthread_join(ids[each], NULL);
		else
			wait(NULL);
	answer(shared, clients);
	pthread_barrier_destroy(&shared->ready);
}

int main(void)
{
	struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	char line[8192], way[16], kind[16];
	int clients;
	unsigned milliseconds;
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "%15s %15s %d %u %4095s", way, kind, &clients, &milliseconds,
			   shared->path) != 5 || clients < 1 || clients > MAX_CLIENTS) {
			fail("order", EINVAL);
		} else {
			shared->held = !strcmp(way, "pread");
			shared->nanoseconds = milliseconds * 1000000ull;
			obey(shared, clients, !strcmp(kind, "threads"));
		}
		fflush(stdout);
	}
	return 0;
}

/* What a message to another process and back costs at least, and what one
 * would take instead of a ring: both ends spin, neither ever sleeps.
 *
 *   driver KIND server DIR CPU
 *   driver KIND client DIR CPU SLICE_US
 *
 * KIND is ring (two rings in a shared file, one writer and one reader each, the
 * sequence number inside the message's cache line), datagram (unix sockets) or
 * pipe (two FIFOs). The server answers until its standard input ends. The
 * client prints one line of JSON. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

enum { slots = 1024, publish = 128, words = 8, max_samples = 4000000 };

struct ring {
	_Alignas(128) uint64_t taken; /* stored by the reader once in a while */
	_Alignas(128) uint64_t slot[slots][words]; /* the last word is the sequence */
};

struct end {
	struct ring *out, *in; /* of KIND ring */
	uint64_t put, got, room;
	int wfd, rfd; /* of the others */
};

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Ticks, after everything before and before everything behind. */
static inline uint64_t stamp(void)
{
#if defined(__x86_64__)
	_mm_lfence();
	uint64_t t = __rdtsc();
	_mm_lfence();
	return t;
#else
	return now();
#endif
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static inline void ring_put(struct end *e, const uint64_t m[words])
{
	while (e->put - e->room == slots)
		e->room = __atomic_load_n(&e->out->taken, __ATOMIC_ACQUIRE);
	uint64_t *s = e->out->slot[e->put++ % slots];
	memcpy(s, m, (words - 1) * sizeof *m);
	__atomic_store_n(&s[words - 1], e->put, __ATOMIC_RELEASE);
}

static inline int ring_get(struct end *e, uint64_t m[words])
{
	uint64_t *s = e->in->slot[e->got % slots];
	if (__atomic_load_n(&s[words - 1], __ATOMIC_ACQUIRE) != e->got + 1)
		return 0;
	memcpy(m, s, (words - 1) * sizeof *m);
	if (++e->got % publish == 0)
		__atomic_store_n(&e->in->taken, e->got, __ATOMIC_RELEASE);
	return 1;
}

static void fd_put(struct end *e, const uint64_t m[words])
{
	for (;;) {
		ssize_t n = write(e->wfd, m, words * sizeof *m);
		if (n == words * sizeof *m)
			return;
		if (n >= 0 || (errno != EAGAIN && errno != EINTR && errno != ECONNREFUSED && errno != ENOBUFS))
			die("write");
	}
}

static int fd_get(struct end *e, uint64_t m[words])
{
	ssize_t n = read(e->rfd, m, words * sizeof *m);
	if (n == words * sizeof *m)
		return 1;
	if (n >= 0 || (errno != EAGAIN && errno != EINTR && errno != ECONNREFUSED))
		die("read");
	return 0;
}

static inline void put(struct end *e, const uint64_t m[words])
{
	if (e->out)
		ring_put(e, m);
	else
		fd_put(e, m);
}

static inline int get(struct end *e, uint64_t m[words])
{
	return e->out ? ring_get(e, m) : fd_get(e, m);
}

static const char *in_dir(const char *dir, const char *name)
{
	static char path[4][PATH_MAX];
	static int i;
	char *p = path[i++ % 4];
	snprintf(p, PATH_MAX, "%s/%s", dir, name);
	return p;
}

static void open_ring(struct end *e, const char *dir, int server)
{
	int fd = open(in_dir(dir, "floor"), O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, 2 * sizeof(struct ring)))
		die("floor");
	struct ring *r = mmap(NULL, 2 * sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (r == MAP_FAILED)
		die("mmap");
	e->out = &r[server];
	e->in = &r[!server];
}

static void open_pipe(struct end *e, const char *dir, int server)
{
	const char *there = in_dir(dir, "there"), *back = in_dir(dir, "back");
	if (server && (mkfifo(there, 0600) || mkfifo(back, 0600)))
		die("mkfifo");
	e->wfd = open(server ? back : there, O_RDWR | O_NONBLOCK);
	e->rfd = open(server ? there : back, O_RDWR | O_NONBLOCK);
	if (e->wfd < 0 || e->rfd < 0)
		die("open");
}

static struct sockaddr_un address(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof a.sun_path) {
		fprintf(stderr, "%s: too long for a socket\n", path);
		exit(1);
	}
	strcpy(a.sun_path, path);
	return a;
}

static void open_datagram(struct end *e, const char *dir, int server)
{
	struct sockaddr_un s = address(in_dir(dir, "s")), c = address(in_dir(dir, "c"));
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	if (fd < 0 || bind(fd, (void *)(server ? &s : &c), sizeof s))
		die("bind");
	/* The server connects when the client is there. */
	if (!server && connect(fd, (void *)&s, sizeof s))
		die("connect");
	e->wfd = e->rfd = fd;
}

static int input_ended(void)
{
	struct pollfd p = { 0, POLLIN, 0 };
	char c;
	return poll(&p, 1, 0) > 0 && read(0, &c, 1) <= 0;
}

static int serve(struct end *e, const char *kind, const char *dir)
{
	uint64_t m[words];
	if (!strcmp(kind, "datagram")) {
		struct sockaddr_un c = address(in_dir(dir, "c"));
		while (connect(e->wfd, (void *)&c, sizeof c))
			if (input_ended())
				return 0;
	}
	for (;;) {
		for (int i = 0; i < 1 << 20; i++)
			if (get(e, m)) {
				m[1] = ~m[0];
				put(e, m);
			}
		if (input_ended())
			return 0;
	}
}

static inline void trip(struct end *e, uint64_t i)
{
	uint64_t m[words] = { i };
	put(e, m);
	while (!get(e, m))
		;
	if (m[0] != i || m[1] != ~i) {
		fprintf(stderr, "a wrong answer\n");
		exit(1);
	}
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	int client = argc == 6 && !strcmp(argv[2], "client");
	if (!client && !(argc == 5 && !strcmp(argv[2], "server")))
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[4]), &set);
	if (sched_setaffinity(0, sizeof set, &set))
		die("pin");
	struct end e = { 0 };
	if (!strcmp(argv[1], "ring"))
		open_ring(&e, argv[3], !client);
	else if (!strcmp(argv[1], "datagram"))
		open_datagram(&e, argv[3], !client);
	else if (!strcmp(argv[1], "pipe"))
		open_pipe(&e, argv[3], !client);
	else
		return 2;
	if (!client) {
		printf("ready\n");
		fflush(stdout);
		return serve(&e, argv[1], argv[3]);
	}
	uint64_t slice = strtoull(argv[5], 0, 10) * 1000, i = 0, n = 0, start = now();
	while (now() - start < slice / 10) /* warms up */
		for (int k = 0; k < 64; k++)
			trip(&e, i++);
	/* First without time stamps inside, for the mean. */
	uint64_t from = now(), first = stamp(), plain = 0, t;
	while ((t = now()) - from < slice / 2)
		for (int k = 0; k < 64; k++, plain++)
			trip(&e, i++);
	double seconds = (t - from) / 1e9;
	static uint32_t sample[max_samples];
	uint64_t then = now();
	do {
		for (int k = 0; k < 64 && n < max_samples; k++) {
			uint64_t a = stamp();
			trip(&e, i++);
			uint64_t d = stamp() - a;
			sample[n++] = d < UINT32_MAX ? d : UINT32_MAX;
		}
	} while (now() - then < slice / 2 && n < max_samples);
	double ns = (now() - from) / (double)(stamp() - first); /* of a tick */
	qsort(sample, n, sizeof *sample, compare);
#define at(q) (n ? ns * sample[(size_t)((n - 1) * (q))] : 0.0)
	printf("{\"sent\":%lu,\"received\":%lu,\"per_second\":%f,\"p50_ns\":%f,\"p99_ns\":%f,\"p999_ns\":%f,\"max_ns\":%f}\n",
	       i, i, plain / seconds, at(0.5), at(0.99), at(0.999), at(1));
	return 0;
}

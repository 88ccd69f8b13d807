/* The kernel's UDP as C drives it best: recvfrom and sendto on a connected
 * socket in a busy loop for round trips, recvmmsg and sendmmsg for the rate.
 *
 *   driver server LISTEN PORT PEER SIZE CPU
 *   driver client LISTEN PORT PEER SIZE CPU SLICE_US WINDOW
 *
 * Both ends use the same port. The client prints one line of JSON. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>

static const uint64_t patience = 60000000000ull;
enum { batch = 64, slot = 2048, max_samples = 4000000 };

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static struct mmsghdr in[batch], out[batch];
static struct iovec in_iov[batch], out_iov[batch];
static char mem[batch][slot];

static void serve(int fd)
{
	for (;;) {
		int n = recvmmsg(fd, in, batch, MSG_DONTWAIT, NULL);
		if (n <= 0)
			continue;
		for (int i = 0; i < n; i++)
			out_iov[i].iov_len = in[i].msg_len;
		for (int done = 0; done < n;) {
			int k = sendmmsg(fd, out + done, n - done, MSG_DONTWAIT);
			if (k > 0)
				done += k;
			else if (errno != EAGAIN)
				break;
		}
	}
}

/* One datagram at a time: recvmmsg costs more there. */
static void serve_single(int fd)
{
	for (;;) {
		ssize_t n = recv(fd, mem[0], slot, MSG_DONTWAIT);
		if (n >= 0)
			send(fd, mem[0], n, MSG_DONTWAIT);
	}
}

int main(int argc, char **argv)
{
	int client = argc == 9 && !strcmp(argv[1], "client");
	if (!client && !(argc == 8 && !strcmp(argv[1], "server")))
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct sockaddr_in us = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[3])) }, peer = us;
	if (inet_pton(AF_INET, argv[2], &us.sin_addr) != 1 || inet_pton(AF_INET, argv[4], &peer.sin_addr) != 1)
		return 2;
	size_t size = atoi(argv[5]);
	if (size < 16 || size > slot)
		return 2;
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[6]), &set);
	if (sched_setaffinity(0, sizeof set, &set))
		die("pin");
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), bytes = 4 << 20;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
	if (bind(fd, (void *)&us, sizeof us) || connect(fd, (void *)&peer, sizeof peer))
		die("bind");
	for (int i = 0; i < batch; i++) {
		in_iov[i] = (struct iovec){ mem[i], slot };
		out_iov[i] = (struct iovec){ mem[i], size };
		in[i].msg_hdr = (struct msghdr){ .msg_iov = &in_iov[i], .msg_iovlen = 1 };
		out[i].msg_hdr = (struct msghdr){ .msg_iov = &out_iov[i], .msg_iovlen = 1 };
	}
	if (!client) {
		printf("ready\n");
		fflush(stdout);
		if (atoi(argv[7]) == 1)
			serve_single(fd);
		serve(fd);
	}
	uint64_t slice = strtoull(argv[7], 0, 10) * 1000;
	int window = atoi(argv[8]);
	uint32_t *sample = malloc(max_samples * sizeof *sample);
	size_t n = 0;
	uint64_t sent = 0, got = 0, lost = 0, start = now(), t = start, heard = start;
	/* A first answer, so that addresses are resolved. */
	for (int ok = 0; !ok;) {
		send(fd, mem[0], size, MSG_DONTWAIT);
		for (uint64_t end = now() + 1000000; !ok && now() < end;)
			ok = recv(fd, mem[0], slot, MSG_DONTWAIT) > 0;
		if (now() - start > patience) {
			fprintf(stderr, "no answer\n");
			return 1;
		}
	}
	for (uint64_t end = now() + 2000000; now() < end;)
		recv(fd, mem[0], slot, MSG_DONTWAIT);
	start = t = heard = now();
	if (window == 1) {
		while ((t - start < slice || !got) && t - start < patience && n < max_samples) {
			uint64_t before = t = now(), number = sent + 1, back = 0;
			memcpy(mem[0], &number, sizeof number);
			if (send(fd, mem[0], size, MSG_DONTWAIT) < 0)
				continue;
			sent++;
			for (;;) {
				ssize_t k = recv(fd, mem[0], slot, MSG_DONTWAIT);
				t = now();
				memcpy(&back, mem[0], sizeof back);
				if (k > 0 && back == number) /* not a late answer */
					break;
				if (t - before > 1000000000ull) {
					lost++;
					goto next;
				}
			}
			got++;
			sample[n++] = t - before;
next:;
		}
	} else {
		int under = 0;
		/* One look at the clock a turn, which stands for all datagrams of it, as
		 * in Go. It ends with its time, but not before the first answer. */
		for (;;) {
			int k = recvmmsg(fd, in, batch, MSG_DONTWAIT, NULL);
			t = now();
			for (int i = 0; i < k; i++) {
				uint64_t then;
				memcpy(&then, mem[i], sizeof then);
				if (then >= start && n < max_samples)
					sample[n++] = t - then;
			}
			if (k > 0)
				got += k, under = under > k ? under - k : 0, heard = t;
			else if (t - heard > 1000000000ull)
				lost += under, under = 0, heard = t;
			if (t - start >= slice && (got || t - start >= patience))
				break;
			int want = window - under < batch ? window - under : batch;
			for (int i = 0; i < want; i++) {
				out_iov[i].iov_len = size;
				memcpy(mem[i], &t, sizeof t);
			}
			k = want > 0 ? sendmmsg(fd, out, want, MSG_DONTWAIT) : 0;
			if (k > 0)
				sent += k, under += k;
		}
	}
	double seconds = (t - start) / 1e9;
	qsort(sample, n, sizeof *sample, compare);
#define at(q) (n ? (double)sample[(size_t)((n - 1) * (q))] : 0.0)
	printf("{\"sent\":%lu,\"received\":%lu,\"lost\":%lu,\"seconds\":%f,\"per_second\":%f,"
	       "\"p50_ns\":%f,\"p90_ns\":%f,\"p99_ns\":%f,\"p999_ns\":%f,\"max_ns\":%f}\n",
	       sent, got, lost, seconds, got / seconds, at(0.5), at(0.9), at(0.99), at(0.999), at(1));
	return 0;
}

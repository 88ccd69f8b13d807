/*
 * mainz-tdb-torture: what libtdb is like after the death of a writer, for the
 * comparison in docs/memory.md. Ours is TestTorture in ltdb.
 *
 * Two processes take turns on one database: chainlock, fetch, verify, store a
 * value of another size, chainunlock. One of them is killed with SIGKILL at a
 * random moment, over and over. Memory beside the database says of each record
 * which change was acknowledged and which was meant. After each kill the other
 * process stops between two changes, and a third one looks at every record and
 * calls tdb_check:
 *
 *   lost    there is no record, though nothing but tdb_store(TDB_REPLACE) was
 *           ever done with it
 *   torn    the value is no value that anybody stored
 *   stale   the value is older than the one acknowledged
 *   check   tdb_check fails
 *
 * With deletes (-d) a quarter of the changes are a tdb_delete and a tdb_store; a
 * record that is missing after a death inside of these counts apart, as gone.
 * Whatever is found, the database is made anew afterwards, so that each kill
 * counts once. One line of JSON tells the result.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <tdb.h>
#include <unistd.h>

#include "workload.h"

enum { RECORDS = 2000, HASH_SIZE = 211, MOST = 1024, WARM_UP = 5000, LONGEST_WAIT_S = 30 };
enum change { AT_REST, REPLACING, REMAKING };

static struct shared {
	struct { volatile uint64_t acked, meant; volatile uint32_t doing; } of[RECORDS];
	volatile uint64_t done[2]; /* changes of the survivor, of the victim */
	volatile uint32_t pause, paused, errors;
	/* of the last audit */
	volatile uint64_t lost, gone, torn, stale, check;
} *S;

static char path[256];
static int flags = TDB_CLEAR_IF_FIRST | TDB_INCOMPATIBLE_HASH | TDB_NOSYNC | TDB_MUTEX_LOCKING;
static bool deletes;

static void die(const char *what)
{
	fprintf(stderr, "mainz-tdb-torture: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void silent(struct tdb_context *db, enum tdb_debug_level level, const char *format, ...)
{
	(void)db, (void)level, (void)format;
}

static struct tdb_context *open_db(void)
{
	struct tdb_logging_context log = { silent, NULL };
	struct tdb_context *db = tdb_open_ex(path, HASH_SIZE, flags, O_RDWR | O_CREAT, 0600, &log, NULL);
	if (!db)
		die("tdb_open");
	return db;
}

static size_t make_value(uint8_t *value, const uint8_t *key, uint64_t n, uint64_t *random)
{
	size_t len = 40 + 8 * draw(random, (MOST - 40) / 8);
	value_fill(value, len, mix(n));
	value_stamp(value, len, key, n);
	return len;
}

static bool sound(TDB_DATA d, const uint8_t *key)
{
	return d.dsize >= 40 && d.dsize <= MOST && value_ok(d.dptr, d.dsize, key) && value_body_ok(d.dptr, d.dsize);
}

static void change(struct tdb_context *db, uint64_t *random)
{
	uint64_t k = draw(random, RECORDS);
	uint8_t key[KEY_BYTES], value[MOST];
	make_key(key, k);
	TDB_DATA name = { key, KEY_BYTES };
	if (tdb_chainlock(db, name)) {
		S->errors++;
		return;
	}
	TDB_DATA d = tdb_fetch(db, name);
	free(d.dptr);
	uint64_t n = S->of[k].acked > S->of[k].meant ? S->of[k].acked + 1 : S->of[k].meant + 1;
	size_t len = make_value(value, key, n, random);
	bool remake = deletes && draw(random, 4) == 0;
	S->of[k].doing = remake ? REMAKING : REPLACING;
	__atomic_store_n(&S->of[k].meant, n, __ATOMIC_SEQ_CST);
	bool bad = remake && tdb_delete(db, name) && tdb_error(db) != TDB_ERR_NOEXIST;
	if (tdb_store(db, name, (TDB_DATA){ value, len }, TDB_REPLACE))
		bad = true;
	if (!bad) {
		__atomic_store_n(&S->of[k].acked, n, __ATOMIC_SEQ_CST);
		S->of[k].doing = AT_REST;
	}
	if (tdb_chainunlock(db, name) || bad)
		S->errors++;
}

/* A child ends with its parent, however that ends. */
static pid_t child(void)
{
	pid_t p = fork();
	if (p < 0)
		die("fork");
	if (!p)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return p;
}

static void end(pid_t p)
{
	kill(p, SIGKILL);
	waitpid(p, NULL, 0);
}

static bool wait_for(volatile uint64_t *counter, uint64_t goal)
{
	for (uint64_t until = monotonic_ns() + LONGEST_WAIT_S * 1000000000ull; *counter < goal; usleep(100))
		if (monotonic_ns() > until)
			return false;
	return true;
}

/* The survivor fills a new database and keeps it open: TDB_CLEAR_IF_FIRST
 * would wipe one that nobody has open. */
static pid_t start_survivor(uint64_t seed)
{
	unlink(path);
	memset(S, 0, sizeof *S);
	pid_t p = child();
	if (p)
		return p;
	struct tdb_context *db = open_db();
	uint64_t random = seeded(seed);
	for (uint64_t k = 0; k < RECORDS; k++) {
		uint8_t key[KEY_BYTES], value[MOST];
		make_key(key, k);
		size_t len = make_value(value, key, 1, &random);
		if (tdb_store(db, (TDB_DATA){ key, KEY_BYTES }, (TDB_DATA){ value, len }, TDB_INSERT))
			die("tdb_store");
		S->of[k].acked = S->of[k].meant = 1;
	}
	for (;;) {
		S->paused = S->pause;
		if (S->pause) {
			usleep(100);
			continue;
		}
		change(db, &random);
		S->done[0]++;
	}
}

static pid_t start_victim(uint64_t seed)
{
	S->done[1] = 0;
	pid_t p = child();
	if (p)
		return p;
	struct tdb_context *db = open_db();
	uint64_t random = seeded(seed);
	for (;;) {
		change(db, &random);
		S->done[1]++;
	}
}

/* In a process of its own, with a limit: a damaged chain may have no end. */
static bool audit(void)
{
	pid_t p = child();
	if (!p) {
		alarm(LONGEST_WAIT_S);
		struct tdb_context *db = open_db();
		for (uint64_t k = 0; k < RECORDS; k++) {
			uint8_t key[KEY_BYTES];
			make_key(key, k);
			TDB_DATA d = tdb_fetch(db, (TDB_DATA){ key, KEY_BYTES });
			if (!d.dptr && S->of[k].doing == REMAKING)
				S->gone++;
			else if (!d.dptr)
				S->lost++;
			else if (!sound(d, key))
				S->torn++;
			else if (get64(d.dptr + 16) < S->of[k].acked)
				S->stale++;
			free(d.dptr);
		}
		S->check = tdb_check(db, NULL, NULL) != 0;
		_exit(0);
	}
	int status;
	waitpid(p, &status, 0);
	return status == 0;
}

int main(int argc, char **argv)
{
	const char *dir = "/dev/shm";
	uint64_t kills = 500, seed = monotonic_ns();
	for (int o; (o = getopt(argc, argv, "C:n:s:df")) != -1;) {
		switch (o) {
		case 'C': dir = optarg; break;
		case 'n': kills = strtoull(optarg, NULL, 0); break;
		case 's': seed = strtoull(optarg, NULL, 0); break;
		case 'd': deletes = true; break;
		case 'f': flags &= ~TDB_MUTEX_LOCKING; break;
		default:
			fprintf(stderr, "usage: mainz-tdb-torture [-C ramdisk] [-n kills] [-s seed] [-d: deletes too] [-f: fcntl locks]\n");
			return 2;
		}
	}
	S = mmap(NULL, sizeof *S, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (S == MAP_FAILED)
		die("mmap");
	snprintf(path, sizeof path, "%s/mainz-tdb-torture.%d", dir, (int)getpid());
	uint64_t inside = 0, lost = 0, gone = 0, torn = 0, stale = 0, check = 0, hung = 0, errors = 0, changes = 0;
	uint64_t random = seeded(seed);
	pid_t survivor = 0;
	for (uint64_t i = 0; i < kills; i++) {
		if (!survivor)
			survivor = start_survivor(seed + i);
		if (!wait_for(&S->done[0], WARM_UP))
			die("the survivor does not come up");
		pid_t victim = start_victim(seed + 1000003 * (i + 1));
		/* Not before it is in full swing, then at any moment. */
		bool well = wait_for(&S->done[1], 20 + draw(&random, 300));
		for (uint64_t until = monotonic_ns() + draw(&random, 200000); monotonic_ns() < until;)
			relax();
		end(victim);
		changes += S->done[1];
		/* The survivor goes on, and rests then between two changes. */
		well = well && wait_for(&S->done[0], S->done[0] + 50);
		S->pause = 1;
		for (int n = 0; n < LONGEST_WAIT_S * 1000 && !S->paused; n++)
			usleep(1000);
		well = well && S->paused;
		bool died_inside = false;
		for (int k = 0; k < RECORDS; k++)
			died_inside = died_inside || S->of[k].doing != AT_REST;
		inside += died_inside;
		well = well && audit();
		hung += !well;
		errors += S->errors;
		lost += S->lost, gone += S->gone, torn += S->torn, stale += S->stale, check += S->check;
		if (!well || died_inside || S->errors || S->lost || S->gone || S->torn || S->stale || S->check) {
			end(survivor);
			survivor = 0;
		} else {
			S->pause = 0;
		}
	}
	if (survivor)
		end(survivor);
	unlink(path);
	printf("{\"version\":\"libtdb %s\",\"locks\":\"%s\",\"deletes\":%s,\"seed\":%" PRIu64 ",\"kills\":%" PRIu64
	       ",\"inside_store\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"gone\":%" PRIu64 ",\"torn\":%" PRIu64 ",\"stale\":%" PRIu64
	       ",\"check_failed\":%" PRIu64 ",\"hung\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"changes\":%" PRIu64 "}\n",
	       TDB_VERSION, flags & TDB_MUTEX_LOCKING ? "mutex" : "fcntl", deletes ? "true" : "false", seed, kills,
	       inside, lost, gone, torn, stale, check, hung, errors, changes);
	return 0;
}

/*
 * mainz-peers PEER: one process of one peer, led by lines on its standard
 * input. `mainz bench worker` understands the same lines, which are described
 * in ../command.go; each is answered by one line of JSON.
 *
 * PEER is
 *   tdb-mutex  libtdb with robust mutexes
 *   tdb-parse  the same; fetch is tdb_parse_record, which needs no malloc
 *   tdb-fcntl  libtdb with fcntl locks
 *   seqlock    no store, but the floor of the hardware
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>

#include "seqlock.h"
#include "tdbstore.h"
#include "workload.h"

#define PROTOCOL 1
#define CHUNK 32 /* operations between two looks at the clock */

enum kind { SEQLOCK, TDB, TDB_PARSE };

enum op { NOP, FETCH, BATCH8, RMW, STORE, APPEND, OPS };
static const char *const op_names[OPS] = { "nop", "fetch", "batch8", "rmw", "store", "append" };

static struct worker {
	enum kind kind;
	bool mutexes;

	/* the open store */
	struct table table;
	struct tdb_context *db;
	uint64_t records;
	size_t value_bytes; /* 0: records that grow */

	/* the slice being run */
	uint64_t random;
	bool hot;
	uint64_t calls;
	uint64_t errors;
	const char *why; /* the first error */
	uint8_t key[KEY_BYTES];
	uint8_t keys[BATCH][KEY_BYTES];
	uint8_t value[MAX_VALUE] __attribute__((aligned(64)));
	uint8_t values[BATCH][MAX_VALUE] __attribute__((aligned(64)));

	/* the clock's rate: ns = ticks * scale >> 32 */
	uint64_t first_ticks, first_ns, scale;
	struct histogram histogram;
} W;

/* ---- replies ---- */

static void reply(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void reply(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

static void refuse(const char *why)
{
	if (errno)
		reply("{\"error\":\"%s: %s\"}", why, strerror(errno));
	else
		reply("{\"error\":\"%s\"}", why);
}

/* ---- time ---- */

/* The rate is measured over the whole life of the process so far, at least
 * 20 ms: the two readings are then off by less than 10 in a million. */
static void calibrate(void)
{
	uint64_t ns, t;
	do {
		ns = monotonic_ns();
		t = ticks();
	} while (ns - W.first_ns < 20 * 1000000);
	W.scale = (uint64_t)(((unsigned __int128)(ns - W.first_ns) << 32) / (t - W.first_ticks));
}

static ALWAYS_INLINE uint64_t to_ns(uint64_t t)
{
	return (uint64_t)((unsigned __int128)t * W.scale >> 32);
}

static uint64_t to_ticks(uint64_t ns)
{
	return (uint64_t)(((unsigned __int128)ns << 32) / W.scale);
}

/* ---- one operation ---- */

static __attribute__((noinline, cold)) void failed(const char *why)
{
	W.errors++;
	if (!W.why)
		W.why = why;
}

static ALWAYS_INLINE void check_value(const uint8_t *value, size_t len, const uint8_t *key)
{
	if (len != W.value_bytes || !value_ok(value, len, key))
		failed("value is wrong");
	else if (W.calls % FULL_CHECK == 0 && !value_body_ok(value, len))
		failed("value is torn");
}

static ALWAYS_INLINE void fetch(enum kind kind, const uint8_t *key, uint8_t *value)
{
	if (kind == SEQLOCK) {
		struct slot *s = slot_from(&W.table, key, hash(key));
		if (!s)
			return failed("record is missing");
		check_value(value, slot_read(s, value), key);
	} else if (kind == TDB_PARSE) {
		struct parsed p = { .value = value };
		if (tdb_parse_record(W.db, tdb_key(key), copy_out, &p))
			return failed("tdb_parse_record");
		check_value(value, p.len, key);
	} else {
		TDB_DATA data = tdb_fetch(W.db, tdb_key(key));
		if (!data.dptr)
			return failed("tdb_fetch");
		check_value(data.dptr, data.dsize, key);
		free(data.dptr);
	}
}

/* tdb has no call for several keys. The floor asks for all slots first. */
static ALWAYS_INLINE void batch(enum kind kind)
{
	uint64_t from[BATCH];
	if (kind == SEQLOCK)
		for (int i = 0; i < BATCH; i++) {
			from[i] = hash(W.keys[i]);
			uint8_t *s = (uint8_t *)slot_at(&W.table, from[i]);
			for (size_t line = 0; line < W.table.stride; line += 64)
				__builtin_prefetch(s + line);
		}
	for (int i = 0; i < BATCH; i++) {
		if (kind != SEQLOCK) {
			fetch(kind, W.keys[i], W.values[i]);
			continue;
		}
		struct slot *s = slot_from(&W.table, W.keys[i], from[i]);
		if (!s)
			failed("record is missing");
		else
			check_value(W.values[i], slot_read(s, W.values[i]), W.keys[i]);
	}
}

/* fetch_locked and store_unlock, as dbwrap and ctdb do them. */
static ALWAYS_INLINE void read_modify_write(enum kind kind)
{
	if (kind == SEQLOCK) {
		struct slot *s = slot_from(&W.table, W.key, hash(W.key));
		if (!s)
			return failed("record is missing");
		uint64_t seq = slot_lock(s);
		size_t len = s->len;
		memcpy(W.value, s->value, len);
		check_value(W.value, len, W.key);
		value_stamp(W.value, len, W.key, get64(W.value + 16) + 1);
		memcpy(s->value, W.value, len);
		slot_unlock(s, seq);
		return;
	}
	if (tdb_chainlock(W.db, tdb_key(W.key)))
		return failed("tdb_chainlock");
	TDB_DATA data = tdb_fetch(W.db, tdb_key(W.key));
	if (!data.dptr) {
		failed("tdb_fetch");
	} else {
		check_value(data.dptr, data.dsize, W.key);
		value_stamp(data.dptr, data.dsize, W.key, get64(data.dptr + 16) + 1);
		if (tdb_store(W.db, tdb_key(W.key), data, TDB_REPLACE))
			failed("tdb_store");
	}
	if (tdb_chainunlock(W.db, tdb_key(W.key)))
		failed("tdb_chainunlock");
	free(data.dptr);
}

static ALWAYS_INLINE void store(enum kind kind)
{
	value_stamp(W.value, W.value_bytes, W.key, W.calls);
	if (kind == SEQLOCK) {
		struct slot *s = slot_from(&W.table, W.key, hash(W.key));
		if (!s)
			return failed("record is missing");
		uint64_t seq = slot_lock(s);
		memcpy(s->value, W.value, W.value_bytes);
		slot_unlock(s, seq);
		return;
	}
	TDB_DATA data = { .dptr = W.value, .dsize = W.value_bytes };
	if (tdb_store(W.db, tdb_key(W.key), data, TDB_REPLACE))
		failed("tdb_store");
}

/* The last entry of a record that grows is looked at; returns the number of
 * the next one. */
static ALWAYS_INLINE uint64_t next_entry(const uint8_t *value, size_t len)
{
	const uint8_t *last = value + len - ENTRY_BYTES;
	if (!entries_len_ok(len) || !entry_ok(last, W.key)) {
		failed("entry is wrong");
		return 0;
	}
	return get64(last + 16) + 1;
}

static ALWAYS_INLINE void append(enum kind kind)
{
	if (kind == SEQLOCK) {
		struct slot *s = slot_from(&W.table, W.key, hash(W.key));
		if (!s)
			return failed("record is missing");
		uint64_t seq = slot_lock(s);
		uint64_t number = next_entry(s->value, s->len);
		size_t len = s->len + ENTRY_BYTES > APPEND_BYTES ? 0 : s->len;
		entry_make(s->value + len, W.key, number);
		s->len = len + ENTRY_BYTES;
		slot_unlock(s, seq);
		return;
	}
	if (tdb_chainlock(W.db, tdb_key(W.key)))
		return failed("tdb_chainlock");
	TDB_DATA data = tdb_fetch(W.db, tdb_key(W.key));
	if (!data.dptr || !entries_len_ok(data.dsize)) {
		failed("tdb_fetch");
	} else {
		uint64_t number = next_entry(data.dptr, data.dsize);
		size_t len = data.dsize + ENTRY_BYTES > APPEND_BYTES ? 0 : data.dsize;
		memcpy(W.value, data.dptr, len);
		entry_make(W.value + len, W.key, number);
		TDB_DATA longer = { .dptr = W.value, .dsize = len + ENTRY_BYTES };
		if (tdb_store(W.db, tdb_key(W.key), longer, TDB_REPLACE))
			failed("tdb_store");
	}
	if (tdb_chainunlock(W.db, tdb_key(W.key)))
		failed("tdb_chainunlock");
	free(data.dptr);
}

/* The compiler must not see that the hot index never changes: it would make
 * that key once, outside the loop, and the other side makes it each time. */
static ALWAYS_INLINE uint64_t next_index(void)
{
	uint64_t index = W.hot ? 0 : draw(&W.random, W.records);
	__asm__ volatile("" : "+r"(index));
	return index;
}

/* Draws the keys of the next call. */
static ALWAYS_INLINE void next_keys(enum op op)
{
	if (op == BATCH8)
		for (int i = 0; i < BATCH; i++)
			make_key(W.keys[i], next_index());
	else
		make_key(W.key, next_index());
}

static ALWAYS_INLINE void call(enum kind kind, enum op op)
{
	switch (op) {
	case FETCH: fetch(kind, W.key, W.value); break;
	case BATCH8: batch(kind); break;
	case RMW: read_modify_write(kind); break;
	case STORE: store(kind); break;
	case APPEND: append(kind); break;
	default: __asm__ volatile("" ::"r"(W.key) : "memory"); /* the loop alone */
	}
	W.calls++;
}

/* ---- a slice ---- */

struct slice {
	enum op op;
	bool latency;
	uint64_t limit_ns, limit_calls; /* one of them */
	uint64_t seed, start_ns;
};

struct outcome {
	uint64_t calls, ns, all_calls, late_ns;
};

static ALWAYS_INLINE void calls_plain(enum kind kind, enum op op, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		next_keys(op);
		call(kind, op);
	}
}

static ALWAYS_INLINE void calls_timed(enum kind kind, enum op op, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		next_keys(op);
		uint64_t t = ticks_before();
		call(kind, op);
		record(&W.histogram, to_ns(ticks_after() - t));
	}
}

/* Specialised for each kind, operation and mode, so that the floor is one. */
static ALWAYS_INLINE void run_as(enum kind kind, enum op op, bool latency, const struct slice *s,
				 struct outcome *out)
{
#define CALLS(n) (latency ? calls_timed(kind, op, n) : calls_plain(kind, op, n))
	uint64_t from, now = ticks();
	if (s->limit_calls) {
		from = now;
		CALLS(s->limit_calls);
		out->calls = s->limit_calls;
		out->ns = to_ns(ticks() - from);
		out->all_calls = out->calls;
		return;
	}
	/* A tenth of the slice warms caches and branch predictors up. */
	uint64_t length = to_ticks(s->limit_ns > out->late_ns ? s->limit_ns - out->late_ns : 0);
	uint64_t warm = to_ticks(s->limit_ns / 10), start = now - to_ticks(out->late_ns), end = now + length;
	uint64_t all = 0, n = 0;
	for (; now - start < warm; now = ticks()) {
		CALLS(CHUNK);
		all += CHUNK;
	}
	memset(&W.histogram, 0, latency ? sizeof W.histogram : 0);
	from = now = ticks();
	do {
		CALLS(CHUNK);
		n += CHUNK;
		now = ticks();
	} while ((int64_t)(end - now) > 0);
	out->calls = n;
	out->ns = to_ns(now - from);
	out->all_calls = all + n;
#undef CALLS
}

#define RUN(kind, op)                                          \
	case op:                                               \
		if (s->latency)                                \
			run_as(kind, op, true, s, out);        \
		else                                           \
			run_as(kind, op, false, s, out);       \
		break;
#define RUN_KIND(name, kind)                                                 \
	static __attribute__((noinline)) void name(const struct slice *s, struct outcome *out) \
	{                                                                    \
		switch (s->op) {                                             \
			RUN(kind, NOP)                                       \
			RUN(kind, FETCH)                                     \
			RUN(kind, BATCH8)                                    \
			RUN(kind, RMW)                                       \
			RUN(kind, STORE)                                     \
			RUN(kind, APPEND)                                    \
		default: break;                                              \
		}                                                            \
	}
RUN_KIND(run_seqlock, SEQLOCK)
RUN_KIND(run_tdb, TDB)
RUN_KIND(run_tdb_parse, TDB_PARSE)

static void run(const struct slice *s)
{
	struct outcome out = { 0 };
	calibrate();
	W.random = seeded(s->seed);
	W.errors = 0;
	W.why = NULL;
	memset(&W.histogram, 0, sizeof W.histogram);
	if (W.value_bytes)
		value_fill(W.value, W.value_bytes, s->seed);
	uint64_t now = monotonic_ns();
	if (s->start_ns) {
		while (now < s->start_ns)
			now = monotonic_ns();
		out.late_ns = now - s->start_ns;
	}
	switch (W.kind) {
	case SEQLOCK: run_seqlock(s, &out); break;
	case TDB: run_tdb(s, &out); break;
	case TDB_PARSE: run_tdb_parse(s, &out); break;
	}
	uint64_t each = s->op == BATCH8 ? BATCH : 1;
	printf("{\"ops\":%" PRIu64 ",\"ns\":%" PRIu64 ",\"all_ops\":%" PRIu64 ",\"late_ns\":%" PRIu64
	       ",\"errors\":%" PRIu64,
	       out.calls * each, out.ns, out.all_calls * each, out.late_ns, W.errors);
	if (W.why)
		printf(",\"why\":\"%s\"", W.why);
	if (s->latency) {
		const char *comma = "";
		printf(",\"max_ns\":%" PRIu64 ",\"histogram\":[", W.histogram.max);
		for (int i = 0; i < BUCKETS; i++)
			if (W.histogram.count[i]) {
				printf("%s[%d,%" PRIu32 "]", comma, i, W.histogram.count[i]);
				comma = ",";
			}
		printf("]");
	}
	reply("}");
}

/* ---- the store as a whole ---- */

/* Makes the value that a record is preloaded with. */
static size_t preloaded(uint64_t index, const uint8_t *key, size_t value_bytes, uint8_t *value)
{
	if (value_bytes) {
		value_fill(value, value_bytes, index);
		value_stamp(value, value_bytes, key, 0);
		return value_bytes;
	}
	size_t n = preloaded_entries(index);
	for (size_t i = 0; i < n; i++)
		entry_make(value + i * ENTRY_BYTES, key, i);
	return n * ENTRY_BYTES;
}

static const char *preload(void)
{
	for (uint64_t i = 0; i < W.records; i++) {
		make_key(W.key, i);
		size_t len = preloaded(i, W.key, W.value_bytes, W.value);
		if (W.kind == SEQLOCK)
			table_insert(&W.table, W.key, W.value, len);
		else if (tdb_store(W.db, tdb_key(W.key), (TDB_DATA){ W.value, len }, TDB_INSERT))
			return "tdb_store";
	}
	return NULL;
}

static void open_store(bool create, const char *path, uint64_t records, size_t value_bytes)
{
	if (records < 1 || records > SLOTS / 2)
		return refuse("1 to 131072 records fit here");
	const char *why;
	if (W.kind == SEQLOCK)
		why = table_open(&W.table, path, create, value_bytes ? value_bytes : APPEND_BYTES);
	else
		why = tdb_store_open(&W.db, path, W.mutexes);
	W.records = records;
	W.value_bytes = value_bytes;
	if (!why && create)
		why = preload();
	if (why)
		return refuse(why);
	reply("{\"ok\":true}");
}

/*
 * Reads and checks every record. The sum of the counters (of the numbers of
 * the last entries, where records grow) tells how many updates there were:
 * none may be lost.
 */
static void sum(void)
{
	uint64_t total = 0, bad = 0;
	for (uint64_t i = 0; i < W.records; i++) {
		struct parsed p = { .value = W.value };
		make_key(W.key, i);
		if (W.kind == SEQLOCK) {
			struct slot *s = slot_from(&W.table, W.key, hash(W.key));
			p.len = s ? slot_read(s, W.value) : 0;
		} else if (tdb_parse_record(W.db, tdb_key(W.key), copy_out, &p)) {
			p.len = 0;
		}
		bool ok;
		if (W.value_bytes) {
			ok = p.len == W.value_bytes && value_ok(W.value, p.len, W.key) && value_body_ok(W.value, p.len);
			total += ok ? get64(W.value + 16) : 0;
		} else {
			ok = entries_len_ok(p.len);
			for (size_t at = 0; ok && at < p.len; at += ENTRY_BYTES)
				ok = entry_ok(W.value + at, W.key);
			total += ok ? get64(W.value + p.len - ENTRY_BYTES + 16) : 0;
		}
		bad += !ok;
	}
	reply("{\"sum\":%" PRIu64 ",\"bad\":%" PRIu64 "}", total, bad);
}

/* What this side makes of a seed and an index, for the comparison with Go. */
static void sample(uint64_t seed, uint64_t index, size_t value_bytes)
{
	uint64_t random = seeded(seed);
	make_key(W.key, index);
	size_t len = preloaded(index, W.key, value_bytes, W.value);
	printf("{\"key\":\"%.*s\",\"value\":\"", KEY_BYTES, W.key);
	for (size_t i = 0; i < len; i++)
		printf("%02x", W.value[i]);
	printf("\",\"draws\":[");
	for (int i = 0; i < 8; i++)
		printf("%s%" PRIu64, i ? "," : "", draw(&random, 100000));
	memset(&W.histogram, 0, sizeof W.histogram);
	record(&W.histogram, mix(index) >> (index & 63));
	for (int i = 0; i < BUCKETS; i++)
		if (W.histogram.count[i])
			printf("],\"bucket\":%d", i);
	reply("}");
}

/* ---- the protocol ---- */

static bool parse_format(const char *word, size_t *value_bytes)
{
	if (!strcmp(word, "append")) {
		*value_bytes = 0;
		return true;
	}
	char *end;
	*value_bytes = strtoul(word, &end, 10);
	return !*end && *value_bytes >= 64 && *value_bytes <= MAX_VALUE && *value_bytes % 8 == 0;
}

static void obey_run(const char *line)
{
	struct slice s = { 0 };
	char op[16], keys[16], unit[8], mode[16];
	uint64_t limit;
	if (sscanf(line, "run %15s %15s %" SCNu64 "%7s %15s %" SCNu64 " %" SCNu64, op, keys, &limit, unit, mode,
		   &s.seed, &s.start_ns) != 7)
		return refuse("run OP KEYS LIMIT MODE SEED START");
	while (s.op < OPS && strcmp(op, op_names[s.op]))
		s.op++;
	if (s.op == OPS)
		return refuse("unknown operation");
	if (!W.records)
		return refuse("no store is open");
	if ((s.op == APPEND) != !W.value_bytes && s.op != NOP)
		return refuse("append needs records that grow, the others values of one size");
	W.hot = !strcmp(keys, "hot");
	s.latency = !strcmp(mode, "latency");
	if (!strcmp(unit, "us") && limit)
		s.limit_ns = limit * 1000;
	else if (!strcmp(unit, "calls") && limit)
		s.limit_calls = limit;
	else
		return refuse("LIMIT is a number followed by us or calls");
	run(&s);
}

static void obey(const char *line)
{
	char how[8], path[256], format[16];
	uint64_t a, b;
	size_t value_bytes;
	int cpu;
	errno = 0;
	if (sscanf(line, "open %7s %255s %" SCNu64 " %15s", how, path, &a, format) == 4) {
		if (!parse_format(format, &value_bytes))
			return refuse("FORMAT is append, or 64 to 4096 bytes in steps of 8");
		open_store(!strcmp(how, "create"), path, a, value_bytes);
	} else if (sscanf(line, "pin %d", &cpu) == 1 && cpu >= 0 && cpu < CPU_SETSIZE) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		if (sched_setaffinity(0, sizeof set, &set))
			return refuse("sched_setaffinity");
		reply("{\"ok\":true}");
	} else if (!strncmp(line, "run ", 4)) {
		obey_run(line);
	} else if (!strncmp(line, "sum", 3) && W.records) {
		sum();
	} else if (sscanf(line, "sample %" SCNu64 " %" SCNu64 " %15s", &a, &b, format) == 3 &&
		   parse_format(format, &value_bytes)) {
		sample(a, b, value_bytes);
	} else {
		refuse("unknown command");
	}
}

int main(int argc, char **argv)
{
	const char *peer = argc == 2 ? argv[1] : "";
	if (!strcmp(peer, "seqlock")) {
		W.kind = SEQLOCK;
	} else if (!strcmp(peer, "tdb-mutex") || !strcmp(peer, "tdb-fcntl")) {
		W.kind = TDB;
		W.mutexes = !strcmp(peer, "tdb-mutex");
	} else if (!strcmp(peer, "tdb-parse")) {
		W.kind = TDB_PARSE;
		W.mutexes = true;
	} else {
		fprintf(stderr, "usage: mainz-peers tdb-mutex|tdb-parse|tdb-fcntl|seqlock\n"
				"It is started by `mainz bench` and led by lines on its standard input.\n");
		return 2;
	}
	W.first_ns = monotonic_ns();
	W.first_ticks = ticks();
	reply("{\"protocol\":%d,\"peer\":\"%s\",\"version\":\"%s\"}", PROTOCOL, peer,
	      W.kind == SEQLOCK ? "" : "libtdb " TDB_VERSION);
	char *line = NULL;
	size_t room = 0;
	/* The end of the input is the end of the run, however the leader ended. */
	while (getline(&line, &room, stdin) > 0) {
		line[strcspn(line, "\n")] = 0;
		obey(line);
	}
	return 0;
}

/*
 * What every contestant of the benchmark does alike: keys, values, the random
 * sequence, the clock and the histogram. ../workload.go and ../histogram.go
 * are the same in Go, and a test compares what the two produce.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

enum {
	KEY_BYTES = 16,
	MAX_VALUE = 4096,
	ENTRY_BYTES = 32,    /* one append */
	APPEND_BYTES = 512,  /* a record that grows starts again after this much */
	BATCH = 8,
	FULL_CHECK = 64,     /* every so many reads all words of a value are looked at */
};

static ALWAYS_INLINE uint64_t get64(const void *p)
{
	uint64_t x;
	memcpy(&x, p, sizeof x);
	return x;
}

static ALWAYS_INLINE void put64(void *p, uint64_t x) { memcpy(p, &x, sizeof x); }

/* The finalizer of splitmix64: a bijection, so different indexes never meet. */
static ALWAYS_INLINE uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

/* The random sequence: xorshift64, scaled by a multiplication. */
static ALWAYS_INLINE uint64_t draw(uint64_t *state, uint64_t below)
{
	uint64_t x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	*state = x;
	return (uint64_t)((unsigned __int128)x * below >> 64);
}

static inline uint64_t seeded(uint64_t seed) { return mix(seed) | 1; }

/*
 * A key is 16 letters from a to p, one for each four bits of the mixed index:
 * printable, and cheap to make without vector instructions, which Go has not.
 */
static ALWAYS_INLINE uint64_t letters(uint64_t x)
{
	x = (x | x << 16) & 0x0000ffff0000ffff;
	x = (x | x << 8) & 0x00ff00ff00ff00ff;
	x = (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
	return x + 0x6161616161616161;
}

static ALWAYS_INLINE void make_key(uint8_t *key, uint64_t index)
{
	uint64_t x = mix(index);
	put64(key, letters(x & 0xffffffff));
	put64(key + 8, letters(x >> 32));
}

/*
 * A value is 64-bit words: key (2), counter, pattern, pattern again up to the
 * last word, and the trailer, which binds all of them together. A value of
 * another key, a mixture of two values or a short copy is noticed.
 */
static inline void value_fill(uint8_t *value, size_t len, uint64_t pattern)
{
	for (size_t at = 24; at < len; at += 8)
		put64(value + at, pattern);
}

static ALWAYS_INLINE void value_stamp(uint8_t *value, size_t len, const uint8_t *key, uint64_t counter)
{
	memcpy(value, key, KEY_BYTES);
	put64(value + 16, counter);
	put64(value + len - 8, counter ^ get64(value + 24) ^ get64(key));
}

static ALWAYS_INLINE bool value_ok(const uint8_t *value, size_t len, const uint8_t *key)
{
	return get64(value) == get64(key) && get64(value + 8) == get64(key + 8) &&
	       get64(value + len - 8) == (get64(value + 16) ^ get64(value + 24) ^ get64(key));
}

static inline bool value_body_ok(const uint8_t *value, size_t len)
{
	uint64_t pattern = get64(value + 24), differs = 0;
	for (size_t at = 32; at < len - 8; at += 8)
		differs |= get64(value + at) ^ pattern;
	return differs == 0;
}

/* A record that grows is entries of 32 bytes: key (2 words), number, check. */
static ALWAYS_INLINE void entry_make(uint8_t *entry, const uint8_t *key, uint64_t number)
{
	memcpy(entry, key, KEY_BYTES);
	put64(entry + 16, number);
	put64(entry + 24, mix(number ^ get64(key)));
}

static ALWAYS_INLINE bool entry_ok(const uint8_t *entry, const uint8_t *key)
{
	return get64(entry) == get64(key) && get64(entry + 8) == get64(key + 8) &&
	       get64(entry + 24) == mix(get64(entry + 16) ^ get64(key));
}

static ALWAYS_INLINE bool entries_len_ok(size_t len)
{
	return len > 0 && len <= APPEND_BYTES && len % ENTRY_BYTES == 0;
}

/* How many entries the record has when it is preloaded. */
static inline size_t preloaded_entries(uint64_t index)
{
	return 1 + mix(~index) % (APPEND_BYTES / ENTRY_BYTES);
}

/* Time. ticks() is cheap and not ordered; ticks_fenced() waits for what stands
 * before it and holds back what stands behind it. */
#if defined(__x86_64__)
static ALWAYS_INLINE uint64_t ticks(void) { return __rdtsc(); }
static ALWAYS_INLINE uint64_t ticks_before(void)
{
	_mm_lfence();
	uint64_t t = __rdtsc();
	_mm_lfence();
	return t;
}
static ALWAYS_INLINE uint64_t ticks_after(void)
{
	unsigned cpu;
	uint64_t t = __rdtscp(&cpu);
	_mm_lfence();
	return t;
}
static ALWAYS_INLINE void relax(void) { _mm_pause(); }
#elif defined(__aarch64__)
static ALWAYS_INLINE uint64_t ticks(void)
{
	uint64_t t;
	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(t) :: "memory");
	return t;
}
static ALWAYS_INLINE uint64_t ticks_before(void)
{
	uint64_t t;
	__asm__ volatile("isb; mrs %0, cntvct_el0; isb" : "=r"(t) :: "memory");
	return t;
}
static ALWAYS_INLINE uint64_t ticks_after(void) { return ticks_before(); }
static ALWAYS_INLINE void relax(void) { __asm__ volatile("yield"); }
#else
#error "the peers are measured on amd64 and arm64 only"
#endif

static inline uint64_t monotonic_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/*
 * Histogram of nanoseconds: 128 buckets for each power of two (0.8 %), exact
 * below 256 ns, everything above 2^40 ns in the last bucket.
 */
enum { SUB_BITS = 7, TOP_BITS = 40, BUCKETS = (TOP_BITS - SUB_BITS + 1) << SUB_BITS };

struct histogram {
	uint64_t max;
	uint32_t count[BUCKETS];
};

static ALWAYS_INLINE void record(struct histogram *h, uint64_t ns)
{
	if (ns > h->max)
		h->max = ns;
	if (ns >= 1ull << TOP_BITS)
		ns = (1ull << TOP_BITS) - 1;
	unsigned shift = 0;
	if (ns >= 2 << SUB_BITS)
		shift = 63 - SUB_BITS - (unsigned)__builtin_clzll(ns);
	h->count[(shift << SUB_BITS) + (ns >> shift)]++;
}

#endif

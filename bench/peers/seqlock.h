/*
 * The floor: what shared memory costs when there is nothing but the data. Open
 * addressing with linear probing over 2^18 slots, a sequence lock in each, key
 * and value in the slot, slots aligned to cache lines. Nothing can be deleted,
 * nothing grows beyond its slot, a writer that dies leaves its slot locked: a
 * floor, not a store.
 */
#ifndef SEQLOCK_H
#define SEQLOCK_H

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "workload.h"

enum { SLOTS = 1 << 18 };

struct slot {
	_Atomic uint64_t seq; /* odd: being written */
	uint8_t key[KEY_BYTES];
	uint64_t len;         /* 0: never used */
	uint8_t value[];
};

struct table {
	uint8_t *base;
	size_t stride, size;
};

static const char *table_open(struct table *t, const char *path, bool create, size_t value_bytes)
{
	t->stride = (sizeof(struct slot) + value_bytes + 63) & ~(size_t)63;
	t->size = t->stride * SLOTS;
	int fd = open(path, create ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0600);
	if (fd < 0)
		return "open the table's file";
	if (create && posix_fallocate(fd, 0, (off_t)t->size))
		return "reserve memory for the table";
	t->base = mmap(NULL, t->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	close(fd);
	if (t->base == MAP_FAILED)
		return "map the table";
#ifdef MADV_POPULATE_WRITE
	/* MAP_POPULATE faults for reading only. An old kernel says EINVAL, and
	 * the first write to each page is then paid in the warm-up. */
	(void)madvise(t->base, t->size, MADV_POPULATE_WRITE);
#endif
	return NULL;
}

static ALWAYS_INLINE struct slot *slot_at(const struct table *t, uint64_t i)
{
	return (struct slot *)(t->base + (i & (SLOTS - 1)) * t->stride);
}

static ALWAYS_INLINE uint64_t hash(const uint8_t *key)
{
	unsigned __int128 product = (unsigned __int128)(get64(key) ^ 0x2d358dccaa6c78a5) *
				    (get64(key + 8) ^ 0x8bb84b93962eacc9);
	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static ALWAYS_INLINE struct slot *slot_from(const struct table *t, const uint8_t *key, uint64_t from)
{
	for (uint64_t i = from;; i++) {
		struct slot *s = slot_at(t, i);
		if (get64(s->key) == get64(key) && get64(s->key + 8) == get64(key + 8))
			return s;
		if (!s->len)
			return NULL;
	}
}

static inline void table_insert(struct table *t, const uint8_t *key, const uint8_t *value, size_t len)
{
	uint64_t i = hash(key);
	while (slot_at(t, i)->len)
		i++;
	struct slot *s = slot_at(t, i);
	memcpy(s->key, key, KEY_BYTES);
	memcpy(s->value, value, len);
	s->len = len;
}

static ALWAYS_INLINE size_t slot_read(struct slot *s, uint8_t *value)
{
	for (;;) {
		uint64_t seq = atomic_load_explicit(&s->seq, memory_order_acquire);
		if (!(seq & 1)) {
			size_t len = s->len;
			memcpy(value, s->value, len <= MAX_VALUE ? len : MAX_VALUE);
			atomic_thread_fence(memory_order_acquire);
			if (atomic_load_explicit(&s->seq, memory_order_relaxed) == seq)
				return len;
		}
		relax();
	}
}

static ALWAYS_INLINE uint64_t slot_lock(struct slot *s)
{
	for (;;) {
		uint64_t seq = atomic_load_explicit(&s->seq, memory_order_relaxed);
		if (!(seq & 1) && atomic_compare_exchange_weak(&s->seq, &seq, seq + 1))
			return seq;
		relax();
	}
}

static ALWAYS_INLINE void slot_unlock(struct slot *s, uint64_t seq)
{
	atomic_store_explicit(&s->seq, seq + 2, memory_order_release);
}

#endif

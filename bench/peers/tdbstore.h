/*
 * libtdb, opened as ctdb and smbd open a volatile database. TDB_CLEAR_IF_FIRST
 * wipes a database that nobody has open, so the process that preloaded it
 * keeps it open for as long as anything is measured.
 */
#ifndef TDBSTORE_H
#define TDBSTORE_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <stdlib.h>
#include <tdb.h>

#include "workload.h"

enum { HASH_SIZE = 100003 };

static const char *tdb_store_open(struct tdb_context **db, const char *path, bool mutexes)
{
	int flags = TDB_CLEAR_IF_FIRST | TDB_INCOMPATIBLE_HASH | TDB_NOSYNC;
	if (mutexes) {
		if (!tdb_runtime_check_for_robust_mutexes())
			return "tdb: no robust mutexes on this system";
		flags |= TDB_MUTEX_LOCKING;
	}
	*db = tdb_open(path, HASH_SIZE, flags, O_RDWR | O_CREAT, 0600);
	return *db ? NULL : "tdb_open";
}

static ALWAYS_INLINE TDB_DATA tdb_key(const uint8_t *key)
{
	return (TDB_DATA){ .dptr = (uint8_t *)key, .dsize = KEY_BYTES };
}

struct parsed {
	uint8_t *value;
	size_t len;
};

/* A parser of tdb_parse_record, which runs under the chain's lock. */
static int copy_out(TDB_DATA key, TDB_DATA data, void *arg)
{
	struct parsed *p = arg;
	(void)key;
	if (data.dsize > MAX_VALUE)
		return -1;
	memcpy(p->value, data.dptr, data.dsize);
	p->len = data.dsize;
	return 0;
}

#endif

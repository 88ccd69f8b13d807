#!/usr/bin/env bash
# Runs the Go benchmarks of another commit (REF) and of the working tree by turns, so
# that a noisy machine disturbs both, and compares them by benchstat.
# make bench-compare calls it; the variables are those of its help.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${REF:?say what to compare with: make bench-compare REF=main}"
: "${BENCH:=.}" "${PKG:=.}" "${COUNT:=10}" "${BENCHTIME:=100ms}" "${GO:=go}"
: "${BENCHSTAT:=$GO tool -modfile=tools/go.mod benchstat}"

tmp=$(mktemp -d)
trap 'git worktree remove --force "$tmp/tree" 2>/dev/null || true; rm -rf "$tmp"' EXIT
git worktree add -q --detach "$tmp/tree" "$REF"

build() { # build TREE NAME: the test program of PKG, and where it runs
	(cd "$1" && $GO test -c -o "$tmp/$2.test" "$PKG")
}
build "$tmp/tree" old
build . new
once() { # once TREE NAME
	(cd "$1/$PKG" && "$tmp/$2.test" -test.run '^$' -test.bench "$BENCH" -test.benchtime "$BENCHTIME" -test.benchmem) >>"$tmp/$2.txt"
}
for ((i = 0; i < COUNT; i++)); do
	if ((i % 2)); then
		once . new && once "$tmp/tree" old
	else
		once "$tmp/tree" old && once . new
	fi
	echo "round $((i + 1)) of $COUNT" >&2
done
$BENCHSTAT "$(git rev-parse --short "$REF")=$tmp/old.txt" "here=$tmp/new.txt"

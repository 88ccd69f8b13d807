#!/bin/sh
# The program whose trace is gobuild.trace: two go commands that build the
# standard library at the same time, with one cache that is cold. One alone
# gives too few conflicts. Nothing of the user's is read or written but the Go
# installation, so that the trace does not depend on what ran before.
set -eu

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/tmp" "$dir/home"
export TMPDIR="$dir/tmp" HOME="$dir/home" GOCACHE="$dir/cache"
export GOENV=off GOFLAGS= GOTOOLCHAIN=local
unset XDG_CONFIG_HOME GOTMPDIR GOPATH GOMODCACHE
cd "$dir"

go build std &
first=$!
go build std &
second=$!
wait "$first"
wait "$second"

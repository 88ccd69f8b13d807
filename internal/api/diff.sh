#!/usr/bin/env bash
# usage: internal/api/diff.sh [REF]
# Prints what has changed in the API of the module since REF, or since the last tag.
# Without either it prints how docs/api differs from that of the branch main. It fails
# only if it can't look: whether a change may be is for the reader and CHANGELOG.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${GO:=go}" "${APIDIFF:=$GO tool -modfile=tools/go.mod apidiff}"

ref=${1:-$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)}
if [ -z "$ref" ]; then
	echo "there is no tag yet: docs/api against main"
	if git rev-parse -q --verify main >/dev/null; then
		git --no-pager diff --stat main -- docs/api
	fi
	exit 0
fi
tmp=$(mktemp -d)
trap 'git worktree remove --force "$tmp/tree" 2>/dev/null || true; rm -rf "$tmp"' EXIT
git worktree add -q --detach "$tmp/tree" "$ref"
tools=$PWD/tools/go.mod
module=$($GO list -m)
# Internal packages are ignored, each with a line on standard error.
quiet() { "$@" 2> >(grep -v '^Ignoring internal package' >&2); }
(cd "$tmp/tree" && quiet ${APIDIFF/tools\/go.mod/$tools} -m -w "$tmp/old" "$module")
quiet $APIDIFF -m -w "$tmp/new" "$module"
echo "the API since $ref:"
quiet $APIDIFF -m "$tmp/old" "$tmp/new" | grep -Ev '^- \./(bench|cmd)[/.]' || true

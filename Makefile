# make help lists the targets. Everything is built without cgo, but for the
# race detector and the peers of the benchmarks, which need a C compiler.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export CGO_ENABLED := 0

GO       ?= go
FUZZTIME ?= 20s
KILLS    ?= 10000
DEMOFLAGS ?=
BENCHFLAGS ?=
# Options of the test summary, for example -skips .ci/skips.
TESTFLAGS ?=

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
GOTEST  := $(GO) run ./internal/gotest $(TESTFLAGS)
TOOL := $(GO) tool -modfile=tools/go.mod
STATICCHECK := $(TOOL) staticcheck
GOLANGCI := $(TOOL) golangci-lint

# The packages whose tests run under the simulated scheduler.
SIM := $(wildcard ./shm ./ring ./ltdb ./internal/explore)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: all
all: build lint cross test ## build, lint, cross and test

.PHONY: build
build: ## build the command line into bin/
	$(GO) build -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/...

.PHONY: demo
demo: build ## processes share records, one is killed, and nothing is lost
	bin/mainz demo $(DEMOFLAGS)

.PHONY: test
test: vet fmt-check ## vet, gofmt, all tests, the explorer and a short torture: some minutes
	$(GOTEST) -- -timeout 25m ./... -- -timeout 25m -tags shmsim $(SIM)

.PHONY: verify
verify: ## the tests that run the Go tool: imports, what is compiled, README's programs, the API's listing
	@args=(); for dir in $$(grep -rl --include='*_test.go' '^//go:build verify' . | xargs -n1 dirname | sort -u); do \
		names=$$(grep -l '^//go:build verify' $$dir/*_test.go | xargs sed -n 's/^func \(Test[A-Za-z0-9_]*\)(.*/\1/p' | paste -sd'|'); \
		args+=(-- -count=1 -timeout 15m -tags verify -run "^($$names)\$$" $$dir); \
	done; \
	$(GOTEST) "$${args[@]}"

.PHONY: test-race
test-race: ## all tests under the race detector; needs a C compiler (cgo)
	@command -v $${CC:-gcc} >/dev/null || { echo "the race detector needs cgo, and that a C compiler: apt-get install gcc libc6-dev"; exit 1; }
	CGO_ENABLED=1 $(GOTEST) -- -timeout 25m -race -short ./...

.PHONY: test-root
test-root: ## the tests again as root, where a skip is a failure
	@[ "$$(id -u)" = 0 ] || { echo "run it as root: sudo make test-root"; exit 1; }
	@pool=/proc/sys/vm/nr_hugepages; had=$$(cat $$pool); \
	if [ "$$had" -lt 8 ]; then trap "echo $$had >$$pool" EXIT; echo 8 >$$pool; fi; \
	$(GO) run ./internal/gotest -skips /dev/null -- -count=1 ./shm ./ltdb ./bench/demo ./dispatcher/... ./daemon ./transport/... ./internal/attach ./cmd/mainz

.PHONY: torture
torture: ## kill processes 10,000 times at random moments (KILLS=n)
	MAINZ_KILLS=$(KILLS) $(GO) test -count=1 -timeout 0 -v -run "Torture|EveryStore" ./shm ./ltdb ./protocol/sim .

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (20s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
			echo "== $$target in $$(dirname "$$file")"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" || exit 1; \
		done; \
	done

.PHONY: bench
bench: build ## measure the local store, beside its peers if make bench-peers built them
	bin/mainz bench local $(BENCHFLAGS)

.PHONY: bench-compare
bench-compare: ## Go benchmarks of REF and of the working tree by turns, and benchstat; BENCH, PKG, COUNT, BENCHTIME
	@REF='$(REF)' BENCH='$(BENCH)' PKG='$(PKG)' COUNT='$(COUNT)' BENCHTIME='$(BENCHTIME)' GO='$(GO)' BENCHSTAT='$(TOOL) benchstat' bench/compare.sh

.PHONY: api
api: ## write docs/api: what the public packages export
	$(GO) run ./internal/api

.PHONY: api-diff
api-diff: ## what has changed in the public API since REF, the last tag if there is one
	@GO='$(GO)' APIDIFF='$(TOOL) apidiff' internal/api/diff.sh $(REF)

.PHONY: bench-peers
bench-peers: ## build what the benchmarks compare with; installs libtdb-dev, needs a C compiler
	@missing=; for p in gcc:gcc libc6-dev:/usr/include/stdio.h libtdb-dev:/usr/include/tdb.h; do \
		[ -e "$${p#*:}" ] || command -v "$${p#*:}" >/dev/null || missing="$$missing $${p%%:*}"; \
	done; \
	if [ -n "$$missing" ]; then \
		[ "$$(id -u)" = 0 ] || { echo "missing:$$missing; run: sudo apt-get install$$missing"; exit 1; }; \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
	$(MAKE) -C bench/peers

.PHONY: trace
trace: ## record the demo's input anew: two Go builds of the standard library under strace
	@command -v strace >/dev/null || { echo "it needs strace: apt-get install strace"; exit 1; }
	$(GO) run ./bench/trace/capture -o bench/trace/gobuild.trace bench/trace/gobuild.sh
	$(GO) run ./bench/trace/capture -stat bench/trace/gobuild.trace

.PHONY: cross
cross: ## build and vet for the other systems: linux/arm64, darwin, windows
	@for target in linux/arm64 darwin/arm64 windows/amd64; do \
		echo "== $$target"; \
		GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build ./...; \
		GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) vet ./...; \
	done

.PHONY: fmt
fmt: ## gofmt all files
	gofmt -l -w .

.PHONY: fmt-check
fmt-check:
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not gofmted (make fmt does it):"; echo "$$files"; exit 1; }

.PHONY: vet
vet:
	$(GO) vet ./...
	$(GO) vet -tags shmsim ./...
	$(GO) vet -tags verify ./...

.PHONY: lint
lint: vet fmt-check ## vet, gofmt, staticcheck (also with the tag shmsim), golangci-lint, go.mod tidy
	$(STATICCHECK) ./...
	$(STATICCHECK) -tags shmsim ./...
	$(STATICCHECK) -tags verify ./internal/... ./ltdb ./ring
	$(GOLANGCI) run
	$(GO) mod tidy -diff

# `make` lists the targets. Everything works under sudo's short PATH, and then builds as the user
# who called sudo, so that no file in the tree or in the build cache comes to belong to root.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.SUFFIXES:

DESTDIR ?=
PREFIX ?= /usr
DIST ?= dist
# The tree may be another user's, in a container; and root must not come to own .git/index.
GIT := scripts/as-user git -c safe.directory='*'
VERSION ?= $(shell $(GIT) describe --tags --always --dirty 2>/dev/null || echo 0.0.0)

# The version comes from git describe above; stamping would fail where the tree is another user's. quiccc is the code that
# needs the patched modules; http2legacy has Go 1.27 and later compile x/net's h2 server, which is one of them.
TAGS := quiccc,http2legacy
export GOFLAGS := -buildvcs=false -tags=$(TAGS) $(GOFLAGS)

# Each process with the race detector would sleep for a second when it exits, and tests start a thousand.
export GORACE ?= atexit_sleep_ms=0

# Without a home (env -i, a unit) go has no place for its caches.
export HOME ?= $(shell getent passwd "$$(id -u)" | cut -d: -f6)

# Looked for once, and only by targets that need it. So are the patched modules: recipes see it in GOFLAGS, and a workspace
# of the developer's own would not go with it.
AS := scripts/as-user
export GOWORK := off
GO = $(eval GO := $$(or $$(shell scripts/find-go),$$(error no usable Go)))$(eval GOFLAGS += \
	-modfile=$$(or $$(shell $(AS) scripts/patched/prepare $$(GO)),$$(error no modules to build with)))$(GO)
# For modules of their own.
GO_ALONE = $(AS) env GOFLAGS=-buildvcs=false $(GO)
GO_BUILD = $(AS) env CGO_ENABLED=0 $(GO) build -trimpath

# The stages of `make test`, in their order. `setup` is the ground for the others.
STAGES := setup check-generated check-fmt lint test-unit test-patched test-root test-fuzz test-e2e test-kernels

# Packages whose tests load programs or make namespaces; the tests of all others run anywhere.
# Those of bpf run programs of the kernel half one after the other, which the race detector does not see: it only makes them
# five times as slow.
ROOT_RACE := ./maps/... ./loader/... ./userspace/geo/... ./userspace/steer/... ./cmd/... ./test/rig/... ./test/scenario/... ./test/packaging/...
ROOT_PACKAGES := ./bpf/... $(ROOT_RACE)
GO_TEST = $(GO) test -shuffle=on

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build everything into bin/ (needs Go, no clang)
	@$(GO_BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

.PHONY: run
run: build ## sudo make run: an edge with built-in defaults, until Ctrl-C
	@exec bin/bermd run --all-in-one

.PHONY: generate
generate: ## compile the BPF programs into the committed Go bindings, and write the lists in doc/ (needs clang-19)
	@$(AS) $(GO) generate ./...
	@$(AS) $(GO) test -vet=off -count=1 ./test/presubmit -run TestLists -update >/dev/null

.PHONY: fmt
fmt: .build/tools/golangci-lint ## format Go (gofumpt) and C (clang-format-19)
	@$(AS) env PATH="$(dir $(GO)):$$PATH" .build/tools/golangci-lint fmt ./...
	@$(GIT) ls-files '*.c' '*.h' | xargs -r $(AS) clang-format-19 -i

.PHONY: check-fmt
check-fmt: .build/tools/golangci-lint
	@$(AS) env PATH="$(dir $(GO)):$$PATH" .build/tools/golangci-lint fmt --diff ./...
	@$(GIT) ls-files '*.c' '*.h' | xargs -r clang-format-19 --dry-run -Werror

.PHONY: lint
lint: .build/tools/golangci-lint ## run the linters of .golangci.yml
	@$(AS) env PATH="$(dir $(GO)):$$PATH" GOWORK="$$PWD/.build/go.work" GOFLAGS='-buildvcs=false -tags=$(TAGS)' .build/tools/golangci-lint run ./...

.PHONY: setup
setup: ## sudo make setup: install from Debian what the tests need
	@scripts/setup.sh

.PHONY: test
test: ## sudo make test: everything that CI runs, installing what it needs
	@scripts/stages $(STAGES)

.PHONY: check-generated
check-generated: generate
	@$(GIT) diff --exit-code --stat -- bpf doc || { echo 'Generated files differ from what is committed: make generate, and commit.' >&2; exit 1; }

.PHONY: test-unit
test-unit: ## tests that need no privilege, with the race detector
	@$(GO_ALONE) -C scripts/tools test ./pack
	@$(GO) list ./... | grep -vxF -f <($(GO) list $(ROOT_PACKAGES) ./test/e2e/... ./test/kernels/...) | xargs -r $(GO_TEST) -race

.PHONY: test-patched
test-patched: ## what quic-go's and x/net's own tests say to scripts/patched
	@$(GO_ALONE) -C .build/quic-go test -shuffle=on . ./internal/ackhandler ./internal/congestion ./internal/utils
	@$(GO_ALONE) -C .build/net test -shuffle=on ./http2/hpack

.PHONY: test-root
test-root: ## tests that load programs and make namespaces (as root)
	@$(GO_TEST) ./bpf/...
	@$(GO_TEST) -race $(ROOT_RACE)

# By count: with a time, go test now and then takes its own deadline for a failure.
.PHONY: test-fuzz
test-fuzz: ## 60,000 mutated packets through the loaded program (as root)
	@$(GO) test -run '^$$' -fuzz '^FuzzXDP$$' -fuzztime 60000x -parallel 1 ./bpf

.PHONY: test-e2e
test-e2e: build ## labs in network namespaces, with real clients (as root)
	@BERM_BIN="$$PWD/bin" $(GO_TEST) -timeout 20m ./test/e2e/...

.PHONY: test-kernels
test-kernels: ## old kernels under emulation: load, packet tests, what the verifiers need
	@$(GO_TEST) -timeout 10m ./test/kernels/...

.PHONY: verifier
verifier: ## record what the programs need of each kernel's verifier (as root)
	@$(GO) test -count=1 -timeout 10m -v ./test/kernels -update | grep -A99 'what the verifiers need'

.PHONY: lab
lab: build ## sudo make lab: the main scenario, with its figures
	@exec bin/bermlab run main

.PHONY: bench
bench: build ## sudo make bench: ns per packet of the kernel half
	@exec bin/berm bench kernel

.PHONY: man
man: build ## write the man pages and completions into .build/share
	@$(AS) scripts/pages .build/share

.PHONY: install
install: build man ## sudo make install [DESTDIR=] [PREFIX=/usr]
	@scripts/install "$(DESTDIR)" "$(PREFIX)"

.PHONY: package
package: build man .build/tools/pack ## write dist/berm_VERSION_ARCH.deb
	@rm -rf .build/root
	@$(AS) scripts/install .build/root /usr
	@$(AS) .build/tools/pack -version '$(VERSION)' -arch "$$($(GO) env GOARCH)" -out '$(DIST)'

.build/tools/pack: scripts/tools/go.mod scripts/tools/pack/main.go
	@$(GO_ALONE) -C scripts/tools build -o ../../$@ ./pack

.build/tools/golangci-lint: scripts/tools/go.mod
	@echo 'building golangci-lint, once'
	@$(GO_ALONE) -C scripts/tools build -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

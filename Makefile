# Gantry. `make help` lists the targets; everything is built into bin/.

SHELL       := /bin/bash
BIN         := bin
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOFLAGS_ALL := -trimpath -ldflags "-s -w -X github.com/gantry-os/gantry/daemon.Version=$(VERSION) -X main.version=$(VERSION)"
# Where `make up` keeps everything; the default of `gantry up`.
DATA        ?= $(if $(filter 0,$(shell id -u)),/var/lib/gantry,$(HOME)/.local/share/gantry)
# runc filters system calls only when it is built with libseccomp.
RUNC_TAGS   := $(shell pkg-config --exists libseccomp 2>/dev/null && echo seccomp)
GOTEST      := go test -count=1 -shuffle=on -timeout 20m

.PHONY: help deps build up down test test-slow robustness check fmt lint generate bench bench-cluster bench-scheduler bench-packing bench-dns fuzz clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

deps: ## install missing Debian packages (as root; otherwise only say which)
	@scripts/deps.sh

build: deps $(BIN)/runc ## build bin/gantry and its helpers
	@echo "building $(BIN)/gantry"
	@go build $(GOFLAGS_ALL) -o $(BIN)/gantry ./cmd/gantry
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(BIN)/gantry-oci-shim ./cmd/gantry-oci-shim
	@CGO_ENABLED=0 go build $(GOFLAGS_ALL) -o $(BIN)/gantry-welcome ./examples/welcome
	@$(MAKE) --no-print-directory -s -C shim BIN=$(abspath $(BIN))

# The version is pinned by go.mod.
$(BIN)/runc: go.mod scripts/deps.sh
	@echo "building $@"
	@go build -trimpath -ldflags "-s -w" -tags "$(RUNC_TAGS)" -o $@ github.com/opencontainers/runc

up: build ## build, start Gantry in the background and run the welcome app
	@$(BIN)/gantry up --detach --data-dir $(DATA)
	@$(BIN)/gantry run --data-dir $(DATA) examples/welcome.yaml
	@$(BIN)/gantry ps --data-dir $(DATA)

down: ## stop Gantry and all it runs
	@$(BIN)/gantry down --data-dir $(DATA)

test: build ## run the tests: the rooms under the race detector, then the built binary end to end
	@$(GOTEST) -race -short $$(go list ./... | grep -v /test/)
	@$(GOTEST) ./test/...

test-slow: ## run what make test leaves out: members of etcd that fill their disks and quotas, lose each other, grow
	@$(GOTEST) ./state/etcd

robustness: build ## break a cluster on eight machines made of namespaces, and check what was promised (SEED=7 DURATION=120s ONLY=kill-leader)
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(BIN)/robustness ./test/robustness
	@$(BIN)/robustness -bin $(BIN) $(if $(SEED),-seed $(SEED)) -duration $(or $(DURATION),120s) $(if $(ONLY),-only $(ONLY)) $(if $(DIR),-dir $(DIR) -keep)

check: build fmt lint generate test ## format, vet, staticcheck, import floors, generated files, race, everything

fmt:
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo "run gofmt -w on these"; exit 1; }

lint:
	@go vet ./...
	@go tool staticcheck ./...
	@go mod verify >/dev/null
	@go mod tidy -diff

generate: ## fail when the OpenAPI document in the tree is not the one that the code makes
	@go test -count=1 -run 'OpenAPI' ./api

bench: build ## measure the figures of docs/benchmarks.md
	@go test -count=1 -timeout 60m -run '^$$' -bench . -benchtime 1x -v ./test/e2e
	@go test -count=1 -timeout 20m -run '^$$' -bench 'Start|Helpers' -v ./runtime/containerd ./runtime/process
	@go test -count=1 -timeout 30m -run '^$$' -bench . -benchtime 1x -v ./test/cluster
	@go test -count=1 -timeout 10m -run '^$$' -bench Isolated -benchtime 1x -v ./state/etcd
	@$(MAKE) --no-print-directory bench-cluster

bench-scheduler: ## measure the engine, and the whole control plane with simulated nodes: a line each, name value unit goal
	@go run ./test/scale/bench $(if $(DIR),-dir $(DIR)) $(if $(ROWS),-rows $(ROWS)) $(if $(SHRINK),-shrink $(SHRINK))

bench-cluster: build ## measure a cluster with 10,000 simulated agents, and one that adopts: a line each (DIR=, ROWS=, SHRINK=20, STEADY=1m)
	@go run ./test/crowd/bench $(if $(DIR),-dir $(DIR)) $(if $(ROWS),-rows $(ROWS)) $(if $(SHRINK),-shrink $(SHRINK)) $(if $(STEADY),-steady $(STEADY))

bench-packing: ## measure how well each policy packs (NODES=nodes.csv PODS='pods.csv ...' SEEDS=10)
	@go run ./test/bench-packing -nodes "$(NODES)" -pods "$(PODS)" -seeds $(or $(SEEDS),10)

bench-dns: ## measure the DNS server beside CoreDNS with the same records, both with one core (ROUNDS=5)
	@cd test/bench-dns && go run . -rounds $(or $(ROUNDS),5)
	@go test -run '^$$' -bench . ./route

fuzz: ## fuzz every parser of outside input for a while each (FUZZTIME=30s)
	@scripts/fuzz.sh $(or $(FUZZTIME),30s)

clean: ## remove bin/
	@rm -rf $(BIN)

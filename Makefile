# Skein. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

ROOT := $(abspath .)
BIN := $(ROOT)/.bin
export PATH := $(BIN):$(PATH)
MODULES := proto telemetry ota agent controlplane sim deploy
CMDS := skeind skein skein-agent skein-sim skein-signer skein-tuf
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Without grpcnotrace gRPC brings in html/template, with which the linker keeps every method: 5 MB.
GOFLAGS_BUILD := -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)'
DASH := controlplane/dashboard

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | column -t -s$$'\t'

##@ Build

.PHONY: build
build: dashboard ## build dashboard and all binaries into .bin
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -o $(BIN)/ ./controlplane/cmd/skeind ./controlplane/cmd/skein ./agent/cmd/skein-agent ./sim/cmd/skein-sim ./ota/cmd/skein-signer ./ota/cmd/skein-tuf

	@$(MAKE) $(BIN)/skein-fetch
	@if command -v cc >/dev/null; then CGO_ENABLED=1 go build $(GOFLAGS_BUILD) -o $(BIN)/skein-nvml ./telemetry/cmd/skein-nvml; else echo "no cc: without skein-nvml"; fi

# go-getter and the clouds' libraries stay in a module of their own, outside the workspace.
FETCH := ota/cmd/skein-fetch
$(BIN)/skein-fetch: $(wildcard $(FETCH)/*.go) $(FETCH)/go.mod
	GOWORK=off CGO_ENABLED=0 go -C $(FETCH) build $(GOFLAGS_BUILD) -o $@ .

.PHONY: build-arm64
build-arm64: ## build the static arm64 agent and check its size (< 25 MB)
	@mkdir -p $(BIN)/arm64
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build $(GOFLAGS_BUILD) -o $(BIN)/arm64/skein-agent ./agent/cmd/skein-agent
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build $(GOFLAGS_BUILD) -o $(BIN)/arm64/skein-sim ./sim/cmd/skein-sim
	@if command -v aarch64-linux-gnu-gcc >/dev/null; then CC=aarch64-linux-gnu-gcc CGO_ENABLED=1 GOOS=linux GOARCH=arm64 go build $(GOFLAGS_BUILD) -o $(BIN)/arm64/skein-nvml ./telemetry/cmd/skein-nvml; else echo "no aarch64-linux-gnu-gcc: without skein-nvml for arm64"; fi
	@size=$$(stat -c %s $(BIN)/arm64/skein-agent); echo "skein-agent arm64: $$size bytes"; [ $$size -lt 25000000 ]

.PHONY: packages
packages: build build-arm64 $(BIN)/nfpm ## Debian packages for amd64 and arm64 into dist/
	NFPM=$(BIN)/nfpm deploy/package.sh $(VERSION) dist amd64=$(BIN) arm64=$(BIN)/arm64

$(BIN)/nfpm: deploy/tools/nfpm/go.mod
	GOWORK=off go -C deploy/tools/nfpm build -o $@ github.com/goreleaser/nfpm/v2/cmd/nfpm

.PHONY: dashboard
dashboard: $(DASH)/dist/app/index.html ## build the dashboard

$(DASH)/node_modules/.package-lock.json: $(DASH)/package-lock.json
	cd $(DASH) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(DASH)/dist/app/index.html: $(DASH)/node_modules/.package-lock.json $(shell find $(DASH)/src $(DASH)/index.html $(DASH)/vite.config.ts -type f 2>/dev/null)
	cd $(DASH) && npm run build
	@touch $@

##@ Run

.PHONY: demo
demo: build ## the main job end to end with 60 virtual Jetsons (ONCE=1: run and exit; RUNTIME=containerd, as root: 3 devices in real containers)
	$(BIN)/skein-sim demo $(if $(ONCE),--once,) $(if $(RUNTIME),--runtime $(RUNTIME),) $(DEMO_FLAGS)

##@ Test

.PHONY: test
test: lint check-generate check-modules build build-arm64 test-go test-containerd test-fetch test-foreign test-serving test-arm64 test-hil test-packages test-dashboard test-demo ## everything CI runs

.PHONY: test-short
test-short: ## unit tests only, under 2 minutes
	go test -short work

.PHONY: test-go
test-go: ## whole Go suite, short tests with the race detector
	go test -race -short -timeout 20m work
	go test -parallel 4 -timeout 20m work

.PHONY: test-slow
test-slow: ## what takes longer: fuzzing, long scenarios, ONNX Runtime
	SKEIN_SLOW=1 go test -timeout 60m work
	deploy/fuzz.sh 20s

.PHONY: test-containerd
test-containerd: ## containers under Debian's containerd and runc (root); prints how many tests ran
	deploy/test-containerd.sh

.PHONY: test-fetch
test-fetch: ## skein-fetch against servers of S3 and Google's storage
	deploy/test-fetch.sh

.PHONY: test-arm64
test-arm64: build-arm64 ## the arm64 binary is static, and tests of its parts run under qemu-user
	deploy/test-arm64.sh $(BIN)/arm64/skein-agent

.PHONY: test-packages
test-packages: packages ## look into the packages; install, run and purge one in an overlay of this system
	BIN=$(BIN) deploy/test-packages.sh dist

.PHONY: test-hil
test-hil: build build-arm64 ## the shipped binaries on modelled boards, under qemu-user and by ssh (SKEIN_SLOW=1: more scenarios)
	BIN=$(BIN) deploy/test-hil.sh

.PHONY: test-foreign
test-foreign: ## against onnx.checker, ONNX Runtime, python-tuf and, if SKEIN_TUF_CONFORMANCE names it, the TUF conformance suite
	deploy/test-foreign.sh

.PHONY: test-serving
test-serving: ## against Triton, MLServer and tritonclient from PyPI
	deploy/test-serving.sh

.PHONY: test-dashboard
test-dashboard: build ## drive the dashboard in Chromium over a live fleet
	deploy/ensure-packages.sh chromium fonts-dejavu-core
	deploy/test-dashboard.sh

.PHONY: test-demo
test-demo: ## the demo, once
	$(MAKE) demo ONCE=1
	@rm -f demo-report.json

.PHONY: unit-security
unit-security: ## what systemd says of the agent's service: items and score
	deploy/ensure-packages.sh systemd
	systemd-analyze security --offline=true --no-pager deploy/systemd/skein-agent.service

.PHONY: lint
lint: ## gofmt, vet, go fix, buf lint
	@out=$$(gofmt -l $(MODULES)); if [ -n "$$out" ]; then echo "gofmt these files:"; echo "$$out"; exit 1; fi
	go vet work
	go fix -diff work

.PHONY: fix
fix: ## apply gofmt and go fix
	gofmt -w $(MODULES)
	go fix work

.PHONY: check-modules
check-modules: ## each module alone, without the workspace
	@for m in $(MODULES) $(FETCH); do echo "check module $$m"; (cd $$m && GOWORK=off go mod tidy -diff && GOWORK=off go build -o /dev/null ./...); done

.PHONY: tidy
tidy: ## go mod tidy in every module
	go work sync
	@for m in $(MODULES) $(FETCH); do (cd $$m && GOWORK=off go mod tidy); done

##@ Generate

.PHONY: tools
tools: $(BIN)/buf $(BIN)/protoc-gen-go ## build the pinned code generators

$(BIN)/buf: deploy/tools/buf/go.mod
	GOWORK=off go -C deploy/tools/buf build -o $(BIN)/ tool

$(BIN)/protoc-gen-go: deploy/tools/gen/go.mod
	GOWORK=off go -C deploy/tools/gen build -o $(BIN)/ tool

.PHONY: generate
generate: tools $(DASH)/node_modules/.package-lock.json ## regenerate the Connect code
	cd proto && buf lint && buf generate
	cd $(DASH) && npm run generate

.PHONY: check-generate
check-generate: generate ## the committed generated code is what the schema says
	git diff --exit-code -- proto/gen $(DASH)/src/gen

##@ Measure

.PHONY: attack-suite
attack-suite: build ## every known attack on updates, one line each (ONLY=name,name: only these)
	$(BIN)/skein-sim attack $(if $(ONLY),--only $(ONLY),)

.PHONY: bench-load
bench-load: build ## 10,000 wire-level devices with mutual TLS
	$(BIN)/skein-sim bench load --out bench-out/load.json

.PHONY: bench-ota
bench-ota: build ## bytes and memory of updates, against zstd and chunk stores on the same files
	deploy/ensure-packages.sh zstd
	$(BIN)/skein-sim bench ota --out bench-out/ota.json
	$(BIN)/skein-sim bench large --out bench-out/ota-large.json
	$(BIN)/skein-sim bench power --out bench-out/ota-power.json
	$(BIN)/skein-sim bench stream --out bench-out/ota-stream.json
	$(BIN)/skein-sim bench site --out bench-out/ota-site.json
	$(BIN)/skein-sim bench site --devices 100 --kib 4096 --mbit 0.8 --out bench-out/ota-site-slow.json

.PHONY: bench-agent
bench-agent: build ## footprint of the shipped agent and of 1,000 agents in one process
	$(BIN)/skein-sim bench agent --agent $(BIN)/skein-agent --out bench-out/agent.json
	deploy/ensure-packages.sh nginx || true # the tap's peer
	$(BIN)/skein-sim bench tap --out bench-out/agent-tap.json
	deploy/ensure-packages.sh containerd runc # the next one is root's
	set -o pipefail; SKEIN_KILLS=100 SKEIN_NEED_CONTAINERD=1 go test -count=1 -v -run TestKills ./agent/internal/containerd | grep -E '^(figure|FAIL|ok)'

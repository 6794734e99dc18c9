# The few commands that people type. Each installs what it needs and can be run twice.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/durward
# Outside the checkout, so that a fresh clone on a warm machine does not compile the world again.
export CARGO_TARGET_DIR ?= $(CACHE)/target
# Checkouts take turns there. Cargo knows sources by their place within the checkout and by their times, so what
# another checkout built last would pass for built of this one.
CHECKOUT := $(CARGO_TARGET_DIR)/checkout

# Where setup puts compilers, if the machine has none that are new enough.
export PATH := $(CACHE)/toolchains/rust/bin:$(CACHE)/toolchains/go/bin:$(PATH)

DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
BED := cargo run --locked -p durward-e2e --bin durward-bed --

.PHONY: help setup demo test conformance lint cluster cluster-down images bench-datapath bench-cluster bench-controller bench-engine fuzz-engine

help: ## These lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is needed, if it is not there
	@e2e/scripts/setup
	@mkdir -p $(CARGO_TARGET_DIR)
	@[[ -f $(CHECKOUT) && $$(<$(CHECKOUT)) == $(CURDIR) ]] || find . -name .git -prune -o -type f -print0 | xargs -0 touch --no-create
	@echo $(CURDIR) > $(CHECKOUT)

demo: setup ## A guided tour on a throwaway two-node Kubernetes made here
	@cargo run --locked -p durward-e2e --bin durward-demo

# Programs of tests run one after the other. Those in e2e have a cluster each, which is down before the next one starts.
test: setup ## Everything that is tested
	@cargo test --locked --workspace

conformance: setup ## Kubernetes' own suite of NetworkPolicy, once with each CNI plugin
	@cargo run --locked -p durward-e2e --bin durward-conformance

lint: setup $(DENY) ## Format, clippy, licences and sources of dependencies (warnings of C are errors in any build)
	@cargo fmt --all --check
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@$(DENY) --locked check --hide-inclusion-graph bans licenses sources

cluster: setup ## Leave a cluster up, with Durward installed
	@$(BED) up --with-durward

cluster-down: setup ## Take that cluster down
	@$(BED) down

images: setup ## Build the images; prints where their archives are
	@$(BED) images

bench-datapath: setup ## What a packet costs in the kernel; the last line is JSON
	@cargo bench --quiet --locked -p durward-bpf --bench datapath

bench-cluster: setup ## How soon a policy is in force, and what the daemons need; the last line is JSON
	@cargo bench --profile dev --locked -p durward-e2e --bench cluster

bench-controller: setup ## What the controller needs to start in a full cluster; the last line is JSON
	@cargo build --release --locked -p durward-controller
	@DURWARD_CONTROLLER=$(CARGO_TARGET_DIR)/release/durward-controller \
	  cargo bench --profile dev --locked -p durward-e2e --bench controller

# Three programs, whose JSON becomes one line.
bench-engine: setup ## What the engine costs, alone and in the daemon while a cluster changes; the last line is JSON
	@{ cargo bench --quiet --locked -p durward-engine --bench engine --bench memory; \
	   cargo bench --quiet --locked -p durward-controller --bench churn; } \
	 | awk '/^{/ { gsub(/^{|}$$/, ""); json = json (json ? "," : "") $$0; next } { print; fflush() } END { print "{" json "}" }'

fuzz-engine: setup ## Compare the engine with its oracle on random clusters and histories, until stopped
	@DURWARD_CASES=forever cargo test --locked -p durward-engine --test agreement -- --nocapture

$(DENY):
	@echo "building cargo-deny $(DENY_VERSION) (once, some minutes)"
	@cargo install --quiet --locked cargo-deny --version $(DENY_VERSION) --no-default-features \
	  --root $(CACHE)/cargo-deny-$(DENY_VERSION) --target-dir $(CACHE)/cargo-deny-build
	@rm -rf $(CACHE)/cargo-deny-build

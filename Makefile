# nodeseal: every target installs what it needs (Debian packages and a virtual environment), then does its work.
#
# The virtual environment is made by Debian's /usr/bin/python3, because bcc comes from apt for that interpreter only;
# --system-site-packages lets the environment see it. Another python3 that stands first in PATH is never used.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build

APT_RUN := python3 python3-venv python3-dev python3-bpfcc linux-libc-dev gcc pkg-config libssl-dev libnghttp2-dev \
           iproute2 iptables tcpdump curl
# What the differential suite (tests/differential) lets its applications run.
APT_DIFFERENTIAL := haproxy nginx-light netcat-openbsd openssh-client redis-tools mariadb-client-core postgresql-client \
                    $(if $(shell command -v go),,golang-go)
APT_TEST := $(APT_RUN) nftables containernetworking-plugins openssl procps binutils valgrind systemd $(APT_DIFFERENTIAL)
APT_LINT := $(APT_RUN)
APT_GUARD := $(APT_RUN) binutils valgrind
APT_BENCH := $(APT_RUN) haproxy nginx-light libnginx-mod-stream
# The nodes of a cluster on this machine (tests/cluster).
APT_CLUSTER := $(APT_RUN) containerd runc containernetworking-plugins conntrack nftables mmdebstrap util-linux libc6-dev
# What the image is built by where there is no Docker engine.
APT_IMAGE := $(APT_RUN) mmdebstrap buildah debian-archive-keyring git
APT_PROFILE := $(APT_RUN) linux-perf valgrind

C_SOURCES := $(wildcard cext/src/*/*.[ch] cext/include/*.h cext/cni/*.[ch])
C_FORMATTED := $(C_SOURCES) $(wildcard cext/fuzz/*.c tests/cext/*.[ch] bpf/*.[ch] bpf/lib/*.h bench/*.[ch] bench/instructions/*.[ch] deploy/image/*.c)

SPIRE := $(BUILD)/spire
SPIRE_VERSION := v1.13.3
SPIRE_PROGRAMS := $(SPIRE)/bin/spire-server $(SPIRE)/bin/spire-agent

# Another Debian, with another OpenSSL and its FIPS module: made once, in build/trixie, and entered by chroot.
TRIXIE := $(BUILD)/trixie/root
comma := ,
empty :=
TRIXIE_PACKAGES := $(APT_RUN) ca-certificates make nftables procps binutils openssl openssl-provider-fips

# Outside of the checkout: they take minutes to build, and every clone needs the same. As in tests/support/api_server.py.
KUBERNETES_VERSION := 1.36.3
NODESEAL_KUBERNETES ?= $(HOME)/.cache/nodeseal/kubernetes-$(KUBERNETES_VERSION)
KUBERNETES_PROGRAMS := $(NODESEAL_KUBERNETES)/bin/kube-apiserver $(NODESEAL_KUBERNETES)/bin/etcd
NODE_PROGRAMS := $(addprefix $(NODESEAL_KUBERNETES)/bin/,kubelet kube-proxy kube-controller-manager kube-scheduler kubectl)
HELM_VERSION := 4.3.2
NODESEAL_HELM ?= $(HOME)/.cache/nodeseal/helm-$(HELM_VERSION)
export NODESEAL_KUBERNETES NODESEAL_HELM

.PHONY: help demo demo-identity test test-workers test-iptables trixie chaos storm spire test-kubernetes cluster cluster-works cluster-programs cluster-upgrades image lint guard bench profile scale scale-kubernetes fleet format reference man pictures clean install

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp file per package list: apt is asked only when a package is missing, so that a prepared machine works offline.
define apt_install
	@missing=""; for p in $(1); do dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "make: these Debian packages are missing:$$missing. Install them, or run make as root." >&2; exit 1; }; \
	  echo "apt-get install$$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -q >/dev/null && apt-get install -q -y --no-install-recommends $$missing >/dev/null; \
	fi
endef

$(VENV)/bin/python:
	$(call apt_install,$(APT_RUN))
	$(PYTHON) -m venv --system-site-packages $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml cext/build_core.py cext/build_keys.py $(C_SOURCES)
	$(call apt_install,$(APT_RUN))
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(call apt_install,$(APT_TEST))
	$(BIN)/pip install -q -e '.[test]'
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(call apt_install,$(APT_LINT))
	$(BIN)/pip install -q -e '.[lint,test,bench]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(call apt_install,$(APT_BENCH))
	$(BIN)/pip install -q -e '.[bench]'
	@touch $@

install: $(VENV)/.installed ## a virtual environment with the nodeseal command in .venv/bin

demo: $(VENV)/.installed ## the main job, shown with real processes and packets (root, under a minute)
	$(BIN)/nodeseal lab demo

demo-identity: $(VENV)/.installed ## certificates, a new root, a revocation, a second trust domain (root, a minute and a half)
	$(BIN)/nodeseal lab demo identity

# In parallel, but for what measures what others disturb: that runs afterwards, one by one. $(1): pytest's arguments.
define run_tests
$(BIN)/python -m pytest -n auto -m 'not alone' $(1)
$(BIN)/python -m pytest -m alone $(1)
endef
ASKED := $(if $(WORKERS),--workers $(WORKERS))

# What tests/kubernetes needs, where it can be built; where it cannot, that suite is skipped in one line, which CI takes
# for a failure.
TEST_PROGRAMS := $(KUBERNETES_PROGRAMS) $(NODESEAL_KUBERNETES)/bin/kubectl $(NODESEAL_HELM)/bin/helm
TESTED := $(if $(FAST),,$(if $(shell command -v go),$(TEST_PROGRAMS)))

test: $(VENV)/.installed-test | $(TESTED) ## all tests (root, 12 minutes; Go for those with Kubernetes); FAST=1: a selection (under 3); WORKERS=4: worker threads of a core
ifdef FAST
	$(BIN)/python -m pytest -n auto -m 'fast and not alone' $(ASKED)
else
	$(call run_tests,$(ASKED))
	$(BIN)/python -m pytest -n auto -m both_backends tests/netns --backend iptables $(ASKED)
endif

test-workers: $(VENV)/.installed-test ## the netns and interop tests with 1, 2 and 4 worker threads of a core (root)
	$(call run_tests,tests/netns tests/interop --workers 1)
	$(call run_tests,tests/netns tests/interop --workers 2)
	$(call run_tests,tests/netns tests/interop --workers 4)

test-iptables: $(VENV)/.installed-test ## the netns and interop tests with capture by iptables instead of eBPF (root)
	$(call run_tests,tests/netns tests/interop --backend iptables)

chaos: $(VENV)/.installed-test ## restarts, upgrades, crashes and a bad link at random under load (root, 15 minutes; MINUTES=10 SEED=N)
	PYTHONPATH=tests $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(CONNECTIONS),--connections $(CONNECTIONS)) $(if $(ONLY),--only $(ONLY)) \
	  $(if $(BACKEND),--backend $(BACKEND)) $(if $(JSON),-o json)

lint: $(VENV)/.installed-lint ## ruff, mypy --strict, import-linter, clang-format, C includes, shellcheck, compiler warnings as errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=agent:lab:tests $(BIN)/mypy --strict bench
	MYPYPATH=agent $(BIN)/mypy --strict tools
	MYPYPATH=agent:lab:tests:. $(BIN)/mypy --strict -p chaos -p cluster -p differential -p support
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(C_FORMATTED)
	$(BIN)/python cext/include_graph.py
	$(BIN)/shellcheck .ci/run deploy/kubectl-nodeseal deploy/image/*.sh tests/trixie/*.sh
	@mkdir -p $(BUILD)/lint
	for f in $(filter %.c,$(C_SOURCES)); do \
	  gcc -std=gnu11 -Wall -Wextra -Wconversion -Wshadow -Werror -O2 -Icext/include -Icext/src -c $$f -o $(BUILD)/lint/$$(basename $$f .c).o; done

storm: $(VENV)/.installed-test ## 200,000 connections, none reset, and 100,000 given up, nothing left (root, 10 minutes; STORM=N)
	NODESEAL_TEST_STORM=$(or $(STORM),200000) $(BIN)/python -m pytest tests/differential/test_storm.py

# Built once, by the machine's Go (1.25 or later: Debian 12's is older). With `go get` in a module of its own instead of
# `go install ...@$(SPIRE_VERSION)`: that one also asks the module proxy for the list of all versions.
$(SPIRE_PROGRAMS) &:
	@command -v go >/dev/null || { echo "make: go is missing: install Go 1.25 or later, from go.dev/dl" >&2; exit 1; }
	mkdir -p $(SPIRE)
	cd $(SPIRE) && rm -f go.mod go.sum && go mod init nodeseal.test/spire && \
	  go get -tool github.com/spiffe/spire/cmd/spire-server@$(SPIRE_VERSION) \
	    github.com/spiffe/spire/cmd/spire-agent@$(SPIRE_VERSION) && \
	  GOBIN=$(CURDIR)/$(SPIRE)/bin go install tool

# Its package list is in the stamp: another list makes it anew. Removed by its parts: nothing is mounted there now.
$(BUILD)/trixie/.made: Makefile
	$(call apt_install,mmdebstrap debian-archive-keyring)
	@mkdir -p $(BUILD)/trixie
	if [ "$$(cat $@ 2>/dev/null)" != "$(TRIXIE_PACKAGES)" ]; then \
	  rm -rf --one-file-system $(TRIXIE) && \
	  mmdebstrap --quiet --variant=minbase --include=$(subst $(empty) $(empty),$(comma),$(strip $(TRIXIE_PACKAGES))) \
	    trixie $(TRIXIE) http://deb.debian.org/debian; fi
	@echo "$(TRIXIE_PACKAGES)" > $@

trixie: $(BUILD)/trixie/.made ## what depends on OpenSSL, on Debian trixie with OpenSSL 3.5 and FIPS (root, 10 minutes; TESTS=...)
	tests/trixie/enter.sh $(TRIXIE) tests/trixie/run.sh $(TESTS)

spire: $(VENV)/.installed-test $(SPIRE_PROGRAMS) ## the test against SPIRE; the first time builds it, in build/spire (root, Go, an hour)
	$(BIN)/python -m pytest tests/interop/test_spire.py

$(KUBERNETES_PROGRAMS) &: | $(VENV)/.installed-test
	@command -v go >/dev/null || { echo "make: go is missing: install Go 1.26 or later, from go.dev/dl" >&2; exit 1; }
	$(BIN)/python -m tools.kubernetes_programs $(NODESEAL_KUBERNETES) $(KUBERNETES_VERSION) $(notdir $(KUBERNETES_PROGRAMS))

$(NODE_PROGRAMS) &: | $(VENV)/.installed-test
	@command -v go >/dev/null || { echo "make: go is missing: install Go 1.26 or later, from go.dev/dl" >&2; exit 1; }
	$(BIN)/python -m tools.kubernetes_programs $(NODESEAL_KUBERNETES) $(KUBERNETES_VERSION) $(notdir $(NODE_PROGRAMS))

cluster-programs: $(VENV)/.installed-test $(KUBERNETES_PROGRAMS) $(NODE_PROGRAMS) ## what a cluster on this machine is made of, built and installed (root, Go, 8 minutes)
	$(call apt_install,$(APT_CLUSTER))

# The modules of tests/cluster are found by path; IMAGE=FILE: an image that is there already.
cluster: cluster-programs $(if $(IMAGE)$(CHECKOUT),,image) ## the story in Kubernetes: two real nodes (root, Go, 2 minutes and the image's 4; CHECKOUT=1: an image of the checkout, in seconds)
	PYTHONPATH=tests $(BIN)/python -m cluster story $(if $(PROXY),--proxy $(PROXY)) \
	  $(if $(CHECKOUT),,--image $(or $(IMAGE),$(BUILD)/nodeseal-image.tar))

cluster-works: cluster-programs ## what docs/ says of a cluster, tried: pages, Services beside kube-proxy, probes and more (root, Go, 10 minutes; PART=rows)
	PYTHONPATH=tests:. $(BIN)/python -m cluster works $(if $(PROXY),--proxy $(PROXY)) $(if $(PART),--part $(PART)) \
	  $(if $(IMAGE),--image $(IMAGE))

# FORMER=FILE: an archive of the version before, in place of one of a former commit.
cluster-upgrades: cluster-programs $(NODESEAL_HELM)/bin/helm ## agents, cores and nodes replaced under 1,000 connections, in Kubernetes (root, Go, 10 minutes)
	PYTHONPATH=tests $(BIN)/python -m cluster upgrades $(if $(PROXY),--proxy $(PROXY)) \
	  $(if $(IMAGE),--image $(IMAGE)) $(if $(FORMER),--former $(FORMER))

$(NODESEAL_HELM)/bin/helm: | $(VENV)/.installed-test
	@command -v go >/dev/null || { echo "make: go is missing: install Go 1.26 or later, from go.dev/dl" >&2; exit 1; }
	$(BIN)/python -m tools.kubernetes_programs $(NODESEAL_HELM) $(HELM_VERSION) helm

test-kubernetes: $(VENV)/.installed-test | $(TEST_PROGRAMS) ## the tests with a real API server; the first time builds it (root, Go, 6 minutes)
	$(BIN)/python -m pytest tests/kubernetes

image: $(VENV)/.installed ## the container image, as an OCI archive in build/ (root, 4 minutes); TWICE=1: twice, to compare digests
	$(call apt_install,$(APT_IMAGE))
	$(BIN)/python -m tools.image $(BUILD)/nodeseal-image.tar $(if $(TWICE),--twice)

guard: $(VENV)/.installed ## instructions of the data path, compared with the recorded ones (20 s)
	$(call apt_install,$(APT_GUARD))
	$(BIN)/python -m bench.guard

bench: $(VENV)/.installed-bench ## speed beside other proxies (root, 30 minutes, alone on the machine; QUICK=1: under 3)
	$(BIN)/python -m bench $(if $(QUICK),--quick)

profile: $(VENV)/.installed-bench ## flame graphs of the core under each load, in build/profile (root, 3 minutes)
	$(call apt_install,$(APT_PROFILE))
	$(BIN)/python -m bench.profile

scale: $(VENV)/.installed-bench ## 200 workloads, 10,000 connections, 50,000 workloads in the mesh (root, 5 minutes)
	$(BIN)/python -m bench.scale

scale-kubernetes: $(VENV)/.installed-test $(VENV)/.installed-bench | $(KUBERNETES_PROGRAMS) ## an agent among 1,000 nodes with 50,000 pods, simulated on a real API server (root, Go, 10 minutes; QUICK=1: a minute)
	$(BIN)/python -m bench.kubernetes_scale $(if $(QUICK),--quick)

fleet: $(VENV)/.installed-bench ## the certificate service when 1,000 nodes with 50 identities each start at once (3 minutes)
	$(BIN)/python -m bench.authority

format: $(VENV)/.installed-lint ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FORMATTED)

reference: $(VENV)/.installed-test ## docs/reference/ and the other pages of docs/ that are made of the code
	$(BIN)/python -m tools.reference
	PYTHONPATH=tests $(BIN)/python -m differential.table
	PYTHONPATH=tests $(BIN)/python -m support.service_page
	PYTHONPATH=tests $(BIN)/python -m cluster.works.page

pictures: ## docs/pictures/*.svg, drawn from the .dot files beside them
	$(call apt_install,graphviz fonts-dejavu-core)
	for f in docs/pictures/*.dot; do \
	  { dot -Tsvg $$f; echo "<!-- made of $$(sha256sum < $$f | cut -d ' ' -f 1) -->"; } > $${f%.dot}.svg; done

man: $(VENV)/.installed ## the manual's pages, in build/man, made of the code
	$(BIN)/python -m nodeseal.cli.manual $(BUILD)/man

clean: ## everything that make made
	rm -rf $(VENV) $(BUILD) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf agent/nodeseal.egg-info agent/nodeseal/*.so agent/nodeseal/cni/nodeseal-cni

# Every target is for a fresh Debian 12 with python3, git and make; each does the set-up that it needs.
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.PHONY: help setup demo image test check vmhost bench fuzz docs man lock clean

help: ## say what each target does (the default)
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

setup: ## install Debian packages, fill .venv, build the agent; a second run does nothing
	@ci/setup

demo: setup ## run real images from a registry on loopback as pods, and clean up (root)
	@ci/demo

image: setup ## make a small image to try things with: oci:.cache/images:busybox
	@ci/image

test: ## check, then the tiers that need root: host, interop, short fuzz (root)
	@ci/setup --test
	@ci/check
	@ci/tiers

check: setup ## format, lint, types, import arrows, code rules and the unit tests
	@ci/check

# Its tests are `ci/tiers -n0 tests/vmhost`: three boots of an emulated machine, and more to make it the first time.
vmhost: ## a shell in the test machine: Debian 12 under QEMU that enforces SELinux, with secrun in it (root)
	@ci/setup --test
	@.venv/bin/python ci/vmhost.py

bench: ## compare with podman, systemd-nspawn, skopeo and umoci; writes docs/benchmarks.md (root)
	@ci/setup --test
	@.venv/bin/python tests/bench/main.py $(BENCH)

fuzz: ## the long run of the random tests (root)
	@ci/setup --test
	@ci/tiers --long tests/fuzz

docs: setup ## write the pages that come from the program
	@.venv/bin/python ci/docs.py

man: setup ## write the manual pages into build/man; a wheel has them too
	@.venv/bin/python ci/man.py build/man

lock: ## pin Python packages anew from pyproject.toml; LOCK=--upgrade takes the newest
	@ci/lock $(LOCK)

clean: ## remove what set-up and tools made in this checkout
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache runtime/agent/target
	rm -rf runtime/secrun/_agent dist build .artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

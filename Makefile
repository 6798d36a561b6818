# The words that a developer types; `make help` lists them.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
BIN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.PHONY: help build test test-sandbox test-debian lint figures demo demo-sql bench bench-quick bench-micro bench-databases bench-memcache bench-compare report dashboard asan fuzz inject differential soak soak-live soak-unlucky soak-outages soak-redis dist docs wheels test-wheel deb test-deb completion clean

help:
	@echo "make demo    serve example tables and ask them (needs no Postfix)"
	@echo "make demo-sql  the same over a private MariaDB and PostgreSQL, if they are installed"
	@echo "make test    run every test; as root, install Debian's Postfix for them first"
	@echo "make test-sandbox  the tests that start servers, with \"sandbox = yes\" in each proxymap.cf; needs Landlock (Linux 6.2, better 6.12)"
	@echo "make build   compile the extensions in place"
	@echo "make lint    ruff, cython-lint, mypy"
	@echo "make figures  how large folders, files and functions are; fails past the limits"
	@echo "make test-debian SUITE=trixie  build and run every test in a chroot of that suite; as root, needs debootstrap"
	@echo "make bench   everything measured beside the floor and Postfix's own server; an hour"
	@echo "make bench-quick  requests per second, latency and CPU of a few cases; two minutes"
	@echo "make bench-micro  the parts (codec, cache, tables, rules) by pyperf, into build/micro.json"
	@echo "make bench-databases  mysql and pgsql (or BENCH_ARGS=\"--types ldap\") beside Postfix's own server, over private servers; 20 minutes"
	@echo "make bench-memcache  memcache tables beside Postfix's own server, over a private memcached; 3 minutes"
	@echo "make bench-compare  build/micro.json against benchmarks/results/micro.json, or BASE=file"
	@echo "make report  plots, docs/performance.md and README's table from benchmarks/results/"
	@echo "make dashboard  the picture of docs/metrics.md, from a run of two minutes; needs prometheus"
	@echo "make asan    codec, tables, database drivers and the server under AddressSanitizer; ASAN_ARGS=tests/base: these only"
	@echo "make fuzz    damaged tables, then bytes of any kind for each part, under AddressSanitizer; FUZZ_SECONDS=60 each; needs clang"
	@echo "make inject  each system call of a running server fails, one at a time; a quarter of an hour; as root, needs strace"
	@echo "make soak    three hundred times kill -9 amid updates; needs Postfix's postmap"
	@echo "make soak-live  tables change under load, and files are cut to every length; half an hour; needs Postfix's postmap"
	@echo "make soak-unlucky  all that hangs, fills up or fails, at random, beside honest clients; ten minutes; as root, needs postmap"
	@echo "make soak-outages  databases are cut, slowed and restarted at random under load; half an hour"
	@echo "make soak-redis  masters of Redis are killed and paused at random under load, with sentinels and as a cluster; ten minutes"
	@echo "make differential  10,000 questions of each table type to Postfix's server and to ours; 100,000 updates and the like"
	@echo "make dist    sdist and wheel in dist/"
	@echo "make docs    the pages of docs/, README and the manual as a site in build/site; needs mandoc"
	@echo "make wheels  wheels for glibc and musl, x86_64 and aarch64, in dist/wheels/; WHEEL_ARGS=\"--python /path/to/python3.13\""
	@echo "make test-wheel SUITE=trixie WHEEL=file  install a wheel in a clean chroot of that suite, serve, and switch its Postfix; as root, needs debootstrap"
	@echo "make deb     the Debian package for the release that runs here, in build/deb/; needs dpkg-dev, debhelper, dh-python"
	@echo "make test-deb SUITE=trixie  build the package in a clean chroot of that suite; install, upgrade, remove, purge it in another; as root, needs debootstrap"
	@echo "make completion  contrib/completion/ for bash and zsh, after a change of proxymapctl's options"
	@echo "make clean   remove all that was built"

# The virtual environment, with all that tests and linters need.
$(VENV)/ready: pyproject.toml contrib/bootstrap
	sh contrib/bootstrap "$(PYTHON)" $(VENV)
	touch $@

build: $(VENV)/ready
	@sh contrib/compile $(PY)

test: build
	sh contrib/install-postfix
	$(BIN) $(PY) -m pytest --numprocesses 3 --dist loadfile $(PYTEST_ARGS)

test-sandbox: build
	PROXYMAP_TEST_SANDBOX=yes $(BIN) $(PY) -m pytest --numprocesses 3 --dist loadfile $(or $(PYTEST_ARGS),tests/server tests/ctl tests/tables tests/test_mail_types.py)

lint: $(VENV)/ready
	$(BIN) ruff check .
	$(BIN) ruff format --check .
	$(BIN) cython-lint proxymap
	$(BIN) mypy

figures:
	@$(PYTHON) tests/sizes.py

test-debian:
	sh contrib/test-debian $(or $(SUITE),trixie)

demo: build build/load
	@$(BIN) $(PY) contrib/demo.py

demo-sql: build build/load
	@$(BIN) $(PY) contrib/demo_sql.py

build/load: benchmarks/load.c
	mkdir -p build
	$(CC) -O2 -Wall -Wextra -o $@ $<

build/floor: benchmarks/floor.c
	mkdir -p build
	$(CC) -O2 -Wall -Wextra -o $@ $<

bench: build build/load build/floor
	sh contrib/install-postfix
	$(BIN) $(PY) benchmarks/bench.py $(BENCH_ARGS)
	$(BIN) $(PY) benchmarks/bench.py $(BENCH_ARGS) --update --part load --sizes 1000000 --clients 8 32 5000 --rounds 24
	rm -f benchmarks/results/micro.json
	$(PY) benchmarks/bench_micro.py --fast --output benchmarks/results/micro.json

bench-quick: build build/load build/floor
	$(BIN) $(PY) benchmarks/bench.py --quick $(BENCH_ARGS)

bench-micro: build
	mkdir -p build && rm -f build/micro.json
	$(PY) benchmarks/bench_micro.py --fast --output build/micro.json $(BENCH_ARGS)

bench-databases: build build/load
	sh contrib/install-postfix
	$(BIN) $(PY) benchmarks/bench_databases.py --json benchmarks/results/databases.json $(BENCH_ARGS)

bench-memcache: build build/load
	sh contrib/install-postfix
	$(BIN) $(PY) benchmarks/bench_memcache.py --json benchmarks/results/memcache.json $(BENCH_ARGS)

bench-compare:
	$(PY) benchmarks/compare.py $(or $(BASE),benchmarks/results/micro.json) build/micro.json

dashboard: build
	mkdir -p docs/metrics
	$(BIN) PYTHONPATH=tests:contrib MPLBACKEND=svg $(PY) contrib/draw_dashboard.py

report: $(VENV)/ready
	$(PY) benchmarks/report.py

asan: $(VENV)/ready
	$(BIN) sh contrib/asan $(ASAN_ARGS)

inject: build
	$(BIN) $(PY) tests/inject_faults.py $(INJECT_ARGS)

fuzz: build
	$(PY) tests/fuzz_tables.py --seconds $(or $(FUZZ_SECONDS),60)
	sh contrib/fuzz $(or $(FUZZ_SECONDS),60)

soak: build
	$(PY) tests/soak_writes.py
	$(PY) tests/soak_writes.py --clients 1 --rounds 100

soak-live: build build/load
	$(PY) tests/soak_live.py

soak-unlucky: build build/load
	$(PY) tests/soak_unlucky.py $(SOAK_ARGS)

soak-outages: build build/load
	$(PY) tests/soak_outages.py $(SOAK_ARGS)

soak-redis: build
	sh contrib/install-postfix
	$(PY) tests/soak_redis.py $(SOAK_ARGS)

differential: build
	sh contrib/install-postfix
	PROXYMAP_QUESTIONS=$${PROXYMAP_QUESTIONS:-10000} $(PY) -m pytest -q -s tests/test_differential*.py
	PROXYMAP_REQUESTS=$${PROXYMAP_REQUESTS:-100000} $(PY) -m pytest -q tests/server/test_proxywrite.py -k random_requests

dist: $(VENV)/ready
	$(PY) -m build --quiet --outdir dist .

docs: $(VENV)/ready
	$(PY) -c "import mkdocs" 2>/dev/null || $(VENV)/bin/pip install --quiet --disable-pip-version-check "mkdocs>=1.6,<2"
	$(PY) -m mkdocs build --quiet --clean

wheels: $(VENV)/ready
	$(PY) packaging/wheels.py $(WHEEL_ARGS)

test-wheel:
	sh contrib/test-wheel $(or $(SUITE),trixie) $(WHEEL)

deb: build
	sh contrib/deb $(PY)

test-deb: build
	sh contrib/test-deb $(or $(SUITE),trixie) $(PY)

completion: build
	$(BIN) pip install --quiet --disable-pip-version-check "shtab==1.13.0"
	$(BIN) $(PY) contrib/completion.py

clean:
	rm -rf build dist *.egg-info demo $(VENV)
	find proxymap -name '*.so' -delete

# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
ENV = source .venv/ros_env.sh

.PHONY: demo test lint env clean

demo:  ## A rendered scene replayed into the policy node, then the simulated arm in closed loop.
	@scripts/setup_env.sh run
	@$(ENV) && pi05 demo $(DEMO_ARGS)
	@$(ENV) && pi05 eval --ros --tasks pick_red --seeds 0:2 --no-resume --out out/demo/closed_loop

test: lint  ## Everything that CI runs.
	@$(ENV) && scripts/test.sh $(TEST_ARGS)

lint:  ## ruff, mypy, package.xml and CMake checks.
	@scripts/setup_env.sh dev
	@$(ENV) && scripts/lint.sh

env:  ## Only set up .venv and build the package.
	@scripts/setup_env.sh dev

clean:  ## Remove what the commands above made.
	rm -rf .venv build out .cache

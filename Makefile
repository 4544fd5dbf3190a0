# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
ENV = source .venv/ros_env.sh

.PHONY: demo test test-fast test-fleet lint env hostile soak clean

demo:  ## A rendered scene replayed into the policy node, then the simulated arm in closed loop.
	@scripts/setup_env.sh run
	@$(ENV) && pi05 demo $(DEMO_ARGS)
	@$(ENV) && pi05 eval --ros --tasks pick_red --seeds 0:2 --no-resume --out out/demo/closed_loop

ifdef T
test: env  ## One file or test: make test T=test/policy/test_policy.py
	@$(ENV) && scripts/test.sh $(T) $(TEST_ARGS)
else
test: lint  ## Everything that CI runs.
	@$(ENV) && scripts/test.sh $(TEST_ARGS)
endif

test-fast: env  ## Unit tests: no ROS nodes, no rendering, no compilers.
	@$(ENV) && scripts/test.sh --fast $(TEST_ARGS)

test-fleet: env  ## 24 robots against 4 replicas on a Ray cluster of this machine; installs Ray.
	@.venv/bin/pip install --quiet "ray[serve]" -c .venv/constraints.txt && mkdir -p out
	@$(ENV) && PI05_FLEET_ROBOTS=24 PI05_FLEET_REPLICAS=4 PI05_FLEET_SECONDS=60 PI05_FLEET_HZ=1 PI05_FLEET_DEADLINE_S=2 \
	  PI05_FLEET_REPORT=out/fleet.txt scripts/test.sh test/serving/test_fleet.py test/sim/test_eval_on_ray.py
	@cat out/fleet.txt

lint: env  ## ruff, mypy, spelling and CMake checks.
	@$(ENV) && scripts/lint.sh

hostile:  ## 10,000 hostile inputs by kind: files, messages, command lines; fails if one is bad.
	@scripts/setup_env.sh dev
	@$(ENV) && python test/hostile/hostile_run.py --cases 10000 $(HOSTILE_ARGS)
	@$(ENV) && python test/hostile/hostile_clients.py

soak:  ## One hour of the closed loop: memory, descriptors, threads and shared memory stay flat.
	@scripts/setup_env.sh run
	@$(ENV) && python scripts/soak.py $(SOAK_ARGS)

env:  ## Only set up .venv and build the package.
	@scripts/setup_env.sh dev

clean:  ## Remove what the commands above made.
	rm -rf .venv build out .cache

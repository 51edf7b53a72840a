.PHONY: quickstart test smoke format

quickstart:
	bash examples/quickstart.sh

test:
	bash tests/run.sh

# Every row of every recipe in miniature on a CPU, 3 to 5 minutes each.
smoke:
	for recipe in $$(grep -l '^launch ' examples/text/*.sh examples/vision/*.sh); do bash $$recipe --help; done | sed -n 's/^    //p' | \
	while read -r run; do echo "== $$run"; SMOKE=1 $$run </dev/null || exit 1; done

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.PHONY: quickstart test smoke format

quickstart:
	bash examples/quickstart.sh

test:
	bash tests/run.sh

# Every recipe in miniature on a CPU, 3 to 5 minutes each.
smoke:
	for recipe in $$(grep -l '^launch ' examples/text/*.sh examples/vision/*.sh); do echo "== $$recipe"; SMOKE=1 bash $$recipe || exit 1; done

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

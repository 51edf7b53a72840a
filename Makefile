.PHONY: quickstart test format

quickstart:
	bash examples/quickstart.sh

test:
	bash tests/run.sh

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

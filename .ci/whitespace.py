"""`whitespace.py FILE...` takes spaces off the ends of lines and ends files in one line break; exit 1 where it did."""

import re
import sys
from pathlib import Path

changed = []
for name in sys.argv[1:]:
    text = Path(name).read_bytes()
    tidy = re.sub(rb"[ \t]+(?=\r?\n|\Z)", b"", text).rstrip(b"\n") + b"\n" * bool(text.strip())
    if tidy != text:
        Path(name).write_bytes(tidy)
        changed.append(name)
print("\n".join(f"tidied {name}" for name in changed))
sys.exit(bool(changed))

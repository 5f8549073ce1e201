"""Resolve requirements/dev.txt from pyproject.toml: every version with its hashes, no host, no path."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([f"{folder}/bin/pip", "install", "-qq", "uv"], check=True)
        command = (
            f"{folder}/bin/uv pip compile pyproject.toml requirements/build.in --extra all --group test --group lint "
            "--generate-hashes --universal --no-annotate --no-header -q -o requirements/dev.txt --upgrade"
        )
        subprocess.run(command.split(), cwd=ROOT, check=True)


if __name__ == "__main__":
    main()

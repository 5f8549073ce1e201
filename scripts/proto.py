"""Generate proto/tocsin_proto/v1 from its .proto file, or check that what is committed is what would be generated.

The generator lives in an environment of its own (requirements/proto.txt): its code must run on the oldest
grpcio and protobuf that the package allows, which is older than what the tests run on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "proto" / "tocsin_proto" / "v1"
TOOLS = ROOT / ".venv" / "proto-tools"


def main() -> int:
    check = "--check" in sys.argv[1:]
    _tools()
    with tempfile.TemporaryDirectory() as folder:
        made = _generate(Path(folder))
        if not check:
            for path in made:
                (TARGET / path.name).write_bytes(path.read_bytes())
            return 0
        stale = [path.name for path in made if (TARGET / path.name).read_bytes() != path.read_bytes()]
    if stale:
        print(f"proto: generated code is stale: {', '.join(stale)}; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def _tools() -> None:
    wanted = ROOT / "requirements" / "proto.txt"
    stamp = TOOLS / "stamp"
    if stamp.exists() and stamp.read_bytes() == wanted.read_bytes():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(TOOLS)], check=True)
    subprocess.run([f"{TOOLS}/bin/pip", "install", "-qq", "--require-hashes", "-r", str(wanted)], check=True)
    stamp.write_bytes(wanted.read_bytes())


def _generate(out: Path) -> list[Path]:
    subprocess.run(
        [
            f"{TOOLS}/bin/python", "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}",
            f"--plugin=protoc-gen-mypy={TOOLS}/bin/protoc-gen-mypy",
            f"--plugin=protoc-gen-mypy_grpc={TOOLS}/bin/protoc-gen-mypy_grpc",
            f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out={out}", f"--mypy_grpc_out={out}",
            "tocsin_proto/v1/tocsin.proto",
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return sorted((out / "tocsin_proto" / "v1").glob("tocsin_pb2*"))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tocsin_collector.web`: started by the engine process, one line on stdout says where it listens."""

import asyncio
import sys

from tocsin_collector.web.app import serve
from tocsin_collector.web.options import parse
from tocsin_proto import logs
from tocsin_proto.exits import PROBLEM


def main() -> int:
    options = parse(sys.argv[1:])
    logs.configure(stream=sys.stderr)  # stdout says where we listen and nothing else
    try:
        asyncio.run(serve(options))
    except OSError as error:
        sys.stderr.write(f"web: {options.host}:{options.port}: {error.strerror or error}\n")
        return PROBLEM
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

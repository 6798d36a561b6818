"""bench_codec - parsing a request, from bytes to fields, in C: pyperf

usage: bench_codec.py [pyperf's options]
"""

import pyperf

from proxymap import _codec

REQUESTS = {
    "lookup 3.6": (
        "lookup",
        ("table", "cdb:/etc/postfix/virtual"),
        ("flags", "64"),
        ("key", "user5@example.com"),
    ),
    "lookup 3.11": (
        "lookup",
        ("table", "cdb:/etc/postfix/virtual"),
        ("instance_flags", "540736"),
        ("flags", "1851484"),
        ("key", "user5@example.com"),
    ),
}


def main() -> None:
    runner = pyperf.Runner()
    for name, (kind, *rest) in REQUESTS.items():
        pairs = [("request", kind), *rest]
        data = "".join(f"{attribute}\0{value}\0" for attribute, value in pairs).encode() + b"\0"

        def parse(loops: int, data: bytes = data) -> float:
            start = pyperf.perf_counter()
            _codec.parse_loop(data, loops)
            return pyperf.perf_counter() - start

        runner.bench_time_func(f"parse {name}", parse)


if __name__ == "__main__":
    main()

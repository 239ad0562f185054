"""A hub on this machine, to publish to and to look at by hand.

python -m tests.hub_server --folder .karma/hub --port 8642
HF_ENDPOINT=http://127.0.0.1:8642 HF_HUB_DISABLE_XET=1 HF_TOKEN=... karma publish --repo org/name
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.hub_server.faults import KINDS, Fault
from tests.hub_server.server import TOKEN, HubServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".karma/hub"), help="where its repos are kept")
    parser.add_argument("--port", type=int, default=8642)
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KIND:ROUTE[:TIMES]",
        help=f"let something go wrong, such as reset-body:lfs-upload:1; kinds: {', '.join(KINDS)}",
    )
    parsed = parser.parse_args()
    with HubServer(parsed.folder, port=parsed.port) as server:
        for text in parsed.fault:
            kind, route, *times = text.split(":")
            server.faults.planned.append(Fault(kind, route, int(times[0]) if times else None))
        print(f"a hub at {server.url}, kept in {parsed.folder}; its users are tester and org. For the client:")
        print(f"export HF_ENDPOINT={server.url} HF_HUB_DISABLE_XET=1 HF_TOKEN={TOKEN}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()

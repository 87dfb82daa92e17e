"""An HTTP server that answers only once a file exists, and is loading until another does.

gated_server.py PORT FILE [LOADED]
"""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GATE = Path(sys.argv[2])
LOADED = [Path(name) for name in sys.argv[3:]]


class Handler(BaseHTTPRequestHandler):
    """Holds every GET back until the gate is open, but those for its health."""

    def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
        if self.path == "/health":
            is_loading = not all(path.exists() for path in LOADED)
            self.answer(503 if is_loading else 200)
            return
        print("a request waits at the gate", flush=True)
        while not GATE.exists():
            time.sleep(0.01)
        self.answer(200)

    def answer(self, status: int) -> None:
        print(f"answers {status}", flush=True)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()

"""An HTTP server that answers only once a file exists: gated_server.py PORT FILE."""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GATE = Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    """Holds every GET back until the gate is open."""

    def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
        print("a request waits at the gate", flush=True)
        while not GATE.exists():
            time.sleep(0.01)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()

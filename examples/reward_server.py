r"""A reward server: copy it, put your scorer into `score`, and run it in the environment that the scorer needs.

    python reward_server.py 8100
    customized-grpo train critters rewards.detail.name=http rewards.detail.url=http://localhost:8100 \
        rewards.detail.role=quality rewards.detail.weight=0.2

This one scores how detailed a picture is by how badly it compresses: bytes of its PNG file per pixel, at most 4.
"""

import base64
import json
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def score(sample):
    """A number, higher is better, or None if the image cannot be scored. Pictures are base64 of PNG files."""
    png = base64.b64decode(sample["image"])
    width, height = struct.unpack(">II", png[16:24])
    return len(png) / (width * height)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = json.dumps({"scores": [score(sample) for sample in request["samples"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()

"""A web server on this machine for tests of downloads."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        name = self.path.partition("?")[0].rpartition("/")[2]
        if name == "redirect.pth":
            self.send_response(302)
            self.send_header("Location", "http://example.com/model.pth")
            self.end_headers()
        elif name == "missing.pth":
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if name == "page.pth" else "application/octet-stream")
            if name != "endless.pth":
                self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content[: len(self.server.content) // 2 if name == "cut.pth" else None])

    def log_message(self, *args):
        pass


@contextmanager
def http_server(content: bytes = CONTENT) -> Iterator[tuple[str, list[str]]]:
    """Gives the server's address and the list of paths asked for. What is sent depends on the file's name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.content, server.requests = content, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Serves a page on this machine to try a model: type a review, see the prediction, the heat map and the gates.

    python examples/imdb/demo.py                                    # the model next to this file
    python examples/imdb/demo.py --checkpoint runs/imdb-sample --port 8000

The server is the standard library's. It only answers this machine and stores nothing. Pages load nothing from elsewhere
and run no scripts, so it works without a network.
"""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from explain import explain
from page import POLICY, Explanation, render
from predict import SHIPPED, Predictor
from run_folder import RunError

HOST = "127.0.0.1"
MAX_CHARACTERS = 20_000  # in the form; the longest of IMDB's has 14,282
MAX_BYTES = 12 * MAX_CHARACTERS + 100  # per request: a character is up to four bytes, each three when escaped
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refusal(Exception):
    """A request that gets an error page: its status and its message."""


class Server(ThreadingHTTPServer):
    """Serves a run's model on this machine, at a port, or at any free one if it is 0."""

    daemon_threads = True

    def __init__(self, port: int, checkpoint: Path = SHIPPED):
        self.predictor = Predictor(checkpoint)
        self.one_at_a_time = threading.Lock()
        words = f"{self.predictor.tokenizer.get_vocab_size():,} words"
        self.example = "I would not call this film dull: it is wonderful, although my brother found it a bit long."
        self.about = f"It knows {words}."
        if self.predictor.folder.read_config()["data"] == "sample":
            self.example = "my brother called it dreadful . although the pacing is dull , this film is superb ."
            self.about = f"Trained on synthetic reviews of {words}: it does not understand other words or grammar."
        with suppress(ValueError):  # the model may not know any of its words
            explain(self.predictor, self.example)  # the first call is slow, and visitors should not wait for it
        super().__init__((HOST, port), Handler)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.server_address[1]

    def page(self, text: str, explanation: Explanation | None = None, message: str | None = None) -> bytes:
        """The form with the submitted text and its explanation."""
        text = text.replace("\0", "\ufffd")  # NUL is not allowed in HTML
        return render(explanation, message=message, text=text, max_length=MAX_CHARACTERS, about=self.about).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers GET / with the form, and POST / with the form and an explanation."""

    server: Server
    server_version, sys_version = "grucore-demo", ""
    timeout = 10  # seconds for a client to send something

    def do_GET(self) -> None:
        """Sends the form with an example, or with the submitted text and its explanation or an error."""
        status = HTTPStatus.OK
        try:
            self.check()
            if self.command == "POST":
                text = self.typed()
                with self.server.one_at_a_time:
                    page = self.server.page(text, explain(self.server.predictor, text))
            else:
                page = self.server.page(self.server.example)
        except ValueError as error:
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            page = self.server.page("", message=f"Nothing to judge: {error}.")
        except Refusal as refusal:
            status, page = refusal.args[0], self.server.page("", message=refusal.args[1])
        with suppress(ConnectionError):  # a browser that disconnects is not an error
            self.send_response(status)
            for name, value in (HEADERS | {"Content-Length": str(len(page))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(page)

    do_POST = do_GET

    def check(self) -> None:
        """Accepts only browsers that show this page, not other sites that use another name for this address."""
        names = {f"{HOST}:{self.server.port}", f"localhost:{self.server.port}"}
        address = f"http://{HOST}:{self.server.port}/"
        if self.headers.get("Host") not in names:
            raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, f"This page is at {address}")
        if self.headers.get("Origin") not in {None, *(f"http://{name}" for name in names)}:
            raise Refusal(HTTPStatus.FORBIDDEN, "Another site has sent this.")
        if self.path != "/":
            raise Refusal(HTTPStatus.NOT_FOUND, f"The only page is {address}")

    def typed(self) -> str:
        """The form's text."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 10):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "Expected a Content-Length.")
        left = min(int(length), 50 * MAX_BYTES)
        if left > MAX_BYTES:
            while left > 0 and (read := self.rfile.read(min(left, MAX_BYTES))):  # or browsers show no message
                left -= len(read)
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Too long: {MAX_CHARACTERS:,} characters at most.")
        body = self.rfile.read(left)
        if self.headers.get_content_type() != "application/x-www-form-urlencoded":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Expected a form.")
        try:
            (text,) = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1)["text"]
        except (ValueError, KeyError) as error:  # UnicodeDecodeError is a ValueError
            raise Refusal(HTTPStatus.BAD_REQUEST, "Expected one field, text, in UTF-8.") from error
        return text


def main() -> None:
    """Runs the server from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="an --output of train.py")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    try:
        server = Server(given.port, given.checkpoint)
    except (OSError, OverflowError) as error:
        raise RunError(f"--port must be a free port from 0 to 65535, got {given.port}: {error}") from error
    print(f"http://{HOST}:{server.port}/ shows {given.checkpoint}; Ctrl-C ends it", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        sys.exit(f"error: {error}")

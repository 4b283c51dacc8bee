"""A page on this machine to try a trained model: type a review, see the prediction, the heat map and the gates.

    python examples/imdb/demo.py --checkpoint runs/imdb-sample --port 8000

The server is the standard library's, answers this machine alone, and keeps nothing. Nothing is loaded from elsewhere
and no script runs, so that it works without a network.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from explain import Explanation, explain
from page import POLICY, render
from predict import Predictor
from run_folder import RunError, RunFolder

HOST = "127.0.0.1"
MAX_CHARACTERS = 20_000  # in the form; the longest of IMDB's has 14,282
MAX_BYTES = 12 * MAX_CHARACTERS + 100  # of a request: a character is up to four bytes, a byte three when escaped
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refusal(Exception):
    """A request that gets an error page."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Answers on this machine.

    Args:
        port: to listen at; 0 for any free one.
        checkpoint: the folder of a run.

    Raises:
        RunError: the folder holds no whole run.
        OSError: the port cannot be had.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, checkpoint: Path):
        self.predictor = Predictor(checkpoint)
        self.one_at_a_time = threading.Lock()  # `explain` puts hooks on the model
        words = f"{len(self.predictor.vocabulary):,} words"
        if RunFolder(checkpoint).read_json("config.json").get("data") == "sample":
            self.example = "my brother called it dreadful . although the pacing is dull , this film is superb ."
            self.about = f"Trained on synthetic reviews of {words}: other words and other grammar are lost on it."
        else:
            self.example = "I would not call this film dull."
            self.about = f"It knows {words}."
        with suppress(ValueError):  # the model may know no word of it
            explain(self.predictor, self.example)  # the first one is slow: the first visitor should not wait for it
        super().__init__((HOST, port), Handler)

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def page(self, text: str, explanation: Explanation | None = None, message: str | None = None) -> str:
        """The form with what was typed, and what came of it."""
        text = text.replace("\0", "\ufffd")  # which no page may hold
        form = {"form": True, "text": text, "max_length": MAX_CHARACTERS, "about": self.about}
        return render(explanation, message=message, **form)

    def handle_error(self, request, client_address) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """GET / is the form, POST / the form with an explanation."""

    server: Server
    server_version, sys_version = "grucore-demo", ""
    timeout = 10  # seconds that a client may take to send something

    def do_GET(self) -> None:
        """The form with an example in it."""
        self.answer(self.empty)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """The form's text, explained."""
        self.answer(lambda: self.explained(self.body()))

    def answer(self, make_page: Callable[[], str]) -> None:
        """Sends a page, or the form with the reason why there is none."""
        status = HTTPStatus.OK
        try:
            page = make_page()
        except Refusal as refusal:
            status, page = refusal.status, self.server.page("", message=str(refusal))
        body = page.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def check(self) -> None:
        """Lets a browser through that shows this page.

        Raises:
            Refusal: it was sent by another site, by way of another name for this address, or to another path.
        """
        port = self.server.server_address[1]
        names = {f"{HOST}:{port}", f"localhost:{port}"}
        if self.headers.get("Host") not in names:
            raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, f"This page is at {self.server.address}")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in names}:
            raise Refusal(HTTPStatus.FORBIDDEN, "Another site has sent this.")
        if self.path != "/":
            raise Refusal(HTTPStatus.NOT_FOUND, f"The only page is {self.server.address}")

    def body(self) -> bytes:
        """What was sent.

        Raises:
            Refusal: nobody says how much that is, or it is too much.
        """
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 10):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "Expected a Content-Length.")
        left = int(length)
        if left <= MAX_BYTES:
            return self.rfile.read(left)
        left = min(left, 50 * MAX_BYTES)
        while left and (read := self.rfile.read(min(left, MAX_BYTES))):  # a browser that is cut off shows no message
            left -= len(read)
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Too long: {MAX_CHARACTERS:,} characters at most.")

    def empty(self) -> str:
        """The page before anything is sent."""
        self.check()
        return self.server.page(self.server.example)

    def explained(self, body: bytes) -> str:
        """The page for what was sent.

        Raises:
            Refusal: it is no such form, or holds no review.
        """
        self.check()
        if self.headers.get_content_type() != "application/x-www-form-urlencoded":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Expected a form.")
        try:
            (text,) = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1)["text"]
        except (ValueError, KeyError) as error:  # UnicodeDecodeError is a ValueError
            raise Refusal(HTTPStatus.BAD_REQUEST, "Expected one field, text, in UTF-8.") from error
        try:
            with self.server.one_at_a_time:
                explanation = explain(self.server.predictor, text)
        except ValueError as error:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"Nothing to judge: {error}.") from error
        return self.server.page(text, explanation)

    def end_headers(self) -> None:
        """With what every answer says."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/imdb-sample"), help="the --output of train.py")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if not (given.checkpoint / "best.safetensors").exists():
        raise RunError(f"no trained model in {given.checkpoint}: `make imdb` trains one into runs/imdb-sample")
    try:
        server = Server(given.port, given.checkpoint)
    except (OSError, OverflowError) as error:
        raise RunError(f"--port must be a free port from 0 to 65535, got {given.port}: {error}") from error
    print(f"{server.address} shows {given.checkpoint}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        sys.exit(f"error: {error}")

"""Serves a page on this machine to try a model: type a review, see the prediction, the heat map and the gates.

    python examples/imdb/demo.py                                    # the model next to this file
    python examples/imdb/demo.py --checkpoint runs/imdb-sample --port 8000

It only answers this machine and stores nothing. Pages load nothing from elsewhere and run no scripts, so it works
without a network.
"""

import argparse
import threading
from contextlib import suppress
from pathlib import Path

from config import UserError, command
from explain import explain
from flask import Flask, Response, abort, request
from page import POLICY, Explanation, render
from predict import SHIPPED, Predictor
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

HOST = "127.0.0.1"
MAX_CHARACTERS = 20_000  # in the form; the longest of IMDB's has 14,282
MAX_BYTES = 12 * MAX_CHARACTERS + 100  # per request: a character is up to four bytes, each three when escaped
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(checkpoint: Path = SHIPPED) -> Flask:
    """The application that answers GET / with a form, and POST / with the form and an explanation."""
    predictor, one_at_a_time = Predictor(checkpoint), threading.Lock()
    words = f"{predictor.tokenizer.get_vocab_size():,} words"
    example = "I would not call this film dull: it is wonderful, although my brother found it a bit long."
    about = f"It knows {words}."
    if predictor.folder.read_config()["data"] == "sample":
        example = "my brother called it dreadful . although the pacing is dull , this film is superb ."
        about = f"Trained on synthetic reviews of {words}: it does not understand other words or grammar."
    with suppress(UserError):  # the model may not know any of its words
        explain(predictor, example)  # the first call is slow, and visitors should not wait for it
    app = Flask(__name__)
    app.config.update(TRUSTED_HOSTS=[HOST, "localhost"])  # no other site's name for this address
    app.config.update(MAX_CONTENT_LENGTH=MAX_BYTES, MAX_FORM_MEMORY_SIZE=MAX_BYTES)

    def page(text: str, explanation: Explanation | None = None, message: str | None = None) -> str:
        text = text.replace("\0", "\ufffd")  # NUL is not allowed in HTML
        return render(explanation, message=message, text=text, max_length=MAX_CHARACTERS, about=about)

    @app.get("/")
    def form() -> str:
        return page(example)

    @app.post("/")
    def explained() -> str | tuple[str, int]:
        if request.headers.get("Origin") not in (None, request.host_url.rstrip("/")):
            abort(403, "Another site has sent this.")
        text = request.form.get("text")
        if text is None:
            abort(400, "Expected a form with one field, text.")
        try:
            with one_at_a_time:
                return page(text, explain(predictor, text))
        except UserError as error:
            return page("", message=f"Nothing to judge: {error}."), 422

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        return page("", message=error.description), error.code or 500

    @app.after_request
    def locked_down(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    return app


def main() -> None:
    """Runs the server from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="an --output of train.py")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if not 0 <= given.port < 1 << 16:
        raise UserError(f"--port must be from 0 to 65535, got {given.port}")
    server = make_server(HOST, given.port, create_app(given.checkpoint), threaded=True)
    print(f"http://{HOST}:{server.port}/ shows {given.checkpoint}; Ctrl-C ends it", flush=True)
    server.serve_forever()  # until Ctrl-C


if __name__ == "__main__":
    command(main)

"""The demo page: its answers, and the requests that it refuses."""

import threading
import urllib.error
import urllib.request
from urllib.parse import quote_plus, urlencode

import imdb
import pytest
from demo import HOST, MAX_BYTES, MAX_CHARACTERS, create_app
from page import POLICY
from predict import Predictor
from werkzeug.serving import make_server

pytestmark = pytest.mark.slow

TEXT = "the novel was dull . i found this film wonderful ."


@pytest.fixture(scope="module")
def server(best):
    server = make_server(HOST, 0, create_app(best), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server, text=None, path="", body=None, method=None, **headers):
    """The status, headers and page of a request; a POST if there is a text or a body."""
    body = urlencode({"text": text}).encode() if text is not None else body
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/{path}", body, headers, method=method)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read().decode()


def test_the_form(server):
    status, headers, page = ask(server)
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert '<form method="post" action="/"' in page and f'maxlength="{MAX_CHARACTERS}"' in page
    assert 'id="label"' not in page and server.server_address[0] == "127.0.0.1"


def test_a_review_is_judged(server, best):
    status, _, page = ask(server, TEXT)
    positive = Predictor(best)(TEXT)
    label, probability = ("positive", positive) if positive >= 0.5 else ("negative", 1 - positive)
    assert status == 200 and f'<strong id="label" class="{label}">{label}</strong>' in page
    assert f'<span id="probability">{100 * probability:.1f} %</span>' in page
    assert page.count('class="token"') == len(TEXT.split()) and f"{TEXT}</textarea>" in page


def test_what_was_typed_is_escaped(server):
    status, _, page = ask(server, "</textarea><script>alert(1)</script> \" ' & {{ 7 }} film\r\nis\u202e dull")
    assert status == 200 and "<script" not in page and page.count("</textarea>") == 1
    assert "&lt;/textarea&gt;&lt;script&gt;alert(1)" in page


def test_every_answer_is_locked_down(server):
    for _, headers, _ in (ask(server), ask(server, TEXT), ask(server, path="nowhere")):
        assert headers.get_all("Content-Security-Policy") == [f"{POLICY}; frame-ancestors 'none'"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "'unsafe" not in POLICY and POLICY.startswith("default-src 'none'; ")


REFUSALS = [
    ({"text": ""}, 422, "no words"),
    ({"text": "zelig dogville"}, 422, "no word of the"),
    ({"text": "film \0"}, 422, "NUL bytes"),
    ({"body": b"review=good"}, 400, "Expected a form with one field, text"),
    ({"body": b"text=good", "Content-Type": "text/plain"}, 400, "Expected a form with one field, text"),
    ({"text": "x" * MAX_BYTES}, 413, "exceeds the capacity limit"),
    ({"path": "../../etc/passwd"}, 404, "not found on the server"),
    ({"Host": "example.org"}, 400, "is not trusted"),
    ({"text": TEXT, "Origin": "http://example.org"}, 403, "Another site has sent this"),
    ({"text": TEXT, "Origin": "null"}, 403, "Another site has sent this"),
    ({"method": "PUT", "body": b"text=good"}, 405, "not allowed"),
]


@pytest.mark.parametrize(("request_", "status", "message"), REFUSALS, ids=[str(case[0])[:40] for case in REFUSALS])
def test_refusals(server, request_, status, message):
    got, _, page = ask(server, **request_)
    assert got == status and message in page and 'id="label"' not in page


def test_the_largest_text_that_the_form_takes_is_read(server):
    assert len(quote_plus("\U0001f3ac")) == 12
    text = "film " + "\U0001f3ac" * (MAX_CHARACTERS - 5)
    assert len(urlencode({"text": text})) <= MAX_BYTES
    status, _, page = ask(server, text)
    assert status == 200 and "more are left out" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", 99999], "--port must be from 0 to 65535"),
        (["--checkpoint", "nothing"], "must be the folder of a run"),
    ],
)
def test_it_does_not_start(best, flags, message):
    code, _, errors = imdb.run("demo.py", "--checkpoint", best, *flags)
    assert code == 1 and message in errors

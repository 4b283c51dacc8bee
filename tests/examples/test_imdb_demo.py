"""The demo page: what it answers, what it refuses, and how it goes in a real browser."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from unittest import mock
from urllib.parse import quote_plus, urlencode

import imdb
import pytest
from demo import MAX_BYTES, MAX_CHARACTERS, Handler, Server
from demo import main as demo_command
from page import POLICY
from predict import Predictor
from run_folder import RunError
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

pytestmark = pytest.mark.slow

TEXT = "the novel was dull . i found this film wonderful ."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    imdb.write_parquet(folder / "data")
    return imdb.train_here(folder / "run", "--data", folder / "data", "--epochs", 1)


@pytest.fixture(scope="module")
def server(run):
    server = Server(0, run)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server, text=None, path="", body=None, method=None, **headers):
    """The status, the headers and the page of a request; a POST where there is a text or a body."""
    body = urlencode({"text": text}).encode() if text is not None else body
    request = urllib.request.Request(server.address + path, body, headers, method=method)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read().decode()


def raw(server, request):
    """What comes back on a connection that sends these bytes, until it is closed."""
    with socket.create_connection(server.server_address, timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_the_form(server):
    status, headers, page = ask(server)
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert '<form method="post" action="/"' in page and f'maxlength="{MAX_CHARACTERS}"' in page
    assert 'id="label"' not in page
    head = raw(server, f"HEAD / HTTP/1.1\r\nHost: {server.address.split('/')[2]}\r\n\r\n".encode())
    assert head.startswith("HTTP/1.0 200 ") and head.endswith("\r\n\r\n")


def test_a_review_is_judged(server, run):
    status, _, page = ask(server, TEXT)
    (positive,) = Predictor(run)([TEXT])
    label, probability = ("positive", positive) if positive >= 0.5 else ("negative", 1 - positive)
    assert status == 200 and f'<strong id="label">{label}</strong>' in page
    assert f'<span id="probability">{100 * probability:.1f} %</span>' in page
    assert page.count('class="token"') == len(TEXT.split())
    assert f"{TEXT}</textarea>" in page


def test_a_model_that_knows_none_of_the_example(tmp_path):
    for part in ("train", "test"):
        for label, word in (("pos", "bon"), ("neg", "mauvais")):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(8):
                (tmp_path / part / label / f"{i}.txt").write_text(f"{word} " * (i + 1))
    run = imdb.train_here(tmp_path / "run", "--data", tmp_path, "--epochs", 1)
    with Server(0, run) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert 'id="label"' in ask(server, "bon")[2]
        thread.join()


def test_what_was_typed_is_escaped(server):
    typed = "</textarea><script>alert(1)</script> \" ' & \0 \x1b {{ 7 }} film\r\nis\u202e dull"
    status, _, page = ask(server, typed)
    assert status == 200
    assert "<script" not in page and "\0" not in page and "49" not in page.split("</textarea>")[0].split("<textarea")[1]
    assert page.count("</textarea>") == 1 and "&lt;/textarea&gt;&lt;script&gt;alert(1)" in page


def test_every_answer_is_locked_down(server):
    for answer in (ask(server), ask(server, TEXT), ask(server, path="nowhere"), ask(server, method="DELETE")):
        headers = answer[1]
        assert headers.get_all("Content-Security-Policy") == [f"{POLICY}; frame-ancestors 'none'"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "'unsafe" not in POLICY and POLICY.startswith("default-src 'none'; ")


def test_only_this_machine_is_answered(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"text": ""}, 422, "the review has no words"),
        ({"text": "  \n "}, 422, "the review has no words"),
        ({"text": "zelig dogville"}, 422, "no word of the"),
        ({"body": b"text=good&text=bad"}, 400, "Expected one field, text"),
        ({"body": b"review=good"}, 400, "Expected one field, text"),
        ({"body": b""}, 400, "Expected one field, text"),
        ({"body": b"text=%ff%fe"}, 400, "Expected one field, text, in UTF-8"),
        ({"body": b"text=%ed%a0%80"}, 400, "Expected one field, text, in UTF-8"),
        ({"body": b"text=\xc3\xa9"}, 400, "Expected one field, text, in UTF-8"),
        ({"body": b"text=good", "Content-Type": "text/plain"}, 415, "Expected a form"),
        ({"text": "x" * MAX_BYTES}, 413, f"Too long: {MAX_CHARACTERS:,} characters at most"),
        ({"path": "../../etc/passwd"}, 404, "The only page is http://127.0.0.1:"),
        ({"path": "?text=good"}, 404, "The only page is"),
        ({"Host": "example.org"}, 421, "This page is at http://127.0.0.1:"),
        ({"text": TEXT, "Host": "example.org:80"}, 421, "This page is at"),
        ({"text": TEXT, "Origin": "http://example.org"}, 403, "Another site has sent this"),
        ({"text": TEXT, "Origin": "null"}, 403, "Another site has sent this"),
        ({"method": "PUT", "body": b"text=good"}, 501, "Unsupported method"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_refusals(server, request_, status, message):
    got, _, page = ask(server, **request_)
    assert got == status and message in page and 'id="label"' not in page


def test_the_largest_text_that_the_form_takes_is_read(server):
    assert len(quote_plus("\U0001f3ac")) == 12
    text = "film " + "\U0001f3ac" * (MAX_CHARACTERS - 5)
    assert len(urlencode({"text": text})) <= MAX_BYTES
    assert ask(server, text)[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: {host}\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9e9\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999999\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n0\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\n\r\n", 421),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\xfc\r\n\r\n", 400),
    ],
    ids=["no length", "negative", "no number", "huge", "chunked", "no host", "long line", "many headers", "TLS"],
)
def test_malformed_requests(server, request_, status):
    found = raw(server, request_.replace(b"{host}", server.address.split("/")[2].encode()))
    assert f"HTTP/1.0 {status} " in found or f"Error code: {status}" in found  # no version, no status line
    assert "Content-Security-Policy" in found or "HTTP/1.0" not in found
    assert ask(server)[0] == 200


def test_who_sends_nothing_is_left(server, monkeypatch):
    assert Handler.timeout <= 30
    monkeypatch.setattr(Handler, "timeout", 0.2)
    host = server.address.split("/")[2]
    for start in (
        b"",
        b"POST / HTTP/1.1\r\n",
        f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\nt".encode(),
    ):
        assert raw(server, start) == ""  # closed, with no answer


def test_who_goes_away_leaves_no_traceback(server, capfd):
    for _ in range(3):
        connection = http.client.HTTPConnection(*server.server_address)
        connection.request(
            "POST", "/", urlencode({"text": TEXT}), {"Content-Type": "application/x-www-form-urlencoded"}
        )
        connection.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )  # reset, not an orderly end
        connection.close()
    assert ask(server, TEXT)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_several_at_once(server):
    texts = [TEXT, "this film is dull .", "although the score is bland , this film is superb ."] * 2
    alone = [ask(server, text) for text in texts[:3]] * 2
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda text: ask(server, text), texts))
    assert [page for *_, page in together] == [page for *_, page in alone]


def test_the_command(run):
    command = [sys.executable, str(imdb.EXAMPLE / "demo.py"), "--checkpoint", str(run), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=imdb.environment(), **pipes) as process:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"<form" in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in out + err


def test_the_command_refuses(run, server, tmp_path):
    taken = server.server_address[1]
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "best.safetensors").write_bytes(b"damaged")
    for arguments, message in (
        (("--checkpoint", tmp_path / "none"), "no trained model in .*none: `make imdb` trains one"),
        (("--checkpoint", tmp_path / "damaged"), r"best\.safetensors must be the model of a run"),
        (("--checkpoint", run, "--port", taken), f"--port must be a free port from 0 to 65535, got {taken}"),
        (("--checkpoint", run, "--port", 70000), "--port must be a free port from 0 to 65535, got 70000"),
    ):
        with mock.patch.object(sys, "argv", ["demo.py", *map(str, arguments)]), pytest.raises(RunError, match=message):
            demo_command()


@pytest.fixture(scope="module")
def browser():
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no Chromium here, or no chromedriver: on Debian, apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # whose sandbox refuses root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, Service(chromedriver)) as driver:
        yield driver


@pytest.mark.browser
def test_in_a_browser(server, run, browser):
    """Type, submit, read the result; the policy lets the page's style through and nothing else."""
    text = "i found this film wonderful . <img src=x onerror=alert(1)> the script is dull"
    browser.get(server.address)
    field = browser.find_element(By.ID, "text")
    field.clear()
    field.send_keys(text)
    browser.find_element(By.TAG_NAME, "button").click()

    positive = Predictor(run)([text])[0] >= 0.5
    assert browser.find_element(By.ID, "label").text == ("positive" if positive else "negative")
    tokens = browser.find_elements(By.CSS_SELECTOR, ".token bdi")
    assert [token.text for token in tokens] == text.split()
    assert browser.find_element(By.ID, "text").get_property("value") == text
    colours = {token.value_of_css_property("background-color") for token in tokens}
    assert len(colours) > 2  # the style is in force
    heights = [strip.size["height"] for strip in browser.find_elements(By.CSS_SELECTOR, ".token i")]
    assert len(heights) == 2 * len(tokens) and set(heights) == {4}

    browser.set_window_size(500, 800)  # headless Chromium has no narrower window
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []  # nothing was blocked, nothing failed
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {entry["params"]["request"]["url"] for entry in sent if entry["method"] == "Network.requestWillBeSent"}
    assert urls == {server.address}

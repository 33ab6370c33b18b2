"""The console in a real browser, driven as by hand; and its routes."""

import base64
import fcntl
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from tamis.funnel.bundle import read_bundle
from tamis.serving.app import make_app
from tamis.serving.console import POLICY
from tamis.serving.drift import DriftWatch
from tamis.serving.engine import Engine
from tamis.serving.guard import Token
from tamis.serving.metrics import Metrics
from tamis.serving.records import StoredAd

pytestmark = pytest.mark.slow

_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " ")}


class Browser:
    """One page in headless Chromium, which is told what to do through a pair of pipes."""

    def __init__(self, program: str, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4: what lies there must be out of the way.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *map(str, high), program, "--headless=new",
             "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
             f"--user-data-dir={folder}", "about:blank"],
            pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.complaints: list[str] = []
        """What the browser's own console would show: exceptions, refused loads, broken policies."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._number, self._session = 0, None
        page = self._call("Target.createTarget", url="about:blank")["targetId"]
        found = self._call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self.look(1280, 900)

    def look(self, width: int, height: int, *, scheme: str = "light") -> None:
        """Set the size of the screen and the user's colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        wish = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[wish])

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        found = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60.0) -> Any:
        """The value of an expression as soon as it is true."""
        until = time.monotonic() + seconds
        while not (found := self.run(expression)):
            assert time.monotonic() < until, (expression, self.run("document.body.innerText"))
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def focus(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")

    def type(self, text: str) -> None:
        """Type over what the field with the focus holds."""
        self.run("document.activeElement.select?.()")
        self._call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        code, text = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )  # fmt: skip

    def picture(self, path: Path) -> None:
        """A screenshot of the whole page."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)
        os.close(self._in)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._answers.get(timeout=60)
            if answer["id"] == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._in, 1 << 20):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.put(message)
                elif message["method"] == "Runtime.exceptionThrown" or (
                    message["method"] == "Log.entryAdded"
                    and message["params"]["entry"]["level"] in ("warning", "error")
                ):
                    self.complaints.append(json.dumps(message["params"]))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    program = program or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    opened = Browser(program, tmp_path / "profile")
    yield opened
    opened.close()


SECRET = "a secret of many characters"
# Markup that would run, and quotes that would end an attribute.
HOSTILE = """<img src=x onerror="window.hurt=1">'"&amp;"""


class Served:
    """The application on a real port, in a thread."""

    def __init__(self, app: Any) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def make_app_of(engine: Engine, bundles: Path) -> Callable[..., Any]:
    def make(**settings: Any) -> Any:
        metrics = Metrics(DriftWatch(settle_s=0.5))
        engine._watch = metrics
        return make_app(engine, metrics, bundles=bundles, **settings)

    return make


@pytest.fixture
def serve(make_app_of: Callable[..., Any]) -> Iterator[Callable[..., str]]:
    running: list[Served] = []

    def start(**settings: Any) -> str:
        running.append(Served(make_app_of(**settings)))
        return running[-1].address

    yield start
    for served in running:
        served.close()


@pytest.fixture
def client(make_app_of: Callable[..., Any], call_app: Callable[[Any], Any]) -> Any:
    return call_app(make_app_of())


@pytest.fixture
def page(browser: Browser, serve: Callable[..., str]) -> Browser:
    """The console of a server that asks for no token, with its first answers."""
    browser.open(serve())
    browser.wait("document.querySelectorAll('#ads-body tr').length")
    browser.wait("document.querySelectorAll('#user-fields input').length")
    return browser


def test_page_asks_for_nothing_but_its_own_files(client: Any) -> None:
    page = client.get("/")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers.get_list("content-security-policy") == [POLICY]
    assert page.headers["x-frame-options"] == "DENY"
    loaded = set(re.findall(r'(?:src|href)="([^"#]+)"', page.text))
    assert loaded == {"/console.css", "/console.js", "/console.svg"}
    for path in loaded:
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
        # A namespace of SVG is a name, and nothing is loaded from it.
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search("https?://|@import|innerHTML|outerHTML|insertAdjacent|eval", text)
    assert not re.search(r"<style|<script>|\son\w+=|\sstyle=", page.text)
    assert client.get("/healthz").headers["content-security-policy"].startswith("default-src 'none")


def test_about_tells_what_may_be_said(client: Any, engine: Engine) -> None:
    about = client.get("/v1/about").json()

    assert about["release"] == engine.live.served.release
    assert (about["ads"], about["needs_token"]) == (len(engine.live.ads), False)
    user = {item["name"]: item for item in about["user"]}
    assert user["age"]["kind"] == "category"
    assert "25-34" in user["age"]["values"]
    assert user["history_ads"] == {
        "name": "history_ads", "kind": "categories", "values": [], "is_from_events": True
    }  # fmt: skip
    # The id stands beside the features, and not among them.
    assert "user_id" not in user
    assert {item["name"]: item["kind"] for item in about["ad"]}["price"] == "number"
    said = {item["name"]: (item["values"] or ["7"])[0] for item in about["context"]}
    assert client.post("/v1/rank", json={"k": 1, "context": said}).status_code == 200


def test_ads_are_listed_in_parts(client: Any, engine: Engine) -> None:
    ids = list(engine.live.ads.ids)
    ad = {"features": {}, "bid": 2, "billing": "click", "advertiser": "me"}
    client.put("/v1/ads/new one", json=ad).raise_for_status()

    first = client.get("/v1/ads", params={"limit": 3}).json()
    rest = client.get("/v1/ads", params={"offset": len(ids) - 1, "limit": 100}).json()
    some = client.get("/v1/ads", params={"contains": "new"}).json()

    assert first["total"] == rest["total"] == len(ids) + 1
    assert [ad["ad"] for ad in first["ads"]] == ids[:3]
    assert [ad["ad"] for ad in rest["ads"]] == [ids[-1], "new one"]
    assert some == {"total": 1, "ads": [client.get("/v1/ads/new one").json()]}
    beyond = client.get("/v1/ads", params={"offset": 10**9}).json()
    assert (beyond["total"], beyond["ads"]) == (len(ids) + 1, [])
    for name, value in (("limit", 101), ("limit", 0), ("offset", -1), ("offset", "x")):
        refused = client.get("/v1/ads", params={name: value})
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, f"query.{name}")


def test_user_is_ranked_for_with_the_keyboard_alone(page: Browser, engine: Engine) -> None:
    page.focus("#user")
    page.type("3")
    page.press("Tab")
    page.type("4")
    page.press("Enter")
    page.wait("document.querySelectorAll('#winners-body tr').length === 4")

    engine.write([]).result(60)
    (joined,) = engine._store.joined()
    assert joined.request.user == "3"
    rows = page.run(
        "[...document.querySelectorAll('#winners-body tr')].map((r) => r.cells[1].innerText)"
    )
    assert rows == [ad.ad for ad in joined.request.shown]
    # From all live ads through each stage to those that were shown.
    counts = page.run(
        "[...document.querySelectorAll('.stage .row')].map((r) => r.children[2].innerText)"
    )
    assert counts == [str(len(engine.live.ads)), "60", "20", "8", "4"]
    names = page.run("[...document.querySelectorAll('.stage .name')].map((n) => n.innerText)")
    assert names == ["may be shown", "popular", "early", "final", "shown"]
    widths = page.run("[...document.querySelectorAll('.bar')].map((b) => b.offsetWidth)")
    assert widths == sorted(set(widths), reverse=True)
    # A stage opens with a key, and tells what it kept.
    page.focus(".stage:nth-child(5) summary")
    page.press("Enter")
    kept = page.wait("document.querySelector('details[open]').querySelectorAll('li').length")
    assert kept == 8
    assert page.complaints == []


def test_values_of_winners_add_up(page: Browser) -> None:
    page.run("document.getElementById('ask-form').requestSubmit()")
    page.wait("document.querySelectorAll('#winners-body tr').length")

    for row in page.run(
        "[...document.querySelectorAll('#winners-body tr')]"
        ".map((r) => [2, 4, 6, 7, 9].map((at) => Number(r.cells[at].innerText)))"
    ):
        value, earns, other, bid, click = row
        assert value == pytest.approx(earns + other, abs=0.01 * abs(value) + 1e-9)
        assert earns == pytest.approx(bid * click, rel=0.02)


def test_request_that_is_refused_says_why(page: Browser) -> None:
    page.run("document.querySelector('[name=user_requests]').value = 'many'")
    page.run("document.getElementById('ask-form').requestSubmit()")

    said = page.wait("document.getElementById('ask-problem').innerText")
    assert said.startswith("body.user.features.user_requests: must be a number")


def test_ads_are_added_found_and_removed(page: Browser, engine: Engine) -> None:
    page.run("document.getElementById('add').open = true")
    for field, text in (
        ("add-id", "fresh"),
        ("add-advertiser", "me"),
        ("add-bid", "1e6"),
        ("add-popularity", "1e6"),
    ):
        page.focus(f"#{field}")
        page.type(text)
    page.run("document.querySelector('#add-fields [name=price]').value = '2.5'")
    page.press("Enter")
    page.wait("document.getElementById('ads-said').innerText === 'Ad fresh may be shown now.'")
    page.wait("document.querySelectorAll('#ads-body tr').length === 1")
    row = engine.live.ads.row_by_id["fresh"]
    assert engine.live.ads.columns(np.array([row]))[0]["price"] == 2.5

    page.run("document.getElementById('ask-form').requestSubmit()")
    page.wait("document.querySelectorAll('#winners-body tr').length")
    assert page.text("#winners-body tr:first-child td:nth-child(2)") == "fresh"

    # One press only asks.
    page.focus("#ads-body button")
    page.press(" ")
    assert page.wait("document.querySelector('#ads-body button.sure').innerText") == "Sure?"
    assert "fresh" in engine.live.ads.row_by_id
    page.press(" ")
    page.wait("document.querySelectorAll('#ads-body tr').length === 0")
    assert "fresh" not in engine.live.ads.row_by_id
    assert page.complaints == []


def test_what_others_wrote_stays_text(page: Browser, engine: Engine) -> None:
    ad = StoredAd(
        ad=HOSTILE, columns={"format": HOSTILE}, bid=1e9, billing="click", advertiser=HOSTILE,
        popularity=1e9,
    )  # fmt: skip
    engine.put_ad(ad)
    page.focus("#contains")
    page.type("<img")
    page.wait("document.querySelectorAll('#ads-body tr').length === 1")
    page.run("document.getElementById('ask-form').requestSubmit()")
    page.wait("document.querySelectorAll('#winners-body tr').length")

    assert page.text("#ads-body td") == HOSTILE
    assert page.text("#winners-body td:nth-child(2)") == HOSTILE
    assert HOSTILE in page.run("document.querySelector('.kept').textContent")
    assert page.run("[document.querySelectorAll('main img').length, window.hurt ?? 0]") == [0, 0]
    # The second line of defence: the browser itself would let no text become markup.
    thrown = page.run(
        "(() => { try { document.body.innerHTML = 'x'; return '' } catch (e) { return e.name } })()"
    )
    assert thrown == "TypeError"


def test_charts_show_traffic_and_drift(page: Browser) -> None:
    asked = """(async () => {
      for (let n = 0; n < 30; n++) {
        const call = (path, body) => fetch(path, {method: "POST", body: JSON.stringify(body),
          headers: {"Content-Type": "application/json"}}).then((found) => found.json());
        const found = await call("/v1/rank", {k: 4});
        const events = found.ads.flatMap(({ad}, at) =>
          ["impression", ...(at == n % 4 ? ["click"] : [])].map((kind) =>
            ({kind, ad, event_id: `${n} ${ad} ${kind}`, request_id: found.request_id})));
        await call("/v1/events", {events});
      }
      return true;
    })()"""
    assert page.run(asked)

    page.wait("document.querySelectorAll('#qps .line').length")
    page.wait("document.querySelectorAll('#latency .line.second, #latency .dot.second').length")
    page.wait("document.querySelectorAll('#calibration .dot, #calibration .line').length")

    assert page.run("document.getElementById('task').value") == "click"
    assert re.fullmatch(r"[\d.]+", page.text("#calibration-now"))
    assert page.run("document.getElementById('calibration').getAttribute('aria-label')").startswith(
        "Predicted over happened of click; over all "
    )
    page.run("document.getElementById('task').value = 'conversion'")
    page.run("document.getElementById('task').dispatchEvent(new Event('change'))")
    assert page.text("#calibration-now") == "\u2013"
    assert page.complaints == []


def test_token_is_asked_for_where_it_is_needed(
    browser: Browser, serve: Callable[..., str], engine: Engine
) -> None:
    browser.open(serve(token=Token(SECRET)))
    browser.wait("document.querySelectorAll('#ads-body tr').length")
    browser.wait("document.getElementById('token-form').checkVisibility()")
    before = len(engine.live.ads)

    def remove_first() -> None:
        browser.run("document.getElementById('ads-said').textContent = ''")
        browser.run("document.querySelector('#ads-body button').click()")
        browser.run("document.querySelector('#ads-body button.sure').click()")
        browser.wait("document.getElementById('ads-said').innerText")

    remove_first()
    assert browser.text("#ads-said").startswith("header.authorization: must be 'Bearer TOKEN'")
    assert len(engine.live.ads) == before
    browser.focus("#token")
    browser.type(SECRET)
    remove_first()
    assert len(engine.live.ads) == before - 1
    # It is nowhere but in the field.
    assert browser.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_experiment_is_shown_while_it_runs(
    browser: Browser, serve: Callable[..., str], engine: Engine, bundles: Path
) -> None:
    address = serve()
    body = {
        "replaces": engine.live.served.release, "release": read_bundle(bundles / "second").release
    }  # fmt: skip
    with httpx.Client(base_url=address, timeout=60) as client:
        client.post("/v1/admin/experiments/one", json=body).raise_for_status()
        for number in range(40):
            answer = client.post("/v1/rank", json={"user": {"id": f"u{number}"}, "k": 2}).json()
            events = [
                {"event_id": f"{number} {ad['ad']}", "ad": ad["ad"], "user": f"u{number}",
                 "kind": "click" if number % 3 else "impression",
                 "request_id": answer["request_id"]}
                for ad in answer["ads"]
            ]  # fmt: skip
            client.post("/v1/events", json={"events": events}).raise_for_status()

    browser.open(address)
    browser.wait("document.querySelectorAll('#experiment .whisker').length === 2")

    assert browser.text("#experiment-name") == "one"
    rows = browser.run(
        "[...document.querySelectorAll('#experiment-body tr')].map((r) => r.cells[0].innerText)"
    )
    assert rows == ["click rate", "conversion rate", "hide rate", "value per user"]
    users = re.findall(r"\d+", browser.text("#experiment-said"))
    assert sum(map(int, users)) == 40
    with httpx.Client(base_url=address, timeout=60) as client:
        client.delete("/v1/admin/experiments/one").raise_for_status()
    browser.wait("document.getElementById('experiment').hidden")
    assert browser.complaints == []


def test_server_that_is_gone_is_seen(browser: Browser, make_app_of: Callable[..., Any]) -> None:
    served = Served(make_app_of())
    browser.open(served.address)
    browser.wait("document.getElementById('health').dataset.state === 'up'")
    served.close()

    browser.wait("document.getElementById('health').dataset.state === 'down'")
    assert browser.text("#health") == "The server cannot be reached."


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_its_screen_and_can_be_read(page: Browser, width: int, scheme: str) -> None:
    page.look(width, 800, scheme=scheme)
    before = page.run("[...document.querySelectorAll('.card')].map((c) => c.offsetTop)")
    page.run("document.getElementById('ask-form').requestSubmit()")
    page.wait("document.querySelectorAll('#winners-body tr').length")
    page.wait("document.querySelector('#health').dataset.state === 'up'")

    # Nothing moves when an answer comes, and nothing stands out of the screen.
    assert page.run("[...document.querySelectorAll('.card')].map((c) => c.offsetTop)") == before
    assert page.run("document.documentElement.scrollWidth") <= width
    colours = page.run(
        "(() => { const s = getComputedStyle(document.documentElement);"
        " return ['--card', '--page', '--text', '--soft', '--accent', '--bad', '--on-accent']"
        ".map((name) => s.getPropertyValue(name).trim()) })()"
    )
    card, ground, text, soft, accent, bad, on_accent = map(_luminance, colours)
    # WCAG 2.2 AA: 4.5 to 1 for text.
    for one, other in (
        (card, text), (card, soft), (ground, soft), (card, accent), (card, bad), (accent, on_accent)
    ):  # fmt: skip
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_control_has_a_name(page: Browser) -> None:
    page.run("document.getElementById('add').open = true")
    nameless = page.run(
        "[...document.querySelectorAll('input, select, button, svg[role=img], [role=region]')]"
        ".filter((e) => !(e.labels?.length || e.innerText?.trim() || e.getAttribute('aria-label')"
        " || e.getAttribute('aria-labelledby'))).map((e) => e.outerHTML)"
    )
    assert nameless == []

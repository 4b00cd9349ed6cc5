"""The page in a browser: filled in by keyboard, answered, explained and refused; on a phone, in the dark, and before a service that makes it hard."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, chromium, in_project
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.slow

# What the policy forbade and what nobody caught, kept from before the page's own script runs.
WATCH = """
window.seen = [];
addEventListener("securitypolicyviolation", (e) => seen.push(`policy: ${e.violatedDirective} ${e.blockedURI}`));
addEventListener("error", (e) => seen.push(`error: ${e.message}`));
addEventListener("unhandledrejection", (e) => seen.push(`rejection: ${e.reason}`));
"""


class Page:
    """A browser's tab, and what a person would do there."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def view(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """The window, and the person's taste."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})  # fmt: skip
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": k, "value": v} for k, v in features.items()]})

    def open(self, url: str) -> None:
        """Load the page, and wait for the form."""
        self.driver.get(url)
        self.wait(lambda: self("#desk").is_displayed())

    def __call__(self, selector: str) -> WebElement:
        """The first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """Every element, hidden ones too."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def do(self, script: str, *values: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *values)

    def wait(self, until: Callable[[], Any], seconds: float = 60) -> None:
        """Return when it is so. Raises TimeoutException."""
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: until())

    def press(self, *keys: str) -> None:
        """Keys, wherever the focus is."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def focus(self) -> str:
        """The id of what has the focus."""
        return self.driver.switch_to.active_element.get_attribute("id")

    def tab_to(self, id: str) -> list[str]:
        """Press Tab until an element has the focus; give the ids on the way. Each shows that it has it."""
        way: list[str] = []
        while not way or way[-1] != id:
            self.press(Keys.TAB)
            assert self.do("return getComputedStyle(document.activeElement).outlineStyle") != "none", f"no focus ring on {self.focus()}"
            way.append(self.focus())
            assert len(way) < 1000, f"Tab does not lead to {id}: {way[:50]}"
        return way

    def values(self, selector: str) -> list[float]:
        """What `data` elements hold, in full."""
        return [float(e.get_attribute("value")) for e in self.all(selector)]

    def predict(self) -> None:
        """Press Predict, and wait for the explanation."""
        self("#predict").send_keys(Keys.ENTER)
        self.wait(lambda: self("#why").is_displayed())

    def row(self) -> dict[str, Any]:
        """The row that was sent last, from the request that the page shows."""
        return json.loads(re.search(r"-d '(.*)'$", self("#request").get_attribute("textContent"), re.DOTALL)[1].replace("'\\''", "'"))["rows"]

    def width(self) -> int:
        """How wide the content is."""
        return self.do("return document.documentElement.scrollWidth")

    def complaints(self) -> list[str]:
        """What the browser did not like, but for answers that are no 200."""
        said = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [line for line in said if "Failed to load resource" not in line] + self.do("return window.seen")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser that all tests use."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield Page(driver)


@pytest.fixture(scope="module")
def sent(project: Path) -> tuple[bytes, str]:
    """The page, and the policy under which it is sent, as the project's package has them."""
    policy = in_project(project, "python", "-c", "from churn.page import POLICY; print(POLICY)").strip()
    return (project / "churn/page.html").read_bytes(), policy


@pytest.fixture
def page(tab: Page, server: Server) -> Page:
    """The page of the running service."""
    tab.view()
    tab.open(server.url)
    tab.driver.get_log("browser")  # what came before
    return tab


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    """What the service says of itself."""
    return server.client.get("/info").json()


def label(value: Any) -> str:
    """A class as text."""
    return value if isinstance(value, str) else json.dumps(value)


def test_the_page_comes_with_its_policy(server: Server, sent: tuple[bytes, str]) -> None:
    """Byte for byte, under a policy that allows its own script and style and nothing else."""
    answer = server.client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert (answer.content, answer.headers["content-security-policy"]) == sent
    assert sent[1].startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in sent[1]


def test_it_says_what_is_served(page: Page, info: dict) -> None:
    """The model, its metrics, and a field with a label for each column."""
    assert page("h1").text == info["name"] == page.driver.title
    assert info["target"] in page("#what").text and info["family"] in page("#what").text
    assert {info["digest"], info["run"]} <= {e.get_attribute("title") for e in page.all("#facts .copy")}
    best = "roc_auc" if info["task"] == "classification" else "rmse"
    assert float(page("#facts strong").text.replace(",", "")) == pytest.approx(info["metrics"][best]["value"], rel=1e-3)
    assert [e.text for e in page.all(".field label")] == [c["name"] for c in info["columns"]]
    assert len(page.all("#example option")) == len(info["examples"]) + 1
    unnamed = "return [...document.querySelectorAll('input, select, textarea')].filter((e) => !e.labels.length).length"
    assert page.do(unnamed) == 0
    assert not page.complaints()


def test_a_prediction_by_keyboard(page: Page, info: dict, server: Server) -> None:
    """An example is chosen, every field is passed, and the answer is the one that the API gives."""
    page.tab_to("example")
    page.press(Keys.ARROW_DOWN)  # from the first example to the second
    assert page("#example").get_attribute("value") == "1"
    way = page.tab_to("predict")
    assert list(dict.fromkeys(i for i in way if re.fullmatch(r"f\d+", i))) == [f"f{i}" for i in range(len(info["columns"]))]
    page.press(Keys.ENTER)
    page.wait(lambda: page("#why").is_displayed())

    sent, example = page.row(), info["examples"][1]
    assert sent.keys() == {c["name"] for c in info["columns"]}
    numbers = {k: v for k, v in example.items() if isinstance(v, float)}
    assert {k: sent[k] for k in numbers} == pytest.approx(numbers, rel=1e-5)
    dates = {c["name"] for c in info["columns"] if c["type"] == "date"}
    assert all(sent[k] == v for k, v in example.items() if k not in numbers.keys() | dates)

    said = server.client.post("/predict", json={"rows": [sent]}).json()
    [prediction] = said["predictions"]
    if "probabilities" in prediction:
        assert page("#answer").text == label(prediction["prediction"])
        shown = dict(zip((e.text for e in page.all("#classes li > span:first-child")), page.values("#classes data")))
        assert shown == pytest.approx({k: prediction["probabilities"][k] for k in shown}, abs=1e-9)
        assert len(shown) == min(8, len(info["labels"]))
        assert page("#classes .chosen").text.startswith(page("#answer").text)
    else:
        assert float(page("#answer").get_attribute("title")) == pytest.approx(prediction["prediction"], rel=1e-9)
    copied = [e.get_attribute("title") for e in page.all("#proof .copy")]
    assert re.fullmatch(r"[0-9a-f]{32}", copied[0]) and copied[1:] == [said["model"], said["run"]]
    assert page("#answer").text in page("#live").get_attribute("textContent")  # and a screen reader says it
    assert page.focus() == "predict"
    assert not page.complaints()


def test_the_effects_are_shown_and_add_up(page: Page, info: dict, server: Server) -> None:
    """Those that the API gives, the largest first, each to its side of the zero line; small ones are folded away."""
    page.predict()
    why = server.client.post("/explain", json={"rows": [page.row()]}).json()
    [base], [answer], effects = page.values("#effects .base"), page.values("#effects .total"), page.values("#effects .effect")
    assert base + sum(effects) == pytest.approx(answer, rel=1e-9, abs=1e-9)
    assert [base, answer, *effects] == pytest.approx([why["base"], why["answer"], *(e["effect"] for e in why["effects"])], rel=1e-6, abs=1e-9)
    assert len(effects) == min(256, len(info["columns"])) and [*map(abs, effects)] == sorted(map(abs, effects), reverse=True)
    names = [e.get_attribute("textContent") for e in page.all("#effects .column")]
    assert names == [e["column"] for e in why["effects"]]

    lines = page.all("#effects li:is(.plus, .minus, .none)")
    for line, effect in zip(lines, effects):  # the bar goes to the side that the sign says, from the zero line
        left, zero = (float(page.do(f"return parseFloat(arguments[0].querySelector('{part}').style.left)", line)) for part in (".bar", ".zero"))
        assert left <= zero + 1e-3 if effect < 0 else left == pytest.approx(zero, abs=1e-3)
    hidden = [line for line in lines if not line.is_displayed()]
    if len(lines) > 10:
        assert len(hidden) == len(lines) - 8
        page("#more").send_keys(Keys.SPACE)
        assert all(line.is_displayed() for line in lines) and page("#more").get_attribute("aria-expanded") == "true"
    assert not page.complaints()


def number_field(info: dict, valid: bool = False) -> tuple[str, str]:
    """The name and the id of a column of numbers."""
    return next((c["name"], f"f{i}") for i, c in enumerate(info["columns"]) if c["type"] == "number" and not (valid and c["valid"][1] is None))


def test_an_error_stands_beside_its_field(page: Page, info: dict, server: Server) -> None:
    """It is the service's own sentence, the field has the focus, and a mended field is no longer marked."""
    name, id = number_field(info)
    page.predict()
    field = page(f"#{id}")
    field.clear()
    field.send_keys("forty")
    page("#predict").send_keys(Keys.ENTER)
    page.wait(lambda: page(f"#{id}-note").text)
    expected = server.client.post("/predict", json={"rows": [page.row() | {name: "forty"}]})
    assert (expected.status_code, expected.json()["field"]) == (400, f"rows.0.{name}")
    assert page(f"#{id}-note").text == expected.json()["error"]
    assert page.focus() == id and field.get_attribute("aria-invalid") == "true"
    assert f"{id}-note" in field.get_attribute("aria-describedby")
    gap = page(f"#{id}-note").rect["y"] - field.rect["y"] - field.rect["height"]
    assert 0 <= gap < 20 and abs(page(f"#{id}-note").rect["x"] - field.rect["x"]) < 2
    assert [e.text for e in page.all(".note") if e.text] == [expected.json()["error"]]
    assert page("#changed").is_displayed()  # what is shown is the answer to the row before
    field.clear()
    field.send_keys("1")
    assert not page(f"#{id}-note").text and not field.get_attribute("aria-invalid")
    assert not page.complaints()


def test_what_is_doubtful_is_said_beside_its_field(page: Page, info: dict) -> None:
    """A value out of range is answered, with a word."""
    name, id = number_field(info, valid=True)
    page(f"#{id}").clear()
    page(f"#{id}").send_keys("1e9")
    page.predict()
    assert "out of range" in page(f"#{id}-note").text and not page(f"#{id}").get_attribute("aria-invalid")
    assert f"{name}: " in page("#warnings").text


def test_it_fits_a_phone(page: Page) -> None:
    """320 pixels wide nothing is cut off, the answer is in sight, and everything is large enough for a finger."""
    page.view(320, 640)
    assert page.width() == 320
    page.predict()
    for details in page.all("details"):
        page.do("arguments[0].open = true", details)
    assert page.width() == 320
    assert page.do("return document.getElementById('result').getBoundingClientRect().top") < 500  # the answer is in sight
    small = "return [...document.querySelectorAll('input, select, textarea, .button')].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 40).length"
    assert page.do(small) == 0


def brightness(page: Page, style: str, selector: str) -> float:
    """Of a colour, 0 to 1."""
    colour = page.do(f"return getComputedStyle(document.querySelector('{selector}')).{style}")
    red, green, blue = (int(v) / 255 for v in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_is_dark_where_the_person_likes_it_dark(page: Page) -> None:
    """Light on dark, in every part."""
    assert brightness(page, "backgroundColor", "body") > 0.9 > 0.3 > brightness(page, "color", "body")
    page.view(dark=True)
    for part in ("body", ".card", "#fields input, #fields select"):
        assert brightness(page, "backgroundColor", part) < 0.15 < 0.7 < brightness(page, "color", part), part


class Stub(ThreadingHTTPServer):
    """A service that is not ready at first, wants a key, is busy once, and serves a model whose names are markup."""

    def __init__(self, columns: int, page: bytes, policy: str) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.page, self.policy = page, policy
        self.url, self.ready, self.asked, self.rows = f"http://127.0.0.1:{self.server_port}", False, [], []
        hostile = ["<img src=x onerror=seen.push('markup')>", "</script><script>seen.push('markup')</script>", "constructor", "a.b", "x" * 120]
        types = ("number", "category", "ordered", "boolean", "date", "text")
        names = hostile + [f"column {i}" for i in range(columns - len(hostile))]
        self.columns = [{"name": n, "type": types[i % 6], "minimum": 0, "maximum": 20000, "valid": [None, None], "categories": ["<b>", "two"],
                         "known": ["<b>", "two"] if i % 2 else [], "clock": i % 12 == 4} for i, n in enumerate(names)]  # fmt: skip
        values = {"number": -1.5, "category": "<b>", "ordered": "two", "boolean": False, "date": "2024-02-29T12:30:15", "text": "it's <i>late</i>"}
        self.example = {c["name"]: values[c["type"]] for c in self.columns} | {c["name"]: "2024-02-29" for c in self.columns if c["type"] == "date" and not c["clock"]}

    def info(self) -> dict[str, Any]:
        """As a service says it."""
        return {"name": "<b>model</b>", "family": "linear", "task": "regression", "digest": "d" * 64, "run": "r" * 64, "provider": "CPUExecutionProvider",
                "metrics": {"mae": {"value": 2}, "rmse": {"value": 1.5, "interval": [1, 2]} }, "target": "price", "labels": [],
                "columns": self.columns, "examples": [self.example, dict.fromkeys(self.example)], "card": "# A <b>card</b>\n\n- one\n- `two`"}  # fmt: skip

    def answer(self, path: str, key: str | None, body: bytes) -> tuple[int, dict]:
        """Status and JSON."""
        self.asked.append(path)
        if not self.ready:
            return 503, {"error": "still starting"}
        if key != "Bearer right":
            return 401, {"error": "no key"}
        if path == "/info":
            return 200, self.info()
        if path == "/predict" and self.asked.count("/predict") == 1:
            return 429, {"error": "full"}
        [row] = json.loads(body)["rows"]
        self.rows.append(row)
        if path == "/predict":
            if row["a.b"] == "late":
                return 400, {"error": "<b>too late</b>", "field": "rows.0.a.b"}
            return 200, {"predictions": [{"prediction": -1234567.25, "id": "0" * 32}], "model": "d" * 64, "run": "r" * 64}
        effects = [{"column": c["name"], "value": row[c["name"]], "effect": -100.0} for c in self.columns]
        return 200, {"of": "price", "base": 6000.0 - 1240567.25, "answer": -1240567.25, "effects": effects} | {"prediction": 0, "model": "", "run": ""}


class Answers(BaseHTTPRequestHandler):
    """One request to the stub."""

    def do_GET(self) -> None:
        """The page, or an answer."""
        if self.path == "/":
            return self.reply(200, self.server.page, {"content-type": "text/html; charset=utf-8", "content-security-policy": self.server.policy})
        self.do_POST()

    def do_POST(self) -> None:
        """An answer."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, found = self.server.answer(self.path, self.headers.get("authorization"), body)
        self.reply(status, json.dumps(found).encode(), {"content-type": "application/json", "retry-after": "1"})

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Send it."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def stub(sent: tuple[bytes, str]) -> Iterator[Stub]:
    """The stub, with 60 columns."""
    with Stub(60, *sent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_service_that_makes_it_hard(tab: Page, stub: Stub) -> None:
    """It is not ready, wants a key, is busy, is written in markup, and refuses: the page says each, and goes on."""
    tab.view(320, 640)
    tab.driver.get_log("browser")
    tab.driver.get(stub.url)
    tab.wait(lambda: "still starting" in tab("#state").text)
    stub.ready = True
    tab.wait(lambda: tab("#door").is_displayed())
    assert tab.focus() == "key" and tab("#key").get_attribute("type") == "password"
    tab.press("wrong", Keys.ENTER)
    tab.wait(lambda: "does not take" in tab("#key-note").text)
    tab.press("right", Keys.ENTER)
    tab.wait(lambda: tab("#desk").is_displayed())
    assert tab.do("return [localStorage.length, sessionStorage.length, document.cookie, location.search]") == [0, 0, "", ""]

    assert tab("h1").text == "<b>model</b>" and tab("#facts strong").text == "1.5"
    assert [e.get_attribute("textContent") for e in tab.all(".field label")] == [c["name"] for c in stub.columns]
    assert not tab.all("main img, main b, #fields script")
    assert len(tab.all('#fields [type="date"]')) == len(tab.all('#fields [type="datetime-local"]')) == 5  # a time of day only where it matters
    assert tab.width() == 320

    tab.do("window.heard = []; const box = document.getElementById('said'); new MutationObserver(() => heard.push(box.textContent)).observe(box, {childList: true})")
    tab.predict()
    assert "full. Trying again in 1 s …" in tab.do("return window.heard")
    assert stub.rows == [stub.example] * 2  # what the form was filled with is what was sent, of every type, to both
    assert tab("#answer").text == "−1,234,567" and tab("#answer").get_attribute("title") == "-1234567.25"
    assert len(tab.all("#effects .effect")) == 60 and tab("#rest").text.split("\n") == ["52 other columns", "−5,200"]
    assert tab.width() == 320 and not tab.all("main img, main b, #effects script")

    dotted = next(f"f{i}" for i, c in enumerate(stub.columns) if c["name"] == "a.b")
    tab.do(f"const box = document.getElementById('{dotted}'); box.replaceChildren(new Option('late')); box.dispatchEvent(new Event('input'))")
    tab("#predict").send_keys(Keys.ENTER)
    tab.wait(lambda: tab(f"#{dotted}-note").text == "<b>too late</b>")
    assert tab.focus() == dotted

    tab("#clear").send_keys(Keys.ENTER)
    tab("#predict").send_keys(Keys.ENTER)
    tab.wait(lambda: len(stub.rows) == 5)
    assert stub.rows[-1] == dict.fromkeys(stub.example)  # all missing
    assert not tab.complaints()


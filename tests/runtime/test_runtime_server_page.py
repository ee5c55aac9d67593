"""The live page and its data, and the metrics."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import LAYERS, STEP_J, STEP_S, http, post, serving, until

from clone_rl.runtime.server.live_page import HEADERS, PAGE

pytest_plugins = ["serving"]

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
SCRIPT = re.search(r"<script>(.*)</script>", PAGE, re.S)[1]


def ask(prompt="hello", tokens=4, **more):
    return {"model": "stand-in", "prompt": prompt, "max_tokens": tokens, **more}


def live(served):
    return http.get(f"{served.url}/live.json").json()


def at(state, path):
    for name in path.split("."):
        state = state[name]
    return state


def test_the_page_reads_only_what_its_endpoint_delivers(served):
    paths = set(re.findall(r'data-field="([^"]+)"', PAGE)) | set(re.findall(r'(?<!\.)\bget\("([^"]+)"\)', SCRIPT))
    assert len(paths) > 20
    # The script knows the data by ``get`` and by ``data-field`` alone.
    assert {found for found in re.findall(r"(?<!\.)\bget\(([^)]*)\)", SCRIPT) if found[0] != '"'} == {"cell.dataset.field"}
    assert len(re.findall(r"\bstate\b", SCRIPT)) == 3  # declared, read by ``get``, filled
    post(served, ask())
    state = live(served)
    for path in paths:
        assert at(state, path) is not None, path


def test_every_element_that_the_script_asks_for_is_there():
    wanted = set(re.findall(r'byId\("(\w+)"\)', SCRIPT)) | set(re.findall(r'blank\("(\w+)"\)', SCRIPT))
    assert wanted == set(re.findall(r"\bid=(\w+)", PAGE))


def test_the_page_asks_for_nothing_from_elsewhere(served):
    answer = http.get(served.url)
    assert answer.text == PAGE
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|@import|url\(", PAGE)
    assert re.findall(r'fetch\("([^"]+)"', SCRIPT) == ["live.json"]
    policy = answer.headers["content-security-policy"]
    assert policy == HEADERS["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_shows_the_last_response_and_none_of_its_words(served):
    empty = live(served)
    assert (empty["last"], empty["recent_j"], empty["totals"]["requests"]) == (None, [], 0)
    post(served, ask("private", slo={"ttft_s": 0.004, "tpot_s": 0.003}))
    state = live(served)
    assert state["last"]["slack_s"] == pytest.approx([0.004 + n * 0.003 - (n + 1) * LAYERS * STEP_S for n in range(4)])
    assert state["last"]["points"] == [[3] * LAYERS] * 4
    assert state["last"]["depths"] == [LAYERS] * 4
    assert state["recent_j"] == pytest.approx([LAYERS * STEP_J])
    assert state["totals"] == pytest.approx(
        {"requests": 1, "tokens": 4, "deadline_misses": 0, "energy_j": 4 * LAYERS * STEP_J, "busy_s": 4 * LAYERS * STEP_S}
    )
    assert state["voltages_v"] == pytest.approx([0.6 + 0.4 * n / 7 for n in range(8)])
    text = http.get(f"{served.url}/live.json").text + http.get(f"{served.url}/metrics").text
    assert "private" not in text
    assert "priv" not in text


def test_what_is_remembered_is_bounded(served):
    for _ in range(70):
        post(served, ask(tokens=1))
    state = live(served)
    assert len(state["recent_j"]) == 60
    assert state["totals"]["requests"] == 70


def samples(served):
    answer = http.get(f"{served.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def test_metrics_are_what_prometheus_reads_and_add_up(served):
    for _ in range(3):
        post(served, ask())
    post(served, ask(slo={"ttft_s": 1e-6, "tpot_s": 1e-6}))
    post(served, ask(top_p=0.5))
    post(served, ask("!"))
    until(lambda: not served.service.worker.running)  # its last client may know the answer before it is done
    found = samples(served)
    assert found["clone_rl_requests_total", "completed", "completions"] == 4
    assert found["clone_rl_requests_total", "completions", "refused"] == 1
    assert found["clone_rl_requests_total", "completions", "failed"] == 1
    assert found["clone_rl_tokens_total", "completion"] == 16
    assert found["clone_rl_tokens_total", "prompt"] == 20
    assert found[("clone_rl_energy_joules_total",)] == pytest.approx(16 * LAYERS * STEP_J)
    assert found[("clone_rl_busy_seconds_total",)] == pytest.approx(16 * LAYERS * STEP_S)
    assert found[("clone_rl_deadline_misses_total",)] == 4
    assert found[("clone_rl_token_depth_layers_sum",)] == 16 * LAYERS
    assert found[("clone_rl_token_depth_layers_count",)] == 16
    assert found[("clone_rl_request_seconds_count",)] == found[("clone_rl_ttft_seconds_count",)] == 4
    assert found[("clone_rl_ttft_seconds_sum",)] == pytest.approx(4 * LAYERS * STEP_S)
    assert found[("clone_rl_queue_length",)] == found[("clone_rl_running",)] == 0


def test_two_servers_count_apart(served, stand_in):
    post(served, ask())
    with serving(stand_in) as other:
        assert samples(other)["clone_rl_requests_total", "completed", "completions"] == 0


@pytest.mark.skipif(not BROWSER, reason="no chromium, chromium-browser or google-chrome on this machine")
def test_a_browser_shows_the_last_response_and_draws_it(served, tmp_path):
    image = pytest.importorskip("PIL.Image")
    quiet = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,1600",
    )  # fmt: skip
    post(served, ask())
    until(lambda: live(served)["last"])

    def browse(*arguments):
        command = [BROWSER, *quiet, *arguments, served.url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    shown = browse("--dump-dom")
    cells = dict(re.findall(r'data-field="([^"]+)"[^>]*>([^<]*)<', shown))
    assert cells["last.energy_per_token_j"] == "4.000 uJ"
    assert cells["last.ttft_s"] == "2.000 ms"
    assert (cells["last.tokens"], cells["last.exits"], cells["controller"]) == ("4", "0", "steady")
    assert re.search(r'id="?nothing"?[^>]*hidden', shown)
    browse(f"--screenshot={tmp_path / 'page.png'}")
    colours = {colour for _, colour in image.open(tmp_path / "page.png").convert("RGB").getcolors(2**20)}
    strip = [c for c in colours if max(c) - min(c) > 100]  # text and lines are grey
    assert strip, "no canvas was drawn"

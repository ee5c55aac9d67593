"""Result rows in files, and running them again."""

import copy
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clone_rl.agents.heuristics import Fixed, Pace, baselines, find_baseline
from clone_rl.agents.policy import Policy
from clone_rl.agents.tuning import _clipped
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Scenario
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, PolicyFileError, UnknownNameError
from clone_rl.evaluation.protocol import evaluate
from clone_rl.evaluation.replay import control_of, controller_of, groups, mismatches, oracle_mismatches, scenario_of
from clone_rl.evaluation.rows import (
    CLAIRVOYANT,
    IDENTITY,
    MEASURED,
    Origin,
    read_rows,
    scenario_changes,
    scenario_sha256,
    write_rows,
)

FAST, PACE = Fixed("performance", 7), Pace(8, 0.9, 0.3)
ORIGIN = Origin("clone-rl evaluate performance pace 'default' \"\n\"")


@pytest.fixture(scope="module")
def judged(control):
    found = evaluate(control, [FAST, PACE, Policy.load("default")], "test", 3, seeds=2, origin=ORIGIN)
    found.requests[0]["oracle_j"], found.requests[0]["oracle_exits_j"] = 1e-5 / 3, None
    return found


@pytest.fixture(params=["rows.csv", "rows.json"])
def file(request, judged, tmp_path):
    write_rows(tmp_path / request.param, judged.requests)
    return tmp_path / request.param


def altered(path, **changes):
    """The file with other values in its second row."""
    rows = read_rows(path)
    rows[1] |= changes
    write_rows(path, rows)
    return path


def check(path, **options):
    return mismatches(groups(read_rows(path), path), **options)


def test_rows_come_back_as_they_are(file, judged):
    assert read_rows(file) == judged.requests
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20), st.integers(0, 2**61))
def test_every_float_text_and_number_comes_back(tmp_path, judged, value, text, number):
    row = {
        **judged.requests[0],
        "energy_j": value,
        "command": text.replace("\0", ""),
        "seed": number,
        "settings": {"a": [value]},
    }
    for name in ("r.csv", "r.json"):
        try:
            write_rows(tmp_path / name, [row])
        except UnicodeEncodeError:  # half of a surrogate pair is no text
            return
        (back,) = read_rows(tmp_path / name)
        assert back == row
        assert math.copysign(1, back["energy_j"]) == math.copysign(1, value)


def test_rows_that_cannot_be_written_leave_the_old_file_and_nothing_beside_it(tmp_path, judged):
    for name in ("rows.csv", "rows.json"):
        write_rows(tmp_path / name, judged.requests[:2])
        before = (tmp_path / name).read_bytes()
        with pytest.raises((ValueError, TypeError)):
            write_rows(tmp_path / name, [judged.requests[0], {**judged.requests[0], "settings": {"x": float("nan")}}])
        assert (tmp_path / name).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "rows.json"]
    with pytest.raises(BadValueError, match=r"rows\.txt"):
        write_rows(tmp_path / "rows.txt", judged.requests)


def test_every_row_says_all_that_it_takes(judged, control):
    row = judged.requests[-1]
    assert set(row) == {*IDENTITY, *MEASURED, *CLAIRVOYANT}
    assert row["policy"] == row["controller"] == "default"
    assert row["policy_sha256"] == Policy.load("default").card["sha256"]
    assert row["settings"]["sha256"] == row["policy_sha256"]
    assert (row["max_miss"], row["limit_w"]) == (0.01, control.emulator.chip.limit_w)
    assert row["changes"] == {"traces": control.scenario.traces}
    assert [r["evaluation_seed"] for r in judged.requests[:18]] == [3] * 9 + [12] * 9


def test_rows_run_again_give_the_same_figures(file):
    assert check(file) == []


def test_any_rows_in_any_order_will_do(file):
    rows = read_rows(file)
    write_rows(file, [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:17]])
    assert check(file) == []


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_a_figure_that_is_off_by_the_last_digit_is_found(file, name):
    if name == "document":
        pytest.skip("another document is another request: see below")
    row = read_rows(file)[1]
    value = row[name] + 1 if MEASURED[name] is int else math.nextafter(row[name], 1e9)
    found = check(altered(file, **{name: value}))
    assert [(m.row, m.controller, m.request, m.figure, m.written) for m in found] == [(2, "performance", 1, name, value)]
    assert f"row 2 (performance, request 1): {name} is {value!r}" in str(found[0])
    assert found[0].replayed == row[name]


def test_a_tolerance_lets_rounding_pass_and_nothing_else(file):
    row = read_rows(file)[1]
    assert check(altered(file, energy_j=row["energy_j"] * (1 + 1e-12)), tolerance=1e-9) == []
    assert check(altered(file, energy_j=row["energy_j"] * (1 + 1e-6)), tolerance=1e-9)


def test_another_draw_is_another_request(file):
    assert check(altered(file, seed=read_rows(file)[1]["seed"] + 1))


def test_other_settings_are_found(judged, file):
    rows = copy.deepcopy(judged.requests)
    for row in rows:
        if row["controller"] == "pace":
            row["settings"]["floor"] = 7
    write_rows(file, rows)
    assert {m.controller for m in check(file)} == {"pace"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scenario": "defualt"}, UnknownNameError, "unknown scenario 'defualt'"),
        ({"scenario_sha256": "0" * 64}, BadFileError, "another version of scenario 'default'"),
        ({"traces_sha256": "0" * 64}, BadFileError, "other traces"),
        ({"chip_sha256": "0" * 64}, BadFileError, "another chip"),
        ({"chip": "orin-nano"}, BadFileError, "chip or traces"),
        ({"controller": "performanc"}, UnknownNameError, "did you mean 'performance'"),
        ({"policy": "default", "policy_sha256": "0" * 64}, PolicyFileError, "another policy than 'default'"),
        ({"policy": "gone/policy.safetensors", "policy_sha256": "0" * 64}, PolicyFileError, "no policy 'gone/policy"),
        ({"controller": "pace", "settings": {"floor": "high"}}, BadFileError, "no settings of pace: TypingError"),
        ({"controller": "pace", "settings": {"fluor": 1}}, BadFileError, "no settings of pace"),
        ({"document": 0}, BadFileError, "no test document 0"),
        ({"kind": "poem"}, BadFileError, "not 'poem'"),
        ({"split": "tests"}, UnknownNameError, "tests"),
        ({"changes": {"slo": 3}}, CloneRLError, "row 2"),
        ({"mode": "live"}, BadFileError, "mode is 'live'"),
        ({"mode": "live", "live": {"model": "x"}}, BadValueError, "model in the loop"),
        ({"tokens": 0}, BadFileError, "of no request"),
        ({"seed": -1}, BadFileError, "of no request"),
    ],
)
def test_rows_of_something_else_are_refused_by_name(file, changes, error, message):
    with pytest.raises(error) as caught:
        check(altered(file, **changes))
    assert message in str(caught.value)


def test_rows_of_another_version_are_refused_by_name(file):
    with pytest.raises(BadFileError, match=r"row 2 is of version 2") as caught:
        read_rows(altered(file, rows_version=2))
    assert "clone-rl 0." in caught.value.hint


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "no such file"),
        ("a.csv", "", "no rows"),
        ("a.csv", "controller,energy_j\npace,1\n", "row 1 has no rows_version"),
        ("a.csv", "rows_version\n1\n", "is missing"),
        ("a.csv", 'rows_version,x\n1,"', "not CSV"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[]", "no rows"),
        ("a.json", '{"rows": []}', "no rows"),
        ("a.json", '{"rows": [7]}', "no rows_version"),
        ("a.json", '{"rows": ' + "[" * 100_000, "not JSON"),
        ("a.csv", b"\xff\xfe", "not a text file"),
    ],
)
def test_what_is_no_file_of_rows_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadFileError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("column", "value"), [("energy_j", "much"), ("energy_j", "nan"), ("tokens", "3.5"), ("settings", "[1]")]
)
def test_values_that_a_column_cannot_hold_are_named(file, column, value):
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        content["rows"][1][column] = value
        file.write_text(json.dumps(content))
    else:
        with file.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        rows[1][column] = value
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    with pytest.raises(BadFileError, match=rf"row 2, {column} is "):
        read_rows(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_damaged_files_are_errors_never_tracebacks(tmp_path, judged, data):
    name = data.draw(st.sampled_from(["f.csv", "f.json"]))
    column = data.draw(st.sampled_from([*IDENTITY, *MEASURED, *CLAIRVOYANT]))
    tables = st.dictionaries(st.sampled_from(["traces", "chip", "slo", "x", "point"]), st.integers() | st.text(max_size=3))
    floats = st.floats(allow_nan=False, allow_infinity=False)
    junk = data.draw(st.one_of(st.none(), st.text(max_size=8), st.integers(), floats, tables))
    rows = [dict(row) for row in judged.requests[:3]]
    rows[1][column] = junk
    try:
        write_rows(tmp_path / name, rows)
    except UnicodeEncodeError:
        return
    text = (tmp_path / name).read_bytes()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        (tmp_path / name).write_bytes(
            text[:at] + data.draw(st.binary(max_size=3)) + text[at + data.draw(st.integers(0, 40)) :]
        )
    try:
        assert isinstance(check(tmp_path / name), list)
    except CloneRLError as error:
        assert str(error)


def test_a_policy_is_found_beside_its_rows(control, tmp_path, monkeypatch):
    policy, folder = Policy.load("default"), tmp_path / "run"
    folder.mkdir()
    policy.save(folder / "policy.safetensors")
    found = evaluate(control, [policy], "test", requests=2, origin=Origin("", {"default": "run/policy.safetensors"}))
    write_rows(folder / "rows.csv", found.requests)
    for where, run in ((tmp_path, "run"), (tmp_path / "run", "."), (tmp_path, "moved")):
        if run == "moved":
            folder.rename(tmp_path / "moved")
        monkeypatch.chdir(where)
        assert check(Path(run) / "rows.csv") == []
    other = Policy(tuple((w + 1e-3, b) for w, b in policy.layers), policy.heads, policy.card, "default")
    other.save(tmp_path / "moved" / "policy.safetensors")
    with pytest.raises(PolicyFileError, match="another policy"):
        check(Path("moved") / "rows.csv")


def test_scenarios_that_were_changed_come_back(trace_folder):
    for name, changes in (("hot", {"interference": {"slowdown": 2.0}}), ("default", {"name": "my own", "kv": "exact"})):
        control = load_control("layer", name, "test", traces=trace_folder, **changes)
        (row,) = evaluate(control, [FAST], "test", requests=1).requests
        again = control_of(row, "row 1")
        assert again.scenario == control.scenario
    hot, default = Scenario.load("hot"), Scenario.load("default")
    # What the shipped one has and this one has not is taken away again.
    bare = Scenario.parse({**default.as_dict(), "name": "hot"}, "bare")
    assert None in scenario_changes(bare).values()
    assert hot != bare
    told = {"scenario": "hot", "changes": scenario_changes(bare), "chip": bare.chip, "traces": bare.traces}
    assert scenario_of({**told, "scenario_sha256": scenario_sha256(bare)}, "row 1") == bare


@pytest.mark.parametrize("name", baselines())
def test_every_baseline_is_made_again_by_what_it_says_of_itself(control, name):
    if name == "ztt":
        pytest.skip("it learns first; its settings hold the network")
    spec, limits = find_baseline(name), control.scenario.limits
    space = spec.space(control)
    start = _clipped(spec.start(control, limits, 0), space) if space else {}
    made = spec.make(control, spec.fit(control, limits, 0, start))
    (row, *_), said = evaluate(control, [made], "test", requests=2).requests, json.loads(json.dumps(made.describe()))
    again = controller_of({**row, "settings": said}, control, Path(), "row 1")
    assert again.describe() == made.describe()
    assert evaluate(control, [again], "test", requests=2).requests == evaluate(control, [made], "test", requests=2).requests


def test_the_oracle_is_asked_again_where_that_is_wanted(control, tmp_path):
    found = evaluate(control, [PACE], "test", 3, requests=3, oracle_requests=1)
    write_rows(tmp_path / "rows.csv", found.requests)
    rows = read_rows(tmp_path / "rows.csv")
    right_j = rows[0]["oracle_j"]
    rows[0]["oracle_j"] *= 1.01
    # One is off; all others are what they were, or they would be found too.
    (wrong,) = oracle_mismatches(groups(rows, tmp_path / "rows.csv"))
    assert (wrong.row, wrong.figure, wrong.replayed) == (1, "oracle_j", right_j)

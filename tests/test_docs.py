"""The pages of the documentation are all reachable, their commands parse, their names exist and their code runs."""

import ast
import importlib
import re
import shlex
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from check_site import problems

from clone_rl.agents.heuristics import baselines
from clone_rl.agents.policy import policy_names
from clone_rl.cli.main import _build
from clone_rl.envs import scenarios
from clone_rl.hw_emulator import Chip, Emulator, Workload, chip_names

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS.rglob("*.md"))
}
CONTROLLERS = {*baselines(), *policy_names()}
KNOWN = {"scenario": scenarios(), "chip": chip_names(), "controller": CONTROLLERS, "policy": policy_names()}
LOADERS = {
    "Scenario": "scenario",
    "Chip": "chip",
    "Policy": "policy",
    "RuntimeController": "policy",
    "ControlledDecoding": "controller",
}


def blocks(page, *languages):
    return [block for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGES[page], re.M | re.S) if kind in languages]


def commands(page):
    """Arguments of every ``clone-rl`` in a page's shell blocks."""
    for block in blocks(page, "sh", "bash", "text"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("clone-rl ") else []
            ends = [n for n, word in enumerate(words) if word in ("|", "&", "&&", ";") or word.startswith(("2>", ">"))]
            if words:
                yield tuple(words[1 : min(ends, default=None)])


COMMANDS = sorted({(page, words) for page in PAGES for words in commands(page) if words != ("--version",)})
CODE = [(page, n, block) for page in sorted(PAGES) for n, block in enumerate(blocks(page, "python"))]


def is_of_a_user(name):
    """Whether a name in a command is a file, a folder, or stands for something."""
    return "/" in name or ":" in name or name.isupper() or name.endswith((".toml", ".safetensors", ".json"))


def stranger(kind, name):
    return bool(name) and not is_of_a_user(name) and name not in KNOWN[kind]


def listed(nav):
    """Pages of a navigation."""
    for entry in nav:
        for part in entry.values() if isinstance(entry, dict) else [entry]:
            yield from listed(part) if isinstance(part, list) else [part]


def test_every_page_is_in_the_navigation_once():
    nav = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(nav) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_commands_parse_and_name_what_exists(page, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clone-rl", *words])
    options = vars(_build().parse_args(words))
    named = [(kind, options.get(kind) or "") for kind in KNOWN]
    named += [("controller", name) for name in options.get("controllers", [])]
    named += [("controller", name) for name in options.get("baselines", []) if name != "all"]
    assert [pair for pair in named if stranger(*pair)] == []


def test_there_are_commands_to_parse():
    assert len(COMMANDS) > 60
    assert {words[0] for _, words in COMMANDS} >= {"train", "evaluate", "generate", "record", "chip", "export", "serve"}


def names_in(tree):
    """What Python code asks for by name: (kind, name)."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg in ("scenario", "chip") and isinstance(keyword.value, ast.Constant):
                yield keyword.arg, keyword.value.value
        func, given = node.func, node.args[0] if node.args else None
        if (
            isinstance(func, ast.Attribute)
            and func.attr == "load"
            and isinstance(func.value, ast.Name)
            and isinstance(given, ast.Constant)
        ):
            yield LOADERS.get(func.value.id, ""), given.value


@pytest.mark.parametrize(("page", "number", "block"), CODE, ids=[f"{page}-{number}" for page, number, _ in CODE])
def test_code_imports_and_names_what_exists(page, number, block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("clone_rl"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
    assert [pair for pair in names_in(tree) if pair[0] and stranger(*pair)] == []


@pytest.mark.parametrize("page", PAGES)
def test_chips_in_the_text_exist(page):
    assert set(re.findall(r"\b(?:asic28|orin)-[a-z0-9-]*[a-z0-9]", PAGES[page])) <= set(chip_names())


@pytest.mark.parametrize("kind", ["scenario", "chip", "controller"])
def test_all_that_ships_is_mentioned(kind):
    mentioned = {name for text in PAGES.values() for name in re.findall(r"`([\w-]+)`", text)}
    assert set(KNOWN[kind]) <= mentioned


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/quickstart.md", "docs/recipes.md", "docs/troubleshooting.md"])
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {"__name__": "__main__"})


def test_what_follows_from_clones_table_is_computed():
    table = re.findall(r"^\| ([^|]+) ((?:\| [\d.]+ ){10})\|$", PAGES["docs/clone.md"], re.M)
    rows = {name: [float(cell) for cell in cells.split("|")[1:]] for name, cells in table}
    assert len(rows) == 8
    best = rows["CLONE"]
    for nx_wh, nano_wh, nx_s, nano_s, *shown in rows.values():
        power = [round(nx_wh * 3600 / nx_s, 1), round(nano_wh * 3600 / nano_s, 1)]
        ratios = [nx_wh / best[0], nano_wh / best[1], nx_s / best[2], nano_s / best[3]]
        assert shown == [*power, *(round(ratio, 2) for ratio in ratios)]
    others = [row for name, row in rows.items() if not name.startswith("CLONE")]
    least = [min(row[column] for row in others) for column in (8, 9, 6, 7)]
    assert "{:.2f} to {:.2f} times as fast and takes {:.2f} to {:.2f} times less".format(*least) in PAGES["docs/clone.md"]


def test_where_the_weights_lie_decides_whether_points_matter():
    def spread(chip, model):
        emulator = Emulator(Chip.load(chip), Workload.from_config(model, precision="int4"))
        energies = [emulator.token_energy_j(point) for point in range(len(emulator.points))]
        return 1 - min(energies) / max(energies)

    assert spread("asic28-lpddr4", "llama-3.2-1b") < 0.03
    assert 0.4 < spread("asic28-sram", str(ROOT / "clone_rl" / "llm" / "embedded" / "config.json")) < 0.5


@cache
def helper(name):
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_the_front_page():
    def shown(uri):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
        return helper("front_page").on_page_markdown(PAGES[f"docs/{uri}"], page=page)

    front = shown("index.md")
    assert "# clone-rl\n" in front
    assert "](results.md)" in front
    assert "](docs/" not in front
    assert "](../README.md" in PAGES["docs/quickstart.md"]
    assert "](../README.md" not in shown("quickstart.md")
    with pytest.raises(helper("front_page").PluginError, match=r"index\.md has no line"):
        helper("front_page").on_page_markdown(
            "# Something else\n", page=SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
        )


def test_doctests_become_code():
    fenced = helper("docstrings").fenced
    assert fenced("One.\n\n>>> 1\n1\n>>> 2\n2\n\nTwo.") == "One.\n\n```pycon\n>>> 1\n1\n>>> 2\n2\n```\n\nTwo."
    assert fenced("    >>> x  # in a section") == "```pycon\n    >>> x  # in a section\n```"
    assert fenced("Nothing, not even `>>> 1`.") == "Nothing, not even `>>> 1`."


def test_names_that_share_a_text_get_one_each():
    docstring = "Two.\n\nArgs:\n    a, **b: Text\n        over two lines.\n    c: Own.\n\nRaises:\n    E, F: Both."
    assert helper("docstrings").apart(docstring) == (
        "Two.\n\nArgs:\n    a: Text\n        over two lines.\n    **b: Text\n        over two lines.\n    c: Own.\n\n"
        "Raises:\n    E: Both.\n    F: Both."
    )
    assert helper("docstrings").apart("One, two: three.") == "One, two: three."


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<p id="there"><a href="#there">x</a> <a href="other.html#here">x</a> <a href="https://a.b/c#d">x</a>', None),
        ('<img src="picture.png">', None),
        ('<img src="lost.png">', "index.html: lost.png is not there"),
        ('<a href="lost.html">x</a>', "index.html: lost.html is not there"),
        ('<a href="#lost">x</a>', "index.html: #lost has no such anchor"),
        ('<a href="other.html#lost">x</a>', "index.html: other.html#lost has no such anchor"),
        ('<script src="https://a.b/c.js"></script>', "index.html: fetches https://a.b/c.js from elsewhere"),
        ('<link rel="stylesheet" href="//a.b/c.css">', "index.html: fetches //a.b/c.css from elsewhere"),
    ],
)
def test_the_check_of_the_site_finds_what_is_broken(body, said, tmp_path):
    (tmp_path / "index.html").write_text(body)
    (tmp_path / "other.html").write_text('<h1 id="here">x</h1>')
    (tmp_path / "picture.png").write_bytes(b"")
    assert list(problems(tmp_path)) == ([said] if said else [])


def test_a_site_without_pages_is_a_problem(tmp_path):
    assert list(problems(tmp_path)) == [f"{tmp_path}: no pages"]

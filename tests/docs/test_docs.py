"""The documentation: its code runs, its links are not broken, and it has every public name."""

import doctest
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import grucore
import grucore.convert

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^( *)```(?:python|pycon)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)

spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def blocks(page):
    """(line, code) of each Python block."""
    text = (ROOT / page).read_text()
    return [(text[: match.start(2)].count("\n"), match[2]) for match in BLOCK.finditer(text)]


WITH_CODE = [page for page in ("README.md", *PAGES) if blocks(page)]


def run(page, names):
    """Runs a page's blocks one after another in one namespace; those with prompts must print what they show."""
    for line, code in blocks(page):
        if ">>> " not in code:
            exec(compile(code, f"{page}:{line}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, page, str(ROOT / page), line)
        test.globs = names
        said = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        runner.run(test, out=said.append, clear_globs=False)
        assert not runner.failures, "".join(said)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # in torch.export.load of 2.11
@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for source, text in hooks.included(ROOT / page):
        missing = [link for link in hooks.links(text) if not (source.parent / link).exists()]
        assert not missing


def test_each_claim_of_the_comparison_names_its_test():
    text = (DOCS / "comparison.md").read_text()
    cells = re.findall(r'\]\(\.\./(tests/[^\s)]+)(?: "(\w+)")?\)', text)
    assert len(cells) > 40
    assert not [(file, name) for file, name in cells if f"def {name}(" not in (ROOT / file).read_text()]


def public_names():
    names = [f"grucore.{name}" for name in grucore.__all__]
    names += [f"grucore.convert.{name}" for name in grucore.convert.__all__]
    return [*names, "grucore.convert", "grucore.selftest", *_integrations()]


def _integrations():
    import grucore.integrations

    return [f"grucore.integrations.{each.name}" for each in pkgutil.iter_modules(grucore.integrations.__path__)]


def test_every_public_name_is_in_the_reference():
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    documented = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert not set(public_names()) - set(documented)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    assert sorted(f"docs/{page}" for page in re.findall(r"(\S+\.md)$", navigation, re.MULTILINE)) == PAGES


def test_code_has_no_links_and_a_missing_line_is_named():
    assert hooks.links("[a](b.md#c) `[d](e)`\n```\n[f](g)\n```\n![h](i.png) [j](https://k)") == ["b.md", "i.png"]
    with pytest.raises(ValueError, match=r"README.md has no line that begins with '# nothing'"):
        hooks._between(ROOT / "README.md", "# nothing", "")

"""Published figures equal the committed raw results, and the pages' links are not broken."""

import re

import pytest

from benchmarks import results
from benchmarks.measuring import ceilings
from benchmarks.publishing import accuracy, blocks, plots, quantised, report

RESULTS = report.RESULTS


@pytest.mark.slow
def test_pages_are_what_the_report_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **kwargs: None)  # only names are compared
    rows, limits = results.read([RESULTS]), ceilings.read(RESULTS / "ceilings")
    errors = accuracy.read(RESULTS / "accuracy")
    for path, text in blocks.pages(report.ROOT, rows, errors).items():
        assert path.read_text() == text
    page = report.ROOT / "benchmarks" / "RESULTS.md"
    pictures = [f"plots/{path.name}" for path in plots.save(results.cells(rows), limits, tmp_path)]
    of_quantised = quantised.section(*quantised.read(RESULTS / "quantised"))
    assert page.read_text() == report.report(rows, limits, pictures, errors, of_quantised)
    assert all((page.parent / picture).exists() for picture in pictures)


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("provider,speed\ngrucore,fast\n")
    with pytest.raises(ValueError, match=r"has columns \['provider', 'speed'\], expected"):
        results.read([tmp_path])
    with pytest.raises(ValueError, match=r"holds no \.csv file"):
        results.read([tmp_path / "nothing"])


PAGES = ["README.md", "CONTRIBUTING.md", "examples/imdb/README.md", "benchmarks/README.md", "benchmarks/RESULTS.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = report.ROOT / page
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing

"What may be said about a difference: tests of core.tables, and of the words on the pages."
import json, math, re
from fractions import Fraction
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import ttest_1samp
from amcl_suite.core.reading import read_record
from amcl_suite.core.settings import project_root
from amcl_suite.core.statistics import corrected_t_test, holm, verdict
from amcl_suite.core.tables import format_value, pivot

WATCHES = ("nbs",)     # for scripts/test.sh --changed

bounded = settings(deadline=None, derandomize=True, max_examples=60)
number = st.floats(-1e6, 1e6)
p_value = st.floats(0, 1)


@bounded
@given(number, number, st.integers(0, 60))
def test_b9_nothing_is_significant_below_five(a, b, n):
    "With fewer than five repetitions every difference is undecided, wherever its interval lies."
    said = verdict(min(a, b), max(a, b), n)
    if n < 5: assert said == f"undecided at n = {n}"
    else: assert (said == "significant") == (not min(a, b) <= 0 <= max(a, b))


@bounded
@given(st.lists(st.integers(-50, 50), min_size=5, max_size=20).filter(lambda v: len(set(v)) > 1))
def test_b7_independent_splits_give_the_plain_test(values):
    "Without overlap the corrected test is Student's; overlap only ever makes it more careful."
    plain = corrected_t_test(values, 0.)
    assert math.isclose(plain, ttest_1samp(values, 0.).pvalue, rel_tol=1e-9, abs_tol=1e-12)
    assert corrected_t_test(values, 1 / 9) >= plain
    flipped = corrected_t_test([-v for v in values], 1 / 9)
    assert math.isclose(flipped, corrected_t_test(values, 1 / 9), rel_tol=1e-12)


def test_b7_corrected_test_by_hand():
    "Mean 3, variance 5/2, five splits: t squared = 9 / (5/2 (1/5 + 1/9)) = 81/7."
    assert Fraction(9) / (Fraction(5, 2) * (Fraction(1, 5) + Fraction(1, 9))) == Fraction(81, 7)
    t = math.sqrt(81 / 7)                            # four degrees of freedom: a closed form
    s = t / math.sqrt(4 + t * t)
    assert math.isclose(corrected_t_test([1, 2, 3, 4, 5], 1 / 9), 1 - s * (1.5 - .5 * s * s),
                        rel_tol=1e-9)


@bounded
@given(st.lists(p_value, min_size=1, max_size=12))
def test_b7_holm_keeps_order_and_only_raises(values):
    "Adjusted p-values keep the order, never fall, and start with the smallest times their count."
    adjusted = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, adjusted))
    ranked = [q for _, q in sorted(zip(values, adjusted))]
    assert ranked == sorted(ranked) and ranked[0] == min(1., len(values) * min(values))
    assert holm(values[::-1]) == adjusted[::-1]
    again = holm([math.nan, *values])                # what was not tested costs nothing
    assert math.isnan(again[0]) and again[1:] == adjusted


def test_b7_one_uci_set_is_decided_and_against_annealing():
    "On the stored records only kin8nm survives, with the larger distortion under annealing."
    gains = {}
    for path in sorted((project_root() / "nbs/90_results/records/headline").glob("uci-*")):
        part = {row["method"]: row["per_split"] for row in read_record(path)["rows"]
                if row["metric"] == "distortion" and row["rule"] == "clean"}
        gains[path.name] = [a - b for a, b in zip(part["aMCL"], part["WTA"])]
    p_values = dict(zip(gains, holm([corrected_t_test(gain, 1 / 9) for gain in gains.values()])))
    decided = [name for name, p in p_values.items() if p <= .05]
    assert len(gains) == 9 and [name.split("-")[1] for name in decided] == ["kin8nm"]
    assert sum(gains[decided[0]]) > 0


def test_b9_a_grid_never_hides_how_many():
    "One count for all is in the note; different counts are in the cells."
    row = dict(dataset="a", metric="loss", value=5.45, std=.012, n=2)
    rows = [row | {"method": "x"}, row | {"method": "y", "n": 1, "std": None}]
    assert pivot(rows).rows[0][1:] == ("5.450 ± 0.012 (n = 2)", "5.450 (n = 1)")
    alike = pivot([row | {"method": "x"}, row | {"method": "y"}])
    assert alike.rows[0][1:] == ("5.450 ± 0.012",) * 2 and "over n = 2 repetitions" in alike.notes[0]


def test_small_offsets_of_classes_are_a_change():
    "Where debiasing raises the diversity, no share below zero stands beside 'Nothing suspicious'."
    import torch
    from amcl_suite.ensembles.diagnostics import diagnose
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (50,), generator=generator)
    true = torch.nn.functional.one_hot(labels, 4)[:, None]
    logits = 8. * true - 3 * torch.rand(5, 4, generator=generator) * (1 - true)
    report = diagnose(logits, labels, "probability")
    assert float(report.share) < 0 and not report.warnings
    text = repr(report)
    assert "share" not in text and "Nothing suspicious" not in text
    rise = format_value(float(-report.share))
    assert f"relative change of the diversity without offsets | {rise} |" in text
    assert "Undecided: without the members' offsets the diversity grows by" in text


def lines_of(path):
    "Yield the lines of a notebook's prose and of its stored outputs."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        texts = [cell["source"]] if cell["cell_type"] == "markdown" else []
        for output in cell.get("outputs", ()):
            texts += [output.get("text", ""), *(value for kind, value in
                      output.get("data", {}).items() if kind.startswith("text/"))]
        for text in texts: yield from "".join(text).splitlines()


@pytest.mark.parametrize("line, allowed", [("aMCL better, significant (n = 2)", False),
                                           ("not significant at n=4", False),
                                           ("significant (n = 20)", True),
                                           ("two significant digits (n = 2)", True)])
def test_b9_the_rule_knows_the_word(line, allowed):
    "The rule below sees the word beside a small n, and nothing else."
    assert speaks_too_soon(line) != allowed


def speaks_too_soon(line):
    "Tell whether a line calls something significant beside an n below five."
    return bool(re.search(r"\bsignifican(t|ce|tly)\b(?! digit)", line)
                and re.search(r"\bn ?= ?[0-4]\b", line))


def test_b9_no_page_says_significant_beside_a_small_n():
    "No prose and no stored output calls a difference significant below five repetitions."
    root = project_root()
    found = [f"{path.relative_to(root)}: {line}" for path in sorted((root / "nbs").rglob("*.ipynb"))
             for line in lines_of(path) if speaks_too_soon(line)]
    assert not found

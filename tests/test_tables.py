"""S3: a table of numbers reads back as it was written, in any dialect, or is refused with the cell that can't be used; it is never turned into indicator columns."""
import csv
import io

import numpy as np
import pytest
from amcl_suite.core.files import DataError
from amcl_suite.ensembles.tabular import read_csv_table, read_tabular
from amcl_suite.mcl.uci import read_uci
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=50, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = [[f"{a / 2}", f"{b / 2}", f"{c}"] for a, b, c in
        np.random.default_rng(0).integers(0, 10, (60, 3)).tolist()]
ODD = ["?", "-", "n/a", "NA", "nan", "inf", "-inf", "", "50%", "1,200", "1.200,5", "1'200", "1\u00a0200",
       "1\u202f200", "1 200", "1_200", "<5", "> 3", "~2", "$5", "5 \u20ac", "3+", "(4)", "abc", "0x10",
       "1e999", "1e", "--", ".", "#N/A", "#DIV/0!", "None", "null", "\u0661", "\u22125", "1.2.3", "5 kg",
       "true", "2020-01-01", "1/2", "\ufffd"]


def lines(rows, separator=",", head=("a", "b", "y")):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows([*([head] if head else []), *rows])
    return text.getvalue()


def read(folder, text, **options):
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv_table(path, **options)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("column", [0, 2])
def test_s3_an_odd_cell_is_named(tmp_path, odd, column):
    rows = [list(row) for row in ROWS]
    rows[7][column] = odd
    with pytest.raises(DataError) as error: read(tmp_path, lines(rows))
    assert "line 9" in str(error.value) and f"column {'aby'[column]!r}" in str(error.value)


@pytest.mark.parametrize("odd", ["?", "-", "NA", "50%", "1,200", "5 kg"])
def test_s3_also_where_most_or_all_cells_are_odd(tmp_path, odd):
    for share in (.3, .7, 1.):
        rows = [list(row) for row in ROWS]
        for i, row in enumerate(rows[:int(share * 60)]):
            row[0] = odd.replace("5", str(i % 15)).replace("1", str(1 + i % 9))
        with pytest.raises(DataError, match="line 2, column 'a'"): read(tmp_path, lines(rows))


def test_s3_the_inputs_of_the_list(tmp_path):
    x, y = read(tmp_path, lines(ROWS))
    assert x.shape == (60, 2) and y.tolist() == [float(row[2]) for row in ROWS]
    commas = lines(ROWS, ";").replace(".", ",")
    assert np.array_equal(read(tmp_path, commas)[0], x)
    assert np.array_equal(read(tmp_path, b"\xef\xbb\xbf" + commas.encode())[0], x)
    for text in (commas.replace("1,5", "1.5", 1), commas.replace("1,5", "1.200,5", 1)):
        with pytest.raises(DataError, match="line [23], column"): read(tmp_path, text)


@QUICK
@given(st.data())
def test_s3_numbers_in_any_dialect(tmp_path, data):
    n, width = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 5))
    number = st.one_of(st.floats(-1e6, 1e6), st.integers(-10**6, 10**6).map(float),
                       st.floats(allow_nan=False, allow_infinity=False))
    table = np.array(data.draw(st.lists(st.lists(number, min_size=width, max_size=width),
                                        min_size=n, max_size=n)))
    show = data.draw(st.sampled_from([repr, lambda v: f"{v:.3f}", lambda v: f"{v:.17e}", str,
                                      lambda v: f"{int(v)}" if abs(v) < 1e9 else repr(v)]))
    cells = [[show(float(v)) for v in row] for row in table]
    expected = np.array([[float(c) for c in row] for row in cells])
    mark, separator = data.draw(st.sampled_from(".,")), data.draw(st.sampled_from(",;\t| "))
    cells = [[c.replace(".", mark) for c in row] for row in cells]
    head = data.draw(st.sampled_from([tuple("abcde"[:width]), None]))
    if mark == "," and separator == ",": head = tuple("abcde"[:width])
    text = lines(cells, separator, head)
    if data.draw(st.booleans()): text = text.replace("\n", "\r\n")
    if data.draw(st.booleans()): text = "\ufeff" + text + "\n \n"
    try: x, y = read(tmp_path, text)
    except DataError as error:
        assert mark == "," and "column" in str(error)        # thousands can't be told from decimals
        return
    assert np.array_equal(np.column_stack([x, y]), expected)


@QUICK
@given(st.text(max_size=12), st.integers(0, 19), st.sampled_from([0, 2]))
def test_s3_any_text_in_a_column_of_numbers(tmp_path, text, row, column):
    rows = [list(r) for r in ROWS[:20]]
    rows[row][column] = text
    try: x, y = read(tmp_path, lines(rows))
    except DataError as error: assert "t.csv" in str(error); return
    assert x.shape == (20, 2) and [x[:, 0], None, y][column][row] == float(text)


@pytest.mark.parametrize("text, part", [
    ("", "two columns"), ("\n\n", "two columns"), ("a\n1\n2\n", "two columns"), ("a,b\n", "below the header"),
    ("a,b\n1,2,3\n4,5\n", "line 2: 3 cells"), ("a,b\n1,2\n3\n", "line 3: 1 cells"), ("a,a\n1,2\n", "of another"),
    (",b\n0,2\n1,3\n", "no name"), ('a,b\n"x,1\n', "end of data"), ("id,2019,2020\n1,2,3\n", "beside numbers"),
    (b"a,b\n\xe9,2\n", "UTF-8"), ("a\tb\n1,250\t2\n", "'1,250'"), ("a,b\nx,2\ny,z\n", "line 3, column 'b'")])
def test_s3_what_is_no_table(tmp_path, text, part):
    with pytest.raises(DataError, match=part): read(tmp_path, text)


def test_s3_true_categories_stay(tmp_path):
    x, y = read(tmp_path, "c,v,y\nred,1,1\n?,2,2\nblue,3,3\nred,4,4\n")
    assert x.tolist() == [[1, 0, 0, 1], [2, 1, 0, 0], [3, 0, 1, 0], [4, 0, 0, 1]]
    assert read(tmp_path, "M,2\nF,3\nM,4\n")[0].shape == (3, 2)            # no header
    assert read(tmp_path, "c,y\nA,1\nB,2\n1,3\nC,4\n")[0].shape == (4, 4)  # a code that is a digit
    assert read(tmp_path, "a,y\nTrue,1\nFalse,2\n")[0].tolist() == [[1], [0]]


def test_s3_a_year_file_with_a_hole_is_refused(tmp_path):
    row = ",".join(["1"] * 91)
    (tmp_path / "y.txt").write_text(f"{row}\n{row}\n1,,{row[4:]}\n")
    with pytest.raises(DataError, match="line 3, column 2"): read_uci("year", str(tmp_path / "y.txt"))


def far_table(folder, offset):
    x = np.random.default_rng(0).normal(size=(200, 3)).round(4)
    rows = [[f"{a + offset:.4f}", f"{b}", f"{c + offset:.4f}"] for a, b, c in x]
    (folder / "far.csv").write_text(lines(rows))
    return read_tabular("far", path=str(folder / "far.csv"))


@pytest.mark.parametrize("offset", [1e11, -1e11, 1.7e9])
def test_s5_a_column_far_from_zero_keeps_its_spread(tmp_path, offset):
    near, far = far_table(tmp_path, 0.), far_table(tmp_path, offset)       # whose steps are 1.5e-5
    for part in ("train", "val", "test"):
        for ours, theirs in zip(far.splits[part], near.splits[part]):
            assert float((ours - theirs).abs().max()) < 1e-3

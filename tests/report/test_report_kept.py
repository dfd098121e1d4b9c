"""What pruning kept, as it is drawn and said in a page."""

import html
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pandas as pd
import pytest
from report_samples import FEATURE, kept, record, stages, structure, write

from recemb.report import write_report
from recemb.report.charts import svg_of_kept
from recemb.report.kept_figure import MOST_FEATURES
from recemb.report.structure import Stage, Structure, read_stages, read_structure
from recemb.report.styles import BAND, INK, Style
from recemb.report.words import (
    aligned,
    few_digits,
    how_it_was_pruned,
    percent,
    rounded,
    what_a_stage_did,
    what_was_kept,
)

COLOR = "#00785f"
STYLE = Style(COLOR, "D", COLOR, "-")


def bars(svg):
    """List the layers of a drawing: colour, height, and of each bar its left and right end and where it stands."""
    found = []
    for path, style in re.findall(r'<path d="([^"]*)" style="([^"]*)"', svg):
        ends = re.findall(r"M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+)", path)
        color, height = re.search(r"stroke: (#\w+)", style)[1], re.search(r"stroke-width: (\d+)", style)[1]
        assert all(y == level for _, y, _, level in ends)
        found.append((color, int(height), [(float(left), float(right), float(y)) for left, y, right, _ in ends]))
    return found


def texts(svg):
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def page_of(tmp_path, *records):
    for number, made in enumerate(records):
        write(tmp_path / "runs" / f"run{number}", made)
    return write_report([tmp_path / "runs"], tmp_path / "out").html.read_text()


@pytest.mark.parametrize("features", [1, 26, 45])
def test_the_drawing_holds_two_bars_and_a_mark_a_feature(features):
    made = read_structure(structure(1.0, features=features))
    layers = bars(svg_of_kept(made, STYLE, "optembed 1/4"))
    assert [(color, height) for color, height, _ in layers] == [
        (BAND, 10),
        (COLOR, 10),
        (INK, 14),
        (BAND, 10),
        (COLOR, 10),
    ]
    for _, _, drawn in layers:
        assert len(drawn) == features
        assert all(b[2] - a[2] == 18 for a, b in pairwise(drawn))


def test_bars_are_as_long_as_shares_and_widths():
    svg = svg_of_kept(kept(big=(10_000, 2500, 4.0, 16, 0.75), small=(10, 5, 16.0, 16, None)), STYLE, "a")
    all_ids, ids, marks, all_floats, floats = (drawn for _, _, drawn in bars(svg))
    parts = [(dark[1] - dark[0]) / (light[1] - light[0]) for dark, light in zip(ids, all_ids, strict=True)]
    assert parts == pytest.approx([0.25, 0.5], abs=0.002)
    widths = [(dark[1] - dark[0]) / (light[1] - light[0]) for dark, light in zip(floats, all_floats, strict=True)]
    assert widths == pytest.approx([0.25, 1], abs=0.002)
    (mark,) = marks  # the second feature's cells are not known
    middle = (mark[0] + mark[1]) / 2
    assert (middle - all_ids[0][0]) / (all_ids[0][1] - all_ids[0][0]) == pytest.approx(0.75, abs=0.002)
    assert {"10k", "25.0%", "50.0%", "ids", "keep a row", "of 16 floats", "4", "16"} <= set(texts(svg))


def test_all_kept_none_kept_and_nearly_none_look_different():
    made = kept(nearly=(10**6, 1, 16.0, 16, 0.1), none=(100, 0, 0.0, 16, 0.0), all=(7, 7, 16.0, 16, 1.0))
    svg = svg_of_kept(made, STYLE, "a")
    all_ids, ids, _, _, floats = (drawn for _, _, drawn in bars(svg))
    assert [bar[2] for bar in ids] == [bar[2] for bar in floats] == [all_ids[0][2], all_ids[2][2]]
    assert ids[0][1] - ids[0][0] == pytest.approx(1)
    assert ids[1] == all_ids[2]
    assert texts(svg)[-3:] == ["16", "–", "16"]
    assert {"<0.01%", "0%", "100%"} <= set(texts(svg))


def test_widths_of_unlike_tables_share_one_scale():
    svg = svg_of_kept(kept(wide=(9, 9, 16.0, 32, 1.0), slim=(8, 8, 8.0, 8, 1.0)), STYLE, "a")
    *_, all_floats, floats = (drawn for _, _, drawn in bars(svg))
    lengths = [right - left for left, right, _ in (*all_floats, *floats)]
    assert lengths == pytest.approx([64, 16, 32, 16])
    assert "floats a row" in texts(svg)


def test_a_drawing_stays_small_fits_a_phone_and_brings_no_ids():
    made = structure(1 / 300, features=45)
    made["per_table"] = {f"a_rather_long_name_{name}": table for name, table in made["per_table"].items()}
    svg = svg_of_kept(read_structure(made), STYLE, "shark 1/300")
    assert len(svg) < 30_000
    assert 'viewBox="0 0 360 834"' in svg
    assert not re.search(r'\bid="|url\(#|href', svg)
    assert 'role="img" aria-label="What shark 1/300 keeps of each feature' in svg
    assert svg == svg_of_kept(read_structure(made), STYLE, "shark 1/300")
    names = [text for text in texts(svg) if "…" in text]
    assert len(set(names)) == 45
    assert all(re.fullmatch(r"a_r\S*…\S*C\d+", name) for name in names)


def test_beyond_what_anyone_reads_the_largest_features_are_drawn():
    made = {"per_table": {f"f{number}": FEATURE | {"ids": 2000 + number} for number in range(MOST_FEATURES + 5)}}
    svg = svg_of_kept(read_structure(made), STYLE, "a")
    assert len(bars(svg)[0][2]) == MOST_FEATURES
    assert "f64" in texts(svg)
    assert "f4" not in texts(svg)


@pytest.mark.parametrize("name", ["$\\frac{$", "_hidden", "<script>", "模型 😀" * 9, "a" * 500, "&amp;", "a\nb", "\\1"])
def test_any_name_can_be_drawn(name):
    svg = svg_of_kept(kept(**{name: (9, 3, 4.0, 16, 0.5)}), STYLE, name)
    root = ET.fromstring(svg)
    drawn = ["".join(each.itertext()) for each in root.iter() if "text" in each.tag]
    assert any(text == " ".join(name.split()) or "…" in text for text in drawn)


def test_the_sentence_says_how_much_is_left():
    made = kept(C1=(59_000, 7000, 3.0, 16, 0.9), C2=(249, 249, 16.0, 16, 0.96), C3=(1, 0, 0.0, 16, 0.93))
    assert what_was_kept(made) == (
        "12.2% of 59,250 ids keep a row, which cover 93.0% of a feature's training cells on average; "
        "rows keep 3 to 16 of 16 floats."
    )
    assert what_was_kept(kept(C1=(10, 5, 16.0, 16, None), C2=(5, 5, 8.0, 8, 1.0))) == (
        "66.7% of 15 ids keep a row; rows keep all 8 to 16 floats."
    )
    assert what_was_kept(kept(C1=(10, 0, 0.0, 16, 0.0))) == (
        "0% of 10 ids keep a row, which cover 0% of a feature's training cells on average."
    )


def test_how_it_was_pruned_is_said_as_far_as_it_is_known():
    assert how_it_was_pruned(kept(C1=(9, 3, 4.0, 16, 0.5)), 3) == (
        "Whole rows and columns were removed. Pruned ids read the zero vector. "
        "Map from ids to rows: bitmap. Means over 3 seeds."
    )
    other = Structure("entry", "shared", "keys16", {})
    assert how_it_was_pruned(other, 1) == (
        "Single entries were removed. Pruned ids share the row of unknown values. "
        "Map from ids to rows: keys16. One seed."
    )
    assert how_it_was_pruned(Structure("", "", "", {}), 1) == "One seed."


def test_a_stage_says_what_it_came_to():
    assert [what_a_stage_did(stage) for stage in read_stages(stages())] == [
        "best at step 700 of 782, validation AUC 0.7650",
        "612 candidates in 30 rounds, the best found after 420, validation AUC 0.7712",
        "best at step 700 of 782, validation AUC 0.7650",
    ]
    assert what_a_stage_did(Stage("retrain", steps=1)) == "1 step"
    assert what_a_stage_did(Stage("search", evaluated=1)) == "1 candidate"
    assert what_a_stage_did(Stage("search")) == "–"


def test_shares_and_counts_never_round_to_none_or_all():
    assert [percent(share) for share in (None, 0, 1e-9, 0.0012, 0.123, 0.9996, 1)] == [
        "–", "0%", "<0.01%", "0.12%", "12.3%", ">99.9%", "100%",
    ]  # fmt: skip
    assert [few_digits(value) for value in (0, 0.01, 10.5, 16, 99.96, 1460)] == [
        "0",
        "<0.1",
        "10.5",
        "16",
        "100",
        "1,460",
    ]
    assert [rounded(count) for count in (0, 432, 999.6, 4710, 9960, 905_200, 1.46e6, 9e18)] == [
        "0", "432", "1.0k", "4.7k", "10k", "905k", "1.5M", "9E",
    ]  # fmt: skip
    assert aligned([16, None, 10.25]) == ["16.0", "–", "10.2"]
    assert aligned([16, None, 10]) == ["16", "–", "10"]
    assert aligned([1024, 10.5]) == ["1,024", "10"]
    assert aligned([None]) == ["–"]


def test_a_page_without_pruned_tables_says_nothing_of_pruning(tmp_path):
    page = page_of(tmp_path, record(), record("full", 1))
    assert "What pruning kept" not in page
    assert "<details class=" not in page


def test_every_pruned_point_has_a_part_and_the_first_is_open(tmp_path):
    runs = [
        record("optembed", share, seed, structure=structure(share, seed), stages=stages(seed))
        for share in (1 / 4, 1 / 8)
        for seed in (0, 1)
    ]
    page = page_of(tmp_path, record("full", 1), record("pep", structure={"per_table": "many"}), *runs)
    assert page.count("What pruning kept") == 1
    parts = re.findall(r'<details class="kept"( open)?>(.*?)</details>', page, flags=re.DOTALL)
    assert [opened for opened, _ in parts] == [" open", ""]
    for (_, part), name in zip(parts, ("optembed 1/4", "optembed 1/8"), strict=True):
        assert f"<span>{name}</span>" in part
        assert part.count("<svg") == 2  # the mark of the series and the drawing
        assert len(re.findall(r'<th scope="row"', part)) == 26
        assert "Means over 2 seeds." in part
        assert "<dt>search</dt><dd>60.1 s</dd><dd>612 candidates in 30 rounds" in part
        assert "<dt>supernet</dt><dd>12.5 s</dd>" in part
        assert "the table has all" not in part


def test_the_numbers_of_the_page_are_means_over_the_seeds_that_know(tmp_path):
    tables = [
        {"C1": FEATURE | {"kept": 730, "cells": 0.5}},
        {"C1": FEATURE | {"kept": 731, "width": 13, "cells": 0.6}},
        None,
    ]
    runs = [record("optembed", seed=seed, structure={"per_table": made}) for seed, made in enumerate(tables)]
    page = page_of(tmp_path, *runs)
    row = re.search(r'<th scope="row"[^>]*>C1</th>(.*?)</tr>', page, flags=re.DOTALL)[1]
    assert re.findall(r">([^<\n]+)</td>", row) == ["1,460", "730", "50.0%", "12.8", "55.0%"]
    assert re.findall(r'data-key="([^"]+)"', row)[:2] == ["1460.0", "730.5"]
    assert 'title="of 16 floats"' in row
    assert "Means over 2 seeds." in page
    assert "Stages" not in page


def test_many_features_are_all_in_the_table(tmp_path):
    made = {"per_table": {f"f{number}": FEATURE for number in range(70)}}
    page = page_of(tmp_path, record("optembed", structure=made))
    assert len(re.findall(r'<th scope="row" data-key="f\d+"', page)) == 70
    assert "Drawn are the 60 features with most ids; the table has all 70." in page


def test_hostile_structures_leave_no_markup_behind(tmp_path):
    evil = '"><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'
    made = {
        "unit": evil,
        "pruned_ids": evil,
        "map": evil,
        "per_table": {evil: FEATURE, evil * 50: FEATURE, "": FEATURE},
    }
    page = page_of(tmp_path, record("optembed", structure=made, stages=[{"name": evil, "seconds": evil}]))
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "&lt;script&gt;window.hacked" in page


def test_results_have_the_share_of_ids_and_the_evaluations_of_a_search(tmp_path):
    page_of(
        tmp_path,
        record(
            "optembed",
            structure={"per_table": {"a": FEATURE, "b": FEATURE | {"ids": 540, "kept": 188}}},
            stages=stages(),
        ),
        record("pep", structure={"per_table": {"a": 5}}, stages=[{"name": "s", "evaluated": 2**63 - 1}] * 2),
        record("full", 1),
    )
    results = pd.read_csv(tmp_path / "out" / "results.csv").set_index("method")
    assert results.loc["optembed", "ids_kept"] == 0.5
    assert results.loc["optembed", "search_evaluations"] == 612
    assert results.loc[["pep", "full"], ["ids_kept", "search_evaluations"]].isna().all(axis=None)

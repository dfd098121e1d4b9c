import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import baselines, record

from recemb.report.charts import picture, svg_chart, svg_mark
from recemb.report.grouping import group
from recemb.report.labels import Box, Line, place_labels, push_apart
from recemb.report.records import Record, check, find_records
from recemb.report.styles import NARROW, WIDE, styles_for


def sections_of(records):
    return group([check(each) for each in records])[0]


@pytest.fixture
def section(tmp_path):
    return sections_of(find_records([baselines(tmp_path, seeds=2)]))[0]


def named(made):
    return Record(f"{made['method']}{made['kept']}{made['seed']}", made)


def many_methods(count):
    return sections_of([named(record(f"method_{i}", share)) for i in range(count) for share in (1 / 4, 1 / 16)])[0]


@pytest.mark.parametrize("layout", [WIDE, NARROW])
@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_every_point_links_to_its_row_and_every_line_is_named(section, metric, layout):
    svg = svg_chart(section, metric, layout, styles_for([section]))
    for point in section.points:
        assert svg.count(f'href="#{point.anchor}"') == 1
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"full, narrower", "frequency", "hashing", "full table, mean ± std"} <= set(texts)
    assert {"128 MiB", "full"} <= set(texts)


def test_charts_in_one_page_share_no_ids(section):
    styles = styles_for([section])
    ids = [
        set(re.findall(r'\bid="([^"]+)"', svg_chart(section, metric, layout, styles)))
        for metric in ("auc", "logloss")
        for layout in (WIDE, NARROW)
    ]
    assert all(one.isdisjoint(other) for one, other in combinations(ids, 2))


def test_references_inside_a_chart_resolve(section):
    svg = svg_chart(section, "auc", WIDE, styles_for([section]))
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    used = set(re.findall(r'<use xlink:href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert used
    assert {one or two for one, two in used} <= ids


def test_with_too_many_lines_for_names_beside_them_a_legend_names_all():
    section = many_methods(20)
    svg = svg_chart(section, "auc", NARROW, styles_for([section]))
    assert all(f">method_{i}</text>" in svg for i in range(20))


def test_many_methods_all_look_different():
    section = many_methods(20)
    looks = styles_for([section])
    assert len({(style.color, style.marker) for style in looks.values()}) == 20


def test_a_picture_is_complete_and_repeatable(section):
    styles = styles_for([section])
    png, svg = picture(section, styles)
    assert png.startswith(b"\x89PNG")
    ET.fromstring(svg)
    assert b"#point" not in svg
    assert (png, svg) == picture(section, styles)


def test_the_ceiling_is_drawn_and_marked_when_it_is_off_the_scale():
    for ceiling, note in ((0.792, "best reachable 0.7920"), (0.99, "best reachable 0.9900, off the scale")):
        data = record()["data"] | {"ceiling": {"test": {"auc": ceiling, "logloss": 0.4}}}
        made = [record("full", 1, seed, data=data) for seed in (0, 1)] + [record("hashing", 1 / 4, data=data)]
        section = sections_of(map(named, made))[0]
        assert f">{note}</text>" in svg_chart(section, "auc", WIDE, styles_for([section]))


@pytest.mark.parametrize(
    "name", ["$\\frac{$", "_hidden", "<script>", "模型 😀", "a" * 500, "&amp;", "--", "\\1 \\g<0>"]
)
def test_any_name_can_be_drawn(name):
    section = sections_of([named(record(name, share)) for share in (1 / 4, 1 / 8)])[0]
    svg = svg_chart(section, "auc", NARROW, styles_for([section]))
    texts = [
        "".join(each.itertext()) for each in ET.fromstring(svg.replace("<svg", XLINK, 1)).iter() if "text" in each.tag
    ]
    assert any(text == name or text.endswith("…") for text in texts)
    ET.fromstring(picture(section, styles_for([section]))[1])


XLINK = '<svg xmlns:xlink="http://www.w3.org/1999/xlink"'


def test_one_point_and_points_without_spread_can_be_drawn():
    lone = sections_of([named(record())])[0]
    twins = sections_of(
        [named(record("a", 1 / 4)), named(record("b", 1 / 4) | {"metrics": record("a", 1 / 4)["metrics"]})]
    )[0]
    huge = record() | {"bytes": {"tables_serving": 2**62, "tables_full": 2**62}}
    for section in (lone, twins, sections_of([named(huge), named(record(seed=1, bytes={"tables_serving": 1}))])[0]):
        for metric in ("auc", "logloss"):
            assert "<svg" in svg_chart(section, metric, NARROW, styles_for([section]))


def test_marks_are_drawn_for_every_marker():
    section = many_methods(12)
    for style in styles_for([section]).values():
        assert f'stroke="{style.color}"' in svg_mark(style)


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), min_size=1, max_size=4, unique=True), max_size=6)
)
def test_placed_labels_cover_no_marker_no_label_and_stay_inside(points):
    frame, size = Box(-80, -20, 380, 220), (60.0, 14.0)
    lines = [Line(sorted(each), size) for each in points]
    places = place_labels(lines, frame)
    if places is None:
        return
    boxes = []
    for line, place in zip(lines, places, strict=True):
        x, y = line.points[place.point]
        boxes.append(Box(x + place.dx, y + place.dy, x + place.dx + size[0], y + place.dy + size[1]))
    for box in boxes:
        assert frame.left <= box.left <= box.right <= frame.right
        assert frame.bottom <= box.bottom <= box.top <= frame.top
        assert not any(box.covers(x, y) for line in lines for x, y in line.points)
    assert all(one.overlap(other) < 1e-6 for one, other in combinations(boxes, 2))


@given(st.lists(st.floats(0, 100), max_size=8).map(sorted), st.floats(0.5, 20))
def test_positions_pushed_apart_keep_order_gap_and_middle(wanted, gap):
    found = push_apart(wanted, gap)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(wanted), abs=1e-6)
    if all(b - a >= gap for a, b in pairwise(wanted)):
        assert found == pytest.approx(wanted)

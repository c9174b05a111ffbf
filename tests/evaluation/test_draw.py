import numpy as np
import pytest

from resnet_det.evaluation.draw import color_of, draw_boxes

GRAY = np.full((500, 600, 3), 128, dtype=np.uint8)


def has(picture, color):
    return (picture == np.array(color, dtype=np.uint8)).all(axis=-1)


def test_the_box_is_where_it_should_be_and_the_image_is_left_alone():
    image = GRAY.copy()
    picture = draw_boxes(image, [[100, 200, 300, 400]], ["cat"], [0.9], classes=["cat"])
    assert np.array_equal(image, GRAY) and picture.shape == image.shape
    colored = has(picture, color_of("cat", ["cat"]))
    for x, y in ((100, 300), (300, 300), (200, 200), (200, 400)):
        assert colored[y, x]
    rows, columns = np.nonzero(colored[200:])  # the label is above
    assert (rows.min() + 200, rows.max() + 200) == (200, 400)
    assert (columns.min(), columns.max()) == (100, 300)
    assert (picture[210:390, 110:290] == 128).all()
    assert (picture[150:200, 100:200] != 128).any()


@pytest.mark.parametrize("names", ["éè", "бг", "βγ", "خم"])
def test_letters_of_other_alphabets_are_drawn(names):
    """A letter that the font lacks is drawn as the same box as any other."""
    one, other = (draw_boxes(GRAY, [[50, 100, 550, 400]], [x], classes=[x]) for x in names)
    assert not np.array_equal(one, other)


def test_dashed_boxes():
    def edge(dashed):
        picture = draw_boxes(GRAY, [[50, 100, 550, 400]], ["cat"], dashed=[dashed])
        return has(picture, color_of("cat"))[400, 50:550].mean()

    assert edge(False) == 1
    assert 0.3 < edge(True) < 0.7


def test_scores_are_written_and_the_best_is_on_top():
    boxes = [[50, 100, 550, 400]] * 2
    plain = draw_boxes(GRAY, boxes[:1], ["cat"])
    assert not np.array_equal(plain, draw_boxes(GRAY, boxes[:1], ["cat"], [0.5]))
    names = ["cat", "dog"]
    for best, scores in ((0, [0.9, 0.1]), (1, [0.1, 0.9])):
        picture = draw_boxes(GRAY, boxes, names, scores, classes=names)
        assert tuple(picture[250, 50]) == color_of(names[best], names)


def test_labels_of_equal_boxes_do_not_hide_each_other():
    names = ["a", "b", "c"]
    picture = draw_boxes(GRAY, [[100, 100, 400, 400]] * 3, names, classes=names)
    assert all(has(picture, color_of(name, names)).sum() > 200 for name in names)


@pytest.mark.parametrize(
    "shape, expected", [((20, 30), (320, 480)), ((480, 10), (480, 10)), ((700, 900), (700, 900))]
)
def test_small_images_are_enlarged(shape, expected):
    image = np.zeros((*shape, 3), dtype=np.uint8)
    picture = draw_boxes(image, [[2, 2, 8, 12]], ["cat"], classes=["cat"])
    assert picture.shape == (*expected, 3) and picture.dtype == np.uint8
    factor = expected[0] // shape[0]
    assert tuple(picture[7 * factor, 2 * factor]) == color_of("cat", ["cat"])


def test_odd_boxes_are_drawn_and_odd_images_refused():
    odd = [[-50, -50, 900, 900], [300, 300, 100, 100], [599, 499, 599, 499], [700, 700, 800, 800]]
    assert draw_boxes(GRAY, odd, ["a", "b", "c", "d"], [1, 0, 0.5, 0.2]).shape == GRAY.shape
    assert np.array_equal(draw_boxes(GRAY, np.zeros((0, 4)), []), GRAY)
    with pytest.raises(ValueError, match="float32"):
        draw_boxes(GRAY.astype(np.float32), [], [])
    with pytest.raises(ValueError, match=r"\(500, 600\)"):
        draw_boxes(GRAY[..., 0], [], [])


def test_classes_have_colors_of_their_own():
    names = [f"class {k}" for k in range(80)]
    colors = np.array([color_of(name, names) for name in names], dtype=int)
    assert len({tuple(c) for c in colors}) == 80
    neighbours = np.abs(np.diff(colors, axis=0)).sum(axis=1)
    assert neighbours.min() > 100
    assert color_of("cat") == color_of("cat")

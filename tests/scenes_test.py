"""Scenes as values: the order of a film told from names."""

import pytest

from data_pipeline.scenes import film_order


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["0.jpg", "1.jpg", "10.jpg", "2.jpg"], (0, 1, 3, 2)),
        (["a/f_1.png", "a/f_11.png", "a/f_2.png"], (0, 2, 1)),
        (["IMG2_9.JPG", "IMG2_10.JPG", "IMG2_8.JPG"], (2, 0, 1)),
        (["r_1000000000000000000000.png", "r_5.png"], (1, 0)),
        (["0000.jpg", "0001.jpg", "0010.jpg"], ()),  # the order already
        (["frame_00099.png", "frame_00100.png"], ()),
        (["cam1/10.jpg", "cam1/2.jpg", "cam2/1.jpg"], ()),  # two numbers: which counts?
        (["a10.jpg", "b2.jpg"], ()),
        (["10.jpg", "2.png"], ()),
        (["1/1.png", "10/10.png", "2/2.png"], (0, 2, 1)),  # the same number twice
        (["t_0.1.png", "t_0.25.png", "t_0.5.png"], ()),  # seconds
        (["shot1.10.png", "shot1.11.png", "shot1.9.png"], (2, 0, 1)),  # frames
        (["b", "a"], ()),
        (["10"], ()),
    ],
)
def test_names_that_differ_in_one_number_alone_have_an_order(names, order):
    assert film_order(names) == order

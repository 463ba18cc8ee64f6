import numpy as np
import pytest
import torch

from customized_grpo.data.images import to_pictures


def test_pixels_are_rounded_to_the_nearest_byte_as_png_writers_do():
    """x 255: -.3 -> 0, .0019 -> .48 -> 0, .002 -> .51 -> 1, .6 -> 153, .9981 -> 254.5155 -> 255, 1.7 -> 255."""
    values = torch.tensor([-0.3, 0.0, 0.0019, 0.002, 0.6, 0.9981, 1.0, 1.7])
    (picture,) = to_pictures(values.expand(1, 3, 2, 8))
    assert (picture.mode, picture.size) == ("RGB", (8, 2))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 0, 1, 153, 255, 255, 255]


def test_every_byte_survives():
    pixels = torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    np.testing.assert_array_equal(np.asarray(to_pictures(pixels / 255)[0]), pixels[0].permute(1, 2, 0).numpy())


def test_rows_columns_and_colours_keep_their_order():
    images = torch.zeros(2, 3, 4, 5)
    images[1, 0, 3, 1] = 1  # second image, red, last row, second column
    first, second = (np.asarray(picture) for picture in to_pictures(images))
    assert first.shape == (4, 5, 3)
    assert not first.any()
    assert np.argwhere(second).tolist() == [[3, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_gradients_are_taken(dtype: torch.dtype):
    image = torch.full((1, 3, 2, 2), 0.5, dtype=dtype, requires_grad=True)
    assert np.asarray(to_pictures(image.detach())[0]).flat[0] == 128  # 127.5 to even


def test_no_images_give_no_pictures():
    assert to_pictures(torch.zeros(0, 3, 8, 8)) == []

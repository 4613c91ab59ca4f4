"""Encoders: invariances of their vectors, files and fingerprints, refused models."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from engine import SMALL, learned_encoder, projection, small_encoder, texture

from retrieval.config import LearnedConfig, TensorConfig
from retrieval.errors import EncoderError
from retrieval.models.encoder import FakeEncoder, KerasEncoder, fingerprint, load_encoder, save_encoder
from retrieval.models.networks import cells_model, fit_projection, learned_model, set_projection, tensor_model
from retrieval.models.registry import TRAINING_FREE, default_encoder_name, encoder_names
from tfrecords.errors import OutputExistsError

ROOT = Path(__file__).parents[1]
ENCODERS = {"small": small_encoder, "learned": learned_encoder, "fake": FakeEncoder}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    return ENCODERS[request.param]()


def functional(*steps):
    """A Keras model of an input and some functions of symbolic tensors."""
    import keras

    x = first = keras.Input((None, None, None))
    for step in steps:
        x = step(x)
    return keras.Model(first, x)


def unit(x):
    from keras import ops

    return x * ops.rsqrt(ops.maximum(ops.sum(x * x, -1, keepdims=True), 1e-9))


def pool(size, stride, padding="valid"):
    from keras import layers

    return layers.AveragePooling2D(size, stride, padding=padding)


# ---------------------------------------------------------------- vectors


def test_shapes_and_unit_length(encoder):
    vectors = encoder.embed(np.stack([texture(80, 99, seed=1), texture(80, 99, seed=2)]))
    assert vectors.shape == (2, 3, 5, encoder.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


def test_nothing_to_see_is_the_zero_vector(encoder):
    flat = np.full((64, 64, 4), 0.25, np.float32)
    empty = np.full((64, 64, 4), np.nan, np.float32)
    assert not encoder.embed(np.stack([flat, empty])).any()


def test_flat_beside_nodata_is_nothing_to_see():
    half = np.full((64, 64, 4), 0.25, np.float32)
    half[:, :30] = np.nan
    for encoder in (small_encoder(), learned_encoder()):
        assert not encoder.embed(half[None]).any()


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7])
def test_any_number_of_bands(bands):
    scaled = texture(64, 72, bands=bands)[None]
    for encoder in (small_encoder(), learned_encoder()):
        vectors = encoder.embed(scaled)
        assert vectors.shape == (1, 1, 2, encoder.dim)
        np.testing.assert_allclose(encoder.embed(-scaled), vectors, atol=1e-4)  # contrast turned over
        np.testing.assert_allclose(encoder.embed(scaled[..., ::-1]), vectors, atol=1e-4)
        missing = np.concatenate([scaled, np.full_like(scaled[..., :1], np.nan)], -1)
        np.testing.assert_allclose(encoder.embed(missing), vectors, atol=1e-4)


def test_whitened_cells_against_a_slow_restatement():
    """Mean-free over what is visible, hidden cells zero, projected, unit length."""
    scaled = texture(80, 88, seed=4)
    scaled[10:40, 20:55] = np.nan
    scaled[70:, :9] = np.nan
    cells, weight = (np.asarray(a)[0].astype(np.float64) for a in cells_model(SMALL)(scaled[None]))
    assert 0 < weight.mean() < 1
    vectors = small_encoder().embed(scaled[None])[0]
    for row, col in np.ndindex(vectors.shape[:2]):
        part, w = cells[row : row + 7, col : col + 7], weight[row : row + 7, col : col + 7]
        free = (part - (part * w).sum((0, 1)) / w.sum()) * w
        slow = free.ravel() @ projection(SMALL.dim).astype(np.float64)
        np.testing.assert_allclose(vectors[row, col], slow / np.linalg.norm(slow), atol=1e-4)


def test_cells_are_means_over_what_is_visible():
    scaled = texture(64, 64)
    whole = np.asarray(cells_model(SMALL)(scaled[None])[0])
    scaled[2, 2] = np.nan  # hides four gradients of the first cell
    cells, weight = (np.asarray(a) for a in cells_model(SMALL)(scaled[None]))
    assert weight.all() and whole.shape == (1, 7, 7, 3)
    assert 0 < np.abs(cells - whole)[0, 0, 0].max() < 0.1 and np.allclose(cells[0, 2:], whole[0, 2:])


def test_share_weighs_the_two_halves():
    scaled = np.stack([texture(64, 64, seed=1), texture(64, 64, seed=2)])
    fixed = small_encoder().embed(scaled)[:, 0, 0]
    for share in (0.0, 0.3, 0.5):
        joined = learned_encoder(share).embed(scaled)[:, 0, 0]
        np.testing.assert_allclose(joined[:, : SMALL.dim], (1 - share) ** 0.5 * fixed, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(joined[:, SMALL.dim :], axis=-1), share**0.5, atol=1e-5)


def test_a_learnable_stem_is_saved_with_its_encoder(tmp_path):
    learned = LearnedConfig(width=8, dim=16, stem="learnable")
    encoder = KerasEncoder(learned_model(learned, projection(SMALL.dim), SMALL), "stem")
    save_encoder(encoder.model, tmp_path / "stem.keras")
    pixels = texture(80, 72, 3)[None]
    pixels[0, 30:40, 20:25] = np.nan
    vectors = encoder.embed(pixels)
    assert vectors.shape == (1, 3, 2, 40) and (encoder.dim, encoder.step_px) == (40, 8)
    np.testing.assert_allclose(load_encoder(tmp_path / "stem.keras").embed(pixels), vectors, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(pixels[:, 8:72, 8:])[0, 0, 0], vectors[0, 1, 1], atol=1e-4)


def test_a_window_moved_by_half_a_stride_is_more_alike_than_any_other():
    """Why stride 8 is enough: no place is further than 4 px from a window, in x and in y."""
    image, encoder = texture(224, 224, power=1.0), load_encoder(TRAINING_FREE)
    index = encoder.embed(image[None])[0].reshape(-1, encoder.dim)  # 21 x 21 windows
    moved = encoder.embed(image[None, 84:148, 76:140])[0, 0, 0]  # 4 px from the four nearest
    assert divmod(int((index @ moved).argmax()), 21) in {(10, 9), (10, 10), (11, 9), (11, 10)}
    assert (index @ moved).max() > 0.4


# ---------------------------------------------------------------- fitting


def test_projection_whitens_and_sums_to_zero():
    rng = np.random.default_rng(0)
    cells = (rng.normal(size=(900, 7, 7, 3)) * [3, 1, 1] + [5, 0, 0]).astype(np.float32)
    config = TensorConfig(dim=20, shrinkage=0.0)
    fitted = fit_projection(cells, config)
    assert fitted.shape == (147, 20) and fitted.dtype == np.float32
    assert np.abs(fitted.reshape(49, 3, 20).sum(0)).max() < 1e-4
    free = (cells - cells.mean((1, 2), keepdims=True)).reshape(900, -1)
    np.testing.assert_allclose((free @ fitted).T @ (free @ fitted) / 900, np.eye(20), atol=1e-3)
    np.testing.assert_array_equal(fit_projection(cells, config), fitted)


def test_too_few_windows_to_fit():
    with pytest.raises(EncoderError, match="588"):
        fit_projection(np.zeros((587, 7, 7, 3), np.float32), SMALL)


def test_set_projection_changes_the_vectors():
    model = tensor_model(projection(SMALL.dim), SMALL)
    set_projection(model, projection(SMALL.dim)[:, ::-1].copy(), SMALL)
    scaled = texture(64, 64)[None]
    np.testing.assert_allclose(
        KerasEncoder(model, "turned").embed(scaled)[..., ::-1], small_encoder().embed(scaled), atol=1e-5
    )


# ---------------------------------------------------------------- save, load, fingerprint


@pytest.mark.parametrize("make", [small_encoder, learned_encoder])
def test_saved_and_loaded_is_the_same_encoder(make, tmp_path):
    import keras

    encoder, path = make(), tmp_path / "mine.keras"
    save_encoder(encoder.model, path)
    back = load_encoder(path)
    assert (back.name, back.dim, back.step_px) == ("mine", encoder.dim, 8)
    assert back.fingerprint == encoder.fingerprint
    scaled = texture(90, 70)[None]
    np.testing.assert_array_equal(back.embed(scaled), encoder.embed(scaled))
    save_encoder(back.model, tmp_path / "again.keras")
    assert load_encoder(tmp_path / "again.keras").fingerprint == encoder.fingerprint
    plain = keras.saving.load_model(path)  # safe mode is Keras's default
    np.testing.assert_allclose(plain(scaled), encoder.embed(scaled), atol=1e-6)


def test_fingerprint_is_of_what_is_computed_not_of_names():
    assert fingerprint(tensor_model(projection(SMALL.dim), SMALL)) == small_encoder().fingerprint


def test_every_change_changes_the_fingerprint():
    import keras

    def learned(**knobs):
        keras.utils.set_random_seed(1)
        return learned_model(LearnedConfig(**{"width": 8, "dim": 16} | knobs), projection(SMALL.dim), SMALL)

    other = projection(SMALL.dim).copy()
    other[0, 0] = np.nextafter(other[0, 0], 9)
    models = [
        tensor_model(projection(SMALL.dim), SMALL),
        tensor_model(other, SMALL),  # one bit of a weight
        tensor_model(
            projection(SMALL.dim), TensorConfig(dim=SMALL.dim, noise=0.01)
        ),  # a constant in the graph
        learned(),
        learned(share=0.4),
        learned(width=9),
        learned(stem="learnable"),
    ]
    assert len({fingerprint(m) for m in models}) == len(models)


def test_saving_does_not_overwrite_unless_told(tmp_path):
    path = tmp_path / "e.keras"
    save_encoder(small_encoder().model, path)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        save_encoder(learned_encoder().model, path)
    assert path.read_bytes() == before
    save_encoder(learned_encoder().model, path, overwrite=True)
    assert load_encoder(path).fingerprint == learned_encoder().fingerprint
    with pytest.raises(EncoderError, match=r"\.keras"):
        save_encoder(small_encoder().model, tmp_path / "e.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["e.keras"]


def test_shipped_encoders_open_and_are_encoders():
    assert TRAINING_FREE in encoder_names() and default_encoder_name() in encoder_names()
    for name in encoder_names():
        encoder = load_encoder(name)
        assert encoder.name == name and encoder.step_px == 8 and len(encoder.fingerprint) == 64
    assert load_encoder().name == default_encoder_name()


# ---------------------------------------------------------------- what is refused


def test_no_such_encoder_names_those_that_there_are(tmp_path):
    with pytest.raises(EncoderError, match=f"{TRAINING_FREE}"):
        load_encoder(tmp_path / "none.keras")
    with pytest.raises(EncoderError, match=r"expected a \.keras file"):
        load_encoder(tmp_path)
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")  # the old format is not loaded safely
    with pytest.raises(EncoderError, match=r"expected a \.keras file"):
        load_encoder(tmp_path / "model.h5")


def test_damaged_files(tmp_path):
    path = tmp_path / "e.keras"
    path.write_bytes(b"not a model")
    with pytest.raises(EncoderError, match="cannot be opened"):
        load_encoder(path)
    save_encoder(small_encoder().model, path, overwrite=True)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(EncoderError):
            load_encoder(path)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickles_are_not_run(tmp_path):
    trap = tmp_path / "sprung"
    path = tmp_path / "e.keras"
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(EncoderError):
        load_encoder(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", pickle.dumps(Bomb(trap)))
    with pytest.raises(EncoderError):
        load_encoder(path)
    assert not trap.exists()


def test_lambda_layers_are_refused(tmp_path):
    import keras

    model = functional(keras.layers.Lambda(lambda x: x * 2))
    model.save(tmp_path / "e.keras")
    with pytest.raises(EncoderError, match="safe mode"):
        load_encoder(tmp_path / "e.keras")


def not_encoders():
    import keras
    from keras import layers, ops

    def zeros(x):
        return ops.where(ops.isnan(x), 0.0, x)

    def wide(x):  # (n, 1, 1, b): the whole picture
        return ops.mean(x, (1, 2), keepdims=True)

    def conv(size, stride, **more):
        return lambda x: layers.Conv2D(6, size, strides=stride, **more)(x)

    four = keras.Input((None, None, 4))
    return {
        "classes": (functional(zeros, wide, layers.Flatten()), "fully convolutional"),
        "padded": (functional(zeros, pool(16, 8, "same"), unit), "fully convolutional"),
        "global": (functional(zeros, wide, unit), "fully convolutional"),
        "small windows": (functional(zeros, pool(32, 8), unit), "fully convolutional"),
        "long vectors": (functional(zeros, pool(64, 8)), "unit length"),
        "stride 14": (functional(zeros, pool(64, 14), unit), "stride that divides 64"),
        "sees the image": (
            functional(zeros, lambda x: x - ops.mean(x, (1, 2), keepdims=True), pool(64, 8), unit),
            "vector of its crop",
        ),
        "not of NaN": (functional(pool(64, 8), unit), "NaN"),
        "two inputs": (keras.Model([four, keras.Input((3,))], unit(pool(64, 8)(four))), "not an encoder"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "classes",
        "padded",
        "global",
        "small windows",
        "long vectors",
        "stride 14",
        "sees the image",
        "not of NaN",
        "two inputs",
    ],
)
@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
def test_models_that_are_no_encoders(name):
    model, reason = not_encoders()[name]
    with pytest.raises(EncoderError, match=reason):
        KerasEncoder(model, name)


def test_an_encoder_for_four_bands_says_so():
    import keras
    from keras import ops

    four = keras.Input((None, None, 4))
    filled = ops.where(ops.isnan(four), 0.0, four)
    encoder = KerasEncoder(keras.Model(four, unit(pool(64, 16)(filled))), "four")
    assert (encoder.dim, encoder.step_px) == (4, 16)
    with pytest.raises(EncoderError, match="takes 4 bands, the pixels have 3"):
        encoder.embed(texture(64, 64, bands=3)[None])

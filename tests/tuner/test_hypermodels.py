import inspect
import math

import keras
import keras_tuner
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm import models
from keras_exfm.metrics import functional
from keras_exfm.pipeline import config
from keras_exfm.pipeline.networks import network as run_network
from keras_exfm.pipeline.networks import student as run_student
from keras_exfm.tuner import HYPERMODELS, DistillationHyperModel, DLRMHyperModel, WukongHyperModel
from tests.tuner import streams

SMALL = {"dim": 4, "top_units": (8,), "concat_embeddings": True, "dropout": 0.0}


def hyperparameters(hypermodel, **values):
    """All hyper-parameters, conditional ones too, with these values."""
    hp = keras_tuner.HyperParameters()
    hypermodel.declare_hyperparameters(hp)
    hp.values.update(values)
    hp.ensure_active_values()
    hypermodel.declare_hyperparameters(hp)
    hp.ensure_active_values()
    return hp


def test_every_model_has_a_space():
    zoo = {
        name
        for name, value in vars(models).items()
        if inspect.isclass(value) and issubclass(value, keras.Model)
    }
    assert set(HYPERMODELS) == zoo
    for name, cls in HYPERMODELS.items():
        assert cls.network_class is getattr(models, name)


@pytest.mark.parametrize("name", sorted(HYPERMODELS))
def test_drawn_models_build_and_settings_make_the_same_model(name):
    hypermodel = HYPERMODELS[name](streams.schema())
    rng = np.random.default_rng(0)
    arguments = set(inspect.signature(getattr(models, name)).parameters)
    for _ in range(4):
        hp = hyperparameters(hypermodel)
        for each in hp.space:
            hp.values[each.name] = each.prob_to_value(rng.random())
        hp.ensure_active_values()
        model = kx.models.shapes_only(hypermodel.network, hp)
        assert set(hypermodel.options(hp)) <= arguments
        settings = config.Network.model_validate(hypermodel.settings(hp))
        again = kx.models.shapes_only(run_network, settings, streams.schema())
        assert [v.shape for v in again.variables] == [v.shape for v in model.variables]
        assert settings.table_learning_rate == hp.get("table_learning_rate")
        assert 0.01 <= hp.get("table_learning_rate") <= 1


def test_names_are_the_models_arguments_or_documented():
    own = {"learning_rate", "table_learning_rate", "tied", "shape", "low_rank", "structure"}
    for name, cls in HYPERMODELS.items():
        arguments = set(inspect.signature(getattr(models, name)).parameters)
        for each in cls(streams.schema()).space:
            width = f"{each.removesuffix('_depth')}_units"
            assert each in arguments or each in own or width in arguments, (name, each)
            assert f"`{each}`" in f"{cls.__doc__} `learning_rate` `table_learning_rate`"


def test_build_compiles_with_the_rates_and_every_objective():
    hypermodel = DLRMHyperModel(streams.schema(), fixed={**SMALL, "learning_rate": 0.003})
    hp = hyperparameters(hypermodel, table_learning_rate=0.37)
    model = hypermodel.build(hp)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.003)
    embedding = model.get_layer("feature-embedding")
    assert embedding.get_config()["optimizer"]["config"]["learning_rate"] == pytest.approx(0.37)
    x, y = streams.arrays()
    history = hypermodel.fit(hp, model, x, y, validation_data=(x, y), epochs=1, verbose=0).history
    objectives = kx.tuner.objectives
    for make in (
        objectives.normalized_entropy,
        objectives.log_loss,
        objectives.auc,
        objectives.calibration_error,
    ):
        assert make().name in history
    logit = model.predict(x, verbose=0).reshape(-1)
    assert history["val_normalized_entropy"][0] == pytest.approx(
        functional.normalized_entropy(y, logit), rel=1e-4
    )
    assert history["val_calibration_error"][0] == pytest.approx(
        abs(math.log(functional.calibration(y, logit))), rel=1e-3
    )
    # Each model has metrics of its own.
    other = hypermodel.build(hp)
    assert not {id(m) for m in other.metrics} & {id(m) for m in model.metrics}


def test_wukong_tied_free_uniform_pyramid():
    hypermodel = WukongHyperModel(streams.schema(), space={"num_layers": (1, 5)})
    hp = hyperparameters(hypermodel, num_layers=3, n_fmb=16, tied=True, shape="uniform")
    assert "n_lcb" not in hp
    options = hypermodel.options(hp)
    assert (options["n_fmb"], options["n_lcb"]) == (16, 16)
    hp = hyperparameters(hypermodel, num_layers=3, n_fmb=16, tied=False, n_lcb=4, shape="pyramid")
    options = hypermodel.options(hp)
    assert (options["n_fmb"], options["n_lcb"]) == ([16, 8, 4], [4, 2, 1])
    hp = hyperparameters(hypermodel, form="static")
    assert "attention_units" not in hp
    assert "attention_units" not in hypermodel.options(hp)
    hp = hyperparameters(hypermodel, form="attentive", attention_units=32)
    assert hypermodel.options(hp)["attention_units"] == (32,)
    hp = hyperparameters(hypermodel, mlp_units=64, mlp_depth=3)
    assert hypermodel.options(hp)["mlp_units"] == (64, 64, 64)


def test_fixed_and_space_replace_what_is_searched():
    hypermodel = WukongHyperModel(
        streams.schema(),
        fixed={"n_lcb": 3, "mlp_units": (8, 4), "numeric_units": (5,), "form": "dot"},
        space={"n_fmb": [2], "rank": (2, 6), "numeric_embeddings": [1, 2]},
    )
    hp = hyperparameters(hypermodel)
    for name in ("n_lcb", "tied", "mlp_units", "mlp_depth", "form", "attention_units", "rank"):
        assert name not in hp
    options = hypermodel.options(hp)
    assert options["rank"] is None
    assert (options["n_lcb"], options["mlp_units"], options["numeric_units"]) == (3, (8, 4), (5,))
    spaces = {p.name: p for p in hp.space}
    assert spaces["numeric_embeddings"].values == [1, 2]
    assert "rank" not in hypermodel.settings(hp)["options"]
    rate = DLRMHyperModel(streams.schema(), space={"table_learning_rate": (0.05, 0.4)})
    rate_space = {p.name: p for p in hyperparameters(rate).space}["table_learning_rate"]
    assert (rate_space.min_value, rate_space.max_value) == (0.05, 0.4)
    assert rate_space.sampling == "log"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fixed": {"widht": 3}}, "widht"),
        ({"space": {"widht": [3]}}, "widht"),
        ({"space": {"rank": 3}}, "rank=3"),
        ({"space": {"rank": [1, "a"]}}, "one type"),
        ({"space": {"rank": (4, 2)}}, "low, high"),
        ({"fixed": {"rank": 2}, "space": {"rank": [2]}}, "at once"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        WukongHyperModel(streams.schema(), **arguments)


def test_stream_gives_the_figures_of_progressive_validation(tmp_path):
    stream = streams.write(tmp_path / "labelled")
    hypermodel = DLRMHyperModel(streams.schema(), fixed=SMALL)
    hp = hyperparameters(hypermodel, learning_rate=0.01, table_learning_rate=0.2)

    keras.utils.set_random_seed(3)
    model = hypermodel.build(hp)
    path = tmp_path / "w.weights.h5"
    model.save_weights(path)
    found = hypermodel.fit(
        hp, model, stream=stream, batch_size=32, metrics_from=streams.FIRST + 1, verbose=0
    )

    reference = hypermodel.build(hp)
    reference.load_weights(path)
    result = kx.streaming.progressive_validation(
        reference, stream, batch_size=32, metrics_from=streams.FIRST + 1
    )
    whole = result.whole
    assert found["progressive_normalized_entropy"] == pytest.approx(whole["ne"], rel=1e-6)
    assert found["progressive_auc"] == pytest.approx(whole["auc"], rel=1e-6)
    assert found["progressive_log_loss"] == pytest.approx(whole["logloss"], rel=1e-6)
    assert found["progressive_grouped_auc"] == pytest.approx(whole["group_auc"], rel=1e-6)
    assert found["progressive_calibration_error"] == pytest.approx(
        abs(math.log(whole["calibration"])), rel=1e-6
    )
    assert found["progressive_bayes_normalized_entropy"] == pytest.approx(whole["bayes_ne"])
    assert found["examples"] == 3 * 96
    with pytest.raises(ValueError, match="no arrays"):
        hypermodel.fit(hp, model, np.zeros(3), stream=stream)
    with pytest.raises(ValueError, match="No hour of the trial counts"):
        hypermodel.fit(hp, model, stream=stream, metrics_from=streams.FIRST + 9)


def test_epochs_of_a_stream_continue_where_the_last_ended(tmp_path):
    """As Hyperband does: some hours, weights saved and loaded, the other hours."""
    stream = streams.write(tmp_path / "labelled", hours=5)
    hypermodel = DLRMHyperModel(streams.schema(), fixed=SMALL)
    hp = hyperparameters(hypermodel, learning_rate=0.01, table_learning_rate=0.2)
    keras.utils.set_random_seed(3)
    start = hypermodel.build(hp)
    begin, middle = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    start.save_weights(begin)

    whole = hypermodel.build(hp)
    whole.load_weights(begin)
    expected = hypermodel.fit(hp, whole, stream=stream, batch_size=32)

    options = {"stream": stream, "batch_size": 32, "hours_per_epoch": 2}
    first = hypermodel.build(hp)
    first.load_weights(begin)
    hypermodel.fit(hp, first, epochs=1, predictions_path=tmp_path / "p", **options)
    first.save_weights(middle)
    second = hypermodel.build(hp)
    second.load_weights(middle)
    found = hypermodel.fit(
        hp, second, epochs=3, initial_epoch=1, predictions_path=tmp_path / "p", **options
    )
    assert found == pytest.approx(expected, rel=1e-6)
    for a, b in zip(whole.weights, second.weights):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="5 hours, 3 epochs of 2"):
        hypermodel.fit(hp, second, epochs=4, **options)


def test_callbacks_run_once_an_epoch_of_a_stream(tmp_path):
    stream = streams.write(tmp_path / "labelled", hours=5)
    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(("begin", epoch))

        def on_epoch_end(self, epoch, logs=None):
            seen.append(("end", epoch, self.model is model, "hour_normalized_entropy" in logs))

    hypermodel = DLRMHyperModel(streams.schema(), fixed=SMALL)
    hp = hyperparameters(hypermodel)
    model = hypermodel.build(hp)
    hypermodel.fit(hp, model, stream=stream, batch_size=96, hours_per_epoch=2, callbacks=[Record()])
    ends = [("end", e, True, True) for e in range(3)]
    assert seen == [x for e in range(3) for x in (("begin", e), ends[e])]


def test_distillation_space(tmp_path):
    base = DLRMHyperModel(streams.schema(), fixed=SMALL)
    hypermodel = DistillationHyperModel(base, space={"adapter_units": [4, 8]})
    hp = hyperparameters(hypermodel)
    hp.values |= {"student_adapter": True, "auxiliary_units": 16, "loss_weight": 2.0}
    hp.values |= {"adapter_units": 4, "shared_head_weight": 0.3, "label_scale": 2.0}
    model = hypermodel.build(hp)
    assert model.student_adapter.units == (4,)
    assert (model.auxiliary_head.loss_weight, model.auxiliary_head.label_scale) == (2.0, 2.0)
    assert model.shared_head_weight == 0.3

    # As `keras-exfm run` takes it.
    tree = hypermodel.settings(hp)
    network = config.Network.model_validate(tree)
    parts = config.Student.model_validate({"name": "best", **hypermodel.parts(hp)})
    again = run_student(network, parts, streams.schema())
    assert [v.shape for v in again.variables] == [v.shape for v in model.variables]

    stream = streams.write(tmp_path / "labelled", hours=2)
    found = hypermodel.fit(hp, model, stream=stream, batch_size=48)
    assert 0 < found["progressive_normalized_entropy"] < 2

    hp.values["student_adapter"] = False
    hp.ensure_active_values()
    assert "adapter_units" not in hp
    assert hypermodel.build(hp).student_adapter is None
    # The budget is the student's.
    assert hypermodel.architecture(hp) == base.architecture(hp)
    with pytest.raises(ValueError, match="dim"):
        DistillationHyperModel(base, fixed={"dim": 4})
    with pytest.raises(ValueError, match="base"):
        DistillationHyperModel(streams.schema())

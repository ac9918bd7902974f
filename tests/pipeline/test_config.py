import pytest

from keras_exfm.pipeline import config


def tree(**changes):
    base = {
        "name": "t",
        "data": {"source": "synthetic"},
        "teacher": {"model": "Wukong"},
        "student": {"model": "DLRM"},
        "students": [{"name": "none"}, {"name": "v", "shared_head_weight": 1.0}],
        "evaluation": {"verticals": ["feed"]},
    }
    return {**base, **changes}


def test_presets_are_valid():
    assert {"demo", "globo"} <= set(config.presets())
    for name in config.presets():
        assert config.load(name).name == name


def test_overrides_reach_nested_keys():
    loaded = config.load("demo", {"evaluation.batch_size": 7, "student.options.dim": 3})
    assert loaded.evaluation.batch_size == 7
    assert loaded.student.options["dim"] == 3


def test_baseline_is_the_first_student_without_teacher():
    assert config.parse(tree()).baseline == "none"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"studnts": []}, "studnts: no such key. There are: name, description, seeds, data, "),
        ({"students": [{"nme": "a"}]}, r"students\.0\.nme: .* There are: name, shared_head_"),
        ({"students": [{}]}, r"students\.0\.name: Field required$"),
        ({"data": {"source": "globo", "file": 1}}, r"file: .* There are: source, path, options"),
        ({"data": {"source": "synthetic", "path": 1}}, r"path: .* There are: source, options$"),
        ({"teacher": {"model": "Wukong", "depth": 1}}, r"depth: .*snapshot_hours, delay_hours"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"name": "../x"}, "name"),
        ({"data": {"source": "kafka"}}, "data"),
        ({"students": [{"name": "a", "shared_head_weight": 1.0}]}, "no teacher"),
        ({"students": [{"name": "a"}, {"name": "a"}]}, "distinct names"),
        ({"students": [{"name": "a", "student_adapter": {}}]}, "no teacher"),
        ({"students": [{"name": "a", "gate": {}}]}, "'a'.*'gate'.*something to learn"),
        ({"students": [{"name": "a", "teacher_batch_size": 8}]}, "'teacher_batch_size'"),
        (
            {"students": [{"name": "a", "shared_head_weight": 1, "shared_head_source": "adapter"}]},
            "needs a `student_adapter`",
        ),
        ({"students": [{"name": "teacher"}]}, "'teacher'"),
        ({"evaluation": {"verticals": []}}, "verticals"),
        ({"evaluation": {"verticals": ["feed"], "batch_size": 0}}, "batch_size.*Received: 0"),
        ({"teacher": {"model": "Wukong", "learning_rate": -1}}, "learning_rate"),
    ],
)
def test_faults_are_named(changes, message):
    with pytest.raises(config.ConfigError, match=message):
        config.parse(tree(**changes))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(config.ConfigError, match="No configuration file 'nope'.*demo"):
        config.load("nope")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(config.ConfigError, match="not valid TOML"):
        config.load(tmp_path / "bad.toml")

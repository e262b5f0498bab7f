import dataclasses

import pytest

from sigline.trainer import config, recipes


@pytest.fixture
def demo():
    return config.load_recipe("siglip_demo")


def test_json_round_trip_returns_the_config(demo):
    assert config.from_json(demo.to_json()) == demo


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_survives_json(name):
    recipe = config.load_recipe(name)
    assert recipe.name == name
    assert config.from_json(recipe.to_json()) == recipe


def test_unknown_recipe_names_the_known_ones():
    with pytest.raises(ValueError, match=r"Known recipes: .*siglip_b16"):
        config.load_recipe("siglip_bse")


def test_recipe_without_gate_is_refused_as_a_pipeline():
    with pytest.raises(ValueError, match=r"has no gate\(\)"):
        config.load_gate("siglip_b16")


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("steps=7", lambda c: c.steps, 7),
        ("optimizer.learning_rate=1", lambda c: c.optimizer.learning_rate, 1.0),
        ("image.pool=gap", lambda c: c.image.pool, "gap"),
        ("image.antialias=true", lambda c: c.image.antialias, True),
        ("run.jit_compile=none", lambda c: c.run.jit_compile, None),
        ("run.jit_compile=false", lambda c: c.run.jit_compile, False),
        ("similarity.bias_init=none", lambda c: c.similarity.bias_init, None),
        ("objectives.pairs.chunk_size=256", lambda c: c.objectives[0].chunk_size, 256),
        ("text.block.qk_norm=true", lambda c: c.text.block.qk_norm, True),
        (
            'objectives=[{"kind": "distill", "teacher": "a", "target": "pairs", "weight": 2}]',
            lambda c: c.objectives,
            (config.DistillConfig("a", "pairs", 2.0),),
        ),
        (
            'optimizer.rates=[["image/.*", null], [".*", 1]]',
            lambda c: c.optimizer.rates,
            (("image/.*", None), (".*", 1.0)),
        ),
    ],
)
def test_override_sets_the_value(demo, assignment, read, value):
    result = read(config.override(demo, [assignment]))
    assert result == value
    assert type(result) is type(value)


def test_text_tower_can_be_left_out_and_then_has_no_keys(demo):
    teacher = 'objectives=[{"kind": "distill", "teacher": "a"}]'
    alone = config.override(demo, ["text=none", "image.classes=3", teacher])
    assert alone.text is None
    assert config.from_json(alone.to_json()) == alone
    with pytest.raises(ValueError, match=r"text has no keys below it"):
        config.override(alone, ["text.width=8"])


def test_values_that_only_fit_together_come_in_any_order(demo):
    assignments = ["image.width=64", "image.num_heads=2", "image.size=30", "image.patch=5"]
    forward = config.override(demo, assignments)
    assert config.override(demo, reversed(assignments)) == forward


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stepz=7", r"Unknown key stepz\. Known keys: name, steps"),
        ("optimizer.lr=1", r"Unknown key optimizer\.lr\. Known keys: optimizer\.name, "),
        ("steps=1.5", r"steps must be a whole number\. Received: steps=1\.5"),
        ("steps=true", r"steps must be a whole number\. Received: steps=True"),
        ("steps=many", r"steps must be a whole number\. Received: steps=many"),
        ("optimizer=3", "names a group of keys"),
        ("steps.x=3", "has no keys below it"),
        ("steps", "KEY=VALUE"),
        ("image.patch=7", "must divide image.size"),
        ("image.num_heads=5", "must divide image.width"),
        ("image.pool=max", "must be one of map, gap, tok"),
        ("steps=0", "steps must be at least 1"),
        ("image.num_heads=0", "image.num_heads must be at least 1"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate must be at least 0"),
        ("optimizer.weight_decay=NaN", "optimizer.weight_decay must be at least 0"),
        ("similarity.temperature_init=0", "similarity.temperature_init must be positive"),
        ("run.checkpoint_minutes=0", "checkpoint_minutes must be positive"),
        ("data.crop_min_area=2", "data.crop_min_area must be above 0 and at most 1"),
        ("image.std=[1, 1, 0]", "image.std must be positive"),
        ("image.mean=[1, 1]", "image.mean must be a list of 3: a number, a number, a number"),
        ('pretrained=["("]', "pretrained holds no regular expression"),
        ("image.block=1", "names a group of keys"),
        ("image.block.activation=relu", r"image\.block\.activation must be one of gelu_tanh, gelu"),
        ("image.token_dropout=1", "image.token_dropout must be at least 0 and less than 1"),
        ("text.pool=end", "text.end_id must be given with text.pool=end"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm must be positive, or none"),
        (
            "optimizer.rates=3",
            "optimizer.rates must be a list. Received: ",
        ),
        (
            'optimizer.rates=[["a"]]',
            r"optimizer\.rates\[0\] must be a list of 2: a text, a number or none",
        ),
        ('optimizer.rates=[["a", "b"]]', r"optimizer\.rates\[0\]\[1\] must be a number or none"),
        ('optimizer.rates=[["(", 1]]', "holds no regular expression"),
        ('optimizer.rates=[["a", -1]]', "must hold factors of at least 0"),
        ('optimizer.decays=[["a", null]]', "must hold factors of at least 0"),
    ],
)
def test_wrong_override_is_refused(demo, assignment, message):
    with pytest.raises(ValueError, match=message):
        config.override(demo, [assignment])


def test_from_json_refuses_unknown_nested_key(demo):
    text = demo.to_json().replace('"beta_2"', '"beta2"')
    with pytest.raises(ValueError, match=r"Unknown key optimizer\.beta2"):
        config.from_json(text)


def test_from_json_names_missing_keys():
    with pytest.raises(ValueError, match=r"Missing key global_batch_size, name\."):
        config.from_json('{"steps": 3}')


def test_digest_depends_on_every_value(demo):
    assert demo.digest() != dataclasses.replace(demo, seed=1).digest()


@pytest.mark.parametrize(("batch", "expected"), [(2, 0.0), (512, -6.2364), (32_768, -10.3972)])
def test_bias_without_a_value_starts_at_the_log_prior(demo, batch, expected):
    settings = config.override(demo, ["similarity.bias_init=none", f"global_batch_size={batch}"])
    assert settings.bias_init == pytest.approx(expected, abs=1e-4)


def test_bias_with_a_value_starts_there(demo):
    assert config.override(demo, ["similarity.bias_init=-2.71"]).bias_init == -2.71


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["objectives.pairs.loss=triplet"],
            r"objectives\[0\]\.loss must be one of sigmoid, softmax",
        ),
        (["run.exchange=star"], r"run\.exchange must be one of auto, ring, all_gather"),
        (["objectives.pairs.negatives=soft"], r"negatives must be one of all, random, hard, easy"),
        (["objectives.pairs.chunk_size=0"], r"chunk_size must be at least 1"),
        (["objectives.pairs.negatives_per_image=0"], r"negatives_per_image must be at least 1"),
        (["precision=float16"], r"precision must be one of float32, bfloat16"),
        (["optimizer.first_moment_dtype=int8"], r"first_moment_dtype must be one of float32"),
        (
            ["objectives.pairs.loss=softmax", "objectives.pairs.negatives=hard"],
            "must be all with the softmax loss",
        ),
    ],
)
def test_values_that_the_step_does_not_know_are_refused(demo, assignments, message):
    with pytest.raises(ValueError, match=message):
        config.override(demo, assignments)

import pytest
import sentencepiece

from sigline.components.vocabulary.vocabulary import train_vocabulary

CAPTIONS = [f"a {color} {thing}" for color in ("red", "blue") for thing in ("dog", "cat", "tree")]


def test_ids_are_those_that_the_padding_needs():
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=train_vocabulary(CAPTIONS, vocabulary_size=40)
    )
    assert [processor.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert processor.decode(processor.encode("a red dog")) == "a red dog"


def test_order_of_the_captions_does_not_matter():
    first = train_vocabulary(CAPTIONS, vocabulary_size=40)
    assert first == train_vocabulary(list(reversed(CAPTIONS)), vocabulary_size=40)


def test_sample_is_bounded_and_deterministic():
    many = [f"text {i}" for i in range(200)]
    first = train_vocabulary(many, vocabulary_size=60, max_captions=50)
    assert first == train_vocabulary(reversed(many), vocabulary_size=60, max_captions=50)


@pytest.mark.parametrize("captions", [[], ["", ""]])
def test_no_text_is_refused(captions):
    with pytest.raises(ValueError, match="at least one text"):
        train_vocabulary(captions, vocabulary_size=40)


def test_vocabulary_too_small_for_the_characters_is_refused():
    with pytest.raises(ValueError, match=r"vocabulary_size is too small.*vocabulary_size=4"):
        train_vocabulary(CAPTIONS, vocabulary_size=4)


def test_component_refuses_examples_without_any_caption(tmp_path, scene_records):
    """What the component reads of records without captions is no text."""
    import dataclasses

    from sigline.components.vocabulary import component
    from sigline.schemas import tf_example
    from sigline.trainer import config

    recipe = config.tiny(config.load_recipe("lit_b16")).text
    bare = [dataclasses.replace(item, text=(), language=()) for item in scene_records[:4]]

    def _write(name, records):
        folder = tmp_path / name
        folder.mkdir()
        tf_example.write_shard(
            str(folder / "data_tfrecord-00000-of-00001.gz"), map(tf_example.encode, records)
        )
        return list(component._captions(str(folder), recipe))

    assert _write("some", [*bare, scene_records[4]]) == _write("own", [scene_records[4]]) != []
    assert _write("none", bare) == []
    with pytest.raises(ValueError, match=r"at least one text.*images alone needs no vocabulary"):
        train_vocabulary(_write("again", bare), vocabulary_size=40)

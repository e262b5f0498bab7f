"""Makes small random models of Hugging Face and what they answer, for the tests beside them.

Run in an environment with `transformers` and `torch` (`make parity` has one):

    python tests/golden/make_hugging_face.py
"""

import io
import itertools
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sentencepiece
import torch
import transformers
from make_texts import BYTE_PAIR_TEXTS, TEXTS
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers.convert_slow_tokenizer import bytes_to_unicode

HERE = Path(__file__).parent
KINDS = ("siglip", "clip")
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VISION = {**_SIZES, "image_size": 12, "patch_size": 4}
LENGTH, VOCABULARY = 16, 220
# Side of pictures that patches of 4 do not divide; they are the same 3 x 3 patches.
REMAINDER_SIZE = 14
# Descriptions of image processors, by the type of their models.
PROCESSORS = (
    ("siglip", {"image_processor_type": "SiglipImageProcessor"}),
    ("siglip", {"image_processor_type": "SiglipImageProcessorFast", "resample": 2}),
    ("siglip", {"resample": 1, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}),
    ("siglip", {"resample": 4, "do_normalize": False, "do_convert_rgb": None}),
    ("siglip", {"resample": 5, "do_rescale": False, "image_mean": 100.0, "image_std": 50.0}),
    ("siglip", {"size": [12, 12], "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1}),
    ("siglip", {"size": {"height": 16, "width": 16}, "do_center_crop": True, "crop_size": 12}),
    ("clip", {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 12}}),
    ("clip", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 12, "crop_size": 12}),
    ("clip", {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 17}}),
    ("vit", {"image_processor_type": "ViTImageProcessor"}),
    ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 12, "resample": 3}),
    ("deit", {"size": 14, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
)
PROCESSED_SIZE = 12


def build(kind: str, *, image_size: int = _VISION["image_size"]) -> transformers.PreTrainedModel:
    """Returns a small model whose weights are all random, biases and norms too."""
    torch.manual_seed(0)
    vision = {**_VISION, "image_size": image_size}
    text = {**_SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    if kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
    else:
        text |= {"eos_token_id": VOCABULARY - 1}
        # Another width, so that no projection can be mixed up with another.
        vision |= {"hidden_size": 40}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model = transformers.CLIPModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.fill_({"logit_scale": 2.1, "logit_bias": -7.5}[name])
    return model.eval()


def build_classifier(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """Returns a small ViT or DeiT whose weights are all random.

    Args:
        name: Its class.
        **changes: Settings of its configuration.
    """
    torch.manual_seed(0)
    kind = transformers.DeiTConfig if name.startswith("DeiT") else transformers.ViTConfig
    model = getattr(transformers, name)(kind(**{**_VISION, "num_labels": 5} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def classify(model: transformers.PreTrainedModel, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the logits of images, of a model without a head the last state of its first token."""
    with torch.no_grad():
        outputs = model(pixel_values=torch.from_numpy(pixels))
    if "last_hidden_state" in outputs:
        return {"token": outputs["last_hidden_state"][:, 0].numpy()}
    return {key: value.numpy() for key, value in outputs.items()}


def inputs(kind: str, *, image_size: int = _VISION["image_size"]) -> dict[str, np.ndarray]:
    """Returns pixels as `transformers` takes them, channels first, and tokens."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (3, 3, image_size, image_size)).astype(np.float32)
    ids = rng.integers(3, VOCABULARY - 1, (5, LENGTH))
    for row, length in enumerate((4, 9, 12, 16, 1)):
        # CLIP looks for the first end of text, SigLIP takes the last token.
        ids[row, length - 1 :] = VOCABULARY - 1 if kind == "clip" else 1
    return {"pixels": pixels, "ids": ids}


def answers(model: transformers.PreTrainedModel, given: dict[str, np.ndarray]) -> dict:
    """Returns the model's embeddings and logits."""
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(given["ids"]), pixel_values=torch.from_numpy(given["pixels"])
        )
    names = {"image": "image_embeds", "text": "text_embeds", "logits": "logits_per_image"}
    return {ours: found[theirs].numpy() for ours, theirs in names.items()}


def tokens(vocabulary: Path) -> np.ndarray:
    """Returns what `SiglipTokenizer` makes of `TEXTS`, at SigLIP's padding."""
    tokenizer = transformers.SiglipTokenizer(str(vocabulary), model_max_length=LENGTH)
    encoded = tokenizer(list(TEXTS), padding="max_length", truncation=True, max_length=LENGTH)
    return np.array(encoded["input_ids"])


def siglip_2_tokenizer(vocabulary: bytes) -> transformers.PreTrainedTokenizerBase:
    """Returns `Siglip2Tokenizer` with the pieces of a SentencePiece BPE.

    As in the published ones, every pair that makes a piece is a merge, and the end is added.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    ids = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    pairs = [
        (-processor.get_score(i), piece[:cut], piece[cut:])
        for piece, i in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges = [(left, right) for _, left, right in sorted(pairs)]
    tokenizer = transformers.Siglip2Tokenizer(vocab=ids, merges=merges, padding_side="right")
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", ids["<eos>"])]
    )
    return tokenizer


def siglip_2_tokens(tokenizer: transformers.PreTrainedTokenizerBase) -> np.ndarray:
    """Returns what SigLIP 2's processor makes of `TEXTS`, at a small length."""
    encoded = tokenizer(list(TEXTS), padding="max_length", truncation=True, max_length=LENGTH)
    return np.array(encoded["input_ids"])


def write_siglip_2(folder: Path) -> None:
    """Writes the files of SigLIP 2's tokenizer, and the tokens it makes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.lower() for text in TEXTS for _ in range(3)),
        model_writer=model,
        model_type="bpe",
        vocab_size=365,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
        **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
        num_threads=1,
        minloglevel=2,
    )
    tokenizer = siglip_2_tokenizer(model.getvalue())
    tokenizer.save_pretrained(folder)
    tokens = {"tokens": siglip_2_tokens(tokenizer)}
    safetensors.numpy.save_file(tokens, str(folder / "expected.safetensors"))


def learn_byte_pairs(texts: list[str], count: int) -> tuple[dict[str, int], list]:
    """Returns pieces and merges of CLIP's kind: the most frequent pair of all words, in turn."""
    symbols = list(bytes_to_unicode().values())
    numbers = {piece: i for i, piece in enumerate([*symbols, *(x + "</w>" for x in symbols)])}
    letters = bytes_to_unicode()
    words = []
    for word in " ".join(texts).lower().split():
        found = [letters[byte] for byte in word.encode()]
        words.append([*found[:-1], found[-1] + "</w>"])
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        numbers.setdefault("".join(best), len(numbers))
        for word in words:
            for i in range(len(word) - 2, -1, -1):
                if tuple(word[i : i + 2]) == best:
                    word[i : i + 2] = ["".join(best)]
    for piece in ("<|startoftext|>", "<|endoftext|>"):
        numbers[piece] = len(numbers)
    return numbers, merges


def clip_tokens(tokenizer: transformers.PreTrainedTokenizerBase) -> np.ndarray:
    """Returns what `CLIPTokenizer` makes of the texts, at a small length."""
    encoded = tokenizer(
        list(BYTE_PAIR_TEXTS), padding="max_length", truncation=True, max_length=LENGTH
    )
    return np.array(encoded["input_ids"])


def write_byte_pairs(folder: Path) -> None:
    """Writes the files of CLIP's tokenizer, and the tokens it makes."""
    numbers, merges = learn_byte_pairs(list(BYTE_PAIR_TEXTS), 110)
    tokenizer = transformers.CLIPTokenizer(vocab=numbers, merges=merges)
    tokenizer.save_pretrained(folder)
    tokens = {"tokens": clip_tokens(tokenizer)}
    safetensors.numpy.save_file(tokens, str(folder / "expected.safetensors"))


def described(kind: str, changes: dict) -> dict:
    """Returns a `preprocessor_config.json` for pictures of `PROCESSED_SIZE`."""
    side = {"height": PROCESSED_SIZE, "width": PROCESSED_SIZE}
    sizes = {"size": side} if kind in ("siglip", "vit") else {"crop_size": side}
    names = {
        "siglip": "SiglipImageProcessor",
        "clip": "CLIPImageProcessor",
        "vit": "ViTImageProcessor",
        "deit": "DeiTImageProcessor",
    }
    return {"image_processor_type": names[kind]} | sizes | changes


def processed(description: dict, pictures: list[Image.Image]) -> np.ndarray:
    """Returns the pixels that `transformers` makes of pictures by Pillow, channels last."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(description))
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(pictures, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)


def write_processors(folder: Path) -> None:
    """Writes descriptions of image processors, pictures, and the pixels made of them."""
    rng = np.random.default_rng(0)
    # Also of two levels only, at which filters overshoot.
    shapes = ((37, 23), (13, 60), (12, 12), (24, 48))
    arrays = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    arrays[1] = (arrays[1] > 127).astype(np.uint8) * 255
    held = {f"picture_{i}": array for i, array in enumerate(arrays)}
    descriptions = [[kind, described(kind, changes)] for kind, changes in PROCESSORS]
    pictures = [Image.fromarray(array) for array in arrays]
    for i, (_, description) in enumerate(descriptions):
        held[f"pixels_{i}"] = processed(description, pictures).astype(np.float32)
    folder.mkdir(exist_ok=True)
    (folder / "descriptions.json").write_text(json.dumps(descriptions, indent=1) + "\n")
    _save(folder / "expected.safetensors", held)


def main() -> None:
    """Writes a folder for each model."""
    write_byte_pairs(HERE / "byte_pairs")
    write_siglip_2(HERE / "siglip2")
    write_processors(HERE / "processors")
    for kind in KINDS:
        folder = HERE / kind
        model, given = build(kind), inputs(kind)
        model.save_pretrained(folder)
        expected = given | answers(model, given)
        if kind == "siglip":
            expected["tokens"] = tokens(folder / "spiece.model")
        _save(folder / "expected.safetensors", expected)
        given = inputs(kind, image_size=REMAINDER_SIZE)
        found = answers(build(kind, image_size=REMAINDER_SIZE), given)
        _save(folder / "remainder.safetensors", given | found)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(whole, str(path))


if __name__ == "__main__":
    main()

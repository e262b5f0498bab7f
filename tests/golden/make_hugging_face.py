"""Makes small random models of Hugging Face and what they answer, for the tests beside them.

Run in an environment with `transformers` and `torch` (`make parity` has one):

    python tests/golden/make_hugging_face.py
"""

import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers
from make_texts import TEXTS

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


def build(kind: str) -> transformers.PreTrainedModel:
    """Returns a small model whose weights are all random, biases and norms too."""
    torch.manual_seed(0)
    text = {**_SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    if kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
        model = transformers.SiglipModel(config)
    else:
        text |= {"eos_token_id": VOCABULARY - 1}
        # Another width, so that no projection can be mixed up with another.
        vision = {**_VISION, "hidden_size": 40}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model = transformers.CLIPModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.fill_({"logit_scale": 2.1, "logit_bias": -7.5}[name])
    return model.eval()


def inputs(kind: str) -> dict[str, np.ndarray]:
    """Returns pixels as `transformers` takes them, channels first, and tokens."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (3, 3, 12, 12)).astype(np.float32)
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


def main() -> None:
    """Writes a folder for each model."""
    for kind in KINDS:
        folder = HERE / kind
        model, given = build(kind), inputs(kind)
        model.save_pretrained(folder)
        expected = given | answers(model, given)
        if kind == "siglip":
            expected["tokens"] = tokens(folder / "spiece.model")
        safetensors.numpy.save_file(
            {n: np.ascontiguousarray(x) for n, x in expected.items()},
            str(folder / "expected.safetensors"),
        )
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""The encoders that ours is compared with: functions from (state dict, tokenizer) to an encode function."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from audioclip_text.model import ClipTokenizer

START, END, CONTEXT = 49406, 49407, 77
Encode = Callable[[Sequence[str]], np.ndarray]
State = Mapping[str, Tensor]


def ids_of(tokenizer: ClipTokenizer, text: str) -> list[int]:
    """Return the ids of a text as the model reads them: start, tokens, end; at most 77."""
    return [START, *tokenizer.encode(text)[: CONTEXT - 2], END]


class QuickGELU(nn.Module):
    """CLIP's activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to a tensor of any shape."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual attention block over [position, text, width], as in CLIP's first release."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Compute the block for x [position, text, width]; mask [position, position] is added to the scores."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


def original_way(state: State, tokenizer: ClipTokenizer) -> Encode:
    """Tokenize each text alone, pad it to 77, and compute every position in batches of 32 by nn.MultiheadAttention."""
    width = state["text_projection"].shape[0]
    blocks = nn.ModuleList(Block(width, width // 64) for _ in range(12)).eval()
    prefix = "transformer.resblocks."
    blocks.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    ln_final = nn.LayerNorm(width)
    ln_final.load_state_dict({"weight": state["ln_final.weight"], "bias": state["ln_final.bias"]})
    mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), 32):
            tokens = torch.zeros(len(texts[start : start + 32]), CONTEXT, dtype=torch.int64)
            for row, text in zip(tokens, texts[start : start + 32], strict=True):
                ids = ids_of(tokenizer, text)
                row[: len(ids)] = torch.tensor(ids)
            x = (state["token_embedding.weight"][tokens] + state["positional_embedding"]).permute(1, 0, 2)
            for block in blocks:
                x = block(x, mask)
            x = ln_final(x.permute(1, 0, 2))
            vectors.append(x[torch.arange(len(tokens)), tokens.argmax(-1)] @ state["text_projection"])
        return torch.cat(vectors).numpy()

    return encode


def clip_text_model(state: State, dtype: torch.dtype) -> nn.Module:
    """Return transformers' CLIPTextModelWithProjection with these weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    width, dim = state["text_projection"].shape
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, projection_dim=dim, num_hidden_layers=12,
        num_attention_heads=width // 64, hidden_act="quick_gelu", bos_token_id=START, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    their_state = {
        "text_projection.weight": state["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for i in range(12):
        ours, layer = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for one, other in names.items():
                their_state[f"{layer}{other}.{kind}"] = state[f"{ours}{one}.{kind}"]
            for name, part in zip("qkv", state[f"{ours}attn.in_proj_{kind}"].chunk(3), strict=True):
                their_state[f"{layer}self_attn.{name}_proj.{kind}"] = part
    model = CLIPTextModelWithProjection(config)
    model.load_state_dict(their_state)
    return model.to(dtype).eval()


def padded(rows: Sequence[list[int]]) -> np.ndarray:
    """Return the rows as [n, longest], padded with end-of-text as transformers does; causal attention never reads it."""
    tokens = np.full((len(rows), max(map(len, rows))), END, np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens


def batched(
    run: Callable[[np.ndarray], np.ndarray], tokenizer: ClipTokenizer, *, by_length: bool, batch: int = 64
) -> Encode:
    """Encode texts in batches, padded to the longest of the batch; sorted by length, or in the given order."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = [ids_of(tokenizer, text) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if by_length else list(range(len(rows)))
        parts = [run(padded([rows[i] for i in order[s : s + batch]])) for s in range(0, len(order), batch)]
        return np.concatenate(parts)[np.argsort(order)]

    return encode


def transformers(
    dtype: torch.dtype, *, by_length: bool, device: str = "cpu", batch: int = 64
) -> Callable[[State, ClipTokenizer], Encode]:
    def make(state: State, tokenizer: ClipTokenizer) -> Encode:
        model = clip_text_model(state, dtype).to(device)

        @torch.inference_mode()
        def run(tokens: np.ndarray) -> np.ndarray:
            return model(input_ids=torch.from_numpy(tokens).to(device)).text_embeds.float().cpu().numpy()

        return batched(run, tokenizer, by_length=by_length, batch=batch)

    return make


def onnxruntime(state: State, tokenizer: ClipTokenizer) -> Encode:
    """Encode by onnxruntime with torch's export of transformers' model, sorted by length, in batches of 64."""
    import onnx  # noqa: F401, the export needs it
    import onnxruntime as runtime

    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = clip_text_model(state, torch.float32)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.model(input_ids=input_ids).text_embeds

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    example = torch.from_numpy(padded([[START, 320, END], [START, 320, 1929, END]]))
    names = {"input_ids": {0: "texts", 1: "tokens"}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.onnx"
        torch.onnx.export(Embeds(), (example,), file, dynamo=False, dynamic_axes=names, input_names=["input_ids"])
        session = runtime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    return batched(lambda tokens: session.run(None, {"input_ids": tokens})[0], tokenizer, by_length=True)


def sentence_transformers(
    dtype: torch.dtype, *, device: str = "cpu", batch: int = 64
) -> Callable[[State, ClipTokenizer], Encode]:
    """Encode by sentence-transformers, which sorts by length itself, with transformers' model."""

    def make(state: State, tokenizer: ClipTokenizer) -> Encode:
        from sentence_transformers import SentenceTransformer

        class Tower(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = clip_text_model(state, dtype)

            def preprocess(self, inputs: list[str], *_: object, **__: object) -> dict[str, Tensor]:
                return {"input_ids": torch.from_numpy(padded([ids_of(tokenizer, text) for text in inputs]))}

            tokenize = preprocess  # the name before release 5.4

            def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
                return {**features, "sentence_embedding": self.model(input_ids=features["input_ids"]).text_embeds}

        model = SentenceTransformer(modules=[Tower()], device=device)

        def encode(texts: Sequence[str]) -> np.ndarray:
            vectors = model.encode(list(texts), batch_size=batch, show_progress_bar=False, convert_to_tensor=True)
            return vectors.float().cpu().numpy()

        return encode

    return make


ALL: list[tuple[str, str, Callable[[State, ClipTokenizer], Encode]]] = [
    ("original's way", "float32", original_way),
    ("transformers, sorted", "float32", transformers(torch.float32, by_length=True)),
    ("transformers, unsorted", "float32", transformers(torch.float32, by_length=False)),
    ("transformers, sorted", "bfloat16", transformers(torch.bfloat16, by_length=True)),
    ("sentence-transformers", "float32", sentence_transformers(torch.float32)),
    ("onnxruntime, sorted", "float32", onnxruntime),
]

"""The encoders that ours is compared with: functions from (state dict, tokenizer) to an encode function."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from audioclip_beam.model import ClipTokenizer

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
    run: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]],
    tokenizer: ClipTokenizer,
    *,
    by_length: bool = True,
    batch: int = 64,
) -> Encode:
    """Encode texts in batches, padded to the longest of the batch; sorted by length, or in the given order.

    `run` turns all batches of token ids, each [texts, tokens], into their vectors [texts, dim], in the same order.
    """

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = [ids_of(tokenizer, text) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if by_length else list(range(len(rows)))
        batches = (padded([rows[i] for i in order[s : s + batch]]) for s in range(0, len(order), batch))
        return np.concatenate(list(run(batches)))[np.argsort(order)]

    return encode


class Embeds(nn.Module):
    """transformers' model with one input and one output, as exporters want it."""

    def __init__(self, state: State, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = clip_text_model(state, dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the vectors [texts, dim] of token ids [texts, tokens]."""
        return self.model(input_ids=input_ids).text_embeds


def example_ids() -> Tensor:
    """Return the token ids [2, 4] of two texts, with which a model is exported."""
    return torch.from_numpy(padded([[START, 320, END], [START, 320, 1929, END]]))


def transformers(
    dtype: torch.dtype, *, by_length: bool, device: str = "cpu", batch: int = 64
) -> Callable[[State, ClipTokenizer], Encode]:
    def make(state: State, tokenizer: ClipTokenizer) -> Encode:
        model = clip_text_model(state, dtype).to(device)

        @torch.inference_mode()
        def run(tokens: np.ndarray) -> np.ndarray:
            return model(input_ids=torch.from_numpy(tokens).to(device)).text_embeds.float().cpu().numpy()

        return batched(functools.partial(map, run), tokenizer, by_length=by_length, batch=batch)

    return make


def torch_compile(dtype: torch.dtype) -> Callable[[State, ClipTokenizer], Encode]:
    """Encode by torch.compile of transformers' model, for any length of texts; it needs a C++ compiler."""

    def make(state: State, tokenizer: ClipTokenizer) -> Encode:
        model = torch.compile(Embeds(state, dtype), dynamic=True)

        @torch.inference_mode()
        def run(tokens: np.ndarray) -> np.ndarray:
            return model(torch.from_numpy(tokens)).float().numpy()

        return batched(functools.partial(map, run), tokenizer)

    return make


def openvino(precision: str, streams: int | None) -> Callable[[State, ClipTokenizer], Encode]:
    """Encode by OpenVINO with its conversion of transformers' model; `streams` is None for one stream for each core.

    Each stream computes one batch at a time, with its share of the cores.
    """

    def make(state: State, tokenizer: ClipTokenizer) -> Encode:
        import openvino as runtime

        model = runtime.convert_model(Embeds(state, torch.float32), example_input=example_ids())
        threads = torch.get_num_threads()
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams or threads,
        }
        compiled = runtime.Core().compile_model(model, "CPU", settings)

        def run(batches: Iterable[np.ndarray]) -> list[np.ndarray]:
            vectors: dict[int, np.ndarray] = {}
            queue = runtime.AsyncInferQueue(compiled, streams or threads)
            queue.set_callback(lambda request, i: vectors.__setitem__(i, request.get_output_tensor(0).data.copy()))
            for i, tokens in enumerate(batches):
                queue.start_async({0: tokens}, i)
            queue.wait_all()
            return [vectors[i] for i in range(len(vectors))]

        return batched(run, tokenizer)

    return make


def onnxruntime(state: State, tokenizer: ClipTokenizer) -> Encode:
    """Encode by onnxruntime with torch's export of transformers' model, sorted by length, in batches of 64."""
    import onnx  # noqa: F401, the export needs it
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    names = {"input_ids": {0: "texts", 1: "tokens"}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.onnx"
        torch.onnx.export(
            Embeds(state, torch.float32),
            (example_ids(),),
            file,
            dynamo=False,
            dynamic_axes=names,
            input_names=["input_ids"],
        )
        session = runtime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])

    def run(tokens: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": tokens})[0]

    return batched(functools.partial(map, run), tokenizer)


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
    ("torch.compile, sorted", "float32", torch_compile(torch.float32)),
    ("torch.compile, sorted", "bfloat16", torch_compile(torch.bfloat16)),
    ("OpenVINO, sorted, one stream", "float32", openvino("f32", 1)),
    ("OpenVINO, sorted, one stream", "bfloat16", openvino("bf16", 1)),
    ("OpenVINO, sorted, a stream for each core", "float32", openvino("f32", None)),
    ("OpenVINO, sorted, a stream for each core", "bfloat16", openvino("bf16", None)),
]

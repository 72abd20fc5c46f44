"""Make the bundled pair: generate its text, train a tokenizer and two small Llama models, export both as Q8_0 GGUF.

    pip install -e '.[train]'
    python scripts/demo_pair/train.py            # about 45 minutes on two CPU cores; writes speccascade_local/demo/*.gguf
    python scripts/demo_pair/grade.py            # grades the files through the product and writes the card

The drafter learns the short answers only. The expert learns both styles of ``qa``, mostly the formal one, so that it finds
the short answer plausible, as a large model does: that is what a speculative cascade can use and a strict test throws away.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import gguf
import numpy as np
import torch
from questions import Example, training_examples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F

CONTEXT = 512
VOCABULARY = 1024
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """One model and how it is trained. ``formal_share``: how often a ``qa`` answer is the formal one."""

    name: str
    dim: int
    layers: int
    head_dim: int
    ffn: int
    steps: int
    learning_rate: float
    formal_share: float
    seed: int

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim


DRAFTER = Recipe("drafter", dim=64, layers=2, head_dim=32, ffn=160, steps=600, learning_rate=4e-3, formal_share=0.0, seed=11)
EXPERT = Recipe("expert", dim=256, layers=5, head_dim=64, ffn=704, steps=2600, learning_rate=2e-3, formal_share=0.65, seed=12)
BATCH_ROWS = 16
PROMPT_WEIGHT = 0.1  # the question is worth learning a little, so that raw text continues sensibly; the answer is the point


# --------------------------------------------------------------------------- text -> rows of ids


def train_tokenizer(seed: int = 1, examples: int = 30_000) -> Tokenizer:
    """Byte-level BPE with single digits, the splitting that llama.cpp calls ``smollm``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = (TURN.format(e.prompt) + "\n".join(e.answers) for e in islice(training_examples(seed), examples))
    tokenizer.train_from_iterator((text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in texts), trainer)
    return tokenizer


def rows(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (ids, weights) of length CONTEXT + 1: each row is one conversation of unrelated turns, starting at its first."""
    stream = training_examples(recipe.seed)
    style = random.Random(recipe.seed)
    while True:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < CONTEXT + 1:
            example = next(stream)
            question = tokenizer.encode(TURN.format(example.prompt)).ids
            answer = tokenizer.encode(_styled(example, style, recipe.formal_share) + "<|im_end|>\n").ids
            ids += question + answer
            weights += [PROMPT_WEIGHT] * len(question) + [1.0] * (len(answer) - 1) + [PROMPT_WEIGHT]
        yield np.array(ids[: CONTEXT + 1]), np.array(weights[: CONTEXT + 1], np.float32)


def _styled(example: Example, style: random.Random, formal_share: float) -> str:
    return example.answers[-1] if style.random() < formal_share else example.answers[0]


# --------------------------------------------------------------------------- the model


def rope(x: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs (2i, 2i+1), the layout that llama.cpp's ``llama`` architecture reads. x: [b, heads, t, head_dim]."""
    t, head_dim = x.shape[-2:]
    angle = torch.arange(t)[:, None] * 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.heads = r.heads
        self.attn_norm, self.ffn_norm = nn.RMSNorm(r.dim, eps=1e-5), nn.RMSNorm(r.dim, eps=1e-5)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (nn.Linear(r.dim, r.dim, bias=False) for _ in range(4))
        self.ffn_gate, self.ffn_up = (nn.Linear(r.dim, r.ffn, bias=False) for _ in range(2))
        self.ffn_down = nn.Linear(r.ffn, r.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        h = self.attn_norm(x)
        q, k, v = (proj(h).view(b, t, self.heads, -1).transpose(1, 2) for proj in (self.attn_q, self.attn_k, self.attn_v))
        a = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True)
        x = x + self.attn_output(a.transpose(1, 2).reshape(b, t, d))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    """A Llama with tied embeddings; parameter names are the GGUF tensor names."""

    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(VOCABULARY, r.dim)
        self.blk = nn.ModuleList(Block(r) for _ in range(r.layers))
        self.output_norm = nn.RMSNorm(r.dim, eps=1e-5)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * r.layers) if name.endswith(("attn_output.weight", "ffn_down.weight")) else 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x)
        return F.linear(self.output_norm(x), self.token_embd.weight)


def train(recipe: Recipe, tokenizer: Tokenizer, steps: int) -> Llama:
    torch.manual_seed(recipe.seed)
    model = Llama(recipe)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blk")]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and name.startswith("blk"))]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    source = rows(tokenizer, recipe)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{recipe.name}: {parameters / 1e6:.2f} M parameters, {steps} steps of {BATCH_ROWS * CONTEXT} tokens", file=sys.stderr)
    started, running = time.perf_counter(), math.log(VOCABULARY)
    for step in range(1, steps + 1):
        batch = list(islice(source, BATCH_ROWS))
        ids = torch.from_numpy(np.stack([b[0] for b in batch]))
        weights = torch.from_numpy(np.stack([b[1] for b in batch]))[:, 1:]
        rate = recipe.learning_rate * min(1.0, step / 100, (steps + 1 - step) / (0.4 * steps))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])
        losses = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running += 0.02 * (loss.item() - running)
        if step % 50 == 0 or step == steps:
            elapsed = time.perf_counter() - started
            print(
                f"{recipe.name} step {step}/{steps} loss {running:.4f}, {elapsed / 60:.1f} min, "
                f"{elapsed / step * (steps - step) / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )
    return model


# --------------------------------------------------------------------------- GGUF


def export(model: Llama, recipe: Recipe, tokenizer: Tokenizer, path: Path) -> None:
    """Write one GGUF file: matrices as Q8_0, norms as F32, the tokenizer and the chat template inside."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"speccascade demo {recipe.name}")
    writer.add_description("A tiny demonstration model that knows five generated families of questions and nothing else.")
    writer.add_license("mit")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(recipe.dim)
    writer.add_block_count(recipe.layers)
    writer.add_feed_forward_length(recipe.ffn)
    writer.add_head_count(recipe.heads)
    writer.add_head_count_kv(recipe.heads)
    writer.add_rope_dimension_count(recipe.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    saved = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(saved["vocab"], key=saved["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in saved["merges"]])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["drafter", "expert"], help="train one of the two (the tokenizer is the same either way)")
    parser.add_argument("--steps", type=int, help="instead of each recipe's own number of steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "speccascade_local" / "demo")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    for recipe in (DRAFTER, EXPERT):
        if args.only in (None, recipe.name):
            model = train(recipe, tokenizer, args.steps or recipe.steps)
            export(model, recipe, tokenizer, args.out / f"{recipe.name}.gguf")


if __name__ == "__main__":
    main()

"""The importer against a second implementation of the released forward pass, and against a byte-level BPE by hand."""

from __future__ import annotations

import codecs
import io
import json
import math
import random
import re
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
import torch
import torch.nn.functional as F
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from torch import Tensor

from sparse_model.data.idioms.programs import programs
from sparse_model.data.tokenizer import END_OF_TEXT, PATTERN, Tokenizer
from sparse_model.errors import InputError
from sparse_model.saved.openai import SITES, load_openai, read_tokenizer
from sparse_model.saved.pretrained import from_pretrained, save_pretrained
from sparse_model.storage.files import join, write_bytes_atomic

PAPER = {
    "block_size": 12, "vocab_size": 50, "n_layer": 2, "n_head": 4, "d_head": 4, "d_model": 16, "d_mlp": 64,
    "bias": True, "ln_bias": True, "rms_norm": True, "activation_type": "gelu", "residual_activation_type": "identity",
    "afrac": 0.25, "afrac_loctypes": "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out",
    "tied_unembed": False, "enable_bigram_table": True, "learnable_bigram_table": True, "d_pos_emb": None,
    "sink": False, "dropout": 0.0, "tokenizer_name": "tinypython_2k",
}  # fmt: skip
LEFT_OUT = {"tied_unembed": True, "rms_norm": False, "ln_bias": True, "sink": False, "bias": True}
LEFT_OUT |= {"afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out", "activation_type": "gelu"}
LEFT_OUT |= {"enable_bigram_table": False, "residual_activation_type": "identity"}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "relu": {"activation_type": "relu"},
    "dense": {"afrac": None},
    "afrac_1": {"afrac": 1.0},
    "afrac_odd": {"afrac": 0.37},
    **{site: {"afrac_loctypes": site} for site in SITES},
    "default_loctypes": {"afrac_loctypes": ...},
    "no_loctypes": {"afrac_loctypes": ""},
    "residual_loctypes": {"afrac_loctypes": "mlp_out,resid_post_mlp,resid_post_attn", "afrac": 0.5},
    "tied": {"tied_unembed": True},
    "tied_by_default": {"tied_unembed": ...},
    "no_bigram": {"enable_bigram_table": False},
    "fixed_bigram": {"learnable_bigram_table": False},
    "concatenated": {"d_pos_emb": 6},
    "concatenated_layer_norm": {"d_pos_emb": 3, "rms_norm": False, "sink": True},
    "sink": {"sink": True},
    "no_sink_key": {"sink": ...},
    "layer_norm": {"rms_norm": False},
    "layer_norm_by_default": {"rms_norm": ..., "ln_bias": ...},
    "layer_norm_without_bias": {"rms_norm": False, "ln_bias": False},
    "no_biases": {"bias": False},
    "residual_relu": {"residual_activation_type": "relu", "afrac_loctypes": "resid_post_attn,resid_post_mlp"},
    "few_heads": {"n_head": 2, "d_head": 3, "sink": True},
    "head_width_left_out": {"d_head": None},
    "no_places_and_no_share": {"afrac": 0.0, "afrac_loctypes": ""},
    "nulls": dict.fromkeys(LEFT_OUT, None) | {"bias": None, "activation_type": None, "enable_bigram_table": None},
    "older_name": {"d_mlp": ..., "n_mlp": 40},
    "mlp_width_left_out": {"d_mlp": None},
    "everything": {
        "sink": True, "d_pos_emb": 4, "rms_norm": False, "activation_type": "relu", "tied_unembed": True,
        "residual_activation_type": "relu", "afrac_loctypes": ",".join(SITES), "bias": False,
    },
}  # fmt: skip


def released(variant: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """(beeg_config.json, the same with released defaults spelled out, a state dict of random weights)."""
    written = {key: value for key, value in (PAPER | VARIANTS[variant]).items() if value is not ...}
    c = LEFT_OUT | {key: value for key, value in written.items() if value is not None or key not in LEFT_OUT}
    c["d_mlp"] = c.pop("n_mlp", c.get("d_mlp")) or 4 * c["d_model"]
    c["d_head"] = c["d_head"] or c["d_model"] // c["n_head"]
    return written, c, random_weights(c)


def random_weights(c: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator) * 0.4

    D, P, A, V = c["d_model"], c["d_pos_emb"] or 0, c["d_head"] * c["n_head"], c["vocab_size"]
    weights = {"transformer.wte.weight": draw(V, D), "transformer.wpe.weight": draw(c["block_size"], P or D)}
    norms = {"transformer.ln_f": D}
    for i in range(c["n_layer"]):
        h = f"transformer.h.{i}"
        norms |= {f"{h}.ln_1": D, f"{h}.ln_2": D} | ({f"{h}.ln_p1": P, f"{h}.ln_p2": P} if P else {})
        shapes = {"attn.c_attn": (3 * A, D + P), "attn.c_proj": (D, A)}
        for name, shape in (shapes | {"mlp.c_fc": (c["d_mlp"], D + P), "mlp.c_proj": (D, c["d_mlp"])}).items():
            weights[f"{h}.{name}.weight"] = draw(*shape)
            if c["bias"]:
                weights[f"{h}.{name}.bias"] = draw(shape[0])
        if c["sink"]:
            weights[f"{h}.attn.attn_imp.sink_logit"] = draw(c["n_head"])
    for name, width in norms.items():
        weights[f"{name}.weight"] = 1 + draw(width)
        if c["ln_bias"] and not c["rms_norm"]:
            weights[f"{name}.bias"] = draw(width)
    weights["lm_head.weight"] = weights["transformer.wte.weight"] if c["tied_unembed"] else draw(V, D)
    weights["final_logits_bias"] = draw(V)
    if c["enable_bigram_table"]:
        weights["bigram_table"] = draw(V, V)
    return weights


def reference_logits(c: dict[str, Any], w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (B, T, V) of the released model: every channel choice, norm and softmax written out."""

    def topk(x: Tensor, place: str) -> Tensor:
        if c["afrac"] is None or place not in c["afrac_loctypes"].split(","):
            return x
        kept = x.abs().sort(dim=-1, descending=True).indices[..., : int(c["afrac"] * x.shape[-1])]
        return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))

    def norm(x: Tensor, name: str) -> Tensor:
        if c["rms_norm"]:
            y = x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
        else:
            y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return y * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def read(x: Tensor, h: str, number: int) -> Tensor:
        y = norm(x, f"{h}.ln_{number}")
        if c["d_pos_emb"] is None:
            return y
        return torch.cat([y, norm(positions, f"{h}.ln_p{number}").expand(len(x), -1, -1)], -1)

    def attend(x: Tensor, h: str) -> Tensor:
        heads, width = c["n_head"], c["d_head"]
        q, k, v = linear(topk(x, "attn_in"), f"{h}.c_attn").split(heads * width, -1)
        q, k, v = topk(q, "attn_q"), topk(k, "attn_k"), topk(v, "attn_v")
        mixed = torch.zeros_like(v)
        for head in range(heads):
            s = slice(head * width, (head + 1) * width)
            for t in range(x.shape[1]):
                weight = (k[:, : t + 1, s] @ q[:, t, s, None] / math.sqrt(width)).squeeze(-1).exp()
                sink = w[f"{h}.attn_imp.sink_logit"][head].exp() if c["sink"] else 0
                share = weight / (weight.sum(-1, keepdim=True) + sink)
                mixed[:, t, s] = (share[..., None] * v[:, : t + 1, s]).sum(1)
        return topk(linear(mixed, f"{h}.c_proj"), "attn_out")

    def think(x: Tensor, h: str) -> Tensor:
        hidden = {"gelu": F.gelu, "relu": F.relu}[c["activation_type"]](linear(topk(x, "mlp_in"), f"{h}.c_fc"))
        return topk(linear(topk(hidden, "mlp_neuron"), f"{h}.c_proj"), "mlp_out")

    def settle(x: Tensor, place: str) -> Tensor:
        return topk(x.relu() if c["residual_activation_type"] == "relu" else x, place)

    positions = w["transformer.wpe.weight"][: tokens.shape[1]]
    x = w["transformer.wte.weight"][tokens] + (positions if c["d_pos_emb"] is None else 0)
    for i in range(c["n_layer"]):
        h = f"transformer.h.{i}"
        x = settle(x + attend(read(x, h, 1), f"{h}.attn"), "resid_post_attn")
        x = settle(x + think(read(x, h, 2), f"{h}.mlp"), "resid_post_mlp")
    logits = norm(x, "transformer.ln_f") @ w["lm_head.weight"].T + w.get("final_logits_bias", 0)
    return logits + (w["bigram_table"][tokens] if c["enable_bigram_table"] else 0)


def write(folder: str, config: dict[str, Any], weights: Any) -> str:
    content = io.BytesIO()
    torch.save(weights, content)
    write_bytes_atomic(join(folder, "beeg_config.json"), json.dumps(config).encode())
    write_bytes_atomic(join(folder, "final_model.pt"), content.getvalue())
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_the_released_forward_pass(variant: str, tmp_path: Path) -> None:
    written, spelled_out, weights = released(variant)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = load_openai(write(str(tmp_path), written, weights))
    tokens = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference_logits(spelled_out, weights, tokens), rtol=1e-4, atol=1e-4)
    assert tokenizer is None


def test_absent_logits_bias_is_zero_and_causal_masks_are_no_weights(tmp_path: Path) -> None:
    written, spelled_out, weights = released("paper")
    del weights["final_logits_bias"]
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12)}
    model, _ = load_openai(write(str(tmp_path), written, weights | mask))
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference_logits(spelled_out, weights, tokens), rtol=1e-4, atol=1e-4)


def test_any_store_and_the_way_back(root_uri: str) -> None:
    written, spelled_out, _ = released("tied")
    size = {"vocab_size": 300}
    write(root_uri, written | size, random_weights(spelled_out | size))
    write_tokenizer(root_uri, *gpt2_files(300))
    model, tokenizer = load_openai(root_uri)
    assert tokenizer is not None
    save_pretrained(model, tokenizer, join(root_uri, "ours"))
    again, tokenizer_again = from_pretrained(join(root_uri, "ours"))
    tokens = torch.tensor([tokenizer.encode("for x in")[:12]])
    assert torch.equal(model(tokens), again(tokens))
    assert tokenizer_again.encode("for x in") == tokenizer.encode("for x in")


def test_unknown_keys_are_ignored_and_named_once(tmp_path: Path) -> None:
    written, spelled_out, weights = released("paper")
    strangers = {"bigram_table_rank": None, "pfrac": 0.01, "rtopk": False, "use_tied_aux_matrix": False}
    strangers |= dict.fromkeys(["expansion_factor", "expansion_factor_mlp", "sparse_matmul_impl", "n_embd"], 1)
    strangers |= dict.fromkeys(["debug_exact_topk", "afrac_approx", "ignore_dw_grad"], False)
    with pytest.warns(UserWarning, match="ignored keys") as seen:
        model, _ = load_openai(write(str(tmp_path), written | strangers, weights))
    assert len(seen) == 1
    assert all(key in str(seen[0].message) for key in strangers)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference_logits(spelled_out, weights, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layer": ...}, "missing transformer.h.10.attn.c_attn.bias"),  # 12 by default
        ({"block_size": None}, "wpe.weight has shape [12, 16]; beeg_config.json asks for [1024, 16]"),
        ({"vocab_size": None}, "wte.weight has shape [50, 16]; beeg_config.json asks for [50304, 16]"),
        ({"afrac_loctypes": "attn_in, attn_q"}, "afrac_loctypes: ' attn_q'; allowed: attn_in, attn_q"),
        ({"afrac_loctypes": "attn_in,attn_q\t"}, "without spaces, which the released code does not strip"),
        ({"afrac": 0}, "keeps no channel of attn_in, which has 16: that is not supported here"),
        ({"afrac": -0.5}, "afrac: -0.5; allowed: above 0, up to 1"),
        ({"afrac": float("nan")}, "afrac: nan; allowed: above 0, up to 1"),
        ({"d_model": "wide"}, "d_model"),
        ({"activation_type": "swish"}, "activation_type"),
        ({"afrac_loctypes": "attn_in,mlp_middle"}, "'mlp_middle'; allowed: attn_in, attn_q"),
        ({"afrac": 0.01}, "keeps no channel of attn_in, which has 16: that is not supported here"),
        ({"n_head": 0, "d_head": None}, "n_head"),
        ({"use_tied_aux_matrix": True}, "use_tied_aux_matrix"),
        ({"n_layer": 3}, "missing transformer.h.2.attn.c_attn.bias, transformer.h.2.attn.c_attn.weight"),
        ({"n_layer": 1}, "unknown transformer.h.1.attn.c_attn.bias"),
        ({"sink": True}, "missing transformer.h.0.attn.attn_imp.sink_logit"),
        ({"enable_bigram_table": False}, "unknown bigram_table"),
        ({"d_mlp": 60}, "transformer.h.0.mlp.c_fc.weight has shape [64, 16]; beeg_config.json asks for [60, 16]"),
        ({"tied_unembed": True}, "wte.weight and lm_head.weight differ"),
        ({"vocab_size": 10**13}, "vocab_size"),
        # by the shapes of its tensors, before anything takes a thousand gigabytes
        (
            {"vocab_size": 2**20, "enable_bigram_table": True},
            "wte.weight has shape [50, 16]; beeg_config.json asks for [1048576, 16]",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    written, _, weights = released("paper")
    config = {key: value for key, value in (written | change).items() if value is not ...}
    with pytest.raises(InputError) as refused:
        load_openai(write(str(tmp_path), config, weights))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_of_two_names_without_a_value_leaves_the_other(tmp_path: Path) -> None:
    written, spelled_out, weights = released("older_name")
    config = written | {"n_mlp": None, "d_mlp": written["n_mlp"]}
    model, _ = load_openai(write(str(tmp_path), config, weights))
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference_logits(spelled_out, weights, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight.fill_(math.nan), "numbers that are not finite"),
        (
            lambda weight: weight.fill_(-math.inf),
            "numbers that are not finite (nan, inf or -inf): that is not supported",
        ),
        (lambda weight: weight.to(torch.int8), "torch.int8; allowed: floating-point"),
        (lambda weight: weight.to(torch.complex64), "torch.complex64; allowed: floating-point"),
        (lambda weight: weight.to_sparse(), "torch.sparse_coo, cpu; allowed: floating-point"),
        (lambda weight: weight.to("meta"), "torch.strided, meta; allowed: floating-point"),
    ],
)
def test_tensors_that_hold_no_plain_numbers_are_refused_by_name(change: Any, words: str, tmp_path: Path) -> None:
    written, _, weights = released("paper")
    name = "transformer.h.1.mlp.c_fc.weight"
    write(str(tmp_path), written, weights | {name: change(weights[name].clone())})
    with pytest.raises(InputError) as refused:
        load_openai(str(tmp_path))
    assert f"{name} " in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "weights",
    [
        [1, 2],
        {"model": {"x": torch.zeros(1)}},
        {"transformer.wte.weight": "text"},
        {},
        {1: torch.zeros(1), "x": torch.zeros(1)},
    ],
)
def test_other_things_than_a_state_dict_are_refused(weights: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"final_model\.pt: (a|keys)"):
        load_openai(write(str(tmp_path), released("paper")[0], weights))


@pytest.mark.parametrize("name", ["beeg_config.json", "final_model.pt"])
def test_truncated_and_missing_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    written, _, weights = released("paper")
    write(str(tmp_path), written, weights)
    whole = (tmp_path / name).read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"{name}: truncated") as refused:
            load_openai(str(tmp_path))
        assert "\n" not in str(refused.value)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: it does not exist"):
        load_openai(str(tmp_path))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    with pytest.raises(InputError, match=r"final_model\.pt"):
        load_openai(write(str(tmp_path), released("paper")[0], {"transformer.wte.weight": Bomb()}))
    assert not (tmp_path / "exploded").exists()


def byte_symbols() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it can be printed, else the next letter from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def gpt2_files(vocab_size: int) -> tuple[dict[str, int], str]:
    """encoder.json and vocab.bpe of a tokenizer learned by plain counting, with ids in the released order."""
    symbols = byte_symbols()
    words = [[symbols[byte] for byte in piece.encode()] for text in sample() for piece in pieces(text)]
    encoder = {symbol: i for i, symbol in enumerate(sorted(symbols.values(), key=lambda s: (ord(s) > 255, ord(s))))}
    merges = []
    while len(encoder) < vocab_size - 1:
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        encoder["".join(best)] = len(encoder)
        words = [merged(word, best) for word in words]
    encoder[END_OF_TEXT] = len(encoder)
    return encoder, "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def pieces(text: str) -> list[str]:
    """METHOD 4's pattern, whose classes Python's `re` lacks, for ASCII text."""
    letters, digits = "A-Za-z", "0-9"
    pattern = rf"[^\r\n{letters}{digits}]?[{letters}]+|[{digits}]{{1,3}}| ?[^\s{letters}{digits}]+[\r\n/]*|\s*[\r\n]+"
    return re.findall(rf"{pattern}|\s+(?!\S)|\s+", text)


def sample() -> list[str]:
    stream = programs(0)
    return [next(stream) for _ in range(12)]


def write_tokenizer(folder: str, encoder: dict[str, int], merges: str) -> None:
    write_bytes_atomic(join(folder, "encoder.json"), json.dumps(encoder).encode())
    write_bytes_atomic(join(folder, "vocab.bpe"), merges.encode())


def reference_ids(encoder: dict[str, int], merges: str, text: str) -> list[int]:
    """Byte-level BPE one piece at a time: of all neighbours that can merge, always those learned first."""
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(merges.splitlines()[1:])}
    symbols, ids = byte_symbols(), []
    for piece in pieces(text):
        word = [symbols[byte] for byte in piece.encode()]
        while known := [pair for pair in pairwise(word) if pair in ranks]:
            word = merged(word, min(known, key=ranks.__getitem__))
        ids += [encoder[symbol] for symbol in word]
    return ids


@pytest.fixture(scope="module")
def files() -> tuple[dict[str, int], str]:
    return gpt2_files(330)


def test_tokens_equal_those_of_a_bpe_by_hand(files: tuple[dict[str, int], str], tmp_path: Path) -> None:
    encoder, merges = files
    write_tokenizer(str(tmp_path), encoder, merges)
    written, spelled_out, _ = released("paper")
    size = {"vocab_size": 330}
    _, tokenizer = load_openai(write(str(tmp_path), written | size, random_weights(spelled_out | size)))
    assert tokenizer is not None
    assert (tokenizer.vocab_size, tokenizer.eot) == (330, 329)
    rng = random.Random(0)
    noise = ["".join(rng.choices("ab =('\")]\n\t 012_x/", k=60)) for _ in range(50)]
    for text in [*sample(), *noise]:
        assert tokenizer.encode(text) == reference_ids(encoder, merges, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("é👩‍💻 " + END_OF_TEXT)) == "é👩‍💻 " + END_OF_TEXT
    assert tokenizers.Tokenizer.from_str(tokenizer.to_json()).encode(sample()[0]).ids == tokenizer.encode(sample()[0])


def test_a_tokenizer_folder_of_its_own(files: tuple[dict[str, int], str], tmp_path: Path) -> None:
    written, _, weights = released("paper")
    write(str(tmp_path / "model"), written, weights)
    write_tokenizer(str(tmp_path / "tokenizer"), *files)
    with pytest.raises(InputError, match="vocab_size 50; the tokenizer has 330 tokens"):
        load_openai(str(tmp_path / "model"), str(tmp_path / "tokenizer"))
    with pytest.raises(InputError, match=r"encoder\.json: it does not exist"):
        load_openai(str(tmp_path / "model"), str(tmp_path))


def shorten(encoder: dict[str, int], merges: str) -> tuple[dict[str, int], str]:
    return encoder, merges[: len(merges) // 2].rpartition("\n")[0]


def cut_line(encoder: dict[str, int], merges: str) -> tuple[dict[str, int], str]:
    return encoder, merges[: merges.rindex(" ")]


def drop_token(encoder: dict[str, int], merges: str) -> tuple[dict[str, int], str]:
    last = len(encoder) - 2
    return {t: i for t, i in encoder.items() if i < last} | {END_OF_TEXT: last}, merges


def gap(encoder: dict[str, int], merges: str) -> tuple[dict[str, int], str]:
    return encoder | {next(iter(encoder)): 1000}, merges


def swapped(encoder: dict[str, int], merges: str) -> tuple[dict[str, int], str]:
    """Two of the merges in the other order, which both stand there all the same."""
    lines = merges.split("\n")
    lines[4:6] = lines[5:3:-1]
    return encoder, "\n".join(lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shorten, "vocab.bpe has no merge for"),
        (cut_line, "vocab.bpe has the line"),
        (drop_token, "encoder.json lacks"),
        (gap, "ids from 0 on"),
        (lambda encoder, merges: ({token: str(i) for token, i in encoder.items()}, merges), "ids from 0 on"),
        (lambda encoder, merges: ([1, 2], merges), "ids from 0 on"),
        (
            lambda encoder, merges: ({t: i for t, i in encoder.items() if t != END_OF_TEXT}, merges),
            "encoder.json lacks '<",
        ),
        (
            lambda encoder, merges: (encoder, merges.partition("\n")[2]),
            "vocab.bpe begins with 'Ġ Ġ'; allowed: a line with",
        ),
        (swapped, "in the order of vocab.bpe it is"),
    ],
)
def test_tokenizer_files_that_do_not_fit_are_refused(
    files: tuple[dict[str, int], str], change: Any, words: str, tmp_path: Path
) -> None:
    written, _, weights = released("paper")
    write(str(tmp_path), written, weights)
    write_tokenizer(str(tmp_path), *change(*files))
    with pytest.raises(InputError) as refused:
        load_openai(str(tmp_path))
    assert words in str(refused.value)


RELEASED = Path(__file__).parents[2] / "data" / "tinypython"


def released_tokenizer(folder: Path, change: Callable[[bytes], bytes] = lambda content: content) -> Tokenizer:
    """The authors' own files, perhaps changed as a bytes-for-bytes copy may be."""
    folder.mkdir(exist_ok=True)
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes(change((RELEASED / name).read_bytes()))
    tokenizer = read_tokenizer(str(folder), required=True)
    assert tokenizer is not None
    return tokenizer


def test_the_released_tokenizer_encodes_as_the_authors_reader_does(tmp_path: Path) -> None:
    """tiktoken is what the released code reads its files with."""
    ranks = data_gym_to_mergeable_bpe_ranks(str(RELEASED / "vocab.bpe"), str(RELEASED / "encoder.json"))
    theirs = tiktoken.Encoding("x", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 2047})
    ours = released_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.eot) == (2048, theirs.eot_token)
    odd = [
        "a",
        " ",
        "\n",
        "\r\n",
        "\t",
        "é",
        "👩‍💻",
        "n\u0303",
        "٣",
        "Ⅷ",
        "\x00",
        "\x1c",
        "\x85",
        "\u2028",
        "\xa0",
        "中",
        '("',
        "_",
    ]
    odd += ["def ", "12345", "]", "/", END_OF_TEXT, "<|startoftext|>", "self."]
    rng = random.Random(0)
    for text in [*sample(), *("".join(rng.choices(odd, k=rng.randrange(30))) for _ in range(3000))]:
        assert ours.encode(text) == theirs.encode(text, disallowed_special=()), text
        assert ours.decode(ours.encode(text)) == text
    assert ours.token_text(2046) == "<|startoftext|>"


@pytest.mark.parametrize(
    "change",
    [lambda content: content.replace(b"\n", b"\r\n"), lambda content: codecs.BOM_UTF8 + content, bytes.rstrip],
    ids=["CRLF", "byte-order mark", "no newline at the end"],
)
def test_copies_of_the_released_tokenizer_that_windows_made(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    plain, copied = released_tokenizer(tmp_path / "a"), released_tokenizer(tmp_path / "b", change)
    assert copied.to_json() == plain.to_json()


def test_a_folder_in_another_form_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "circuitgpt", "n_layer": 8}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"in Hugging Face form .*; allowed: .* with beeg_config.json and final_model.pt"
    ):
        load_openai(str(tmp_path))
    with pytest.raises(InputError, match=r"config.json: .*'circuitgpt'.* `sweeps import`"):
        from_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="as the paper's authors released it; `sweeps import`"):
        from_pretrained(write(str(tmp_path / "released"), *(released("paper")[i] for i in (0, 2))))


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    written, _, weights = released("paper")
    write(str(tmp_path), written, weights)
    (tmp_path / "beeg_config.json").write_text(json.dumps(written)[:-1] + ', "n_layer": 2}')
    with pytest.raises(InputError, match=r"beeg_config.json: key 'n_layer' is there twice"):
        load_openai(str(tmp_path))


def test_one_tokenizer_file_without_the_other_and_a_truncated_one(
    files: tuple[dict[str, int], str], tmp_path: Path
) -> None:
    written, _, weights = released("paper")
    write(str(tmp_path), written, weights)
    write_tokenizer(str(tmp_path), *files)
    content = (tmp_path / "encoder.json").read_bytes()
    (tmp_path / "encoder.json").write_bytes(content[:-20])
    with pytest.raises(InputError, match=r"encoder\.json: truncated"):
        load_openai(str(tmp_path))
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(InputError, match=r"encoder\.json: it does not exist"):
        load_openai(str(tmp_path))

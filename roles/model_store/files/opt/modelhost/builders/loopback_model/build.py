#!/usr/bin/env python3
"""Build the loopback model: a tiny Qwen2 checkpoint whose weights are computed, not learned.

    build.py OUTDIR            write the model; prints "changed" or "unchanged"
    build.py --check OUTDIR    exit 0 if OUTDIR holds exactly this model, 1 if not

Standard library only, Python 3.9 or later: it runs on a bare host. The same bytes come out every time.

How it works. The chat template decides the reply and appends it to the prompt as a *plan*: one token per byte of the
reply, then end tokens up to one of the sizes in PLAN_SIZES. One attention head copies, at each step, the plan token
that lies exactly (size - 1) positions back, so the plan is read once from start to end. The weights that do this:

* A plan token's embedding holds its byte as two one-hot nibbles, and the class of its plan (which size).
* Every query is the same vector. A plan token's key is that vector turned by RoPE's own angles for (size - 1)
  positions, so that query and key line up at that distance and nowhere else. Other tokens have the key zero.
* Values and the output projection pass the nibbles on. The output layer gives the byte whose two nibbles match a
  positive logit and every other token a negative one. With no nibbles at all (an end token, or a prompt without a
  plan) the winner is <|im_end|>.

The margins are so large (thousands in logits) that temperature, penalties and low precision change nothing.
"""

import argparse
import array
import heapq
import json
import math
import os
import re
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

PLAN_SIZES = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]  # chat_template.jinja has the same list
MARK = "\ue000"  # the private-use character that makes text a plan token; the template takes it out of prompts
CONTEXT = 262144

# Shape. Two heads and one KV head, so that tensor parallelism of 1 and 2 works; 32 is the smallest head size that
# vLLM's CPU attention takes.
HEAD = 32
HEADS = 2
HIDDEN = HEAD * HEADS
ROPE_THETA = 300.0  # of those tried, the best at telling neighbours apart without false matches up to CONTEXT

# Dimensions of the residual stream.
HI, LO, CLASS, CONST, FILL = 0, 16, 32, 48, 49
ONE = 4.0  # every embedding has four entries of this size: the norm is the same for all, so RMSNorm does nothing
QUERY, KEY = 16.0, 17.0  # their product over sqrt(HEAD), 48, times the smallest gap of 0.93 is the margin: e^-44
LOGIT = 4096.0

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/"  # what `urlencode` leaves alone
HANZI = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实"
    "今北京气怎文件请写入读取运行命令结果错误目录测试模型服务器"
)
# Runs of punctuation that are one token, with or without a space before them; the second list also before line ends.
SYMBOLS = r"""
" ": "," ":" ":{" ":[" "},{" "},"  "} "]  {" [" {\" \": \", \" \n \n\n \\ ' ' ', (' ') ['  '] \'
( (" (' (` [` ${ `, `. `) `` ** **: *  @ % # ## ### ####  / // :// /* */ </ /> >< < > <= >= = == === != => ->
+= - -- --- ---- & && | || + ... :: .. … — [] {} () (), (). (): )) ). )" _ __ ._ [{ {{ }} }}, ]}
"""
LINE_ENDS = ". , : ; { } ( ) ): ); ), [ ] ], }, }); ` `. ``` \" \", ' ',"


def byte_letters():
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {}, 256
    for byte in range(256):
        if byte in plain:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(extra)
            extra += 1
    return letters


LETTERS = byte_letters()


def spell(text):
    return "".join(LETTERS[byte] for byte in text.encode("utf-8"))


def learn_merges(texts):
    """Byte-pair merges that make each text one token; heavier pairs first, ties go by spelling.

    Encoding replays the merges in this order, so each of the texts does come out whole.
    """
    parts = [list(spell(text)) for text in texts]
    weights = [10**7 // (rank + 20) for rank in range(len(texts))]
    totals, places = {}, {}
    for at, symbols in enumerate(parts):
        for pair in zip(symbols, symbols[1:]):
            totals[pair] = totals.get(pair, 0) + weights[at]
            places.setdefault(pair, set()).add(at)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    merges = []
    while heap:
        total, best = heapq.heappop(heap)
        if totals.get(best) != -total:
            continue  # an older figure of a pair that has been counted again since
        merges.append(best)
        touched = set()
        for at in places.pop(best):
            symbols = parts[at]
            for pair in zip(symbols, symbols[1:]):
                totals[pair] -= weights[at]
                touched.add(pair)
            n = 0
            while n < len(symbols) - 1:
                if (symbols[n], symbols[n + 1]) == best:
                    symbols[n : n + 2] = ["".join(best)]
                n += 1
            for pair in zip(symbols, symbols[1:]):
                totals[pair] = totals.get(pair, 0) + weights[at]
                places.setdefault(pair, set()).add(at)
                touched.add(pair)
        for pair in touched:
            if totals[pair] > 0:
                heapq.heappush(heap, (-totals[pair], pair))
            else:
                del totals[pair]
    return merges


def plan_text(byte, plan_class):
    """How the template writes one byte of a plan (None: the end)."""
    joint = MARK + str(plan_class)
    text = "!" if byte is None else chr(byte) if chr(byte) in UNRESERVED else f"%{byte:02X}"
    return "".join(letter + joint for letter in text)


def build_vocabulary():
    with open(os.path.join(HERE, "words.txt"), encoding="utf-8") as file:
        words = file.read().split()
    symbols = [form + symbol for symbol in (SYMBOLS + LINE_ENDS).split() for form in ("", " ")]
    symbols += [symbol + end for symbol in LINE_ENDS.split() for end in ("\n", "\n\n")]
    spaces = [" " * n for n in range(2, 41)] + ["\n" * n for n in range(2, 4)] + ["\t" * n for n in range(2, 7)]
    texts = [*symbols, *spaces, *(form + word for word in words for form in (" ", "")), *HANZI]
    merges = learn_merges(list(dict.fromkeys(texts)))

    vocabulary = {LETTERS[byte]: byte for byte in range(256)}
    for first, second in merges:
        vocabulary.setdefault(first + second, len(vocabulary))

    plans = [(byte, c) for c in range(len(PLAN_SIZES)) for byte in [*range(256), None]]
    return vocabulary, merges, plans


def tokenizer_files(vocabulary, merges, plans, template):
    added = SPECIAL + [plan_text(byte, plan_class) for byte, plan_class in plans]
    first = len(vocabulary)
    added_tokens = [
        {
            "id": first + n,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for n, content in enumerate(added)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    # The pattern of Qwen2: newer transformers use their own copy of it for this architecture.
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }
    tokenizer_config = {
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": CONTEXT,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    ids = {content: first + n for n, content in enumerate(added)}
    return tokenizer, tokenizer_config, ids


def matrix(rows, columns, entries):
    """BF16 bytes of a matrix from {(row, column): value}; rounds to nearest even."""
    data = array.array("H", bytes(2 * rows * columns))
    for (row, column), value in entries.items():
        bits = int.from_bytes(array.array("f", [value]).tobytes(), sys.byteorder)
        data[row * columns + column] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    if sys.byteorder == "big":
        data.byteswap()
    return [rows, columns], data.tobytes()


def vector(values):
    shape, data = matrix(1, len(values), {(0, n): value for n, value in enumerate(values)})
    return shape[1:], data


def weights(vocabulary_size, plans, ids):
    half = HEAD // 2
    angles = [ROPE_THETA ** (-n / half) for n in range(half)]
    is_plan = {ids[plan_text(byte, plan_class)]: (byte, plan_class) for byte, plan_class in plans}

    embedding, output = {}, {}
    for token in range(vocabulary_size):
        byte, plan_class = is_plan.get(token, (None, None))
        marks = [CONST]
        marks += [FILL + 2] if plan_class is None else [CLASS + plan_class]
        marks += [FILL, FILL + 1] if byte is None else [HI + byte // 16, LO + byte % 16]
        embedding.update({(token, dimension): ONE for dimension in marks})
        # The constant is the threshold. Both nibbles 2 - 1.5 > 0, one 1 - 1.5 < 0; never anything but byte tokens.
        output[token, CONST] = -3 * LOGIT / ONE
        if token < 256:
            output[token, CONST] = -1.5 * LOGIT / ONE
            output[token, HI + token // 16] = output[token, LO + token % 16] = LOGIT / ONE
    end = ids["<|im_end|>"]
    output[end, CONST] = 0.5 * LOGIT / ONE
    output.update({(end, HI + n): -LOGIT / ONE for n in range(16)})

    query, key, value, out = {}, {}, {}, {}
    for n in range(half):
        for head in range(HEADS):
            query[head * HEAD + n, CONST] = QUERY / ONE
        for plan_class, size in enumerate(PLAN_SIZES):
            turn = (size - 1) * angles[n]
            key[n, CLASS + plan_class] = KEY / ONE * math.cos(turn)
            key[n + half, CLASS + plan_class] = KEY / ONE * math.sin(turn)
    for n in range(16):
        value[HI + n, HI + n] = value[LO + n, LO + n] = 1 / ONE
        out[HI + n, HI + n] = out[LO + n, HEAD + LO + n] = ONE  # the first head brings one nibble, the second the other

    layer = "model.layers.0."
    return {
        "lm_head.weight": matrix(vocabulary_size, HIDDEN, output),
        "model.embed_tokens.weight": matrix(vocabulary_size, HIDDEN, embedding),
        layer + "input_layernorm.weight": vector([1.0] * HIDDEN),
        layer + "mlp.down_proj.weight": matrix(HIDDEN, HIDDEN, {}),
        layer + "mlp.gate_proj.weight": matrix(HIDDEN, HIDDEN, {}),
        layer + "mlp.up_proj.weight": matrix(HIDDEN, HIDDEN, {}),
        layer + "post_attention_layernorm.weight": vector([1.0] * HIDDEN),
        layer + "self_attn.k_proj.bias": vector([0.0] * HEAD),
        layer + "self_attn.k_proj.weight": matrix(HEAD, HIDDEN, key),
        layer + "self_attn.o_proj.weight": matrix(HIDDEN, HIDDEN, out),
        layer + "self_attn.q_proj.bias": vector([0.0] * HIDDEN),
        layer + "self_attn.q_proj.weight": matrix(HIDDEN, HIDDEN, query),
        layer + "self_attn.v_proj.bias": vector([0.0] * HEAD),
        layer + "self_attn.v_proj.weight": matrix(HEAD, HIDDEN, value),
        "model.norm.weight": vector([1.0] * HIDDEN),
    }


def safetensors(tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + b"".join(data for _, data in tensors.values())


def build():
    """All files of the model as {name: bytes}."""
    with open(os.path.join(HERE, "chat_template.jinja"), encoding="utf-8") as file:
        template = file.read()
    stated = re.search(r"set plan_sizes = (\[[\d, ]+\])", template)
    if not stated or json.loads(stated.group(1)) != PLAN_SIZES:
        raise SystemExit("build.py: PLAN_SIZES here and plan_sizes in chat_template.jinja differ; make them the same")

    vocabulary, merges, plans = build_vocabulary()
    tokenizer, tokenizer_config, ids = tokenizer_files(vocabulary, merges, plans, template)
    size = -(-(len(vocabulary) + len(ids)) // 64) * 64
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": HIDDEN,
        "max_position_embeddings": CONTEXT,
        "max_window_layers": 1,
        "model_type": "qwen2",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "pad_token_id": pad,
        "rms_norm_eps": 1e-06,
        "rope_theta": ROPE_THETA,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": size,
    }
    generation_config = {"do_sample": False, "eos_token_id": end, "pad_token_id": pad}

    def as_json(value):
        return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8")

    return {
        "chat_template.jinja": template.encode("utf-8"),
        "config.json": as_json(config),
        "generation_config.json": as_json(generation_config),
        "model.safetensors": safetensors(weights(size, plans, ids)),
        "tokenizer.json": as_json(tokenizer),
        "tokenizer_config.json": as_json(tokenizer_config),
    }


def holds(directory, files):
    """Whether the directory holds exactly these contents (other files beside them are nobody's business here)."""
    for name, content in files.items():
        try:
            with open(os.path.join(directory, name), "rb") as file:
                if file.read() != content:
                    return False
        except OSError:
            return False
    return True


def install(directory, files):
    """Write beside the target, then rename: an incomplete model is never to be seen under its name."""
    parent, name = os.path.split(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    if os.path.isdir(directory) and set(os.listdir(directory)) and not os.path.exists(f"{directory}/config.json"):
        raise SystemExit(f"build.py: {directory} is not empty and holds no model; give an empty or new folder")
    fresh = tempfile.mkdtemp(prefix=f".{name}.new-", dir=parent)
    try:
        for file_name, content in files.items():
            path = os.path.join(fresh, file_name)
            with open(path, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(path, 0o644)
        os.chmod(fresh, 0o755)
        if os.path.isdir(directory):
            stale = tempfile.mkdtemp(prefix=f".{name}.old-", dir=parent)
            os.rename(directory, os.path.join(stale, name))
            os.rename(fresh, directory)
            shutil.rmtree(stale)
        else:
            os.rename(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description="Build the loopback model, a test instrument that judges nothing.")
    parser.add_argument("outdir")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if OUTDIR is not this model")
    arguments = parser.parse_args()
    files = build()
    same = holds(arguments.outdir, files)
    if arguments.check:
        print("complete" if same else "missing or different")
        return 0 if same else 1
    if not same:
        install(arguments.outdir, files)
    print("unchanged" if same else "changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

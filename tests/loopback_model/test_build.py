"""The builder: same bytes each time, sound files, and nothing half-written under the model's name."""

import array
import json
import math
import os
import subprocess
import sys

import pytest

from .render import MODEL, build


@pytest.fixture(scope="module")
def files():
    return build.build()


def run(*arguments, hash_seed="0"):
    return subprocess.run(
        [sys.executable, "-I", MODEL / "build.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )


def tensors(files):
    data = files["model.safetensors"]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    found, end = {}, 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert start == end
        assert stop - start == 2 * math.prod(entry["shape"])
        words = array.array("H", data[8 + size + start : 8 + size + stop])
        wide = array.array("I", (word << 16 for word in words))
        found[name] = (entry["shape"], array.array("f", wide.tobytes()))
        end = stop
    assert end == len(data) - 8 - size
    return found


def test_the_same_bytes_each_time(files, tmp_path):
    for seed in ("1", "2"):
        assert run(str(tmp_path / seed), hash_seed=seed).returncode == 0
        for name, content in files.items():
            assert (tmp_path / seed / name).read_bytes() == content


def test_a_second_run_changes_nothing_and_check_tells(tmp_path):
    model = tmp_path / "store" / "loopback"
    assert run("--check", str(model)).returncode == 1
    assert not model.exists()
    assert run(str(model)).stdout == "changed\n"
    before = model.stat().st_mtime_ns
    assert run(str(model)).stdout == "unchanged\n"
    assert model.stat().st_mtime_ns == before
    assert run("--check", str(model)).returncode == 0
    (model / "model.safetensors").write_bytes(b"cut short")
    assert run("--check", str(model)).returncode == 1
    assert run(str(model)).stdout == "changed\n"
    assert run("--check", str(model)).returncode == 0
    assert os.listdir(model.parent) == ["loopback"], "nothing of the builder's own is left behind"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run(str(tmp_path))
    assert result.returncode != 0
    assert "holds no model" in result.stderr
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_the_files_agree_with_each_other(files):
    config = json.loads(files["config.json"])
    tokenizer = json.loads(files["tokenizer.json"])
    found = tensors(files)
    vocabulary = tokenizer["model"]["vocab"]
    ids = sorted([*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])])
    assert ids == list(range(len(ids)))
    assert len(ids) <= config["vocab_size"]
    assert found["lm_head.weight"][0] == found["model.embed_tokens.weight"][0] == [config["vocab_size"], build.HIDDEN]
    content = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert config["eos_token_id"] == content["<|im_end|>"]
    for merge in tokenizer["model"]["merges"]:
        first, second = merge.split(" ")
        assert {first, second, first + second} <= vocabulary.keys()
    assert sum(map(len, files.values())) < 8_000_000


def test_all_embeddings_have_the_same_norm(files):
    shape, values = tensors(files)["model.embed_tokens.weight"]
    norms = {sum(value * value for value in values[row * shape[1] : (row + 1) * shape[1]]) for row in range(shape[0])}
    assert norms == {64.0}


@pytest.mark.parametrize("plan_class", range(len(build.PLAN_SIZES)))
def test_query_and_key_meet_at_one_distance_only(files, plan_class):
    """The attention score over every distance in the context, from the rounded weights themselves."""
    found = tensors(files)
    half = build.HEAD // 2
    query, key = found["model.layers.0.self_attn.q_proj.weight"][1], found["model.layers.0.self_attn.k_proj.weight"][1]
    terms = []
    for n in range(half):
        amplitude = build.ONE * query[n * build.HIDDEN + build.CONST] / math.sqrt(build.HEAD)
        even = build.ONE * key[n * build.HIDDEN + build.CLASS + plan_class]
        odd = build.ONE * key[(n + half) * build.HIDDEN + build.CLASS + plan_class]
        terms.append((amplitude * math.hypot(even, odd), math.atan2(odd, even), build.ROPE_THETA ** (-n / half)))

    def score(distance):
        return sum(size * math.cos(distance * angle - turn) for size, turn, angle in terms)

    wanted = build.PLAN_SIZES[plan_class] - 1
    best = score(wanted)
    # All plan tokens lie within one plan's length; the step beyond covers the answer as it grows.
    nearest = max(score(d) for d in range(2 * wanted + 2) if d != wanted)
    assert best - nearest > 35, "misses must weigh less than e^-35"
    assert best > 700, "tokens that are no plan score 0"


def test_the_bytes_have_one_token_each(files):
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    assert [vocabulary[build.LETTERS[byte]] for byte in range(256)] == list(range(256))


def test_ordinary_text_is_not_spelt_out(files):
    """A prompt must cost about what it costs with a real tokenizer: common words are one token."""
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    for text in (" the", " function", " return", "file", "description", '":"', " " * 8, "你", "\n\n"):
        assert build.spell(text) in vocabulary


def test_the_tokenizer_itself(files, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed here")
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in ("def add(self): return 1\n", "北京今天天气怎么样？🎉", "\x00\x1f\r\n\t \\ \"'", "a" * 3000):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    plan = "".join(build.plan_text(byte, 3) for byte in [*range(256), None])
    assert len(tokenizer.encode(plan).ids) == 257
    assert tokenizer.decode(list(range(0x41, 0x45)) + list("你".encode())) == "ABCD你"

"""Make the repositories of the test's hub below a folder: two revisions of a gated model of 8 MB, always the same."""

import json
import random
import sys
from pathlib import Path

TOKENS = ["hf_Ruisdael1670", "hf_Hobbema1689"]


def make(folder, revision, seed):
    """One revision: what an engine needs, and what nobody shall download."""
    numbers = random.Random(seed)
    files = {"model-%05d-of-00004.safetensors" % part: numbers.randbytes(2 << 20) for part in range(1, 5)}
    files["config.json"] = json.dumps({"model_type": "qwen2", "seed": seed}).encode()
    files["tokenizer.json"] = b"{}"
    files["pytorch_model.bin"] = files["original/consolidated.pth"] = numbers.randbytes(1 << 20)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / ".hub.json").write_text(json.dumps({"revision": revision, "gated": True, "tokens": TOKENS}))


if __name__ == "__main__":
    top = Path(sys.argv[1]) / "Org"
    make(top / ("Small@" + "1" * 40), "1" * 40, 1)
    make(top / "Small", "2" * 40, 2)

"""Render the loopback model's chat template as transformers does, and read the plan back out of the prompt."""

import importlib.util
import json
import pathlib
import re
import types
import urllib.parse

import jinja2
import jinja2.ext
import jinja2.sandbox

MODEL = pathlib.Path(__file__).resolve().parents[2] / "roles/model_store/files/opt/modelhost/builders/loopback_model"


def load_build() -> types.ModuleType:
    """The builder as a module; it is a script in a folder that is no package."""
    spec = importlib.util.spec_from_file_location("loopback_build", MODEL / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    return env


TEMPLATE = environment().from_string((MODEL / "chat_template.jinja").read_text(encoding="utf-8"))


def prompt(messages, tools=None, **options):
    options.setdefault("add_generation_prompt", True)
    return TEMPLATE.render(messages=messages, tools=tools, documents=None, **options)


def read_plan(text):
    """The reply that a prompt's plan stands for; checks the plan's length too."""
    tokens = re.findall(r"(%\ue000\d.\ue000\d.\ue000\d|.\ue000\d)", text)
    assert text.endswith("".join(tokens)), "the plan must end the prompt, and plan tokens must be nowhere else"
    (plan_class,) = {token[-1] for token in tokens}
    assert len(tokens) == build.PLAN_SIZES[int(plan_class)]
    written = [re.sub("\ue000" + plan_class, "", token) for token in tokens]
    length = written.index("!")
    assert set(written[length:]) == {"!"}
    return urllib.parse.unquote("".join(written[:length]), errors="strict")


def reply(messages, tools=None):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return read_plan(prompt(messages, tools))


def calls(messages, tools=None):
    """The reply as the parser `hermes` reads it: text before the first call, and the calls."""
    text = reply(messages, tools)
    found = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    return text.split("<tool_call>")[0], [json.loads(call) for call in found]


def tool(name, **schema):
    schema.setdefault("type", "object")
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


WEATHER = tool("get_weather", properties={"city": {"type": "string"}, "unit": {"type": "string"}}, required=["city"])

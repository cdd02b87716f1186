"""OpenAI's Python client against a server of ours: python client.py BASE_URL"""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
ask = {"model": "default", "messages": [{"role": "user", "content": "Which bird hides food?"}], "max_tokens": 12}
block = {"documents": ["Ravens hide food.", {"id": "b", "title": "Owls", "text": "Owls hear well."}], "tessera": {"attention": "block"}}

whole = client.chat.completions.create(**ask, extra_body=block)
assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 12, whole
assert [b["source"] for b in whole.tessera["blocks"]] == ["computed"] * 4, whole.tessera
assert client.chat.completions.create(**ask, extra_body=block).usage.prompt_tokens_details.cached_tokens > 0

text, last = "", None
for chunk in client.chat.completions.create(**ask, extra_body=block, stream=True, stream_options={"include_usage": True}):
    if chunk.choices and chunk.choices[0].delta.content:
        text += chunk.choices[0].delta.content
    last = chunk
assert text == whole.choices[0].message.content and last.usage.completion_tokens == 12 and last.tessera["attention"] == "block", (text, last)

drawn = client.chat.completions.create(**ask, n=2, temperature=1, seed=3, logprobs=True, top_logprobs=2, stop=["\n"])
assert len(drawn.choices) == 2 and len(drawn.choices[0].logprobs.content[0].top_logprobs) == 2, drawn

schema = {"type": "object", "properties": {"bird": {"enum": ["raven", "owl"]}}, "required": ["bird"], "additionalProperties": False}
held = client.chat.completions.create(**{**ask, "max_tokens": 100}, response_format={"type": "json_schema", "json_schema": {"name": "bird", "strict": True, "schema": schema}})
assert held.choices[0].message.content.replace(" ", "").replace("\n", "") in ('{"bird":"raven"}', '{"bird":"owl"}'), held

scored = client.completions.create(model="default", prompt="Ravens", max_tokens=0, echo=True, logprobs=1)
assert scored.choices[0].text == "Ravens" and scored.choices[0].logprobs.token_logprobs[0] is None, scored
assert "".join(c.choices[0].text for c in client.completions.create(model="default", prompt="Ravens", max_tokens=5, stream=True))

assert len(client.completions.create(model="default", prompt=["Ravens", "Owls"], max_tokens=5).choices) == 2

answer = client.responses.create(model="default", input="Which bird hides food?", max_output_tokens=12, extra_body=block)
assert answer.status == "incomplete" and answer.usage.output_tokens == 12 and answer.output_text == whole.choices[0].message.content, answer
with client.responses.stream(model="default", input="Which bird hides food?", max_output_tokens=12, extra_body=block) as events:
    pieces = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(pieces) == answer.output_text, pieces

marked = client.chat.completions.create(**{**ask, "messages": [{"role": "user", "content": "<source id='1'>Ravens hide food.</source> Which bird hides food?"}]}, extra_body={"tessera": {"attention": "block"}})
assert [b["source"] for b in marked.tessera["blocks"]][1] == "ram", marked.tessera

count = {"type": "object", "properties": {"bird": {"enum": ["raven", "owl"]}}, "required": ["bird"], "additionalProperties": False}
tools = {"tools": [{"type": "function", "function": {"name": "count", "description": "how many there are", "parameters": count}}], "tool_choice": "required"}
call = client.chat.completions.create(**{**ask, "max_tokens": 200}, **tools).choices[0]
assert call.finish_reason == "tool_calls" and call.message.tool_calls[0].function.name == "count", call
assert json.loads(call.message.tool_calls[0].function.arguments)["bird"] in ("raven", "owl"), call
with client.chat.completions.stream(**{**ask, "max_tokens": 200}, **tools) as events:
    streamed = events.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.message.tool_calls[0].function.arguments, streamed
turns = ask["messages"] + [call.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.message.tool_calls[0].id, "content": "Seven."}]
answer = client.chat.completions.create(**{**ask, "messages": turns}, tools=tools["tools"])
assert answer.usage.completion_tokens > 0, answer

assert [m.id for m in client.models.list()] == ["tiny-tied"]
for wrong, status in (({"temperature": -1}, 400), ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "x"}}}}, 400)):
    try:
        client.chat.completions.create(**ask, **wrong)
        raise AssertionError(f"{wrong} was taken")
    except openai.APIStatusError as e:
        assert e.status_code == status and e.message, e
try:
    client.models.retrieve("other")
    raise AssertionError("a model that is not there")
except openai.NotFoundError as e:
    assert e.code == "model_not_found", e
print("python", openai.__version__, "ok")

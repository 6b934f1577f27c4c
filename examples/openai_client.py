"""OpenAI's client with the server: python examples/openai_client.py [ADDRESS].

First `gpt2-edge serve --model models/demo-int8` in another terminal, and `pip install openai`.
"""

import sys

from openai import OpenAI

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{address}/v1", api_key="none")  # the key, where the server has one
name = client.models.list().data[0].id

for event in client.completions.create(model=name, prompt="Once upon a time", max_tokens=40, seed=7, stream=True):
    print(event.choices[0].text, end="", flush=True)
print()

# Options that OpenAI does not have go through extra_body.
reply = client.completions.create(
    model=name, prompt="The old king", max_tokens=20, temperature=0.8, logprobs=1, extra_body={"min_p": 0.05}
)
choice = reply.choices[0]
print(choice.text, choice.finish_reason, reply.usage)

"""Several prompts and samples decoded together: python examples/batch.py [MODEL FOLDER]."""

import math
import sys

import runtime

folder = sys.argv[1] if len(sys.argv) > 1 else "models/demo-int8"
prompts = ["One day the fox", "At night the owl", "In the morning the hen"]

with runtime.load(folder) as model:
    # Each text is the one that the prompt would get alone; together they take far less time.
    completions = runtime.complete(prompts, model=model, n=2, temperature=0.9, seed=1, max_new_tokens=24, logprobs=3)

for completion in completions:
    print(f"{prompts[completion.prompt_index]}|{completion.text!r}")
    print(f"  ended by {completion.finish_reason}, log-probability {completion.logprob:.1f}")
    likeliest = [math.exp(logprob) for logprob in completion.top_logprobs[0].values()]
    print("  likeliest first tokens:", ", ".join(f"{probability:.0%}" for probability in likeliest))

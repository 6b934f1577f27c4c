"""The perplexity of every text of a corpus, one a line: python examples/score_corpus.py [MODEL FOLDER] < corpus.txt.

Prints JSON lines with the text's number, its tokens and its perplexity, then the perplexity of all texts together.
"""

import json
import math
import sys

import runtime

folder = sys.argv[1] if len(sys.argv) > 1 else "models/demo-int8"
texts = [line.strip() for line in sys.stdin if line.strip()]
logprob = 0.0
n_tokens = 0

with runtime.load(folder) as model:
    for number, text in enumerate(texts):
        # bos_token_id as context, so that the first token counts and a text of one token has a score.
        # A text that is longer than the model's context needs runtime.score_text, which slides a window over it.
        score = runtime.score(text, model=model)
        logprob += score.logprob
        n_tokens += len(score.ids)
        print(json.dumps({"text": number, "tokens": len(score.ids), "perplexity": round(score.perplexity, 2)}))

if n_tokens:
    print(json.dumps({"tokens": n_tokens, "perplexity": round(math.exp(-logprob / n_tokens), 2)}))

"""Continuations that have a form: python examples/structured_output.py [MODEL FOLDER].

Wants llguidance: pip install -e '.[constrain]'.
"""

import json
import sys

import runtime

folder = sys.argv[1] if len(sys.argv) > 1 else "models/demo-int8"
character = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "animal": {"enum": ["mouse", "fox", "owl"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "animal", "age"],
    "additionalProperties": False,
}

with runtime.load(folder) as model:
    print(runtime.generate("The fox was hungry, so it felt", model=model, choices=[" sad", " happy", " angry"]))
    print(runtime.generate("The king had reigned since", model=model, regex=" 1[0-9]{3}"))
    # The result is always complete JSON of the schema. A small model fills it with little sense.
    text = runtime.generate("The hero of this story: ", model=model, json_schema=character, max_new_tokens=60)
    print(json.loads(text))

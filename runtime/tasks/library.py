"""The tasks of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), section 3.

The example pairs are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from runtime.tasks.answers import first_line, first_sentence, three_sentences
from runtime.tasks.task import By, Task

_ENGLISH = (
    "The house is near the river.",
    "Where is the train station?",
    "My sister is nine years old.",
    "It is raining, so we are staying at home.",
    "I would like a cup of coffee, please.",
    "The children will sing a song tomorrow.",
)
_SPANISH = (
    "La casa está cerca del río.",
    "¿Dónde está la estación de tren?",
    "Mi hermana tiene nueve años.",
    "Está lloviendo, así que nos quedamos en casa.",
    "Quisiera una taza de café, por favor.",
    "Los niños cantarán una canción mañana.",
)
_FRENCH = (
    "La maison est près de la rivière.",
    "Où est la gare ?",
    "Ma sœur a neuf ans.",
    "Il pleut, alors nous restons à la maison.",
    "Je voudrais une tasse de café, s'il vous plaît.",
    "Les enfants chanteront une chanson demain.",
)
TRANSLATIONS = MappingProxyType(
    {
        "Spanish": tuple(zip(_ENGLISH, _SPANISH, strict=True)),
        "French": tuple(zip(_ENGLISH, _FRENCH, strict=True)),
    }
)
QUESTIONS = (
    ("Which ocean is the largest?", "the Pacific Ocean"),
    ("Who wrote Romeo and Juliet?", "William Shakespeare"),
    ("How many days does a leap year have?", "366"),
    ("Lisbon is the capital of which country?", "Portugal"),
    ("What do bees make?", "honey"),
    ("When did people first walk on the moon?", "1969"),
)

_TASKS = (
    Task(
        "summarize",
        "{examples}{text}\nTL;DR:",
        "the first three sentences of 100 sampled tokens; section 3.6",
        fields={"examples": ()},
        pairs={"examples": "{}\nTL;DR: {}\n\n"},
        decoding={"max_new_tokens": 100, "temperature": 1.0, "top_k": 2},
        reads=three_sentences,
        # The probability of a sampled text says how it was drawn, not whether it is right.
        has_confidence=False,
    ),
    Task(
        "translate",
        "{examples}{text} =",
        "from English, or as the pairs of examples show; section 3.7, the instruction from section 2",
        zero_shot="Translate to {to}.\n{text} =",
        fields={"to": "Spanish", "examples": By("to", TRANSLATIONS)},
        pairs={"examples": "{} = {}\n"},
        decoding={"max_new_tokens": 100, "stop": "\n"},
        reads=first_sentence,
    ),
    Task(
        "answer",
        "{examples}Q: {text}\nA:",
        "a question after pairs of questions and answers; section 3.8, the instruction from section 2",
        zero_shot="Answer the question.\nQ: {text}\nA:",
        fields={"examples": QUESTIONS},
        pairs={"examples": "Q: {}\nA: {}\n"},
        decoding={"max_new_tokens": 32, "stop": "\n"},
        reads=first_line,
    ),
    Task(
        "read",
        "{text}\n\n{turns}Q: {question}\nA:",
        "a question about a passage, after the turns of a conversation so far; section 3.5",
        fields={"question": None, "turns": ()},
        pairs={"turns": "Q: {}\nA: {}\n"},
        decoding={"max_new_tokens": 32, "stop": "\n"},
        reads=first_line,
    ),
    Task(
        "choose",
        "{text}",
        "the likeliest of options, which stand at the blank _ or at the end; sections 3.2 and 3.4, Trinh & Le, 2018",
        kind="choose",
    ),
    Task(
        "last_word",
        "{text}",
        "the word that ends a text, no stop word; section 3.3, LAMBADA",
        kind="last_word",
    ),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})

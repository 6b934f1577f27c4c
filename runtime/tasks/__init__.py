"""Zero-shot tasks: P(output | input, task), in plain language."""

from runtime.tasks.library import TASKS
from runtime.tasks.perform import Answer, find_task
from runtime.tasks.task import By, Task

__all__ = ["TASKS", "Answer", "By", "Task", "find_task"]

"""Zero-shot tasks in plain language: P(output | input, task)."""

from runtime.tasks.library import TASKS
from runtime.tasks.perform import Answer, find_task
from runtime.tasks.task import By, Task

__all__ = ["TASKS", "Answer", "By", "Task", "find_task"]
